//! Executes encoded streams on a memory image.
//!
//! Six queues run in order; nothing but the tokens of `wait` and `release` orders them against each other. [`Machine::priority`] says whose
//! turn comes first, so that a stream with a token missing gives other results, or none.

use crate::arith;
use crate::compile::{BUCKET, Program};
use crate::isa::{CLASSES, Instruction, LD, MISC, MISC_OPS, MM, MV, ST, decode, mask_bit};
use crate::packing::{BLOCK, visit};

/// Buffer of codes of weights, and of rows of the cache.
pub const B: usize = 0;
/// Buffer of indices of kept weights.
pub const META: usize = 1;
/// Buffer of the N of blocks.
pub const FSB: usize = 2;
/// Buffer of scales of outputs.
pub const SCALE: usize = 3;
/// Buffer of vectors of codes: a line whose first four bytes are the scale, then the codes.
pub const A: usize = 4;
/// Buffer of vectors of numbers, 16 in a line.
pub const GLOBAL: usize = 5;

/// Lines of each buffer.
pub const DEPTHS: [usize; 6] = [32768, 16384, 256, 2, 4096, 16384];
/// Bytes of a line of each buffer.
pub const LINE: [usize; 6] = [16, 16, 16, 64, 16, 64];

/// A machine with a program in its memory.
#[derive(Debug)]
pub struct Machine<'p> {
    program: &'p Program,
    streams: Vec<Vec<Instruction>>,
    memory: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    /// Classes in the order in which they are asked for something to do.
    pub priority: [usize; 6],
}

fn slice(bytes: &[u8], start: usize, len: usize) -> Result<&[u8], String> {
    let found = start.checked_add(len).and_then(|end| bytes.get(start..end));
    found.ok_or_else(|| format!("bytes {start} to {start}+{len} are beyond {}", bytes.len()))
}

fn numbers(bytes: &[u8]) -> Vec<i32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| i32::from_le_bytes(*b))
        .collect()
}

/// A vector of codes from its scale on.
fn codes(bytes: &[u8]) -> (i32, &[u8]) {
    (
        i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        &bytes[16..],
    )
}

impl<'p> Machine<'p> {
    /// A machine before the first token.
    ///
    /// # Errors
    /// A stream holds what is no instruction.
    pub fn new(program: &'p Program) -> Result<Self, String> {
        let streams: Result<Vec<_>, String> =
            program.streams.iter().map(|words| decode(words)).collect();
        Ok(Machine {
            program,
            streams: streams?,
            memory: program.image.clone(),
            buffers: DEPTHS
                .iter()
                .zip(LINE)
                .map(|(depth, line)| vec![0; depth * line])
                .collect(),
            priority: [0, 1, 2, 3, 4, 5],
        })
    }

    /// Runs the stream for a position; the scores of what may follow `token`.
    ///
    /// # Errors
    /// There is no such token or position; an access is out of range; queues wait for each other, or tokens are left over.
    pub fn step(&mut self, token: usize, position: usize) -> Result<Vec<i32>, String> {
        let shape = &self.program.shape;
        if token >= shape.vocab || position >= shape.positions {
            return Err(format!("there is no token {token} at position {position}"));
        }
        let streams = std::mem::take(&mut self.streams);
        let result = self.run(&streams[position / BUCKET], token, position);
        self.streams = streams;
        result?;
        Ok(numbers(slice(
            &self.memory,
            self.program.scores * 16,
            shape.vocab * 4,
        )?))
    }

    fn run(&mut self, stream: &[Instruction], token: usize, position: usize) -> Result<(), String> {
        let mut queues: [Vec<usize>; 6] = Default::default();
        stream
            .iter()
            .enumerate()
            .for_each(|(at, made)| queues[made.class].push(at));
        let mut next = [0; 6];
        let mut tokens = [[0usize; 6]; 6];
        loop {
            let ready = self.priority.into_iter().find(|class| {
                let at = queues[*class].get(next[*class]);
                at.is_some_and(|at| {
                    let wait = stream[*at].get("wait");
                    (0..6).all(|o| {
                        mask_bit(*class, o)
                            .is_none_or(|b| wait >> b & 1 == 0 || tokens[o][*class] > 0)
                    })
                })
            });
            let Some(class) = ready else { break };
            let at = queues[class][next[class]];
            let made = &stream[at];
            let failed = |reason: String| format!("instruction {at}, `{}`: {reason}", made.text());
            self.execute(made, token, position).map_err(failed)?;
            for (other, bit) in (0..6).filter_map(|o| Some((o, mask_bit(class, o)?))) {
                tokens[other][class] -= made.get("wait") >> bit & 1;
                tokens[class][other] += made.get("release") >> bit & 1;
            }
            next[class] += 1;
        }
        if let Some(class) = (0..6).find(|class| next[*class] < queues[*class].len()) {
            let at = queues[class][next[class]];
            return Err(format!(
                "deadlock: instruction {at}, `{}`, waits for ever",
                stream[at].text()
            ));
        }
        match tokens.iter().flatten().all(|count| *count == 0) {
            true => Ok(()),
            false => Err("tokens were released that nothing waits for".to_owned()),
        }
    }

