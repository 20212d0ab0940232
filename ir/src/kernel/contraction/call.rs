//! The blocks of micro-kernels for contractions, and for sums that something else has left in memory.

use super::super::call::{Call, Given, Operand, fields};
use super::super::*;
use super::{Contraction, EpilogueMatch, Facts, Kind, PANEL, recognise_epilogue};
use lapidary_abi::kernel::{
    GemmF32, GemmI8, Import, MAX_ROWS_INIT_I8, MAX_STAGES_I8, RESULT_I32, StageI8, WindowF32,
};

/// The call for a contraction, and for what follows it if the micro-kernel takes that over.
pub fn call(facts: &Facts, found: &Contraction, tail: Option<&EpilogueMatch>) -> Call {
    let panel = Operand::Element(found.b, found.b_base, 1);
    let (taps, k) = (
        Operand::Index(i64::from(found.taps)),
        Operand::Scalar(found.k),
    );
    let [bias, residual, residual_stride, lo, hi] = numbers(tail);
    match (found.kind, found.window) {
        (Kind::I8, _) => {
            let mut call = of_codes(tail, found.width());
            call.fields.extend(fields!(GemmI8 {
                init: Operand::Null,
                a: Operand::Given(Given::Rows),
                b: panel,
                k: k,
                taps: taps,
            }));
            call
        }
        (_, Some(window)) => {
            let (result, zero) = tail.map_or((RESULT_I32, 0), |t| t.result(ElemType::F32));
            let codes = facts.kernel().buf_elem(found.a) == Some(ElemType::U8);
            let scaled = tail.and_then(|t| t.scaled);
            Call {
                import: Import::WindowF32,
                bytes: size_of::<WindowF32>(),
                fields: fields!(WindowF32 {
                    a: Operand::Given(Given::Rows),
                    b: if window.maximum { Operand::Null } else { panel },
                    c: Operand::Given(Given::Result),
                    scale: Operand::maybe(scaled.map(|s| s.scale)),
                    bias: bias,
                    residual: residual,
                    b_stride: k,
                    c_stride: Operand::Given(Given::ResultStride),
                    residual_stride: residual_stride,
                    taps: taps,
                    cols: Operand::Given(Given::LongColumns),
                    rows: Operand::Given(Given::RowCount),
                    lo: lo,
                    hi: hi,
                    codes: Operand::Int(i64::from(codes)),
                    result: Operand::Int(i64::from(result)),
                    zero: Operand::Int(zero),
                }),
            }
        }
        (kind, None) => Call {
            import: match kind {
                Kind::Bf16 => Import::GemmBf16,
                _ => Import::GemmF32,
            },
            // Both blocks have the same fields.
            bytes: size_of::<GemmF32>(),
            fields: fields!(GemmF32 {
                a: Operand::Given(Given::Rows),
                b: panel,
                c: Operand::Given(Given::Result),
                bias: bias,
                residual: residual,
                c_stride: Operand::Given(Given::ResultStride),
                residual_stride: residual_stride,
                k: k,
                taps: taps,
                rows: Operand::Given(Given::RowCount),
                cols: Operand::Given(Given::Columns),
                width: Operand::Int(i64::from(found.width())),
                lo: lo,
                hi: hi,
                accumulate: Operand::Int(0),
            }),
        },
    }
}

/// Bias, residual, its stride, lower and upper bound.
fn numbers(tail: Option<&EpilogueMatch>) -> [Operand; 5] {
    let residual = tail.and_then(|t| t.residual);
    let bound = |b: Option<f32>, none: f32| Operand::Float(b.unwrap_or(none));
    [
        Operand::maybe(tail.and_then(|t| t.bias)),
        Operand::maybe(residual.map(|r| (r.0, r.1))),
        residual.map_or(Operand::Index(0), |r| Operand::Stride(r.2.at)),
        bound(tail.and_then(|t| t.lo), f32::NEG_INFINITY),
        bound(tail.and_then(|t| t.hi), f32::INFINITY),
    ]
}

