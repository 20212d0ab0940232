//! Products of 8-bit activations with weights of a few bits, both in blocks that share a scale, and the rounding that
//! makes the activations: the canonical loops, written and recognised.
//!
//! Both operands are byte streams; [`lapidary_abi::kernel::GemmBlocks`] has the picture. `R` rows are a tile, and columns are
//! [`PANEL`] at a time.
//!
//! ```text
//! for r in first..end step R {
//!   acc = const 0                                                    [R, 16] f32
//!   for g in 0..blocks carry acc {
//!     offset = word A[a(r, g)]                                       [R] i32: what zero points are multiplied with
//!     sums = broadcast(offset)                                       [R, 16] i32; 0 with minimums
//!     sums = mul sums, broadcast(load W[zeros of g])                 with zero points of columns
//!     for unit in 0..(block / steps of a unit) carry sums {
//!       raw = load W[lines of the unit]                              [4, 16] each, strides 1 and 4
//!       for q in 0..(steps of a unit / 4):                           written out
//!         dot sums, load A[codes of unit, q], codes(raw, q)
//!     }
//!     acc = muladd(cast f32 sums, scale of W * scale of A, acc)
//!     acc = muladd(broadcast(cast f32 offset * scale of A), broadcast(load W[minimums of g]), acc)      with minimums
//!   }
//!   acc = add acc, broadcast(load BIAS[at])                          optional
//!   acc = max acc, lo; acc = min acc, hi                             optional, constants
//!   store C[at + r * stride], rows, columns
//! }
//! ```
//!
//! `codes(raw, q)` are a field of a line, `(raw >> p * f) & mask`; where codes have two parts, one of a line of each: `low | high << f`.
//!
//! ```text
//! for g in 0..blocks {                                               weights as numbers
//!   for unit in 0..(block / steps of a unit) {
//!     raw = load W[lines of the unit]
//!     for q in 0..(steps of a unit / 4):
//!       store Y[rows of unit, q]: scale * cast f32 (codes(raw, q) - zero)                  [4, 16]
//!                                 scale * cast f32 codes(raw, q) + minimum                 with minimums
//! } }
//! ```
//!
//! ```text
//! for g in first..end {
//!   x = load X[at + g * block]                                       [block]
//!   m = reduce max (abs x); codes = cast (clamp (round (x * (127 / m))))
//!   store Y[at + g * (block + 8)]: word (factor * reduce sum codes), codes, word (m / 127)
//! }
//! ```

mod recognise;

pub use recognise::{recognise, recognise_round, recognise_unpack};

use super::build::KernelBuilder;
use super::sparse::Rows;
use super::*;
use lapidary_abi::kernel::{
    ACT_BLOCK_EXTRA, CODE_WIDTHS, PANEL_BLOCKS, ZEROS_CODES, ZEROS_MINIMUMS, ZEROS_SHARED,
    code_parts, code_unit,
};

/// Columns of a panel of weights.
pub const PANEL: u32 = PANEL_BLOCKS as u32;

/// Bytes of a panel that hold `32 / f` consecutive fields of `f` bits of each column.
const LINE: i64 = 4 * PANEL_BLOCKS as i64;

/// What a block has beside scales and codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zeros {
    /// Nothing: the zero point of all weights is in the offsets of activations.
    Shared,
    /// A zero point for each column, a byte.
    Codes,
    /// A number for each column, as wide as a scale, that is added to scale times code.
    Minimums,
}

impl Zeros {
    /// All of them.
    const ALL: [Zeros; 3] = [Zeros::Shared, Zeros::Codes, Zeros::Minimums];

    /// Its number in a micro-kernel's call.
    pub fn number(self) -> u32 {
        match self {
            Zeros::Shared => ZEROS_SHARED,
            Zeros::Codes => ZEROS_CODES,
            Zeros::Minimums => ZEROS_MINIMUMS,
        }
    }
}

/// How a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    /// Its length: a multiple of [`Format::unit`].
    pub block: u32,
    /// Bits of a weight: one of [`CODE_WIDTHS`].
    pub bits: u32,
    /// Bytes of a weight's scale: 2 (`f16`) or 4 (`f32`).
    pub scale_bytes: u32,
    /// What else columns have.
    pub zeros: Zeros,
}

impl Format {
    /// Bytes of a block of activations.
    pub fn act_bytes(self) -> i64 {
        i64::from(self.block) + ACT_BLOCK_EXTRA as i64
    }

