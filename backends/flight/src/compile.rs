//! A network as a memory image and streams of instructions, one for each bucket of lengths.
//!
//! A decode step keeps every activation in buffers on the chip; loads bring weights, norms, angles and the cache, stores take one row of keys
//! and values and at last the scores. Weights alternate between the halves of their buffers, so that a load overlaps the product before it.
//! Tokens of `wait` and `release` follow from what instructions read and write.

use crate::isa::{CLASSES, Instruction, LD, MISC, MISC_OPS, MV, ST, SYS, mask_bit};
use crate::model::{Matrix, Network, Shape};
use crate::packing::{BLOCK, pack};
use crate::simulate::{A, B, DEPTHS, FSB, GLOBAL, LINE, META, SCALE};

/// Positions that share a stream: FlightLLM's buckets of decode steps.
pub const BUCKET: usize = 16;

/// Lines of the global buffer that an instruction stores.
const MOST_LINES: usize = 1000;

/// Bytes of all streams.
const MOST_BYTES: usize = 1 << 30;

/// A compiled network.
#[derive(Clone, Debug)]
pub struct Program {
    /// The sizes of the network.
    pub shape: Shape,
    /// The epsilon of norms in units of 2^-32.
    pub epsilon: u64,
    /// Memory before the first step.
    pub image: Vec<u8>,
    /// The stream for positions below 16, below 32, and so on.
    pub streams: Vec<Vec<u32>>,
    /// Where scores are left: `vocab` numbers.
    pub scores: usize,
}

impl Program {
    /// Bytes of all streams, and of one for each length.
    pub fn stream_bytes(&self) -> (usize, usize) {
        let bytes = |words: &Vec<u32>| words.len() * 4;
        let shared = self.streams.iter().map(bytes).sum();
        (
            shared,
            (0..self.shape.positions)
                .map(|at| bytes(&self.streams[at / BUCKET]))
                .sum(),
        )
    }
}

/// 16 outputs of a matrix in memory: addresses and lengths, in units of 16 bytes, of data, meta, fsb and scales.
struct Group {
    parts: [(usize, usize); 4],
    bits: usize,
}

struct Placed {
    groups: Vec<Group>,
    blocks: usize,
}

fn place(image: &mut Vec<u8>, bytes: &[u8]) -> (usize, usize) {
    let at = image.len() / 16;
    image.extend(bytes);
    image.resize(image.len().next_multiple_of(64), 0);
    (at, bytes.len().div_ceil(16))
}

