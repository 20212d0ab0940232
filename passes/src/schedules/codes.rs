//! Products of codes: what they have besides the operands of products of numbers.
//!
//! `a` is `u8` and `w` is `i8`, packed by [`pack_quads`]; sums are `i32`. A result is a number, or the code of one.

use super::{Num, add};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{Kind, PANEL, RowsAt, Scaled, Stage};
use lapidary_ir::kernel::{Buf, Literal, TileElem, TileType, Var};

/// What is subtracted from the sums of products because zero has a code in the left operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// Nothing: the code is 0.
    Nothing,
    /// A number for each column, which is a parameter: column sums times the code, and whatever else is an integer.
    Offsets,
    /// Column sums times the code, which both are parameters.
    Given,
}

/// How codes are multiplied and what of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// What the code of zero in `a` makes of the sums.
    pub zero: Zero,
    /// The 8-bit type of the results' codes and the code of zero there; `None`: results are numbers.
    pub result: Option<(ElemType, u8)>,
}

/// An addition to a result's codes.
#[derive(Clone, Debug, PartialEq)]
pub struct TailStage {
    /// What a step of the code so far is in steps of the new one.
    pub factor: f32,
    /// What a step of a residual is, if one is added.
    pub residual: Option<f32>,
    /// The new code's 8-bit type and its code of zero.
    pub result: (ElemType, u8),
}

/// What codes go through after the product, while they are in registers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tail {
    /// Additions.
    pub stages: Vec<TailStage>,
    /// The type of what a table has for the code in the end.
    pub table: Option<ElemType>,
}

/// The parameters of a [`Tail`], in this order before the result: for each stage `row`, `residual`?; then `table`?.
#[derive(Clone, Debug)]
pub struct TailParams {
    stages: Vec<(Buf, Option<Buf>)>,
    table: Option<Buf>,
}

impl Tail {
    /// Adds the parameters.
    pub fn params(&self, b: &mut KernelBuilder) -> TailParams {
        let stages = self.stages.iter().map(|s| {
            let row = b.buffer("row", ElemType::F32, false);
            let more = |_| b.buffer("residual", ElemType::U8, false);
            (row, s.residual.map(more))
        });
        let stages = stages.collect();
        TailParams {
            stages,
            table: self.table.map(|elem| b.buffer("table", elem, false)),
        }
    }

    /// What the epilogue does with columns from `column` on; `at` says where the tile is in the `i`-th stage's residual.
    pub fn stages(
        &self,
        params: &TailParams,
        column: Var,
        mut at: impl FnMut(usize) -> RowsAt,
    ) -> Vec<Stage> {
        let all = self.stages.iter().zip(&params.stages).enumerate();
        all.map(|(i, (stage, &(row, residual)))| {
            let (lo, hi) = range(stage.result);
            Stage {
                factor: stage.factor,
                row: (row, column),
                residual: residual.map(|buf| (buf, at(i), stage.residual.unwrap_or(0.0))),
                lo,
                hi,
            }
        })
        .collect()
    }

    /// The table's buffer.
    pub fn table(&self, params: &TailParams) -> Option<Buf> {
        params.table
    }

    /// The type of the codes before the table and the code of zero there, where it is not the product's own.
    pub fn code(&self) -> Option<(ElemType, i64)> {
        let last = self.stages.last()?.result;
        Some((last.0, as_code(last.0, last.1)))
    }

    fn elem(&self) -> Option<ElemType> {
        let stage = self.stages.last().map(|s| s.result.0);
        self.table.or(stage)
    }
}

/// Element types of `a`, `w` and the result.
pub fn elems(codes: Option<Codes>, tail: &Tail) -> [ElemType; 3] {
    match codes {
        None => [ElemType::F32; 3],
        Some(c) => [
            ElemType::U8,
            ElemType::I8,
            tail.elem()
                .or(c.result.map(|r| r.0))
                .unwrap_or(ElemType::F32),
        ],
    }
}

/// Columns of a panel for micro-kernels, if each has `row` elements: a call then has enough to do, and its panel stays in
/// cache while rows pass.
pub fn width(n: i64, row: i64) -> u32 {
    const BYTES: i64 = 24 << 10;
    let most = (BYTES / row.max(1) / i64::from(PANEL)).clamp(1, 8);
    let panels = ((n + i64::from(PANEL) - 1) / i64::from(PANEL)).max(1);
    let calls = (panels + most - 1) / most;
    ((panels + calls - 1) / calls) as u32 * PANEL
}

/// Operand types of the contraction.
pub fn kind(codes: Option<Codes>) -> Kind {
    match codes {
        None => Kind::F32,
        Some(_) => Kind::I8,
    }
}

/// Elements that a row of `k` elements has in a packed panel.
pub fn padded(codes: Option<Codes>, k: i64) -> i64 {
    let step = i64::from(kind(codes).step());
    (k + step - 1) / step * step
}