    /// Bytes of a block of a panel before its codes.
    pub fn head_bytes(self) -> i64 {
        let zeros = match self.zeros {
            Zeros::Shared => 0,
            Zeros::Codes => 1,
            Zeros::Minimums => self.scale_bytes,
        };
        i64::from(PANEL * (self.scale_bytes + zeros))
    }

    /// Steps along `k` whose codes fill whole lines.
    pub fn unit(self) -> u32 {
        code_unit(self.bits)
    }

    /// The parts of codes: bits of a field, and how far up they belong.
    pub fn parts(self) -> impl Iterator<Item = (u32, u32)> {
        let (low, high) = code_parts(self.bits);
        [(low, 0), (high, low)]
            .into_iter()
            .filter(|(bits, _)| *bits > 0)
    }

    /// Bytes of a unit of a panel.
    pub fn unit_bytes(self) -> i64 {
        i64::from(PANEL * self.unit() * self.bits / 8)
    }

    /// Units of a block.
    fn units(self) -> i64 {
        i64::from(self.block / self.unit())
    }

    /// Bytes of a block of a panel.
    pub fn panel_bytes(self) -> i64 {
        self.head_bytes() + self.units() * self.unit_bytes()
    }

    /// True if blocks are whole units.
    pub fn is_whole(self) -> bool {
        self.block > 0 && self.block.is_multiple_of(self.unit())
    }

    /// Those whose blocks have these lengths.
    fn of(block: u32, panel_bytes: i64) -> impl Iterator<Item = Format> {
        let forms = CODE_WIDTHS.into_iter().flat_map(move |bits| {
            [2, 4].into_iter().flat_map(move |scale_bytes| {
                Zeros::ALL.map(|zeros| Format {
                    block,
                    bits,
                    scale_bytes,
                    zeros,
                })
            })
        });
        forms.filter(move |f| f.is_whole() && f.panel_bytes() == panel_bytes)
    }
}

/// What [`blocks()`] multiplies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlocksTile {
    /// How blocks are stored.
    pub format: Format,
    /// Rows of a tile.
    pub rows: u32,
    /// First row.
    pub first: Var,
    /// End of the rows.
    pub end: Var,
    /// Blocks of a row.
    pub blocks: Var,
    /// Activations (`u8`): row 0, and bytes between rows.
    pub a: Rows,
    /// The panel (`u8`): buffer and first byte.
    pub w: (Buf, Var),
    /// A number for each column: buffer and first element.
    pub bias: Option<(Buf, Var)>,
    /// Lower bound.
    pub lo: Option<f32>,
    /// Upper bound.
    pub hi: Option<f32>,
    /// The result.
    pub c: Rows,
    /// Columns of `bias` and `c` that exist; all if `None`.
    pub cols: Option<Var>,
}

/// What [`round()`] makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTile {
    /// Length of a block.
    pub block: u32,
    /// Of the sum of a block's codes.
    pub factor: i32,
    /// First block.
    pub first: Var,
    /// End of the blocks.
    pub end: Var,
    /// Numbers (`f32`): buffer, and first element of block 0.
    pub x: (Buf, Var),
    /// Blocks (`u8`): buffer, and first byte of block 0.
    pub y: (Buf, Var),
}

/// What [`unpack()`] makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnpackTile {
    /// How blocks are stored.
    pub format: Format,
    /// The zero point where columns have none of their own.
    pub zero: i32,
    /// Blocks.
    pub blocks: Var,
    /// The panel (`u8`): buffer and first byte.
    pub w: (Buf, Var),
    /// Rows of [`PANEL`] numbers (`f32`), one for each step of the inner extent.
    pub y: Rows,
}

fn elem(e: ElemType) -> TileElem {
    TileElem::Elem(e)
}

fn plus(b: &mut KernelBuilder, x: Var, y: i64) -> Var {
    let y = b.index(y);
    b.binary(Binary::Add, x, y)
}

/// `x + i * step`.
fn at(b: &mut KernelBuilder, x: Var, i: Var, step: i64) -> Var {
    let step = b.index(step);
    let skip = b.binary(Binary::Mul, i, step);
    b.binary(Binary::Add, x, skip)
}

