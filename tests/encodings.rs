//! Weights of random encoding terms through compiled code, on every code generator: what a term decodes to, what a
//! product with it is, and rows of it, against the plain decode.

use lapidary::backend::native;
use lapidary::{CompileOptions, driver, values};
use lapidary_ir::builder::Builder;
use lapidary_ir::encodings::sampling::Sampler;
use lapidary_ir::encodings::{Encoding, affine, codebook, dense, int, lattice, rotate, scale, sum};
use lapidary_ir::tensor::Value;
use lapidary_ir::{Constant, ElemType, Module, Tensor, Type, ValueId, eval};
use lapidary_runtime::ModelOptions;
use std::cell::Cell;

/// A term's uses: itself, `x · termᵀ` and rows of it.
fn uses(
    b: &mut Builder,
    term: ValueId,
    e: &Encoding,
    s: &mut Sampler,
) -> Vec<(ValueId, Option<Tensor>)> {
    let itself = b.op("identity", &[term]).expect("fits");
    let mut out = vec![(itself, None)];
    let &[rows, columns] = &e.shape[..] else {
        return out;
    };
    if e.elem == ElemType::F32 {
        let x = Tensor::from_f64(ElemType::F32, [3, columns], s.numbers(3 * columns));
        let given = b
            .module
            .add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [3, columns]));
        let turned = b.transpose(term, &[1, 0]).expect("a matrix");
        out.push((b.op("matmul", &[given, turned]).expect("fits"), Some(x)));
    }
    let at = Tensor::ints(&[0, rows as i64 - 1, rows as i64 / 2]);
    let given = b
        .module
        .add_input(Module::TOP, "rows", Type::tensor(ElemType::I64, [3i64]));
    out.push((b.op("gather", &[term, given]).expect("fits"), Some(at)));
    out
}

fn near(got: &Tensor, want: &Tensor) -> bool {
    let unit = if want.elem().bits() <= 16 && want.elem().is_float() {
        1e-2
    } else {
        2e-4
    };
    let (Some(a), Some(b)) = (got.to_f64s(), want.to_f64s()) else {
        return false;
    };
    let close = |(a, b): (&f64, &f64)| {
        (a - b).abs() <= unit * (1.0 + a.abs().max(b.abs())) || a == b || (a.is_nan() && b.is_nan())
    };
    got.shape() == want.shape() && a.iter().zip(&b).all(close)
}

/// Terms and their uses, on every code generator and with the evaluator.
fn check(label: &str, s: &mut Sampler, terms: &[Encoding]) {
    let (mut m, fresh) = (Module::new("terms"), Cell::new(0));
    let (mut inputs, mut of) = (vec![], vec![]);
    for e in terms {
        let term = m.add_constant("w", Constant::new(e.clone()));
        let mut b = Builder::new(&mut m, Module::TOP, "use", &fresh);
        let made = uses(&mut b, term, e, s);
        for (y, input) in made {
            m.region_mut(Module::TOP).outputs.push(y);
            m.output_names.push(format!("y{}", m.output_names.len()));
            inputs.extend(input);
            of.push(e.to_string());
        }
    }
    let given: Vec<Value> = inputs.iter().cloned().map(Value::from).collect();
    let want = eval::run(&m, given).unwrap_or_else(|e| panic!("{label}: {e}"));
    for backend in native() {
        for optimize in [false, true] {
            let mut options = CompileOptions::host(1);
            options.optimize = optimize;
            options.generate_for(options.target.clone(), backend);
            let compiled = driver::compile(m.clone(), "terms", &options, None);
            let compiled = compiled.unwrap_or_else(|e| panic!("{label}: {e}\n{of:#?}"));
            let run = ModelOptions {
                threads: 1,
                pin: false,
                ..ModelOptions::default()
            };
            let loaded = compiled.load(run).expect("loads");
            let given: Vec<_> = inputs
                .iter()
                .map(|t| values::to_runtime(&Value::from(t.clone())).expect("a tensor"))
                .collect();
            let got = loaded
                .run(&given)
                .unwrap_or_else(|e| panic!("{label}: {e}\n{of:#?}"));
            for ((got, want), term) in got.iter().zip(&want).zip(&of) {
                let (Some(Value::Tensor(got)), Value::Tensor(want)) =
                    (values::to_evaluator(got), want)
                else {
                    panic!("{label}: no tensor");
                };
                assert!(
                    near(&got, want),
                    "{label}, {}: {term}\n{got:?}\n{want:?}",
                    backend.name
                );
            }
        }
    }
}

