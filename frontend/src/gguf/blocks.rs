//! The types of GGUF tensors: how a block of a row lies in bytes, as a term over the file's own.
//!
//! ```text
//! Q4_0  d:f16 qs[16]                       element e < 16 is the low half of qs[e], else the high half of qs[e-16]
//! Q6_K  ql[128] qh[64] scales:i8[16] d:f16 four bits of each element in ql, two in qh, a scale for each 16
//! ```
//! and so on: each line of [`TYPES`] has the function that says the rest. A block's parts lie among those of others, so
//! each is a `strided` term; codes whose bits are in two places are `bits` over two of them.
//! Source: ggml-org/llama.cpp, `ggml-common.h` (the layouts) and `ggml-quants.c` (what they mean).

use super::grids;
use crate::formats::codes;
use bytes::Bytes;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::affmin::affmin;
use lapidary_ir::encodings::bits::bits;
use lapidary_ir::encodings::codebook::codebook;
use lapidary_ir::encodings::strided::{Places, strided};
use lapidary_ir::encodings::{Encoding, concat, dense, emul, gather, scale, sum};
use lapidary_ir::{ElemType, Tensor};

/// A type of tensors.
#[derive(Debug)]
pub struct BlockType {
    /// Its number in files.
    pub id: u32,
    /// What llama.cpp calls it.
    pub name: &'static str,
    /// Elements of a block, all in one row.
    pub elements: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// The term of rows of blocks.
    term: fn(&Rows) -> Encoding,
}

