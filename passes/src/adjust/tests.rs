use super::*;
use crate::lower::checks::numbers;
use crate::lower::testing::run_from;
use crate::lower::{Lowered, Options, lower};
use crate::methods::matrix::Matrix;
use crate::methods::{Layer, METHODS, Settings};
use lapidary_ir::target::Target;
use lapidary_ir::{Tensor, eval};

/// A weight `[o, i]` as a method makes it.
fn made(method: &str, bits: u32, [o, i]: [usize; 2], seed: u64) -> Encoding {
    let method = METHODS.iter().find(|m| m.name == method).expect("a method");
    let values = numbers(&[o, i], seed).to_f64s().expect("numbers");
    let weight = Matrix::new(o, i, values).expect("its length");
    let layer = Layer::new(&weight, None).expect("a layer");
    let settings = Settings {
        bits,
        group_len: 32,
        ..Settings::default()
    };
    (method.propose)(&layer, &settings)
        .expect("a candidate")
        .encoding
}

/// `relu(x W0ᵀ) W1ᵀ + relu(x W0ᵀ)` with rows of any number.
fn module(terms: [Encoding; 2]) -> Module {
    let mut m = Module::new("m");
    let dims = vec![lapidary_ir::Dim::sym("N"), terms[0].shape[1].into()];
    let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, dims));
    let weights = terms.map(|t| m.add_constant("w", Constant::new(t)));
    let fresh = Cell::new(0);
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let product = |b: &mut Builder, x, w| {
        let w = b.transpose(w, &[1, 0]).expect("a matrix");
        b.op("matmul", &[x, w]).expect("fits")
    };
    let hidden = product(&mut b, x, weights[0]);
    let hidden = b.op("relu", &[hidden]).expect("fits");
    let y = product(&mut b, hidden, weights[1]);
    let y = b.op("add", &[y, hidden]).expect("fits");
    m.region_mut(Module::TOP).outputs = vec![y];
    m.output_names = vec!["y".into()];
    m
}

fn all(values: &[lapidary_ir::tensor::Value]) -> Vec<f64> {
    let tensor = values[0].as_tensor().expect("a tensor");
    tensor.to_f64s().expect("numbers")
}

fn near(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= 2e-4 * (1.0 + w.abs()),
            "{what}: element {i} is {g}, not {w}"
        );
    }
}