    fn execute(&mut self, made: &Instruction, token: usize, position: usize) -> Result<(), String> {
        match made.class {
            LD => self.load(made, token, position),
            ST => {
                let (buffer, length) = (made.get("buffer"), made.get("length") * 16);
                let line = LINE.get(buffer).ok_or("there is no such buffer")?;
                let to = made.get("address") + made.get("indexed") * position * made.get("stride");
                let from = slice(&self.buffers[buffer], made.get("bank") * line, length)?;
                slice(&self.memory, to * 16, length)?;
                self.memory[to * 16..][..length].copy_from_slice(from);
                Ok(())
            }
            MM => (0..BLOCK).try_for_each(|row| self.product(made, row)),
            MV => self.product(made, 0),
            MISC => self.special(made, position),
            _ => Ok(()),
        }
    }

    fn load(&mut self, made: &Instruction, token: usize, position: usize) -> Result<(), String> {
        let (buffer, length) = (made.get("buffer"), made.get("length") * 16);
        let line = LINE.get(buffer).ok_or("there is no such buffer")?;
        let index = match made.get("index") {
            0 => 0,
            1 => position,
            2 => token,
            other => return Err(format!("there is no register {other}")),
        };
        let mut to = made.get("bank") * line;
        for i2 in 0..=made.get("count2") {
            for i1 in 0..=made.get("count1") {
                for i0 in 0..=made.get("count0") {
                    let from = made.get("address")
                        + (i0 + index) * made.get("stride0")
                        + i1 * made.get("stride1")
                        + i2 * made.get("stride2");
                    slice(&self.buffers[buffer], to, length)?;
                    let target = &mut self.buffers[buffer][to..][..length];
                    match made.get("fill") {
                        0 => target.copy_from_slice(slice(&self.memory, from * 16, length)?),
                        _ => target.fill(0),
                    }
                    to += length;
                }
            }
        }
        Ok(())
    }

    /// Row `row` of 16 outputs: vectors of codes follow one another in A, results in the global buffer.
    fn product(&mut self, made: &Instruction, row: usize) -> Result<(), String> {
        let k = made.get("k");
        let at = |buffer: usize, field: &str| made.get(field) * LINE[buffer];
        let rest = |buffer: usize, field: &str| {
            let start = at(buffer, field);
            self.buffers[buffer]
                .get(start..)
                .ok_or_else(|| format!("`{field}` is beyond buffer {buffer}"))
        };
        let vector = slice(
            &self.buffers[A],
            at(A, "a") + row * (k + 1) * 16,
            (k + 1) * 16,
        )?;
        let (largest, vector) = codes(vector);
        let scale = numbers(slice(&self.buffers[SCALE], at(SCALE, "scale"), 64)?);
        let mut sums = [0i64; BLOCK];
        let parts = (rest(B, "b")?, rest(META, "meta")?, rest(FSB, "fsb")?);
        visit(parts, made.get("bits"), k, |output, input, code| {
            sums[output] += i64::from(code) * i64::from(vector[input] as i8);
        })?;
        let relu = |y: i32| if made.get("relu") == 1 { y.max(0) } else { y };
        let out = sums
            .iter()
            .zip(scale)
            .map(|(sum, scale)| relu(arith::rescale(*sum, largest, scale)));
        let out: Vec<i32> = out.collect();
        self.put(made.get("out") + row, &out)
    }

    fn vector(&self, line: usize, k: usize) -> Result<Vec<i32>, String> {
        Ok(numbers(slice(&self.buffers[GLOBAL], line * 64, k * 64)?))
    }