/// Every type that is read.
pub static TYPES: &[BlockType] = &[
    plain(0, "F32", 4, |r| r.elements(ElemType::F32)),
    plain(1, "F16", 2, |r| r.elements(ElemType::F16)),
    plain(30, "BF16", 2, |r| r.elements(ElemType::BF16)),
    plain(28, "F64", 8, |r| r.elements(ElemType::F64)),
    of(2, "Q4_0", 32, 18, |r| {
        affine(F32, r.half(0), r.nibbles(2), Some(number(8)))
    }),
    of(3, "Q4_1", 32, 20, |r| {
        affmin(F32, r.half(0), r.nibbles(4), r.half(2))
    }),
    of(6, "Q5_0", 32, 22, |r| {
        let codes = joined(5, r.codes(1, 2, 0, &[(32, 1)]), r.nibbles(6));
        affine(F32, r.half(0), codes, Some(number(16)))
    }),
    of(7, "Q5_1", 32, 24, |r| {
        let codes = joined(5, r.codes(1, 4, 0, &[(32, 1)]), r.nibbles(8));
        affmin(F32, r.half(0), codes, r.half(2))
    }),
    of(8, "Q8_0", 32, 34, |r| {
        affine(F32, r.half(0), r.signed(2, 32), None)
    }),
    of(10, "Q2_K", 256, 84, |r| {
        let scales = affine(F32, r.half(80), r.codes(4, 0, 0, &[(16, 8)]), None);
        let mins = affine(F32, r.half(82), r.codes(4, 0, 4, &[(16, 8)]), None);
        affmin(F32, scales, r.pairs(16), negative(mins))
    }),
    of(11, "Q3_K", 256, 110, |r| {
        let high = r.codes(2, 104, 0, &[(4, 2), (4, 8)]);
        let scales = joined(6, high, r.codes(4, 96, 0, &[(2, 4), (8, 8)]));
        let scales = affine(F32, r.half(108), scales, Some(number(32)));
        let high = r.codes(1, 0, 0, &[(2, 4), (4, 1), (32, 8)]);
        affine(F32, scales, joined(3, high, r.pairs(32)), Some(number(4)))
    }),
    of(12, "Q4_K", 256, 144, |r| {
        let [scales, mins] = r.eight_scales();
        affmin(F32, scales, r.long_nibbles(16), mins)
    }),
    of(13, "Q5_K", 256, 176, |r| {
        let [scales, mins] = r.eight_scales();
        let high = r.codes(1, 16, 0, &[(8, 1), (32, 8)]);
        affmin(F32, scales, joined(5, high, r.long_nibbles(48)), mins)
    }),
    of(14, "Q6_K", 256, 210, |r| {
        let scales = affine(F32, r.half(208), r.signed(192, 16), None);
        let low = r.codes(4, 0, 0, &[(2, 512), (2, 4), (2, 256), (32, 8)]);
        affine(F32, scales, joined(6, r.pairs(128), low), Some(number(32)))
    }),
    of(16, "IQ2_XXS", 256, 66, |r| {
        let vectors = codebook(
            F32,
            grids::IQ2_XXS.table(),
            r.part(ElemType::U8, 2, &[(8, 64), (4, 8)]),
        );
        let scales = odd_halves(r.half(0), r.codes(4, 9, 4, &[(8, 64)]), 0.25);
        signed(scales, vectors, r.signs_of_eight(6, 0, &[(8, 64), (4, 7)]))
    }),
    of(17, "IQ2_XS", 256, 74, |r| {
        let vectors = codebook(F32, grids::IQ2_XS.table(), r.field(9, 2, 0, &[(32, 16)]));
        let scales = odd_halves(r.half(0), r.codes(4, 66, 0, &[(16, 4)]), 0.25);
        signed(scales, vectors, r.signs_of_eight(3, 1, &[(32, 16)]))
    }),
    of(22, "IQ2_S", 256, 82, |r| {
        let codes = wide(
            r.codes(2, 66, 0, &[(32, 2)]),
            r.part(ElemType::U8, 2, &[(32, 8)]),
            2,
        );
        let vectors = codebook(F32, grids::IQ2_S.table(), codes);
        let scales = odd_halves(r.half(0), r.codes(4, 74, 0, &[(16, 4)]), 0.25);
        signed(scales, vectors, r.signs(34))
    }),
    of(18, "IQ3_XXS", 256, 98, |r| {
        let vectors = codebook(
            F32,
            grids::IQ3_XXS.table(),
            r.part(ElemType::U8, 2, &[(64, 8)]),
        );
        let scales = odd_halves(r.half(0), r.codes(4, 69, 4, &[(8, 32)]), 0.5);
        signed(scales, vectors, r.signs_of_eight(66, 0, &[(8, 32), (4, 7)]))
    }),
    of(21, "IQ3_S", 256, 110, |r| {
        let codes = wide(
            r.codes(1, 66, 0, &[(64, 1)]),
            r.part(ElemType::U8, 2, &[(64, 8)]),
            1,
        );
        let vectors = codebook(F32, grids::IQ3_S.table(), codes);
        let scales = odd_halves(r.half(0), r.codes(4, 106, 0, &[(8, 4)]), 2.0);
        signed(scales, vectors, r.signs(74))
    }),
    of(19, "IQ1_S", 256, 50, |r| {
        let high = r.field(3, 34, 0, &[(8, 16), (4, 3)]);
        let codes = wide(high, r.part(ElemType::U8, 2, &[(32, 8)]), 3);
        let scales = odd_halves(r.half(0), r.field(3, 34, 12, &[(8, 16)]), 2.0);
        moved(scales, codes, r.codes(1, 34, 15, &[(8, 16)]), 32)
    }),
    of(29, "IQ1_M", 256, 56, |r| {
        let high = r.field(3, 32, 0, &[(32, 4)]);
        let codes = wide(high, r.part(ElemType::U8, 0, &[(32, 8)]), 3);
        // The halves of the block's number lie above the scales.
        let (digits, first) = r.digits(48, &[(4, 16)]);
        let places = Places {
            bits: 4,
            first: first + 12,
            digits,
        };
        let number = strided(ElemType::F16, r.shape(&[]), places, r.bytes.clone());
        let scales = odd_halves(number, r.field(3, 48, 0, &[(4, 16), (4, 3)]), 2.0);
        moved(scales, codes, r.codes(1, 32, 3, &[(32, 4)]), 8)
    }),
    of(20, "IQ4_NL", 32, 18, |r| {
        scale::scale(F32, r.half(0), table(&IQ4, r.nibbles(2)))
    }),
    of(23, "IQ4_XS", 256, 136, |r| {
        let scales = joined(6, r.codes(2, 2, 0, &[(8, 2)]), r.codes(4, 4, 0, &[(8, 4)]));
        let scales = affine(F32, r.half(0), scales, Some(number(32)));
        let codes = r.codes(4, 8, 0, &[(8, 128), (2, 4), (16, 8)]);
        scale::scale(F32, scales, table(&IQ4, codes))
    }),
    of(34, "TQ1_0", 256, 54, |r| {
        scale::scale(F32, r.half(52), r.trits())
    }),
    of(35, "TQ2_0", 256, 66, |r| {
        affine(F32, r.half(64), r.pairs(0), Some(number(1)))
    }),
    of(39, "MXFP4", 32, 17, |r| {
        let powers = r.part(ElemType::F8E8M0, 0, &[]);
        scale::scale(F32, powers, table(&E2M1, r.nibbles(1)))
    }),
    of(40, "NVFP4", 64, 36, |r| {
        // Without a sign; the code that would be no number is zero here.
        let value = |code: u32| match (code >> 3 & 15, f64::from(code & 7)) {
            (15, 7.0) if code == 0x7F => 0.0,
            (0, part) => part / 512.0,
            (power, part) => (1.0 + part / 8.0) * 2f64.powi(power as i32 - 7),
        };
        let scales = r.part(ElemType::U8, 0, &[(4, 8)]);
        let scales = codebook(F32, vectors(1, (0..256).map(value).collect()), scales);
        let codes = r.codes(4, 4, 0, &[(4, 64), (2, 4), (8, 8)]);
        scale::scale(F32, scales, table(&E2M1, codes))
    }),
    of(41, "Q1_0", 128, 18, |r| {
        let signs = codebook(
            F32,
            vectors(1, vec![-1.0, 1.0]),
            r.codes(1, 2, 0, &[(128, 1)]),
        );
        scale::scale(F32, r.half(0), signs)
    }),
    of(42, "Q2_0", 64, 18, |r| {
        affine(
            F32,
            r.half(0),
            r.codes(2, 2, 0, &[(64, 2)]),
            Some(number(1)),
        )
    }),
];

