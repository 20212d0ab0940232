//! An op with both a direct meaning and a decomposition must mean the same twice: here each is evaluated
//! on the same values, with static shapes and with symbolic ones.

use lapidary_ir::builder::Builder;
use lapidary_ir::tensor::Value;
use lapidary_ir::{Attr, Dim, ElemType, Module, Tensor, Type, eval};
use std::cell::Cell;

/// Values from -2.25 up, without repeats.
fn ramp(elem: ElemType, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    if elem.is_float() {
        Tensor::from_f64(
            elem,
            shape,
            (0..n).map(|i| (i * 7 % n) as f64 * 0.375 - 2.25).collect(),
        )
    } else {
        Tensor::from_int(
            elem,
            shape,
            (0..n).map(|i| (i * 7 % n) as i128 - 2).collect(),
        )
    }
}

/// Evaluates the op on `operands`, as itself or decomposed.
fn evaluate(
    op: &str,
    attrs: &[(&'static str, Attr)],
    operands: &[Tensor],
    decomposed: bool,
    symbolic: bool,
) -> Value {
    let mut m = Module::new(op);
    let inputs: Vec<_> = operands
        .iter()
        .enumerate()
        .map(|(i, t)| {
            // Integer vectors are axes and shapes, which must stay known.
            if t.elem() == ElemType::I64 && t.rank() == 1 {
                return m.add_constant("", lapidary_ir::Constant::from_tensor(t));
            }
            let dim = |(j, &d): (usize, &usize)| {
                if symbolic && d > 1 {
                    Dim::sym(&format!("d{i}{j}"))
                } else {
                    Dim::from(d)
                }
            };
            let ty = Type::tensor(t.elem(), t.shape().iter().enumerate().map(dim));
            m.add_input(Module::TOP, &format!("x{i}"), ty)
        })
        .collect();
    let values = operands
        .iter()
        .filter(|t| t.elem() != ElemType::I64 || t.rank() != 1);
    let values = values.cloned().map(Value::from).collect();
    let fresh = Cell::new(0);
    let mut b = Builder::new(&mut m, Module::TOP, op, &fresh);
    let mut y = b
        .op_with(op, &inputs, attrs.iter().cloned())
        .unwrap_or_else(|e| panic!("{op}: {e}"));
    if decomposed {
        let node = b.module.node(b.module.producer(y).unwrap()).clone();
        let decompose = node
            .op
            .decompose
            .unwrap_or_else(|| panic!("{op} has no decomposition"));
        y = decompose(&mut b, &node).unwrap_or_else(|e| panic!("{op}: {e}"))[0];
    }
    m.region_mut(Module::TOP).outputs.push(y);
    m.output_names.push("y".into());
    eval::run(&m, values)
        .unwrap_or_else(|e| panic!("{op}: {e}"))
        .remove(0)
}

fn check(op: &str, attrs: &[(&'static str, Attr)], operands: &[Tensor]) {
    let want = evaluate(op, attrs, operands, false, false);
    let want = want.as_tensor().unwrap();
    for symbolic in [false, true] {
        let got = evaluate(op, attrs, operands, true, symbolic);
        let got = got.as_tensor().unwrap();
        assert_eq!(
            (want.elem(), want.shape()),
            (got.elem(), got.shape()),
            "{op} {attrs:?}"
        );
        let tolerance = if want.elem() == ElemType::F16 {
            2e-3
        } else {
            2e-5
        };
        for (w, g) in want.to_f64s().unwrap().iter().zip(got.to_f64s().unwrap()) {
            let close =
                *w == g || w.is_nan() && g.is_nan() || (w - g).abs() <= tolerance * (1.0 + w.abs());
            assert!(close, "{op} {attrs:?} symbolic {symbolic}: {w} and {g}");
        }
    }
}

#[test]
fn activations() {
    for op in [
        "relu",
        "leaky_relu",
        "elu",
        "celu",
        "selu",
        "thresholded_relu",
        "hard_sigmoid",
        "hard_swish",
        "swish",
        "sigmoid",
        "softplus",
        "softsign",
        "mish",
        "gelu",
        "shrink",
        "hardmax",
    ] {
        for elem in [ElemType::F32, ElemType::F16, ElemType::F64] {
            check(op, &[], &[ramp(elem, &[3, 5])]);
        }
    }
    check(
        "gelu",
        &[("approximate", "tanh".into())],
        &[ramp(ElemType::F32, &[15])],
    );
    check(
        "shrink",
        &[("lambd", Attr::Float(1.5)), ("bias", Attr::Float(1.0))],
        &[ramp(ElemType::I32, &[8])],
    );
    check(
        "hardmax",
        &[("axis", Attr::Int(0))],
        &[ramp(ElemType::F32, &[3, 5])],
    );
    check(
        "prelu",
        &[],
        &[ramp(ElemType::F32, &[3, 5]), ramp(ElemType::F32, &[5])],
    );
    check(
        "cast_like",
        &[],
        &[ramp(ElemType::F32, &[6]), ramp(ElemType::I8, &[1])],
    );
}

#[test]
fn reductions() {
    for op in [
        "reduce_mean",
        "reduce_l1",
        "reduce_l2",
        "reduce_sum_square",
        "reduce_log_sum",
        "reduce_log_sum_exp",
    ] {
        for axes in [&[1i64][..], &[0, -1], &[]] {
            for keepdims in [0, 1] {
                let x = ramp(ElemType::F32, &[2, 3, 4]);
                check(
                    op,
                    &[("keepdims", Attr::Int(keepdims))],
                    &[x, Tensor::ints(axes)],
                );
            }
        }
        let noop = [("noop_with_empty_axes", Attr::Int(1))];
        check(
            op,
            &noop,
            &[ramp(ElemType::F32, &[4, 2]), Tensor::ints(&[])],
        );
    }
    check(
        "reduce_mean",
        &[],
        &[ramp(ElemType::I32, &[4, 2]), Tensor::ints(&[0])],
    );
    check(
        "reduce_l2",
        &[],
        &[ramp(ElemType::I32, &[4, 2]), Tensor::ints(&[0])],
    );
}

#[test]
fn einstein_summations() {
    for (equation, shapes) in [
        ("ij,jk->ik", &[&[2, 3][..], &[3, 4]][..]),
        ("ij,jk", &[&[2, 3], &[3, 4]]),
        ("bij,bjk->bik", &[&[2, 3, 4], &[2, 4, 5]]),
        ("bqhd,bkhd->bhqk", &[&[2, 3, 2, 4], &[2, 5, 2, 4]]),
        ("abcd,cde->eab", &[&[2, 3, 4, 5], &[4, 5, 2]]),
        ("ii->i", &[&[3, 3]]),
        ("ii", &[&[3, 3]]),
        ("iij->j", &[&[3, 3, 2]]),
        ("ij->ji", &[&[2, 3]]),
        ("...ij,...jk->...ik", &[&[2, 2, 3], &[3, 4]]),
        ("i...->...", &[&[2, 3, 4]]),
        ("i,j->ij", &[&[2], &[3]]),
        ("i,i->", &[&[4], &[4]]),
        ("ij,jk,kl->il", &[&[2, 3], &[3, 4], &[4, 2]]),
        ("ij,ik->i", &[&[2, 3], &[2, 4]]),
    ] {
        for elem in [ElemType::F32, ElemType::I32, ElemType::I16] {
            let operands: Vec<Tensor> = shapes.iter().map(|s| ramp(elem, s)).collect();
            check("einsum", &[("equation", equation.into())], &operands);
        }
    }
}
