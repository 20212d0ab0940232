//! Caches whose older tokens are codes: `affmin{scale, min; int{bits}}` in groups of 32 (KIVI, arXiv 2402.02750).
//!
//! ```text
//! recent  f32   keys [b][head][slot][d][32]         values [b][head][d / 32][slot * 32][32]      slots of 32 tokens, in panels
//! codes   u8    keys [b][head][panel][d][4 * bits]  values [b][head][d / 32][token][4 * bits]    a group after the other
//! steps   f16   two for each group: its scale and its least number
//! grid (b, head, slot)      a slot's panels one after the other, so that nobody reads what another block overwrites:
//!   a panel that is no longer recent becomes codes; its new tokens go to the slot
//! ```
//! Slot 0 is for the first 32 tokens, which stay numbers; the others are a ring of the newest panels. It has one more than the
//! newest need, so that up to 32 tokens can be taken back. Byte `i` of a group's codes has numbers `i`, `i + 4 * bits`, .. from
//! its low bits on: so a vector of bytes becomes vectors of neighbours.

use super::super::attention::Packed;
use super::super::{Num, add, add_const, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::{
    Axis, Binary, Buf, Extent, Kernel, Literal, ReduceKind, TileElem, TileType, Unary, Var,
};

const WIDTH: i64 = PANEL as i64;

/// How tokens that are not recent are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// Bits of a code: 2, 4 or 8.
    pub bits: i64,
    /// Tokens at the end that stay numbers, at least: a multiple of 32.
    pub window: i64,
}

/// The three parts of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Numbers.
    pub recent: Buf,
    /// Codes.
    pub codes: Buf,
    /// Scales and least numbers.
    pub steps: Buf,
}

impl Codes {
    /// Panels of 32 tokens that there is room for among the numbers.
    pub fn slots(self) -> i64 {
        1 + self.ring()
    }

    fn ring(self) -> i64 {
        self.window / WIDTH + 2
    }

    /// Bytes of a group's codes.
    pub fn group_bytes(self) -> i64 {
        WIDTH * self.bits / 8
    }

    /// The parts, as buffers of a kernel.
    pub fn buffers(b: &mut KernelBuilder, name: &str, written: bool) -> Parts {
        let mut part = |what: &str, elem| b.buffer(&format!("{name}_{what}"), elem, written);
        Parts {
            recent: part("recent", ElemType::F32),
            codes: part("codes", ElemType::U8),
            steps: part("steps", ElemType::F16),
        }
    }

    /// Panels before this one are codes, where so many tokens are filled; but for the first.
    pub fn coarse(self, b: &mut KernelBuilder, filled: Var) -> Var {
        let old = add_const(b, filled, -self.window);
        let (zero, width) = (b.index(0), b.index(WIDTH));
        let old = b.binary(Binary::Max, old, zero);
        b.binary(Binary::FloorDiv, old, width)
    }

    /// Where in the ring a panel is that is not the first.
    pub fn slot(self, b: &mut KernelBuilder, panel: Var) -> Var {
        let before = add_const(b, panel, -1);
        let ring = b.index(self.ring());
        let place = b.binary(Binary::Mod, before, ring);
        add_const(b, place, 1)
    }

    /// Numbers whose codes are side by side in their bytes.
    fn run(self) -> u32 {
        self.group_bytes() as u32
    }

    fn runs(self) -> i64 {
        8 / self.bits
    }

    /// Makes numbers of a group, at this place of a buffer.
    pub fn decode(self, b: &mut KernelBuilder, from: Parts, group: Var, (to, to_at): (Buf, Var)) {
        let [step, least] = {
            let at = mul_const(b, group, 2);
            let next = add_const(b, at, 1);
            [at, next].map(|at| {
                let x = b.load(from.steps, at, &[], vec![]);
                b.cast(x, TileElem::Elem(ElemType::F32))
            })
        };
        let n = self.run();
        let at = mul_const(b, group, self.group_bytes());
        let bytes = b.load(from.codes, at, &[n], vec![Axis::stride(1)]);
        let [step, least] = [step, least].map(|x| b.broadcast(x, &[n], 0));
        for run in 0..self.runs() {
            let code = field(b, bytes, run * self.bits, self.bits, n);
            let code = b.cast(code, TileElem::Elem(ElemType::F32));
            let x = b.mul_add(code, step, least);
            let at = add_const(b, to_at, run * i64::from(n));
            b.store(to, at, vec![Axis::stride(1)], x);
        }
    }
}