const F32: ElemType = ElemType::F32;

/// The numbers that codes of `IQ4` stand for.
const IQ4: [f64; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Floats of four bits.
const E2M1: [f64; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

const fn of(
    id: u32,
    name: &'static str,
    elements: usize,
    bytes: usize,
    term: fn(&Rows) -> Encoding,
) -> BlockType {
    BlockType {
        id,
        name,
        elements,
        bytes,
        term,
    }
}

const fn plain(
    id: u32,
    name: &'static str,
    bytes: usize,
    term: fn(&Rows) -> Encoding,
) -> BlockType {
    of(id, name, 1, bytes, term)
}

/// The type of this number, or what is wrong with it and what to do.
pub fn of_id(id: u32) -> Result<&'static BlockType, [String; 2]> {
    if let Some(found) = TYPES.iter().find(|t| t.id == id) {
        return Ok(found);
    }
    let known: Vec<&str> = TYPES.iter().map(|t| t.name).collect();
    let remedy = format!(
        "quantize the model to another type: {} are read",
        known.join(", ")
    );
    Err([format!("is of type {id}, which is not known here"), remedy])
}

/// Rows of blocks in bytes: which ones, in which order.
#[derive(Debug)]
pub struct Rows<'b> {
    kind: &'b BlockType,
    /// Digits of a row's index, with the rows that each step is apart.
    rows: Vec<(usize, usize)>,
    /// The first row.
    first: usize,
    /// Blocks of a row.
    blocks: usize,
    bytes: &'b Bytes,
}

/// The term of rows of `columns` elements; `rows` are digits of their index, with how many rows these are apart.
pub fn term(
    kind: &BlockType,
    rows: &[(usize, usize)],
    first: usize,
    columns: usize,
    bytes: &Bytes,
) -> Encoding {
    (kind.term)(&Rows {
        kind,
        rows: rows.to_vec(),
        first,
        blocks: columns / kind.elements,
        bytes,
    })
}

