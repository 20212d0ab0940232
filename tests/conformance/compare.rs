//! When a result counts as right: the rules of ONNX's own backend runner.
//!
//! Same kind, element type and shape; strings equal; numbers, integers included, within
//! `atol + rtol * |expected|`, NaN equal to NaN. `bf16` has a relative tolerance of at least 2^-6.

use lapidary_ir::tensor::{Data, Value};
use lapidary_ir::{ElemType, Tensor};

/// Compares a result with the expected value.
pub fn same(want: &Value, got: &Value, rtol: f64, atol: f64) -> Result<(), String> {
    match (want, got) {
        (Value::Tensor(w), Value::Tensor(g)) => same_tensor(w, g, rtol, atol),
        (Value::Sequence(w), Value::Sequence(g)) => {
            if w.len() != g.len() {
                return Err(format!(
                    "sequence has {} values, expected {}",
                    g.len(),
                    w.len()
                ));
            }
            w.iter()
                .zip(g)
                .try_for_each(|(w, g)| same(w, g, rtol, atol))
        }
        (Value::Optional(None), Value::Optional(None)) => Ok(()),
        (Value::Optional(Some(w)), Value::Optional(Some(g))) => same(w, g, rtol, atol),
        // A filled optional and the plain value are one thing to ONNX's runner.
        (Value::Optional(Some(w)), g) => same(w, g, rtol, atol),
        (w, Value::Optional(Some(g))) => same(w, g, rtol, atol),
        _ => Err("result is of another kind".into()),
    }
}

fn same_tensor(want: &Tensor, got: &Tensor, rtol: f64, atol: f64) -> Result<(), String> {
    if want.elem() != got.elem() {
        return Err(format!(
            "element type is {}, expected {}",
            got.elem(),
            want.elem()
        ));
    }
    if want.shape() != got.shape() {
        return Err(format!(
            "shape is {:?}, expected {:?}",
            got.shape(),
            want.shape()
        ));
    }
    let rtol = if want.elem() == ElemType::BF16 {
        rtol.max(2f64.powi(-6))
    } else {
        rtol
    };
    let close = |w: f64, g: f64| {
        w == g
            || w.is_nan() && g.is_nan()
            || (g - w).abs() <= atol + rtol * w.abs() && w.is_finite()
    };
    let bad: Vec<usize> = match (want.data(), got.data()) {
        (Data::Float(w), Data::Float(g)) => differing(w, g, |a, b| close(*a, *b)),
        (Data::Int(w), Data::Int(g)) => {
            differing(w, g, |a, b| a == b || close(*a as f64, *b as f64))
        }
        (Data::Complex(w), Data::Complex(g)) => differing(w, g, |a, b| {
            let distance = (a[0] - b[0]).hypot(a[1] - b[1]);
            a == b || distance <= atol + rtol * a[0].hypot(a[1])
        }),
        (Data::Str(w), Data::Str(g)) => differing(w, g, |a, b| a == b),
        _ => return Err("result is of another class".into()),
    };
    match bad.first() {
        None => Ok(()),
        Some(&i) => {
            let show = |t: &Tensor| {
                format!("{:?}", t.gather_linear([1], |_| i))
                    .split_once(' ')
                    .map(|x| x.1.to_owned())
                    .unwrap_or_default()
            };
            Err(format!(
                "{} of {} elements differ, first at {i}: {}, expected {}",
                bad.len(),
                want.len(),
                show(got),
                show(want)
            ))
        }
    }
}

fn differing<T>(want: &[T], got: &[T], equal: impl Fn(&T, &T) -> bool) -> Vec<usize> {
    (0..want.len())
        .filter(|&i| !equal(&want[i], &got[i]))
        .collect()
}

#[test]
fn tolerances_apply_as_in_onnx() {
    let f = |elem, v: f64| Value::Tensor(Tensor::from_f64(elem, [1], vec![v]));
    let cases = [
        (f(ElemType::F32, 1.0), f(ElemType::F32, 1.0009), true),
        (f(ElemType::F32, 1.0), f(ElemType::F32, 1.01), false),
        (f(ElemType::BF16, 1.0), f(ElemType::BF16, 1.0078125), true),
        (f(ElemType::F32, f64::NAN), f(ElemType::F32, f64::NAN), true),
        (
            f(ElemType::F32, f64::INFINITY),
            f(ElemType::F32, 1.0),
            false,
        ),
        (f(ElemType::F32, 1.0), f(ElemType::F64, 1.0), false),
        (
            Value::Sequence(vec![]),
            Value::Sequence(vec![f(ElemType::F32, 1.0)]),
            false,
        ),
    ];
    for (want, got, ok) in cases {
        assert_eq!(
            same(&want, &got, 1e-3, 1e-7).is_ok(),
            ok,
            "{want:?} {got:?}"
        );
    }
}