/// `bits` bits of each byte.
fn field(b: &mut KernelBuilder, bytes: Var, shift: i64, bits: i64, n: u32) -> Var {
    let ty = TileType::of(ElemType::U8, &[n]);
    let mut x = bytes;
    if shift > 0 {
        let by = b.constant(ty.clone(), Literal::Int(shift));
        x = b.binary(Binary::Shr, x, by);
    }
    if shift + bits < 8 {
        let mask = b.constant(ty, Literal::Int((1 << bits) - 1));
        x = b.binary(Binary::And, x, mask);
    }
    x
}

/// Adds tokens to a cache.
#[derive(Clone, Debug, PartialEq)]
pub struct AppendCoded {
    /// Sequences.
    pub batch: Num,
    /// Heads of keys and values.
    pub heads: i64,
    /// Numbers of a head.
    pub size: i64,
    /// New tokens of each sequence.
    pub tokens: Num,
    /// Tokens that there is room for: a multiple of 32.
    pub capacity: Num,
    /// What is added.
    pub what: Packed,
    /// How.
    pub form: Codes,
}

/// What the blocks of a slot share.
struct Place {
    parts: Parts,
    x: Buf,
    /// The head's numbers of the first new token.
    x_at: Var,
    past: Var,
    filled: Var,
    /// First number of the slot.
    slot_at: Var,
    /// Groups before the head's.
    groups: Var,
    capacity: Var,
}

impl AppendCoded {
    /// The kernel. Parameters: `x` `[b][token][head][size]`, `at` (`i64`, one for each sequence), the parts of the cache, then those of
    /// `batch`, `tokens`, `capacity` that are [`Num::Sym`]. Tokens that there is no room for are left out: a kernel cannot fail.
    pub fn kernel(&self) -> Kernel {
        let mut b = KernelBuilder::new("append_coded");
        let x = b.buffer("x", ElemType::F32, false);
        let rows = b.buffer("at", ElemType::I64, false);
        let parts = Codes::buffers(&mut b, "cache", true);
        let batch = self.batch.bind(&mut b, "batch");
        let tokens = self.tokens.bind(&mut b, "tokens");
        let capacity = self.capacity.bind(&mut b, "capacity").var;
        let at = b.grid(batch.tiles(1));
        let head = b.grid(Extent::Const(self.heads as u64));
        let slot = b.grid(Extent::Const(self.form.slots() as u64));

        let (zero, one, width) = (b.index(0), b.index(1), b.index(WIDTH));
        let past = b.load(rows, at, &[], vec![]);
        let past = b.cast(past, TileElem::Index);
        let past = b.binary(Binary::Max, past, zero);
        let past = b.binary(Binary::Min, past, capacity);
        let filled = add(&mut b, past, tokens.var);
        let filled = b.binary(Binary::Min, filled, capacity);
        let before = mul(&mut b, at, tokens.var);
        let before = mul_const(&mut b, before, self.heads);
        let before = add(&mut b, before, head);
        let x_at = mul_const(&mut b, before, self.size);
        let heads_before = mul_const(&mut b, at, self.heads);
        let head = add(&mut b, heads_before, head);
        let (slot_at, groups) = match self.what {
            Packed::Keys => {
                let slots = mul_const(&mut b, head, self.form.slots());
                let own = add(&mut b, slots, slot);
                let panels = b.binary(Binary::FloorDiv, capacity, width);
                let before = mul(&mut b, head, panels);
                (
                    mul_const(&mut b, own, self.size * WIDTH),
                    mul_const(&mut b, before, self.size),
                )
            }
            Packed::Values => {
                let columns = mul_const(&mut b, head, self.columns());
                let slots = mul_const(&mut b, columns, self.form.slots());
                let own = add(&mut b, slots, slot);
                (
                    mul_const(&mut b, own, WIDTH * WIDTH),
                    mul(&mut b, columns, capacity),
                )
            }
        };
        let place = Place {
            parts,
            x,
            x_at,
            past,
            filled,
            slot_at,
            groups,
            capacity,
        };

        // Panels that may have changed are those that were no codes before; a slot has every so many-th of them.
        let first = b.binary(Binary::Eq, slot, zero);
        let were = self.form.coarse(&mut b, past);
        let were = b.binary(Binary::Max, were, one);
        let ring = b.index(self.form.ring());
        let ahead = b.binary(Binary::Sub, slot, were);
        let ahead = b.binary(Binary::Mod, ahead, ring);
        let begin = add(&mut b, were, ahead);
        let begin = b.select(first, zero, begin);
        let up = add_const(&mut b, filled, WIDTH - 1);
        let panels = b.binary(Binary::FloorDiv, up, width);
        let only = b.binary(Binary::Min, panels, one);
        let end = b.select(first, only, panels);
        let coarse = self.form.coarse(&mut b, filled);
        let coarse = b.select(first, zero, coarse);
        b.for_loop(begin, end, self.form.ring() as u32, &[], |b, panel, _| {
            let old = b.binary(Binary::Lt, panel, coarse);
            b.if_else(
                old,
                |b| {
                    self.encode(b, &place, panel);
                    vec![]
                },
                |_| vec![],
            );
            // Also of a panel that is codes by now: it may be taken back in part.
            self.keep(b, &place, panel);
            vec![]
        });
        b.finish()
    }