/// What a block of codes has besides where its sums come from.
fn of_codes(tail: Option<&EpilogueMatch>, width: u32) -> Call {
    let [bias, _, _, lo, hi] = numbers(tail);
    let scaled = tail.and_then(|t| t.scaled);
    let zero_of_a = scaled.and_then(|s| s.zero);
    let (result, zero) = tail.map_or((RESULT_I32, 0), |t| t.result(ElemType::I32));
    let stages = tail.map_or(&[][..], |t| &t.stages[..]);
    let mut fields = fields!(GemmI8 {
        c: Operand::Given(Given::Result),
        sums: Operand::maybe(zero_of_a.map(|z| (z.1, z.2))),
        scale: Operand::maybe(scaled.map(|s| s.scale)),
        bias: bias,
        table: tail
            .and_then(|t| t.table)
            .map_or(Operand::Null, Operand::Start),
        c_stride: Operand::Given(Given::ResultStride),
        rows: Operand::Given(Given::RowCount),
        cols: Operand::Given(Given::Columns),
        width: Operand::Int(i64::from(width)),
        a_zero: zero_of_a.map_or(Operand::Int(0), |z| Operand::Scalar(z.0)),
        zero: Operand::Int(zero),
        lo: lo,
        hi: hi,
        result: Operand::Int(i64::from(result)),
        stage_count: Operand::Int(stages.len() as i64),
    });
    for (i, stage) in stages.iter().enumerate() {
        let first = std::mem::offset_of!(GemmI8, stages) + i * size_of::<StageI8>();
        let residual = stage.residual;
        let of_stage = fields!(StageI8 {
            row: Operand::maybe(Some(stage.row)),
            residual: Operand::maybe(residual.map(|r| (r.0, r.1))),
            residual_stride: residual.map_or(Operand::Index(0), |r| Operand::Stride(r.2.at)),
            factor: Operand::Float(stage.factor),
            residual_factor: Operand::Float(residual.map_or(0.0, |r| r.3)),
            lo: Operand::Float(stage.lo),
            hi: Operand::Float(stage.hi),
        });
        fields.extend(of_stage.into_iter().map(|(v, at)| (v, first + at)));
    }
    Call {
        import: Import::GemmI8,
        bytes: size_of::<GemmI8>(),
        fields,
    }
}

/// Sums that lie in memory by columns, and what makes results of them.
#[derive(Debug)]
pub struct Sums<'k> {
    /// Rows of the tile.
    pub rows: u32,
    /// Columns of the tile, a multiple of [`PANEL`].
    pub width: u32,
    /// What follows.
    pub tail: EpilogueMatch<'k>,
    init: (Buf, Var, i64),
}

impl Sums<'_> {
    /// The call that makes results of them.
    pub fn call(&self) -> Call {
        let (buf, base, stride) = self.init;
        let mut call = of_codes(Some(&self.tail), self.width);
        call.fields.extend(fields!(GemmI8 {
            init: Operand::Element(buf, base, 1),
            init_stride: Operand::Index(stride),
        }));
        call
    }
}

/// Loads sums by columns as a tile of rows, which [`super::epilogue()`] makes results of: element `(i, j)` is at
/// `base + j * stride + i`. `rows` is at most [`MAX_ROWS_INIT_I8`], `width` a multiple of [`PANEL`]; all of them are readable.
pub fn load_sums(
    b: &mut build::KernelBuilder,
    buf: Buf,
    base: Var,
    stride: i64,
    [rows, width]: [u32; 2],
) -> Var {
    let axes = vec![Axis::stride(1), Axis::stride(stride)];
    b.load(buf, base, &[rows, width], axes)
}