/// The parameters that a kernel has for codes, in this order after `w`: `zero`?, `sums`?, `scale`.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    zero: Option<Buf>,
    sums: Option<Buf>,
    scale: Buf,
}

impl Codes {
    /// Adds the parameters.
    pub fn params(self, b: &mut KernelBuilder) -> Params {
        Params {
            zero: (self.zero == Zero::Given).then(|| b.buffer("zero", ElemType::U8, false)),
            sums: (self.zero != Zero::Nothing).then(|| b.buffer("sums", ElemType::I32, false)),
            scale: b.buffer("scale", ElemType::F32, false),
        }
    }

    /// What the epilogue does with sums of columns from `column` on. Call it before the product is written.
    pub fn scaled(self, b: &mut KernelBuilder, params: Params, column: Var) -> Scaled {
        let zero = match params.zero {
            None => {
                let ty = TileType::of(ElemType::I32, &[]);
                b.constant(ty, Literal::Int(1))
            }
            Some(buf) => {
                let at = b.index(0);
                let code = b.load(buf, at, &[], vec![]);
                b.cast(code, TileElem::Elem(ElemType::I32))
            }
        };
        Scaled {
            zero: params.sums.map(|sums| (zero, sums, column)),
            scale: (params.scale, column),
        }
    }

    /// The type of the results' codes and the code of zero there.
    pub fn code(self) -> Option<(ElemType, i64)> {
        self.result.map(|(elem, code)| (elem, as_code(elem, code)))
    }

    /// Bounds of a result before it is rounded, which keep it in the range of its code.
    pub fn bounds(self, lo: Option<f32>, hi: Option<f32>) -> (Option<f32>, Option<f32>) {
        let Some(result) = self.result else {
            return (lo, hi);
        };
        let (least, most) = range(result);
        // What is no number must not be taken for a bound.
        let lo = lo.map_or(least, |lo| if lo > least { lo } else { least });
        let hi = hi.map_or(most, |hi| if hi < most { hi } else { most });
        (Some(lo), Some(hi))
    }
}

/// The numbers that codes stand for, in their steps.
fn range((elem, zero): (ElemType, u8)) -> (f32, f32) {
    let zero = as_code(elem, zero);
    let (least, most) = match elem {
        ElemType::I8 => (-128 - zero, 127 - zero),
        _ => (-zero, 255 - zero),
    };
    (least as f32, most as f32)
}

/// The number that is stored in a byte of this type.
fn as_code(elem: ElemType, byte: u8) -> i64 {
    match elem {
        ElemType::I8 => i64::from(byte as i8),
        _ => i64::from(byte),
    }
}

/// The first element of a panel: `panel` of those that have `taps` rows of `k` elements in each of `width` columns.
pub fn panel_at(
    b: &mut KernelBuilder,
    codes: Option<Codes>,
    panel: Var,
    (taps, width): (i64, u32),
    k: Num,
    k_var: Var,
) -> Var {
    let width = i64::from(width) * taps;
    let len = match (k, codes) {
        (Num::Const(k), _) => b.index(padded(codes, k) * width),
        (Num::Sym, None) => super::mul_const(b, k_var, width),
        (Num::Sym, Some(_)) => {
            let (three, four) = (b.index(3), b.index(4));
            let up = add(b, k_var, three);
            let quads = b.binary(lapidary_ir::kernel::Binary::FloorDiv, up, four);
            super::mul_const(b, quads, 4 * width)
        }
    };
    super::mul(b, panel, len)
}

/// Packs codes into panels `[panel][tap][k / 4][width][4]` at compile time. `element(tap, k, column)` is the index of a
/// weight; what does not exist is zero.
pub fn pack_quads(
    codes: &[u8],
    [taps, k, n]: [usize; 3],
    width: u32,
    element: impl Fn(usize, usize, usize) -> usize,
    out: &mut Vec<u8>,
) {
    let width = width as usize;
    for panel in 0..n.div_ceil(width) {
        for tap in 0..taps {
            for quad in 0..k.div_ceil(4) {
                for column in panel * width..(panel + 1) * width {
                    for kk in 4 * quad..4 * quad + 4 {
                        let there = kk < k && column < n;
                        out.push(if there {
                            codes[element(tap, kk, column)]
                        } else {
                            0
                        });
                    }
                }
            }
        }
    }
}

/// The sums of columns that [`pack_quads`] packs.
pub fn column_sums(
    codes: &[u8],
    [taps, k, n]: [usize; 3],
    element: impl Fn(usize, usize, usize) -> usize,
    out: &mut Vec<i32>,
) {
    for column in 0..n {
        let all = (0..taps).flat_map(|tap| (0..k).map(move |kk| (tap, kk)));
        let sum = all
            .map(|(tap, kk)| i32::from(codes[element(tap, kk, column)] as i8))
            .sum();
        out.push(sum);
    }
}