    fn columns(&self) -> i64 {
        (self.size as u64).div_ceil(WIDTH as u64) as i64
    }

    fn row(&self) -> i64 {
        self.heads * self.size
    }

    /// New tokens of a panel go to its slot.
    fn keep(&self, b: &mut KernelBuilder, p: &Place, panel: Var) {
        let token0 = mul_const(b, panel, WIDTH);
        let begin = b.binary(Binary::Max, token0, p.past);
        let end = add_const(b, token0, WIDTH);
        let end = b.binary(Binary::Min, end, p.filled);
        let (zero, size) = (b.index(0), b.index(self.size));
        b.for_loop(begin, end, 1, &[], |b, token, _| {
            let new = b.binary(Binary::Sub, token, p.past);
            let skip = mul_const(b, new, self.row());
            let from = add(b, p.x_at, skip);
            let row = b.binary(Binary::Sub, token, token0);
            b.for_loop(zero, size, PANEL, &[], |b, j, _| {
                let left = b.binary(Binary::Sub, size, j);
                let at = add(b, from, j);
                // Columns that do not exist read as zero.
                let x = b.load(p.x, at, &[PANEL], vec![Axis::stride(1).valid(left)]);
                match self.what {
                    Packed::Keys => {
                        let skip = mul_const(b, j, WIDTH);
                        let at = add(b, skip, row);
                        let at = add(b, p.slot_at, at);
                        let axis = Axis::stride(WIDTH).valid(left);
                        b.store(p.parts.recent, at, vec![axis], x);
                    }
                    Packed::Values => {
                        let at = self.row_of_values(b, p, j, row);
                        b.store(p.parts.recent, at, vec![Axis::stride(1)], x);
                    }
                }
                vec![]
            });
            vec![]
        });
    }

    /// Where column `j` (the first of 32) of a row of the slot is.
    fn row_of_values(&self, b: &mut KernelBuilder, p: &Place, j: Var, row: Var) -> Var {
        let before = mul_const(b, j, self.form.slots() * WIDTH);
        let skip = mul_const(b, row, WIDTH);
        let at = add(b, before, skip);
        add(b, p.slot_at, at)
    }

    /// A panel becomes codes: its tokens are in the slot where they are old, else in `x`.
    fn encode(&self, b: &mut KernelBuilder, p: &Place, panel: Var) {
        let token0 = mul_const(b, panel, WIDTH);
        let old = b.binary(Binary::Sub, p.past, token0);
        let (zero, size) = (b.index(0), b.index(self.size));
        match self.what {
            Packed::Keys => {
                // Before `x` where old tokens would be: they are not read there.
                let skip = mul_const(b, old, -self.row());
                let from = add(b, p.x_at, skip);
                let before = mul_const(b, panel, self.size);
                let groups = add(b, p.groups, before);
                b.for_loop(zero, size, 1, &[], |b, j, _| {
                    let skip = mul_const(b, j, WIDTH);
                    let group = Group {
                        index: add(b, groups, j),
                        recent: add(b, p.slot_at, skip),
                        x: add(b, from, j),
                        stride: self.row(),
                        old,
                        exist: None,
                    };
                    self.group(b, p, &group);
                    vec![]
                });
            }
            Packed::Values => {
                let (first, end) = (token0, add_const(b, token0, WIDTH));
                b.for_loop(first, end, 1, &[], |b, token, _| {
                    let new = b.binary(Binary::Sub, token, p.past);
                    let skip = mul_const(b, new, self.row());
                    let from = add(b, p.x_at, skip);
                    let row = b.binary(Binary::Sub, token, token0);
                    let (none, all) = (b.index(0), b.index(WIDTH));
                    let is_old = b.binary(Binary::Lt, new, none);
                    let old = b.select(is_old, all, none);
                    b.for_loop(zero, size, PANEL, &[], |b, j, _| {
                        let column = b.index(WIDTH);
                        let column = b.binary(Binary::FloorDiv, j, column);
                        let before = mul(b, column, p.capacity);
                        let before = add(b, p.groups, before);
                        let group = Group {
                            index: add(b, before, token),
                            recent: self.row_of_values(b, p, j, row),
                            x: add(b, from, j),
                            stride: 1,
                            old,
                            exist: (self.size % WIDTH != 0).then(|| b.binary(Binary::Sub, size, j)),
                        };
                        self.group(b, p, &group);
                        vec![]
                    });
                    vec![]
                });
            }
        }
    }