/// Little-endian integers of `bytes` bytes from a buffer of bytes.
fn words(b: &mut KernelBuilder, buf: Buf, base: Var, bytes: u32, n: u32, axis: &Axis) -> Var {
    let mut word = None;
    for i in 0..bytes {
        let base = plus(b, base, i64::from(i));
        let byte = b.load(buf, base, &[n], vec![axis.clone()]);
        let mut byte = b.cast(byte, elem(ElemType::U32));
        if i > 0 {
            let shift = b.constant(b.ty(byte), Literal::Int(8 * i64::from(i)));
            byte = b.binary(Binary::Shl, byte, shift);
        }
        word = Some(match word {
            None => byte,
            Some(word) => b.binary(Binary::Or, word, byte),
        });
    }
    word.expect("a word has bytes")
}

fn bitcast(b: &mut KernelBuilder, x: Var, to: ElemType) -> Var {
    let shape = b.ty(x).shape;
    b.emit(TileType::of(to, &shape), Op::Bitcast(x))
}

/// Scales as `f32`.
fn scales(b: &mut KernelBuilder, (buf, base): (Buf, Var), bytes: u32, n: u32, axis: &Axis) -> Var {
    let word = words(b, buf, base, bytes, n, axis);
    if bytes == 4 {
        return bitcast(b, word, ElemType::F32);
    }
    let half = b.cast(word, elem(ElemType::U16));
    let half = bitcast(b, half, ElemType::F16);
    b.cast(half, elem(ElemType::F32))
}

/// Writes the product's canonical loop.
pub fn blocks(b: &mut KernelBuilder, t: BlocksTile) {
    let (f, shape) = (t.format, [t.rows, PANEL]);
    b.for_loop(t.first, t.end, t.rows, &[], |b, r, _| {
        let left = b.binary(Binary::Sub, t.end, r);
        let rows = |stride| Axis {
            at: At::DynStride(stride),
            valid: Some(left),
            mask: None,
        };
        let skip = b.binary(Binary::Mul, r, t.a.stride);
        let a0 = b.binary(Binary::Add, t.a.base, skip);
        let a_rows = rows(t.a.stride);
        let zero = b.index(0);
        let ty = TileType::of(ElemType::F32, &shape);
        let acc = b.constant(ty.clone(), Literal::Float(0.0));
        let mut acc = b.for_loop(zero, t.blocks, 1, &[acc], |b, g, acc| {
            let a = at(b, a0, g, f.act_bytes());
            let w = at(b, t.w.1, g, f.panel_bytes());
            vec![block(b, t, (a, w), &a_rows, acc[0])]
        })[0];
        let columns = Axis {
            valid: t.cols,
            ..Axis::stride(1)
        };
        if let Some((buf, base)) = t.bias {
            let bias = b.load(buf, base, &[PANEL], vec![columns.clone()]);
            let bias = b.broadcast(bias, &shape, 0);
            acc = b.binary(Binary::Add, acc, bias);
        }
        for (bound, f) in [(t.lo, Binary::Max), (t.hi, Binary::Min)] {
            if let Some(bound) = bound {
                let bound = b.constant(ty.clone(), Literal::Float(f64::from(bound)));
                acc = b.binary(f, acc, bound);
            }
        }
        let skip = b.binary(Binary::Mul, r, t.c.stride);
        let c = b.binary(Binary::Add, t.c.base, skip);
        b.store(t.c.buf, c, vec![rows(t.c.stride), columns], acc);
        vec![]
    });
}

