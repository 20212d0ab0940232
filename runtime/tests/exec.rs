//! The executor on programs written by hand; the "compiled" kernel is a function of this test.

use lapidary_abi::kernel::KernelContext;
use lapidary_abi::program::*;
use lapidary_abi::{ElemType, Size};
use lapidary_runtime::exec::{Model, ModelOptions};
use lapidary_runtime::image::Image;
use lapidary_runtime::memory::{Code, Weights};
use lapidary_runtime::value::{Operand, Tensor, Value};

/// `args = [in, out, add]`: `out[i] = in[i] + add` for its blocks of one element.
unsafe extern "C" fn add_kernel(_: *const KernelContext, args: *const u64, begin: u64, end: u64) {
    // SAFETY: the program gives two f32 buffers of grid length, and a number.
    unsafe {
        let (from, to) = (*args as *const f32, *args.add(1) as *mut f32);
        for i in begin as usize..end as usize {
            *to.add(i) = *from.add(i) + *args.add(2) as i64 as f32;
        }
    }
}

fn code() -> Code {
    // SAFETY: one byte of this program's own code; only its address is used.
    Code::Linked(unsafe { std::slice::from_raw_parts(add_kernel as *const u8, 1) })
}

fn tensor(elem: ElemType, dims: &[Size]) -> ValueType {
    ValueType::Tensor {
        elem,
        dims: Some(dims.to_vec()),
    }
}

fn value(ty: &ValueType, place: Place) -> ValueDecl {
    ValueDecl {
        ty: ty.clone(),
        place,
    }
}

fn launch(from: u32, to: u32, add: i64, n: &Size) -> Step {
    Step::Launch {
        kernel: 0,
        grid: n.clone(),
        grain: 1,
        args: vec![Arg::Buffer(from), Arg::Buffer(to), Arg::Size(add.into())],
        flops: n.clone(),
    }
}

fn kernel() -> KernelDecl {
    KernelDecl {
        name: "add".into(),
        code_offset: 0,
        scratch_bytes: 128,
    }
}

fn load(program: Program) -> Result<Model, lapidary_runtime::RunError> {
    let program = Program::from_bytes(&program.to_bytes()).expect("what was encoded decodes");
    let image = Image {
        program,
        code: code(),
        weights: Weights::Linked(&[]),
    };
    image.load(ModelOptions {
        threads: 2,
        pin: false,
        ..ModelOptions::default()
    })
}

/// x f32[n] -> x + 1 (heap) -> + 2 (arena when fixed) -> output
fn chain() -> Program {
    let n = Size::Sym(0);
    let ty = tensor(ElemType::F32, std::slice::from_ref(&n));
    Program {
        name: "chain".into(),
        symbols: vec!["n".into()],
        inputs: vec![Port {
            name: "x".into(),
            ty: ty.clone(),
            value: 0,
        }],
        outputs: vec![Port {
            name: "y".into(),
            ty: ty.clone(),
            value: 2,
        }],
        values: vec![
            value(&ty, Place::Input(0)),
            value(&ty, Place::Heap),
            value(&ty, Place::Output(0)),
        ],
        kernels: vec![kernel()],
        body: Block {
            steps: vec![
                launch(0, 1, 1, &n),
                launch(1, 2, 2, &n),
                Step::Free { value: 1 },
            ],
            ..Block::default()
        },
        ..Program::default()
    }
}

