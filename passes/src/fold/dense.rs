//! Folding on the bytes of plainly stored weights: the reference evaluator holds every element in eight bytes or
//! more, which large weights are too many for.

use bytes::Bytes;
use lapidary_ir::ops::resolve_axis;
use lapidary_ir::tensor::{count, strides};
use lapidary_ir::{Constant, ElemType, Tensor};

/// Ops that only change the shape.
const VIEWS: &[&str] = &["reshape", "squeeze", "unsqueeze", "flatten", "identity"];

/// Fewest elements that are folded here; the evaluator is as good for less.
const LARGE: usize = 1 << 12;

/// The result of `op`, of this shape, on constants of element type `elem`; `None` if it is none of these.
pub fn fold(
    op: &str,
    operands: &[Option<&Constant>],
    elem: ElemType,
    shape: Vec<usize>,
) -> Option<Constant> {
    let first = (*operands.first()?)?;
    if count(&shape) < LARGE {
        return None;
    }
    if VIEWS.contains(&op) {
        let same = count(first.shape()) == count(&shape);
        return same.then(|| Some(Constant::dense(elem, shape, first.dense_bytes()?.clone())))?;
    }
    let f: fn(f32, f32) -> f32 = match op {
        "add" => |a, b| a + b,
        "sub" => |a, b| a - b,
        "mul" => |a, b| a * b,
        "div" => |a, b| a / b,
        _ => return None,
    };
    let second = (*operands.get(1)?)?;
    if elem != ElemType::F32 || second.elem() != ElemType::F32 {
        return None;
    }
    let bytes = arithmetic(first, second, &shape, f)?;
    Some(Constant::dense(elem, shape, bytes))
}

/// The numbers of 8-bit codes, with one scale or one for each position along `axis`.
pub fn dequantize(
    operands: &[Option<&Constant>],
    axis: i64,
    shape: Vec<usize>,
) -> Option<Constant> {
    let (x, scale) = ((*operands.first()?)?, (*operands.get(1)?)?);
    let codes = x.dense_bytes()?;
    let signed = match x.elem() {
        ElemType::I8 => true,
        ElemType::U8 => false,
        _ => return None,
    };
    if codes.len() < LARGE || count(&shape) != codes.len() || scale.elem() != ElemType::F32 {
        return None;
    }
    let scales = scale.decode().ok()?;
    let scales = scales.floats()?;
    let zeros = match operands.get(2).copied().flatten() {
        Some(zero) => zero.decode().ok()?.integers()?.to_vec(),
        None => vec![0; scales.len()],
    };
    let axis = resolve_axis(axis, shape.len()).ok()?;
    let inner: usize = shape[axis + 1..].iter().product();
    let per_axis = scale.shape().len() == 1 && scales.len() == shape[axis];
    if !(per_axis || scales.len() == 1) || zeros.len() != scales.len() {
        return None;
    }
    let mut out = Vec::with_capacity(codes.len() * 4);
    for (i, &code) in codes.iter().enumerate() {
        let at = if scales.len() == 1 {
            0
        } else {
            i / inner % shape[axis]
        };
        let code = if signed {
            i128::from(code as i8)
        } else {
            i128::from(code)
        };
        let number = (code - zeros[at]) as f32 * scales[at] as f32;
        out.extend_from_slice(&number.to_le_bytes());
    }
    Some(Constant::dense(ElemType::F32, shape, out.into()))
}

/// A weight stored in fewer bits as `f32`, which holds each of its numbers exactly.
pub fn widen(x: &Constant, to: ElemType) -> Option<Constant> {
    let (n, bytes) = (count(x.shape()), x.dense_bytes()?);
    let narrow = x.elem().is_float() && x.elem().size_bytes() < 4;
    if n < LARGE || to != ElemType::F32 || !narrow {
        return None;
    }
    let mut out = Vec::with_capacity(n * 4);
    for piece in bytes.chunks(LARGE) {
        let count = piece.len() / x.elem().size_bytes();
        let piece = Tensor::from_bytes(x.elem(), [count], piece)?;
        let numbers = piece.floats()?.iter();
        numbers.for_each(|&v| out.extend_from_slice(&(v as f32).to_le_bytes()));
    }
    Some(Constant::dense(to, x.shape().to_vec(), out.into()))
}