/// Adds the product of one block, which begins at `a` and `w`, to `acc`.
fn block(b: &mut KernelBuilder, t: BlocksTile, (a, w): (Var, Var), a_rows: &Axis, acc: Var) -> Var {
    let (f, shape) = (t.format, [t.rows, PANEL]);
    let offset = words(b, t.a.buf, a, 4, t.rows, a_rows);
    let offset = bitcast(b, offset, ElemType::I32);
    let mut sums = match f.zeros {
        Zeros::Minimums => b.constant(TileType::of(ElemType::I32, &shape), Literal::Int(0)),
        Zeros::Shared | Zeros::Codes => b.broadcast(offset, &shape, 1),
    };
    let beside = plus(b, w, i64::from(PANEL * f.scale_bytes));
    if f.zeros == Zeros::Codes {
        let zeros = b.load(t.w.0, beside, &[PANEL], vec![Axis::stride(1)]);
        let zeros = b.cast(zeros, elem(ElemType::I32));
        let zeros = b.broadcast(zeros, &shape, 0);
        sums = b.binary(Binary::Mul, sums, zeros);
    }
    let (w_codes, a_codes) = (plus(b, w, f.head_bytes()), plus(b, a, 4));
    let (none, units) = (b.index(0), b.index(f.units()));
    sums = b.for_loop(none, units, 1, &[sums], |b, unit, sums| {
        let from = at(b, w_codes, unit, f.unit_bytes());
        let raw = lines(b, f, (t.w.0, from));
        let from = at(b, a_codes, unit, i64::from(f.unit()));
        let mut sums = sums[0];
        for q in 0..f.unit() / 4 {
            let codes = codes(b, f, &raw, q);
            let from = plus(b, from, i64::from(4 * q));
            let axes = vec![a_rows.clone(), Axis::stride(1)];
            let acts = b.load(t.a.buf, from, &[t.rows, 4], axes);
            let acts = bitcast(b, acts, ElemType::I8);
            sums = b.dot(sums, acts, codes);
        }
        vec![sums]
    })[0];
    let axis = Axis::stride(i64::from(f.scale_bytes));
    let of_w = scales(b, (t.w.0, w), f.scale_bytes, PANEL, &axis);
    let of_w = b.broadcast(of_w, &shape, 0);
    let last = plus(b, a, 4 + i64::from(f.block));
    let of_a = scales(b, (t.a.buf, last), 4, t.rows, a_rows);
    let each_of_a = b.broadcast(of_a, &shape, 1);
    let scale = b.binary(Binary::Mul, of_w, each_of_a);
    let sums = b.cast(sums, elem(ElemType::F32));
    let acc = b.mul_add(sums, scale, acc);
    if f.zeros != Zeros::Minimums {
        return acc;
    }
    let minimums = scales(b, (t.w.0, beside), f.scale_bytes, PANEL, &axis);
    let minimums = b.broadcast(minimums, &shape, 0);
    let total = b.cast(offset, elem(ElemType::F32));
    let total = b.binary(Binary::Mul, total, of_a);
    let total = b.broadcast(total, &shape, 1);
    b.mul_add(total, minimums, acc)
}

/// The lines of a unit.
fn lines(b: &mut KernelBuilder, f: Format, (buf, base): (Buf, Var)) -> Vec<Var> {
    let count = f.unit_bytes() / LINE;
    let line = |i| {
        let from = plus(b, base, i * LINE);
        b.load(
            buf,
            from,
            &[4, PANEL],
            vec![Axis::stride(1), Axis::stride(4)],
        )
    };
    (0..count).map(line).collect()
}

/// The codes of the steps from `4 * q` on of a unit.
fn codes(b: &mut KernelBuilder, f: Format, raw: &[Var], q: u32) -> Var {
    let (mut first, mut codes) = (0, None);
    for (bits, up) in f.parts() {
        let fields = 8 / bits;
        let own = field(b, raw[(first + q / fields) as usize], q % fields, bits);
        first += f.unit() * bits / 32;
        codes = Some(match codes {
            None => own,
            Some(low) => {
                let up = b.constant(b.ty(own), Literal::Int(i64::from(up)));
                let high = b.binary(Binary::Shl, own, up);
                b.binary(Binary::Or, low, high)
            }
        });
    }
    codes.expect("codes have a part")
}

/// The codes of field `p` of bytes.
fn field(b: &mut KernelBuilder, raw: Var, p: u32, bits: u32) -> Var {
    let mut codes = raw;
    if p > 0 {
        let shift = b.constant(b.ty(raw), Literal::Int(i64::from(p * bits)));
        codes = b.binary(Binary::Shr, codes, shift);
    }
    if bits < 8 {
        let mask = b.constant(b.ty(raw), Literal::Int((1 << bits) - 1));
        codes = b.binary(Binary::And, codes, mask);
    }
    codes
}