    fn put(&mut self, line: usize, numbers: &[i32]) -> Result<(), String> {
        slice(&self.buffers[GLOBAL], line * 64, numbers.len() * 4)?;
        let target = &mut self.buffers[GLOBAL][line * 64..][..numbers.len() * 4];
        for (bytes, number) in target.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
            *bytes = number.to_le_bytes();
        }
        Ok(())
    }

    fn special(&mut self, made: &Instruction, position: usize) -> Result<(), String> {
        let shape = &self.program.shape;
        let (k, a, b, out) = (made.get("k"), made.get("a"), made.get("b"), made.get("out"));
        let (dim, heads) = (shape.head_dim, shape.heads);
        let (group, row) = (heads / shape.kv_heads, shape.kv_heads * dim + 16);
        match MISC_OPS[made.get("op")] {
            "add" => {
                let (x, y) = (self.vector(a, k)?, self.vector(b, k)?);
                let sums: Vec<i32> = x
                    .iter()
                    .zip(&y)
                    .map(|(x, y)| x.saturating_add(*y))
                    .collect();
                self.put(out, &sums)
            }
            "silu_mul" => {
                let (x, y) = (self.vector(a, k)?, self.vector(b, k)?);
                let made: Vec<i32> = x
                    .iter()
                    .zip(&y)
                    .map(|(x, y)| arith::silu_mul(*x, *y))
                    .collect();
                self.put(out, &made)
            }
            "rms_norm" => {
                let (x, gain) = (self.vector(a, k)?, self.vector(b, k)?);
                if shape.hidden > x.len() {
                    return Err(format!("the norm is over {} numbers", shape.hidden));
                }
                self.put(
                    out,
                    &arith::rms_norm(&x, &gain, shape.hidden, self.program.epsilon),
                )
            }
            "rope" => {
                let mut x = self.vector(a, k)?;
                let table = self.vector(b, dim.div_ceil(BLOCK))?;
                for head in x.chunks_exact_mut(dim) {
                    for i in 0..dim / 2 {
                        let pair = (head[i], head[i + dim / 2]);
                        (head[i], head[i + dim / 2]) =
                            arith::turn(pair, table[i], table[i + dim / 2]);
                    }
                }
                self.put(out, &x)
            }
            "quant" => {
                let (codes, largest) = arith::quant(&self.vector(a, k)?);
                slice(&self.buffers[A], out * 16, (k + 1) * 16)?;
                let target = &mut self.buffers[A][out * 16..][..(k + 1) * 16];
                target[..16].fill(0);
                target[..4].copy_from_slice(&largest.to_le_bytes());
                target[16..]
                    .iter_mut()
                    .zip(codes)
                    .for_each(|(byte, code)| *byte = code as u8);
                Ok(())
            }
            "score" => {
                let (query, q) = codes(slice(&self.buffers[A], a * 16, heads * dim + 16)?);
                let root = arith::root((dim as u64) << 32) as i64;
                let rows = slice(&self.buffers[B], b * 16, k * BLOCK * row)?;
                let mut scores = Vec::with_capacity(heads * k * BLOCK);
                for head in 0..heads {
                    for bytes in rows.chunks_exact(row) {
                        let (key, codes) = codes(bytes);
                        let pairs = q[head * dim..][..dim]
                            .iter()
                            .zip(&codes[head / group * dim..]);
                        let sum = pairs
                            .map(|(x, y)| i64::from(*x as i8) * i64::from(*y as i8))
                            .sum();
                        scores.push(arith::score(sum, query, key, root));
                    }
                }
                self.put(out, &scores)
            }
            "softmax" => {
                let mut scores = self.vector(a, k * heads)?;
                if position >= k * BLOCK {
                    return Err(format!("position {position} is beyond {k} times 16"));
                }
                scores
                    .chunks_exact_mut(k * BLOCK)
                    .for_each(|row| arith::softmax(row, position + 1));
                self.put(out, &scores)
            }
            "mix" => {
                let p = self.vector(a, k * heads)?;
                let rows = slice(&self.buffers[B], b * 16, k * BLOCK * row)?;
                let mut mixed = Vec::with_capacity(heads * dim);
                for head in 0..heads {
                    for i in 0..dim {
                        let one = |(p, bytes): (&i32, &[u8])| {
                            let (value, codes) = codes(bytes);
                            arith::part(*p, codes[head / group * dim + i] as i8, value)
                        };
                        let p = &p[head * k * BLOCK..][..k * BLOCK];
                        mixed.push(arith::mixed(
                            p.iter().zip(rows.chunks_exact(row)).map(one).sum(),
                        ));
                    }
                }
                self.put(out, &mixed)
            }
            other => Err(format!("{} has no `{other}`", CLASSES[MISC].name)),
        }
    }
}