fn lowered(m: &Module, options: &Options) -> Lowered {
    lower(m, &Target::x86_64(), options).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn with_all_parts_results_are_those_of_the_weights() {
    let shapes = [[33, 64], [33, 33]];
    for (method, bits) in [("stack", 6), ("nested", 8), ("nested", 3), ("bitstack", 3)] {
        let terms = [0, 1].map(|i| made(method, bits, shapes[i], 3 + i as u64));
        let whole = module(terms);
        let mut split = whole.clone();
        let parts = adjust(&mut split).expect("decodes");
        assert!(parts >= 2 && parts.is_multiple_of(2), "{method}: {parts}");
        let x = || numbers(&[5, 64], 9).into();
        let parts = Tensor::from_int(ElemType::I64, [], vec![parts as i128]);
        let want = eval::run(&whole, vec![x()]).expect("runs");
        let got = eval::run(&split, vec![x(), parts.into()]).expect("runs");
        near(&all(&got), &all(&want), method);
    }
}

#[test]
fn compiled_programs_use_the_parts_they_are_told() {
    let shapes = [[96, 64], [96, 96]];
    for (method, round) in [
        ("stack", false),
        ("stack", true),
        ("nested", false),
        ("bitstack", false),
    ] {
        let mut m = module([0, 1].map(|i| made(method, 4, shapes[i], 5 + i as u64)));
        let parts = adjust(&mut m).expect("decodes");
        let options = Options {
            round,
            ..Options::default()
        };
        let (program, mut plain) = (lowered(&m, &options), m.clone());
        if round {
            crate::lower::round::round(&mut plain).expect("rounds");
        }
        let found = program.program.detail.as_ref().expect("there are parts");
        assert_eq!(found.parts.len(), parts, "{method}");
        let bytes: Vec<u64> = found.parts.iter().map(|p| p.bytes).collect();
        assert!(bytes.iter().all(|&b| b > 0), "{method}: {bytes:?}");
        let symbol = program.program.symbols[found.symbol as usize].clone();
        assert_eq!(program.program.inputs.len(), 1, "{method}");
        for rows in [1usize, 7] {
            let x = || numbers(&[rows, 64], 11).into();
            for used in 0..=parts + 1 {
                let symbols = [(symbol.as_str(), used as i64)];
                let got = run_from(&program, &[x()], &symbols, &mut vec![]);
                let detail = Tensor::from_int(ElemType::I64, [], vec![used as i128]);
                let want = eval::run(&plain, vec![x(), detail.into()]).expect("runs");
                let what = format!("{method}, {rows} rows, {used} of {parts} parts");
                near(
                    &all(&got.unwrap_or_else(|e| panic!("{e}"))),
                    &all(&want),
                    &what,
                );
            }
        }
    }
}

#[test]
fn each_part_brings_results_nearer() {
    let shape = [[64, 64], [64, 64]];
    let mut m = module([0, 1].map(|i| made("stack", 8, shape[i], 7 + i as u64)));
    let parts = adjust(&mut m).expect("decodes");
    assert_eq!(parts, 4);
    let at = |used: usize| {
        let detail = Tensor::from_int(ElemType::I64, [], vec![used as i128]);
        let inputs = vec![numbers(&[9, 64], 3).into(), detail.into()];
        all(&eval::run(&m, inputs).expect("runs"))
    };
    let whole = at(parts);
    let distance = |used: usize| {
        let pairs = at(used).into_iter().zip(&whole);
        pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>()
    };
    // The second of each weight before the third of any.
    let distances: Vec<f64> = (0..parts).step_by(2).map(distance).collect();
    assert!(
        distances.len() == 2 && distances.windows(2).all(|d| d[1] < 0.2 * d[0]),
        "{distances:?}"
    );
}

#[test]
fn other_weights_stay_whole() {
    // One that is a table, too, and one that has no parts.
    let mut m = module([made("stack", 4, [32, 64], 1), made("rtn", 4, [32, 32], 2)]);
    let table = ValueId(1);
    let fresh = Cell::new(first_fresh(&m));
    let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
    let at = b.ints(&[1, 2]);
    let rows = b
        .op_with("gather", &[table, at], [("axis", Attr::Int(0))])
        .expect("fits");
    m.region_mut(Module::TOP).outputs.push(rows);
    m.output_names.push("rows".into());
    let before = m.top().nodes.len();
    assert_eq!(adjust(&mut m), Ok(0));
    assert_eq!((m.top().inputs.len(), m.top().nodes.len()), (1, before));
}

#[test]
fn what_is_read_elsewhere_is_no_detail() {
    let mut m = module([0, 1].map(|i| made("stack", 4, [32, 32], 1 + i)));
    adjust(&mut m).expect("decodes");
    let detail = *m.top().inputs.last().expect("the detail");
    m.region_mut(Module::TOP).outputs.push(detail);
    m.output_names.push("used".into());
    let program = lowered(&m, &Options::default());
    assert!(program.program.detail.is_none());
    assert_eq!(program.program.inputs.len(), 2);
    for used in [0i128, 1, 2] {
        let inputs = || {
            let detail = Tensor::from_int(ElemType::I64, [], vec![used]);
            vec![numbers(&[3, 32], 2).into(), detail.into()]
        };
        let got = run_from(&program, &inputs(), &[], &mut vec![]).expect("runs");
        near(
            &all(&got),
            &all(&eval::run(&m, inputs()).expect("runs")),
            "inputs",
        );
    }
}