/// A transposed weight of shape `to`; without `perm` the axes are reversed.
pub fn transpose(x: &Constant, perm: Option<&[i64]>, to: Vec<usize>) -> Option<Constant> {
    let (rank, size, bytes) = (x.shape().len(), x.elem().size_bytes(), x.dense_bytes()?);
    let perm: Vec<usize> = match perm {
        Some(p) => p
            .iter()
            .map(|&axis| usize::try_from(axis).ok().filter(|&a| a < rank))
            .collect::<Option<_>>()?,
        None => (0..rank).rev().collect(),
    };
    if count(&to) < LARGE || perm.len() != rank || to.len() != rank {
        return None;
    }
    let own = strides(x.shape());
    let steps: Vec<usize> = perm.iter().map(|&p| own[p]).collect();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = vec![0usize; rank];
    for _ in 0..count(&to) {
        let i: usize = at.iter().zip(&steps).map(|(i, s)| i * s).sum();
        out.extend_from_slice(bytes.get(i * size..(i + 1) * size)?);
        for axis in (0..rank).rev() {
            at[axis] += 1;
            if at[axis] < to[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    Some(Constant::dense(x.elem(), to, out.into()))
}

/// `f` of two operands that broadcast to `shape`. One of them has the result's size, so that nothing grows.
fn arithmetic(
    a: &Constant,
    b: &Constant,
    shape: &[usize],
    f: fn(f32, f32) -> f32,
) -> Option<Bytes> {
    let n = count(shape);
    if a.shape() != shape && b.shape() != shape {
        return None;
    }
    let (x, y) = (a.dense_bytes()?, b.dense_bytes()?);
    let (xs, ys) = (steps(a.shape(), shape)?, steps(b.shape(), shape)?);
    let inner = shape.last().copied().unwrap_or(1);
    let (step_x, step_y) = (
        xs.last().copied().unwrap_or(0),
        ys.last().copied().unwrap_or(0),
    );
    let number = |bytes: &[u8], i: usize| {
        let four = bytes.get(i * 4..i * 4 + 4)?;
        Some(f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
    };
    let mut out = Vec::with_capacity(n * 4);
    let mut at = vec![0usize; shape.len()];
    for _ in 0..n / inner.max(1) {
        let start = |steps: &[usize]| -> usize { at.iter().zip(steps).map(|(i, s)| i * s).sum() };
        let (i, j) = (start(&xs), start(&ys));
        for k in 0..inner {
            let v = f(number(x, i + k * step_x)?, number(y, j + k * step_y)?);
            out.extend_from_slice(&v.to_le_bytes());
        }
        // The next row, the last but one axis fastest.
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    Some(out.into())
}

/// Steps through an operand of shape `from` for each axis of `to`; 0 where it is broadcast.
fn steps(from: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    let lead = to.len().checked_sub(from.len())?;
    let own = strides(from);
    let mut out = vec![0; lead];
    for (i, &n) in from.iter().enumerate() {
        out.push(match n {
            1 => 0,
            _ if n == to[lead + i] => own[i],
            _ => return None,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::eval::eval_op;
    use lapidary_ir::tensor::Value;

    #[test]
    fn large_weights_fold_as_the_evaluator_does() {
        let values = |n: usize| (0..n).map(|i| (i % 37) as f64 * 0.3 - 4.0).collect();
        let large = Tensor::from_f64(ElemType::F32, [32, 16, 3, 3], values(4608));
        let column = Tensor::from_f64(ElemType::F32, [32, 1, 1, 1], values(32));
        for op in ["add", "sub", "mul", "div"] {
            for (a, b) in [(&large, &column), (&column, &large), (&large, &large)] {
                let (x, y) = (Constant::from_tensor(a), Constant::from_tensor(b));
                let got = fold(op, &[Some(&x), Some(&y)], ElemType::F32, vec![32, 16, 3, 3]);
                let got = got.expect("dense").decode().expect("valid");
                let operands = [Some(a.clone().into()), Some(b.clone().into())];
                let want = eval_op(op, &operands, Default::default(), 1).expect("fits");
                assert_eq!(Value::from(got), want[0], "{op}");
            }
        }
    }

    #[test]
    fn large_weights_transpose_as_the_evaluator_does() {
        let values = (0..8 * 24 * 30).map(|i| f64::from(i) * 0.5).collect();
        let x = Tensor::from_f64(ElemType::F32, [8, 24, 30], values);
        let constant = Constant::from_tensor(&x);
        for (perm, shape) in [
            (Some(vec![2i64, 0, 1]), vec![30, 8, 24]),
            (None, vec![30, 24, 8]),
        ] {
            let attrs = perm
                .iter()
                .map(|p| ("perm".to_owned(), lapidary_ir::Attr::Ints(p.clone())))
                .collect();
            let want =
                eval_op("transpose", &[Some(Value::from(x.clone()))], attrs, 1).expect("evaluates");
            let got = transpose(&constant, perm.as_deref(), shape).expect("folds");
            assert_eq!(want[0].as_tensor(), Some(&got.decode().expect("valid")));
        }
    }

    #[test]
    fn large_narrow_weights_widen_as_the_evaluator_does() {
        for elem in [ElemType::F16, ElemType::BF16, ElemType::F8E4M3FN] {
            let values = (0..70 * 90).map(|i| f64::from(i % 501) * 0.37 - 90.0);
            let x = Tensor::from_f64(elem, [70, 90], values.collect());
            let attrs = [("to".to_owned(), lapidary_ir::Attr::Elem(ElemType::F32))];
            let want = eval_op("cast", &[Some(Value::from(x.clone()))], attrs.into(), 1);
            let got = widen(&Constant::from_tensor(&x), ElemType::F32).expect("folds");
            let got = Value::from(got.decode().expect("valid"));
            assert_eq!(want.expect("evaluates")[0], got, "{elem}");
        }
    }
}