/// Writes the canonical loop that makes numbers of weights.
pub fn unpack(b: &mut KernelBuilder, t: UnpackTile) {
    let (f, shape) = (t.format, [4, PANEL]);
    let zero = b.index(0);
    b.for_loop(zero, t.blocks, 1, &[], |b, g, _| {
        let w = at(b, t.w.1, g, f.panel_bytes());
        let from = b.index(i64::from(f.block));
        let row = b.binary(Binary::Mul, g, from);
        let beside = plus(b, w, i64::from(PANEL * f.scale_bytes));
        let axis = Axis::stride(i64::from(f.scale_bytes));
        // What is taken from codes, and what is added to numbers.
        let (mut zeros, mut minimums) = (None, None);
        match f.zeros {
            Zeros::Codes => {
                let own = b.load(t.w.0, beside, &[PANEL], vec![Axis::stride(1)]);
                let own = b.cast(own, elem(ElemType::I32));
                zeros = Some(b.broadcast(own, &shape, 0));
            }
            Zeros::Shared => {
                let ty = TileType::of(ElemType::I32, &shape);
                zeros = Some(b.constant(ty, Literal::Int(i64::from(t.zero))));
            }
            Zeros::Minimums => {
                let own = scales(b, (t.w.0, beside), f.scale_bytes, PANEL, &axis);
                minimums = Some(b.broadcast(own, &shape, 0));
            }
        }
        let scale = scales(b, (t.w.0, w), f.scale_bytes, PANEL, &axis);
        let scale = b.broadcast(scale, &shape, 0);
        let first = plus(b, w, f.head_bytes());
        let (none, units) = (b.index(0), b.index(f.units()));
        b.for_loop(none, units, 1, &[], |b, unit, _| {
            let from = at(b, first, unit, f.unit_bytes());
            let raw = lines(b, f, (t.w.0, from));
            let row = at(b, row, unit, i64::from(f.unit()));
            for q in 0..f.unit() / 4 {
                let codes = codes(b, f, &raw, q);
                let mut codes = b.cast(codes, elem(ElemType::I32));
                if let Some(zeros) = zeros {
                    codes = b.binary(Binary::Sub, codes, zeros);
                }
                let numbers = b.cast(codes, elem(ElemType::F32));
                let mut numbers = b.binary(Binary::Mul, numbers, scale);
                if let Some(minimums) = minimums {
                    numbers = b.binary(Binary::Add, numbers, minimums);
                }
                let row = plus(b, row, i64::from(4 * q));
                let skip = b.binary(Binary::Mul, row, t.y.stride);
                let to = b.binary(Binary::Add, t.y.base, skip);
                let rows = Axis {
                    at: At::DynStride(t.y.stride),
                    valid: None,
                    mask: None,
                };
                b.store(t.y.buf, to, vec![rows, Axis::stride(1)], numbers);
            }
            vec![]
        });
        vec![]
    });
}

/// Writes the rounding's canonical loop.
pub fn round(b: &mut KernelBuilder, t: RoundTile) {
    b.for_loop(t.first, t.end, 1, &[], |b, g, _| {
        let from = at(b, t.x.1, g, i64::from(t.block));
        let to = at(b, t.y.1, g, i64::from(t.block) + ACT_BLOCK_EXTRA as i64);
        let x = b.load(t.x.0, from, &[t.block], vec![Axis::stride(1)]);
        let sizes = b.unary(Unary::Abs, x);
        let most = b.reduce(ReduceKind::Max, sizes, 0);
        let range = b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(127.0));
        let scale = b.binary(Binary::Div, most, range);
        let inverse = b.binary(Binary::Div, range, most);
        let mut y = b.binary(Binary::Mul, x, inverse);
        y = b.unary(Unary::RoundEven, y);
        for (bound, f) in [(-127.0, Binary::Max), (127.0, Binary::Min)] {
            let bound = b.constant(b.ty(x), Literal::Float(bound));
            y = b.binary(f, y, bound);
        }
        let codes = b.cast(y, elem(ElemType::I32));
        let codes = b.cast(codes, elem(ElemType::I8));
        let wide = b.cast(codes, elem(ElemType::I32));
        let sum = b.reduce(ReduceKind::Sum, wide, 0);
        let factor = b.constant(b.ty(sum), Literal::Int(i64::from(t.factor)));
        let offset = b.binary(Binary::Mul, sum, factor);
        put_word(b, t.y.0, to, offset);
        let at = plus(b, to, 4);
        let codes = bitcast(b, codes, ElemType::U8);
        b.store(t.y.0, at, vec![Axis::stride(1)], codes);
        let at = plus(b, to, 4 + i64::from(t.block));
        put_word(b, t.y.0, at, scale);
        vec![]
    });
}

/// Writes four bytes into a buffer of bytes.
fn put_word(b: &mut KernelBuilder, buf: Buf, base: Var, x: Var) {
    let word = bitcast(b, x, ElemType::U32);
    for i in 0..4 {
        let shift = b.constant(b.ty(word), Literal::Int(8 * i));
        let byte = b.binary(Binary::Shr, word, shift);
        let byte = b.cast(byte, elem(ElemType::U8));
        let at = plus(b, base, i);
        b.store(buf, at, vec![], byte);
    }
}

#[cfg(test)]
mod tests;