/// Filters `[oc, c / groups, 3, 3]` that are 4-bit codes, in every schedule that convolutions have.
#[test]
fn compressed_filters_convolve() {
    for (oc, c, groups) in [(40, 8, 1), (64, 16, 2), (24, 24, 24), (3, 5, 1)] {
        let mut s = Sampler::new(oc as u64, 0);
        let shape = [oc, c / groups, 3, 3];
        let n: usize = shape.iter().product();
        let scale = dense::from_tensor(&Tensor::from_f64(
            ElemType::F32,
            [oc, 1, 1, 1],
            s.numbers(oc),
        ));
        let codes = s.codes(&shape, 16);
        let codes = codes
            .integers()
            .expect("codes")
            .into_iter()
            .map(|c| c as u8);
        let codes = int::int(ElemType::U8, 4, shape.to_vec(), int::pack(codes, 4).into());
        let term = affine::affine(ElemType::F32, scale, codes, None);
        let (mut m, fresh) = (Module::new("conv"), Cell::new(0));
        let image = Tensor::from_f64(ElemType::F32, [1, c, 6, 7], s.numbers(c * 42));
        let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [1, c, 6, 7]));
        let w = m.add_constant("w", Constant::new(term));
        let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
        let attrs = [
            ("group", (groups as i64).into()),
            ("pads", vec![1i64; 4].into()),
        ];
        let y = b.op_with("conv", &[x, w], attrs).expect("fits");
        m.region_mut(Module::TOP).outputs.push(y);
        m.output_names.push("y".into());
        let want = eval::run(&m, vec![image.clone().into()]).expect("runs");
        for backend in native() {
            for prepare in [true, false] {
                let mut options = CompileOptions::host(2);
                options.prepare = prepare;
                options.generate_for(options.target.clone(), backend);
                let compiled =
                    driver::compile(m.clone(), "conv", &options, None).expect("compiles");
                // Half a byte for each weight, scales, and the constants of opened ops.
                assert!(compiled.program.weights_bytes <= (n / 2 + 4 * oc) as u64 + 1024);
                assert_eq!(compiled.program.prepared_bytes > 0, prepare);
                let run = ModelOptions {
                    threads: 2,
                    pin: false,
                    ..ModelOptions::default()
                };
                let loaded = compiled.load(run).expect("loads");
                let given = values::to_runtime(&Value::from(image.clone())).expect("a tensor");
                for _ in 0..2 {
                    let got = loaded.run(std::slice::from_ref(&given)).expect("runs");
                    let Some(Value::Tensor(got)) = values::to_evaluator(&got[0]) else {
                        panic!("no tensor");
                    };
                    assert!(
                        near(&got, want[0].as_tensor().expect("a tensor")),
                        "{oc} {c} {groups}"
                    );
                }
            }
        }
    }
}

#[test]
fn compiled_terms_decode_as_they_are_defined() {
    for seed in 0..24 {
        let mut s = Sampler::new(seed, 1 + (seed % 3) as u32);
        let term = |s: &mut Sampler| {
            let elem = s.one_of(&[ElemType::F32, ElemType::F32, ElemType::F16, ElemType::U8]);
            let rank = s.one_of(&[1, 2, 2, 2, 3]);
            let shape = s.shape(rank);
            s.term(elem, &shape)
        };
        let terms: Vec<Encoding> = (0..12).map(|_| term(&mut s)).collect();
        check(&format!("seed {seed}"), &mut s, &terms);
    }
}

/// Generated tables of 65536 vectors, and Hadamard matrices that are opened as a product of two.
#[test]
fn vectors_of_the_lattice_are_turned_back() {
    let mut s = Sampler::new(1, 0);
    let codes = |s: &mut Sampler, limit| s.codes(&[3, 32], limit);
    let first = codebook::codebook(ElemType::F32, lattice::e8p(), codes(&mut s, 1 << 16));
    let second = codebook::codebook(ElemType::F32, lattice::e8(), codes(&mut s, 256));
    let finer = dense::from_tensor(&Tensor::from_f64(ElemType::F32, [1, 1], vec![0.5]));
    let sum = sum::sum(
        ElemType::F32,
        vec![first, scale::scale(ElemType::F32, finer, second)],
    );
    let turned = rotate::hadamard(ElemType::F32, 1, 256, sum);
    check("lattice", &mut s, &[turned]);
}