fn floats(value: &Value) -> Vec<f32> {
    let bytes = value.as_tensor().expect("a tensor").bytes();
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

#[test]
fn kernels_run_in_order_and_symbols_bind() {
    let model = load(chain()).expect("loads");
    for n in [1usize, 5, 100] {
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let y = model
            .run(&[Tensor::from_f32(vec![n], &x).expect("fits").into()])
            .expect("runs");
        assert_eq!(floats(&y[0]), x.iter().map(|v| v + 3.0).collect::<Vec<_>>());
    }
}

#[test]
fn several_threads_share_a_model() {
    let model = load(chain()).expect("loads");
    std::thread::scope(|scope| {
        for t in 0..4 {
            let model = &model;
            scope.spawn(move || {
                for i in 0..50 {
                    let x = [t as f32, i as f32];
                    let y = model.run(&[Tensor::from_f32(vec![2], &x).expect("fits").into()]);
                    assert_eq!(floats(&y.expect("runs")[0]), [x[0] + 3.0, x[1] + 3.0]);
                }
            });
        }
    });
}

#[test]
fn the_callers_buffers_are_used() {
    let model = load(chain()).expect("loads");
    let x = Tensor::from_f32(vec![3], &[1.0, 2.0, 3.0]).expect("fits");
    let mut buffer = [0u8; 12];
    let mut seen = 0;
    let inputs = [Operand::Tensor(x.view())];
    let mut timing = |t: lapidary_runtime::KernelTiming| seen += t.flops;
    let out = model
        .run_with(&inputs, &mut [Some(&mut buffer)], Some(&mut timing))
        .expect("runs");
    assert!(out[0].value.is_none() && out[0].dims == [3]);
    assert_eq!(buffer[8..], 6f32.to_le_bytes());
    assert_eq!(seen, 6);
    let short = model.run_with(&inputs, &mut [Some(&mut [0; 4])], None);
    assert!(
        short
            .expect_err("too short")
            .to_string()
            .contains("12 bytes")
    );
}

#[test]
fn wrong_inputs_are_named() {
    let model = load(chain()).expect("loads");
    let wrong: [Value; 2] = [
        Tensor::from_i64(vec![1], &[1]).expect("fits").into(),
        Tensor::from_f32(vec![1, 1], &[1.0]).expect("fits").into(),
    ];
    for value in wrong {
        let error = model.run(&[value]).expect_err("refused").to_string();
        assert!(
            error.starts_with("input `x` is f32[n], given is"),
            "{error}"
        );
    }
    assert!(model.run(&[]).is_err());
    let x: Value = Tensor::from_f32(vec![1], &[1.0]).expect("fits").into();
    let y = model
        .run_named(&[("x", x.clone())])
        .expect("the right name");
    assert_eq!(floats(&y[0]), [4.0]);
    let cases: [(&[(&str, Value)], &str); 3] = [
        (
            &[("z", x.clone())],
            "the model has no input `z`: it takes `x`",
        ),
        (&[], "input `x` is missing: it is f32[n]"),
        (
            &[("x", x.clone()), ("x", x.clone())],
            "input `x` is given twice",
        ),
    ];
    for (inputs, expected) in cases {
        let error = model.run_named(inputs).expect_err("refused");
        assert_eq!(error.to_string(), expected);
    }
}

/// Doubling by a loop: `for _ in 0..trips { x = x + 1 }`, collecting every x.
#[test]
fn loops_carry_and_stack() {
    let f = tensor(ElemType::F32, &[Size::Const(2)]);
    let (int, flag) = (tensor(ElemType::I64, &[]), tensor(ElemType::Bool, &[]));
    let stacked = tensor(ElemType::F32, &[Size::Sym(0), Size::Const(2)]);
    let body = Block {
        params: vec![2, 3, 4],
        steps: vec![launch(4, 5, 1, &Size::Const(2))],
        results: vec![3, 5, 5],
    };
    let program = Program {
        symbols: vec!["trips".into()],
        inputs: vec![
            Port {
                name: "trips".into(),
                ty: int.clone(),
                value: 0,
            },
            Port {
                name: "x".into(),
                ty: f.clone(),
                value: 1,
            },
        ],
        outputs: vec![
            Port {
                name: "last".into(),
                ty: f.clone(),
                value: 6,
            },
            Port {
                name: "all".into(),
                ty: stacked.clone(),
                value: 7,
            },
        ],
        values: vec![
            value(&int, Place::Input(0)),
            value(&f, Place::Input(1)),
            value(&int, Place::Heap),
            value(&flag, Place::Heap),
            value(&f, Place::Arena { offset: 64 }),
            value(&f, Place::Arena { offset: 0 }),
            value(&f, Place::Heap),
            value(&stacked, Place::Heap),
        ],
        kernels: vec![kernel()],
        arena_bytes: 128,
        body: Block {
            steps: vec![
                Step::Loop {
                    trip_count: Some(0),
                    condition: None,
                    carried: vec![1],
                    body,
                    results: vec![6, 7],
                    scan_types: vec![f],
                },
                Step::BindDim {
                    symbol: 0,
                    value: 7,
                    axis: 0,
                },
            ],
            ..Block::default()
        },
        ..Program::default()
    };
    let model = load(program).expect("loads");
    for trips in [0, 3] {
        let inputs = [
            Tensor::from_i64(vec![], &[trips]).expect("fits").into(),
            Tensor::from_f32(vec![2], &[10.0, 20.0])
                .expect("fits")
                .into(),
        ];
        let out = model.run(&inputs).expect("runs");
        assert_eq!(floats(&out[0]), [10.0 + trips as f32, 20.0 + trips as f32]);
        assert_eq!(floats(&out[1]).len(), 2 * trips as usize);
    }
}

#[test]
fn programs_that_lie_are_refused() {
    let spoil: &[(&str, fn(&mut Program))] = &[
        ("value", |p| p.outputs[0].value = 9),
        ("circle", |p| p.values[1].place = Place::Alias(1)),
        ("kernel", |p| p.kernels.clear()),
        ("entry", |p| p.kernels[0].code_offset = 1),
        ("arena", |p| {
            p.values[1] = value(
                &tensor(ElemType::F32, &[Size::Const(99)]),
                Place::Arena { offset: 0 },
            )
        }),
        ("weights", |p| {
            p.values[1].place = Place::Weights {
                offset: 0,
                bytes: 64,
            }
        }),
        ("input", |p| p.values[0].place = Place::Input(1)),
        ("operation", |p| {
            p.body.steps.push(Step::Call {
                op: "no_such".into(),
                attrs: vec![],
                operands: vec![],
                results: vec![],
            })
        }),
    ];
    for (name, spoil) in spoil {
        let mut program = chain();
        spoil(&mut program);
        assert!(load(program).is_err(), "{name}");
    }
}
