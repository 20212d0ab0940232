//! Products of codes: what they have besides the operands of products of numbers.
//!
//! `a` is `u8` and `w` is `i8`, packed by [`pack_quads`]; sums are `i32`. A result is a number, or the code of one.

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

/// Element type of the results of products of numbers (`None`) or codes.
pub fn result(codes: Option<Codes>, tail: &Tail) -> ElemType {
    let code = codes.and_then(|c| tail.elem().or(c.result.map(|r| r.0)));
    code.unwrap_or(ElemType::F32)
}

/// Columns of a panel for micro-kernels, if each has `row` elements: a call then has enough to do, and its panel stays in
/// cache while rows pass.
pub fn width(n: i64, row: i64) -> u32 {
    const BYTES: i64 = 24 << 10;
    let most = (BYTES / row.max(1) / i64::from(PANEL)).clamp(1, 8);
    super::pack::even_width(n, most)
}

/// Operand types of a product of codes, or of numbers that are rounded to `bf16` or not.
pub fn kind(codes: Option<Codes>, bf16: bool) -> Kind {
    match (codes, bf16) {
        (Some(_), _) => Kind::I8,
        (None, true) => Kind::Bf16,
        (None, false) => Kind::F32,
    }
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

/// Packs codes into panels `[panel][tap][k / 4][width][4]` at compile time, as [`super::pack::each`] orders them.
pub fn pack_quads(
    codes: &[u8],
    sizes: [usize; 3],
    width: u32,
    element: impl Fn(usize, usize, usize) -> usize,
    out: &mut Vec<u8>,
) {
    let one = |at: Option<usize>| out.push(at.map_or(0, |i| codes[i]));
    super::pack::each(Kind::I8, sizes, width, element, one);
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