/// Recognises what [`load_sums`] and [`super::epilogue()`] write: the load, and the statements after it.
pub fn recognise_sums<'k>(facts: &Facts<'k>, stmt: &'k Stmt, rest: &'k [Stmt]) -> Option<Sums<'k>> {
    let Op::Load { buf, base, axes } = &stmt.op else {
        return None;
    };
    let (&[acc], [rows_axis, columns]) = (&stmt.results[..], &axes[..]) else {
        return None;
    };
    let ty = facts.ty(acc);
    let (At::Stride(stride), &[rows, width]) = (columns.at, &ty.shape[..]) else {
        return None;
    };
    let fits = rows <= MAX_ROWS_INIT_I8 as u32 && width.is_multiple_of(PANEL) && width > 0;
    let plain = *rows_axis == Axis::stride(1) && *columns == Axis::stride(stride) && stride > 0;
    if ty.elem != TileElem::Elem(ElemType::I32) || !fits || !plain {
        return None;
    }
    let tail = recognise_epilogue(facts, rest, acc)?;
    (tail.scaled.is_some() && tail.residual.is_none() && tail.stages.len() <= MAX_STAGES_I8)
        .then_some(Sums {
            rows,
            width,
            tail,
            init: (*buf, *base, stride),
        })
}

#[cfg(test)]
mod tests {
    use super::super::{Epilogue, RowsAt, Scaled, Stage, epilogue};
    use super::*;

    /// Sums of a scratch buffer, and what follows.
    fn kernel(scaled: bool) -> Kernel {
        let mut b = build::KernelBuilder::new("k");
        let [scale, row] = ["scale", "row"].map(|n| b.buffer(n, ElemType::F32, false));
        let residual = b.buffer("residual", ElemType::U8, false);
        let table = b.buffer("table", ElemType::U8, false);
        let elem = if scaled { ElemType::U8 } else { ElemType::I32 };
        let c = b.buffer("c", elem, true);
        let sums = b.scratch(ElemType::I32, 64 * 48);
        let [zero, base, left] = [0, 5, 9].map(|v| b.index(v));
        let acc = load_sums(&mut b, sums, base, 48, [16, 64]);
        let at = RowsAt {
            base: zero,
            rows: Axis::stride(100).valid(left),
        };
        let stage = Stage {
            factor: 0.5,
            row: (row, zero),
            residual: Some((residual, at.clone(), 0.25)),
            lo: 0.0,
            hi: 255.0,
        };
        let e = Epilogue {
            scaled: scaled.then_some(Scaled {
                zero: None,
                scale: (scale, zero),
            }),
            bias: None,
            residual: None,
            lo: scaled.then_some(0.0),
            hi: scaled.then_some(255.0),
            code: scaled.then_some((ElemType::U8, 0)),
            stages: if scaled { vec![stage] } else { vec![] },
            table: scaled.then_some(table),
            c,
            c_at: at,
            cols: None,
        };
        epilogue(&mut b, acc, e);
        b.finish()
    }

    fn found(kernel: &Kernel) -> Option<(usize, usize, Call)> {
        verify::verify(kernel).expect("valid");
        let facts = Facts::new(kernel);
        let load = kernel
            .body
            .iter()
            .position(|s| matches!(s.op, Op::Load { .. }))?;
        let (stmt, rest) = (&kernel.body[load], &kernel.body[load + 1..]);
        let sums = recognise_sums(&facts, stmt, rest)?;
        Some((rest.len(), sums.tail.last + 1, sums.call()))
    }

    #[test]
    fn sums_and_what_follows_are_recognised() {
        let (all, taken, call) = found(&kernel(true)).expect("the form");
        assert_eq!((all, call.import), (taken, Import::GemmI8));
        let field = |at| call.fields.iter().find(|f| f.1 == at).map(|f| f.0);
        let stages = field(std::mem::offset_of!(GemmI8, stage_count));
        let stride = field(std::mem::offset_of!(GemmI8, init_stride));
        assert_eq!(
            (stages, stride),
            (Some(Operand::Int(1)), Some(Operand::Index(48)))
        );
        // Each field is said once.
        let mut offsets: Vec<usize> = call.fields.iter().map(|f| f.1).collect();
        offsets.sort_unstable();
        assert!(offsets.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn sums_that_stay_sums_are_not() {
        assert!(found(&kernel(false)).is_none());
    }
}