    fn group(&self, b: &mut KernelBuilder, p: &Place, g: &Group) {
        let n = self.form.run();
        let f32s = |b: &mut KernelBuilder, x: f64| {
            b.constant(TileType::of(ElemType::F32, &[n]), Literal::Float(x))
        };
        let numbers: Vec<(Var, Option<Var>)> = (0..self.form.runs())
            .map(|run| {
                let skip = run * i64::from(n);
                let place = b.iota(n);
                let skipped = b.index(skip);
                let place = b.binary(Binary::Add, place, skipped);
                let exist = g.exist.map(|exist| b.binary(Binary::Lt, place, exist));
                let new = b.binary(Binary::Ge, place, g.old);
                let wanted = match exist {
                    Some(exist) => b.binary(Binary::And, exist, new),
                    None => new,
                };
                let axis = Axis {
                    mask: Some(wanted),
                    ..Axis::stride(g.stride)
                };
                let at = add_const(b, g.x, skip * g.stride);
                let fresh = b.load(p.x, at, &[n], vec![axis]);
                let at = add_const(b, g.recent, skip);
                let kept = b.load(p.parts.recent, at, &[n], vec![Axis::stride(1)]);
                (b.select(new, fresh, kept), exist)
            })
            .collect();
        let mut extreme = |kind: ReduceKind, combine: Binary, nothing: f64| {
            let nothing = f32s(b, nothing);
            let mut all = nothing;
            for &(x, exist) in &numbers {
                let x = match exist {
                    Some(exist) => b.select(exist, x, nothing),
                    None => x,
                };
                all = b.binary(combine, all, x);
            }
            b.reduce(kind, all, 0)
        };
        let least = extreme(ReduceKind::Min, Binary::Min, f64::INFINITY);
        let most = extreme(ReduceKind::Max, Binary::Max, f64::NEG_INFINITY);
        let scalar = |b: &mut KernelBuilder, x: f64| {
            b.constant(TileType::of(ElemType::F32, &[]), Literal::Float(x))
        };
        let levels = ((1 << self.form.bits) - 1) as f64;
        let span = b.binary(Binary::Sub, most, least);
        let levels_var = scalar(b, levels);
        let step = b.binary(Binary::Div, span, levels_var);
        let at = mul_const(b, g.index, 2);
        let next = add_const(b, at, 1);
        // Rounded to finite numbers of 16 bits, and codes are chosen for what that gives.
        let [step, least] = [(step, at), (least, next)].map(|(x, at)| {
            let bound = f64::from(f32::from(half::f16::MAX));
            let (low, high) = (scalar(b, -bound), scalar(b, bound));
            let x = b.binary(Binary::Max, x, low);
            let x = b.binary(Binary::Min, x, high);
            let x = b.cast(x, TileElem::Elem(ElemType::F16));
            b.store(p.parts.steps, at, vec![], x);
            b.cast(x, TileElem::Elem(ElemType::F32))
        });
        let (zero, one) = (scalar(b, 0.0), scalar(b, 1.0));
        let flat = b.binary(Binary::Eq, step, zero);
        let inverse = b.binary(Binary::Div, one, step);
        let inverse = b.select(flat, zero, inverse);
        let mut bytes = None;
        for (run, &(x, _)) in numbers.iter().enumerate() {
            let x = b.binary(Binary::Sub, x, least);
            let x = b.binary(Binary::Mul, x, inverse);
            let x = b.unary(Unary::RoundEven, x);
            let (low, high) = (f32s(b, 0.0), f32s(b, levels));
            let x = b.binary(Binary::Max, x, low);
            let x = b.binary(Binary::Min, x, high);
            let mut code = b.cast(x, TileElem::Elem(ElemType::U8));
            let shift = run as i64 * self.form.bits;
            if shift > 0 {
                let ty = TileType::of(ElemType::U8, &[n]);
                let by = b.constant(ty, Literal::Int(shift));
                code = b.binary(Binary::Shl, code, by);
            }
            bytes = Some(match bytes {
                Some(before) => b.binary(Binary::Or, before, code),
                None => code,
            });
        }
        let at = mul_const(b, g.index, self.form.group_bytes());
        if let Some(bytes) = bytes {
            b.store(p.parts.codes, at, vec![Axis::stride(1)], bytes);
        }
    }
}

/// 32 numbers that share a scale.
struct Group {
    /// Among all of the cache.
    index: Var,
    /// Where the first is in the slot, if it is old.
    recent: Var,
    /// Where it is in `x`, if it is new.
    x: Var,
    /// Between numbers in `x`.
    stride: i64,
    /// How many are old.
    old: Var,
    /// How many there are, if not all.
    exist: Option<Var>,
}