fn words(numbers: &[i32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn matrix(image: &mut Vec<u8>, matrix: &Matrix) -> Result<Placed, String> {
    let mut groups = vec![];
    for (at, bits) in matrix.bits.iter().enumerate() {
        let packed = pack(&matrix.rows[at * BLOCK..][..BLOCK], *bits)?;
        let scales = words(&matrix.scale[at * BLOCK..][..BLOCK]);
        let parts =
            [&packed.data, &packed.meta, &packed.fsb, &scales].map(|part| place(image, part));
        groups.push(Group { parts, bits: *bits });
    }
    Ok(Placed {
        groups,
        blocks: matrix.rows[0].len() / BLOCK,
    })
}

/// A range of lines of a buffer.
#[derive(Clone, Copy)]
struct Range {
    buffer: usize,
    start: usize,
    lines: usize,
}

fn range(buffer: usize, start: usize, lines: usize) -> Range {
    Range {
        buffer,
        start,
        lines,
    }
}

/// Rows of caches are no lines of a buffer; they are told apart by layer, keys and values.
const CACHE: usize = DEPTHS.len();

/// Instructions in program order, and what orders them.
struct Emitter {
    stream: Vec<Instruction>,
    /// For each line the last instruction of each class that wrote it, and that read it.
    last: Vec<Vec<[[Option<usize>; 6]; 2]>>,
    /// For each pair of classes the last instruction of the first that the second waited for.
    waited: [[Option<usize>; 6]; 6],
    turn: usize,
}

impl Emitter {
    fn push(
        &mut self,
        class: usize,
        fields: &[(&str, usize)],
        reads: &[Range],
        writes: &[Range],
    ) -> Result<(), String> {
        let at = self.stream.len();
        let mut needs = [None; 6];
        for (write, ranges) in [(false, reads), (true, writes)] {
            for range in ranges {
                let lines = &mut self.last[range.buffer];
                if range.start + range.lines > lines.len() {
                    let (end, depth) = (range.start + range.lines, lines.len());
                    return Err(format!(
                        "buffer {} has {depth} lines, {end} are needed",
                        range.buffer
                    ));
                }
                for line in &mut lines[range.start..][..range.lines] {
                    for other in 0..6 {
                        // A read waits for writes; a write for both.
                        needs[other] = needs[other].max(line[0][other]);
                        if write {
                            needs[other] = needs[other].max(line[1][other]);
                        }
                    }
                    line[usize::from(!write)][class] = Some(at);
                }
            }
        }
        let mut made = Instruction::new(class, fields)?;
        self.order(&mut made, needs)?;
        self.stream.push(made);
        Ok(())
    }

    /// Queues run in order, so waiting for an instruction is waiting for all before it, and needs no second token.
    fn order(&mut self, made: &mut Instruction, needs: [Option<usize>; 6]) -> Result<(), String> {
        let class = made.class;
        for (other, need) in needs.into_iter().enumerate() {
            let (Some(need), Some(bit)) = (need, mask_bit(class, other)) else {
                continue;
            };
            if Some(need) <= self.waited[other][class] {
                continue;
            }
            self.waited[other][class] = Some(need);
            made.set("wait", made.get("wait") | 1 << bit)?;
            if let Some(bit) = mask_bit(other, class) {
                let release = self.stream[need].get("release");
                self.stream[need].set("release", release | 1 << bit)?;
            }
        }
        Ok(())
    }

    fn load(
        &mut self,
        buffer: usize,
        bank: usize,
        (address, length): (usize, usize),
    ) -> Result<(), String> {
        if length == 0 {
            return Ok(());
        }
        // A load has at most 4095 times 16 bytes; the first loop repeats it.
        let rounds = length.div_ceil(4095);
        let mut part = length.div_ceil(rounds);
        while !length.is_multiple_of(part) {
            part -= 1;
        }
        let fields = [
            ("buffer", buffer),
            ("bank", bank),
            ("address", address),
            ("length", part),
            ("count0", length / part - 1),
            ("stride0", part),
        ];
        let lines = (length * 16).div_ceil(LINE[buffer]);
        self.push(LD, &fields, &[], &[range(buffer, bank, lines)])
    }

    fn indexed(
        &mut self,
        index: usize,
        bank: usize,
        address: usize,
        length: usize,
    ) -> Result<(), String> {
        let fields = [
            ("buffer", GLOBAL),
            ("bank", bank),
            ("address", address),
            ("length", length),
            ("stride0", length),
            ("index", index),
        ];
        let lines = (length * 16).div_ceil(LINE[GLOBAL]);
        self.push(LD, &fields, &[], &[range(GLOBAL, bank, lines)])
    }

    fn misc(
        &mut self,
        op: &str,
        k: usize,
        at: [usize; 3],
        reads: &[Range],
        write: Range,
    ) -> Result<(), String> {
        let op = MISC_OPS
            .iter()
            .position(|name| *name == op)
            .ok_or("an unknown operation")?;
        let fields = [
            ("op", op),
            ("k", k),
            ("a", at[0]),
            ("b", at[1]),
            ("out", at[2]),
        ];
        self.push(MISC, &fields, reads, &[write])
    }

    /// A vector in the global buffer to codes in buffer A.
    fn quant(&mut self, from: usize, k: usize, to: usize) -> Result<(), String> {
        self.misc(
            "quant",
            k,
            [from, 0, to],
            &[range(GLOBAL, from, k)],
            range(A, to, k + 1),
        )
    }

    fn product(&mut self, placed: &Placed, a: usize, out: usize) -> Result<(), String> {
        for (at, group) in placed.groups.iter().enumerate() {
            let half = |buffer: usize| self.turn % 2 * (DEPTHS[buffer] / 2);
            let banks = [half(B), half(META), half(FSB), half(SCALE)];
            self.turn += 1;
            let mut reads = vec![range(A, a, placed.blocks + 1)];
            for ((buffer, bank), part) in [B, META, FSB, SCALE]
                .into_iter()
                .zip(banks)
                .zip(group.parts)
            {
                let lines = (part.1 * 16).div_ceil(LINE[buffer]);
                if lines > DEPTHS[buffer] / 2 {
                    return Err(format!(
                        "{lines} lines of weights do not fit half of buffer {buffer}"
                    ));
                }
                self.load(buffer, bank, part)?;
                reads.push(range(buffer, bank, lines));
            }
            let fields = [
                ("k", placed.blocks),
                ("bits", group.bits),
                ("sparse", usize::from(group.parts[1].1 > 0)),
                ("a", a),
                ("b", banks[0]),
                ("meta", banks[1]),
                ("fsb", banks[2]),
                ("scale", banks[3]),
                ("out", out + at),
            ];
            self.push(MV, &fields, &reads, &[range(GLOBAL, out + at, 1)])?;
        }
        Ok(())
    }
}

/// Compiles a network.
///
/// # Errors
/// Something is larger than the buffers or than a field of an instruction.
pub fn compile(network: &Network) -> Result<Program, String> {
    let shape = &network.shape;
    let mut image = vec![];
    let mut matrices = vec![];
    let mut gains = vec![];
    for layer in &network.layers {
        let of = [
            &layer.q,
            &layer.k,
            &layer.v,
            &layer.o,
            &layer.gate,
            &layer.up,
            &layer.down,
        ];
        let placed: Result<Vec<Placed>, String> =
            of.iter().map(|m| matrix(&mut image, m)).collect();
        matrices.push(placed?);
        gains
            .push([&layer.attention_norm, &layer.inner_norm].map(|g| place(&mut image, &words(g))));
    }
    let head = matrix(&mut image, &network.head)?;
    let norm = place(&mut image, &words(&network.norm));
    let table = |image: &mut Vec<u8>, rows: &[Vec<i32>]| place(image, &words(&rows.concat())).0;
    let embedding = table(&mut image, &network.embedding);
    let angles = table(&mut image, &network.angles);
    let kv = shape.kv_heads * shape.head_dim / BLOCK;
    let positions = shape.positions.next_multiple_of(BUCKET);
    let cache = image.len() / 16;
    let scores = cache + shape.layers * 2 * positions * (kv + 1);
    image.resize((scores + shape.vocab.next_multiple_of(BLOCK) / 4) * 16, 0);

    let (h, inner, q) = (
        shape.hidden.div_ceil(BLOCK),
        shape.inner.div_ceil(BLOCK),
        shape.heads * shape.head_dim / BLOCK,
    );
    let mut streams = vec![];
    for length in (BUCKET..=positions).step_by(BUCKET) {
        // Where vectors lie in the global buffer, and codes in A.
        let mut free = 0;
        let mut lines = |count: usize| {
            free += count;
            free - count
        };
        let (x, normed, gain, turns) = (
            lines(h),
            lines(h),
            lines(h),
            lines(shape.head_dim.div_ceil(BLOCK)),
        );
        let (query, key, value, sum, mixed) = (lines(q), lines(kv), lines(kv), lines(h), lines(q));
        let (gate, up, act) = (lines(inner), lines(inner), lines(inner));
        let (weights, result) = (
            lines(shape.heads * length / BLOCK),
            lines(shape.vocab.div_ceil(BLOCK)),
        );
        let (codes, query_codes, row_codes) =
            (0, h.max(q).max(inner) + 1, h.max(q).max(inner) + q + 2);
        let depths = DEPTHS.iter().copied().chain([2 * shape.layers]);
        let mut e = Emitter {
            stream: vec![],
            last: depths.map(|depth| vec![[[None; 6]; 2]; depth]).collect(),
            waited: [[None; 6]; 6],
            turn: 0,
        };
        e.indexed(2, x, embedding, h * 4)?;
        e.indexed(1, turns, angles, shape.head_dim / 4)?;
        let turns_range = range(GLOBAL, turns, shape.head_dim.div_ceil(BLOCK));
        let normalize = |e: &mut Emitter, part: (usize, usize)| {
            e.load(GLOBAL, gain, part)?;
            let reads = [range(GLOBAL, x, h), range(GLOBAL, gain, h)];
            e.misc(
                "rms_norm",
                h,
                [x, gain, normed],
                &reads,
                range(GLOBAL, normed, h),
            )?;
            e.quant(normed, h, codes)
        };
        let add = |e: &mut Emitter| {
            let reads = [range(GLOBAL, x, h), range(GLOBAL, sum, h)];
            e.misc("add", h, [x, sum, x], &reads, range(GLOBAL, x, h))
        };
        let heads = range(GLOBAL, weights, shape.heads * length / BLOCK);
        for (layer, of) in matrices.iter().enumerate() {
            let [to_q, to_k, to_v, to_o, to_gate, to_up, to_down] = &of[..] else {
                return Err("a layer has seven matrices".to_owned());
            };
            normalize(&mut e, gains[layer][0])?;
            e.product(to_q, codes, query)?;
            e.product(to_k, codes, key)?;
            e.product(to_v, codes, value)?;
            for (at, k) in [(query, q), (key, kv)] {
                e.misc(
                    "rope",
                    k,
                    [at, turns, at],
                    &[range(GLOBAL, at, k), turns_range],
                    range(GLOBAL, at, k),
                )?;
            }
            e.quant(query, q, query_codes)?;
            for (part, from) in [(0, key), (1, value)] {
                let rows = cache + (layer * 2 + part) * positions * (kv + 1);
                let resource = range(CACHE, layer * 2 + part, 1);
                e.quant(from, kv, row_codes)?;
                let store = [
                    ("buffer", A),
                    ("bank", row_codes),
                    ("address", rows),
                    ("length", kv + 1),
                    ("indexed", 1),
                    ("stride", kv + 1),
                ];
                e.push(ST, &store, &[range(A, row_codes, kv + 1)], &[resource])?;
                // The cache takes the place of weights, whose buffer is idle.
                let all = range(B, 0, length * (kv + 1));
                let load = [
                    ("buffer", B),
                    ("address", rows),
                    ("length", kv + 1),
                    ("count0", length - 1),
                    ("stride0", kv + 1),
                ];
                e.push(LD, &load, &[resource], &[all])?;
                if part == 0 {
                    let reads = [range(A, query_codes, q + 1), all];
                    e.misc(
                        "score",
                        length / BLOCK,
                        [query_codes, 0, weights],
                        &reads,
                        heads,
                    )?;
                    e.misc(
                        "softmax",
                        length / BLOCK,
                        [weights, 0, weights],
                        &[heads],
                        heads,
                    )?;
                } else {
                    let at = [weights, 0, mixed];
                    e.misc(
                        "mix",
                        length / BLOCK,
                        at,
                        &[heads, all],
                        range(GLOBAL, mixed, q),
                    )?;
                }
            }
            e.quant(mixed, q, codes)?;
            e.product(to_o, codes, sum)?;
            add(&mut e)?;
            normalize(&mut e, gains[layer][1])?;
            e.product(to_gate, codes, gate)?;
            e.product(to_up, codes, up)?;
            let reads = [range(GLOBAL, gate, inner), range(GLOBAL, up, inner)];
            e.misc(
                "silu_mul",
                inner,
                [gate, up, act],
                &reads,
                range(GLOBAL, act, inner),
            )?;
            e.quant(act, inner, codes)?;
            e.product(to_down, codes, sum)?;
            add(&mut e)?;
        }
        normalize(&mut e, norm)?;
        e.product(&head, codes, result)?;
        let lines = shape.vocab.div_ceil(BLOCK);
        // As many at a time as an instruction can say.
        for first in (0..lines).step_by(MOST_LINES) {
            let lines = MOST_LINES.min(lines - first);
            let store = [
                ("buffer", GLOBAL),
                ("bank", result + first),
                ("address", scores + first * 4),
                ("length", lines * 4),
            ];
            e.push(ST, &store, &[range(GLOBAL, result + first, lines)], &[])?;
        }
        let last = e.stream.len() - 1;
        let mut end = Instruction::new(SYS, &[])?;
        e.order(
            &mut end,
            std::array::from_fn(|class| (class == ST).then_some(last)),
        )?;
        e.stream.push(end);
        let mut encoded = Vec::with_capacity(e.stream.len() * CLASSES[LD].words);
        e.stream.iter().for_each(|made| made.encode(&mut encoded));
        let all = (encoded.len() * 4).saturating_mul(shape.positions.div_ceil(BUCKET));
        if all > MOST_BYTES {
            return Err(format!(
                "instructions for {} positions would take about {all} bytes, more than {MOST_BYTES}; a smaller \
                 `max_position_embeddings` needs fewer",
                shape.positions
            ));
        }
        streams.push(encoded);
    }
    Ok(Program {
        shape: shape.clone(),
        epsilon: network.epsilon(),
        image,
        streams,
        scores,
    })
}