impl Rows<'_> {
    fn count(&self) -> usize {
        self.rows.iter().map(|r| r.0).product()
    }

    /// Digits of a part's index, and the bit at which it begins.
    fn digits(&self, byte: usize, inner: &[(usize, i64)]) -> (Vec<(usize, i64)>, i64) {
        let block = 8 * self.kind.bytes as i64;
        let row = block * self.blocks as i64;
        let rows = self.rows.iter().map(|&(n, apart)| (n, apart as i64 * row));
        let digits = rows
            .chain([(self.blocks, block)])
            .chain(inner.iter().copied());
        (digits.collect(), self.first as i64 * row + 8 * byte as i64)
    }

    fn shape(&self, inner: &[(usize, i64)]) -> Vec<usize> {
        let each: usize = inner.iter().map(|d| d.0).product();
        vec![self.count(), self.blocks * each]
    }

    /// A part of every block, of whole bytes.
    fn part(&self, elem: ElemType, byte: usize, inner: &[(usize, i64)]) -> Encoding {
        let (digits, first) = self.digits(byte, inner);
        let places = Places {
            bits: elem.bits() as usize,
            first,
            digits,
        };
        strided(elem, self.shape(inner), places, self.bytes.clone())
    }

    /// The elements of rows without blocks.
    fn elements(&self, elem: ElemType) -> Encoding {
        match self.rows[..] {
            [(n, 1)] => {
                let row = self.blocks * elem.size_bytes();
                let bytes = self.bytes.slice(self.first * row..(self.first + n) * row);
                dense::dense(elem, vec![n, self.blocks], bytes)
            }
            _ => self.part(elem, 0, &[]),
        }
    }

    /// The number of every block.
    fn half(&self, byte: usize) -> Encoding {
        self.part(ElemType::F16, byte, &[])
    }

    /// Signed bytes.
    fn signed(&self, byte: usize, count: usize) -> Encoding {
        self.part(ElemType::I8, byte, &[(count, 8)])
    }

    /// Codes of a few bits.
    fn codes(&self, bits: usize, byte: usize, bit: i64, inner: &[(usize, i64)]) -> Encoding {
        let (digits, first) = self.digits(byte, inner);
        codes(bits, &self.shape(inner), first + bit, &digits, self.bytes)
    }

    /// Codes whose bits begin anywhere, in as few planes as lie within bytes.
    fn field(&self, width: u32, byte: usize, bit: i64, inner: &[(usize, i64)]) -> Encoding {
        let mut planes = vec![];
        let mut done = 0;
        while done < width {
            let at = bit + i64::from(done);
            let whole = |n: i64| at % n == 0 && inner.iter().all(|d| d.1 % n == 0);
            let fits = |n: &u32| *n <= width - done && whole(i64::from(*n));
            let n = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
            let plane = match n {
                8 => self.part(ElemType::U8, byte + at as usize / 8, inner),
                _ => self.codes(n as usize, byte, at, inner),
            };
            planes.push((n, plane));
            done += n;
        }
        planes.reverse();
        let elem = if width > 8 {
            ElemType::U16
        } else {
            ElemType::U8
        };
        bits(elem, width, planes)
    }

    /// A sign for each element: a set bit is a minus.
    fn signs(&self, byte: usize) -> Encoding {
        codebook(
            F32,
            vectors(1, vec![1.0, -1.0]),
            self.codes(1, byte, 0, &[(256, 1)]),
        )
    }

    /// Signs of eight elements in seven bits: the last sign makes the number of minuses even.
    fn signs_of_eight(&self, byte: usize, bit: i64, inner: &[(usize, i64)]) -> Encoding {
        let sign = |code: u32, i: u32| match i {
            7 => code.count_ones() % 2 == 1,
            _ => code >> i & 1 == 1,
        };
        let row = |code: u32| (0..8).map(move |i| if sign(code, i) { -1.0 } else { 1.0 });
        let table = vectors(8, (0..128).flat_map(row).collect());
        codebook(F32, table, self.field(7, byte, bit, inner))
    }

    /// 32 codes of 4 bits: low halves of 16 bytes, then high ones.
    fn nibbles(&self, byte: usize) -> Encoding {
        self.codes(4, byte, 0, &[(2, 4), (16, 8)])
    }

    /// 256 codes of 4 bits: for each 32 bytes their low halves, then their high ones.
    fn long_nibbles(&self, byte: usize) -> Encoding {
        self.codes(4, byte, 0, &[(4, 256), (2, 4), (32, 8)])
    }

    /// 256 codes of 2 bits: for each 32 bytes their lowest pairs of bits, then the next.
    fn pairs(&self, byte: usize) -> Encoding {
        self.codes(2, byte, 0, &[(2, 256), (4, 2), (32, 8)])
    }

    /// Eight scales and minima of six bits in twelve bytes: low bits of the last four lie behind the first eight numbers, their
    /// high bits above those of the first four.
    fn eight_scales(&self) -> [Encoding; 2] {
        let scales = joined(
            6,
            self.codes(2, 4, 4, &[(2, 2), (4, 8)]),
            self.codes(4, 4, 0, &[(2, 64), (4, 8)]),
        );
        let mins = joined(
            6,
            self.codes(2, 8, 4, &[(2, 2), (4, 8)]),
            self.codes(4, 8, 0, &[(2, 36), (4, 8)]),
        );
        let mins = affine(F32, self.half(2), mins, None);
        [affine(F32, self.half(0), scales, None), negative(mins)]
    }

    /// Ternary numbers, five in each of 48 bytes and four in each of 4: digit n of byte m stands 32, 16 or 4 elements after
    /// digit n - 1.
    fn trits(&self) -> Encoding {
        let digit = |byte: usize, n: usize| {
            let shifted = byte as u32 * 3u32.pow(n as u32) % 256;
            f64::from((shifted * 3) >> 8) - 1.0
        };
        let digits = |count: usize, byte: usize, bytes: usize| {
            let values = (0..256).flat_map(|b| (0..count).map(move |n| digit(b, n)));
            let codes = self.part(ElemType::U8, byte, &[(bytes, 8)]);
            codebook(F32, vectors(count, values.collect()), codes)
        };
        let all = concat::concat(1, vec![digits(5, 0, 48), digits(4, 48, 4)]);
        let place = |i: usize| match (i / 256, i % 256) {
            (block, e @ 0..160) => 240 * block + e % 32 * 5 + e / 32,
            (block, e @ 160..240) => 240 * block + (32 + e % 16) * 5 + (e - 160) / 16,
            (block, e) => 240 * self.blocks + 16 * block + e % 4 * 4 + (e - 240) / 4,
        };
        let places = (0..256 * self.blocks).map(|i| place(i) as i128).collect();
        let index = Tensor::from_int(ElemType::I32, [256 * self.blocks], places);
        gather::gather(1, dense::from_tensor(&index), all)
    }
}

