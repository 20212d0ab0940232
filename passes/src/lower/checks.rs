//! What the tests of several families share: random inputs, and lowered programs against the evaluator.

use super::testing::run;
use super::{Lowered, Options, lower};
use lapidary_ir::builder::Builder;
use lapidary_ir::target::Target;
use lapidary_ir::types::Type;
use lapidary_ir::{Dim, ElemType, Module, Tensor, ValueId, eval};
use std::cell::Cell;

/// Deterministic values between -1 and 1.
pub fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let n = shape.iter().product();
    let data = (0..n).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % 2001) as f64 / 1000.0 - 1.0
    });
    Tensor::from_f64(ElemType::F32, shape.to_vec(), data.collect())
}

/// Lowers what `build` makes of inputs `x` of these shapes, and compares with the evaluator; the number of kernels.
pub fn check(
    name: &str,
    shapes: &[&[usize]],
    symbolic: bool,
    build: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> usize {
    check_lowered(name, shapes, symbolic, build).kernels.len()
}

/// [`check`]; what it was lowered to.
pub fn check_lowered(
    name: &str,
    shapes: &[&[usize]],
    symbolic: bool,
    build: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> Lowered {
    let how = (&Target::x86_64(), &Options::default(), 1e-4);
    check_lowered_for(how, name, shapes, symbolic, build)
}

/// [`check_lowered`] for a target with options, to a tolerance.
pub fn check_lowered_for(
    (target, options, tolerance): (&Target, &Options, f64),
    name: &str,
    shapes: &[&[usize]],
    symbolic: bool,
    build: impl FnOnce(&mut Builder, &[ValueId]) -> ValueId,
) -> Lowered {
    let mut module = Module::new(name);
    let inputs: Vec<ValueId> = shapes
        .iter()
        .map(|s| {
            let mut dims: Vec<Dim> = s.iter().map(|&d| Dim::from(d)).collect();
            if symbolic {
                dims[0] = Dim::sym("N");
            }
            module.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, dims))
        })
        .collect();
    let fresh = Cell::new(0);
    let mut b = Builder::new(&mut module, Module::TOP, name, &fresh);
    let y = build(&mut b, &inputs);
    module.region_mut(Module::TOP).outputs = vec![y];
    module.output_names = vec!["y".into()];
    let values: Vec<_> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| numbers(s, 77 + i as u64).into())
        .collect();
    let want = eval::run(&module, values.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let lowered = lower(&module, target, options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let got = run(&lowered, &values).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (got, want) = (
        got[0].as_tensor().expect("a tensor"),
        want[0].as_tensor().expect("a tensor"),
    );
    assert_eq!(got.shape(), want.shape(), "{name}");
    let both = got
        .to_f64s()
        .expect("numbers")
        .into_iter()
        .zip(want.to_f64s().expect("numbers"));
    for (i, (g, w)) in both.enumerate() {
        assert!(
            (g - w).abs() <= tolerance * (1.0 + w.abs()),
            "{name}: element {i} is {g}, not {w}"
        );
    }
    lowered
}