/// A zero point that is the same for all.
fn number(zero: i128) -> Encoding {
    dense::from_tensor(&Tensor::from_int(ElemType::U8, [1, 1], vec![zero]))
}

/// Codes whose low bits are four, or two of three.
fn joined(full: u32, high: Encoding, low: Encoding) -> Encoding {
    let below = if full == 3 { 2 } else { 4 };
    bits(ElemType::U8, full, vec![(full - below, high), (below, low)])
}

/// What is taken away, as what is added.
fn negative(e: Encoding) -> Encoding {
    let minus = Tensor::from_f64(F32, [1, 1], vec![-1.0]);
    scale::scale(F32, dense::from_tensor(&minus), e)
}

/// `number * part * (1 / 2 + code)`.
fn odd_halves(number: Encoding, codes: Encoding, part: f64) -> Encoding {
    let times = |x: f64, e: Encoding| {
        let factor = Tensor::from_f64(F32, [1, 1], vec![x]);
        scale::scale(F32, dense::from_tensor(&factor), e)
    };
    affmin(
        F32,
        times(part, number.clone()),
        codes,
        times(part / 2.0, number),
    )
}

/// Scales times vectors times signs.
fn signed(scales: Encoding, vectors: Encoding, signs: Encoding) -> Encoding {
    scale::scale(F32, scales, emul::emul(F32, vec![signs, vectors]))
}

/// Scales times vectors of -1, 0 and 1, which are moved up by an eighth, or down where a bit is set; a bit for each `run` elements.
fn moved(scales: Encoding, codes: Encoding, down: Encoding, run: usize) -> Encoding {
    let by = [0.125, -0.125]
        .iter()
        .flat_map(|&x| std::iter::repeat_n(x, run));
    let moves = codebook(F32, vectors(run, by.collect()), down);
    let vectors = codebook(F32, grids::IQ1.table(), codes);
    scale::scale(F32, scales, sum::sum(F32, vec![vectors, moves]))
}

/// Codes of eight low bits and a few high ones.
fn wide(high: Encoding, low: Encoding, more: u32) -> Encoding {
    bits(ElemType::U16, 8 + more, vec![(more, high), (8, low)])
}

/// The table of a codebook, of vectors of this length.
fn vectors(len: usize, numbers: Vec<f64>) -> Encoding {
    let dims = [1, 1, numbers.len() / len, len];
    dense::from_tensor(&Tensor::from_f64(F32, dims, numbers))
}

/// Codes that stand for the numbers of a table.
fn table(numbers: &[f64; 16], codes: Encoding) -> Encoding {
    codebook(F32, vectors(1, numbers.to_vec()), codes)
}
