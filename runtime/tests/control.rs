//! Branches and loops with values whose kind or shape changes from one iteration to the next.

use lapidary_abi::program::*;
use lapidary_abi::{ElemType, Size};
use lapidary_runtime::exec::{Model, ModelOptions};
use lapidary_runtime::image::Image;
use lapidary_runtime::memory::{Code, Weights};
use lapidary_runtime::value::{Tensor, Value};

/// A program under construction; values are named by their index.
#[derive(Default)]
struct Build(Program);

impl Build {
    fn value(&mut self, ty: ValueType, place: Place) -> ValueIndex {
        self.0.values.push(ValueDecl { ty, place });
        self.0.values.len() as u32 - 1
    }

    fn heap(&mut self, ty: ValueType) -> ValueIndex {
        self.value(ty, Place::Heap)
    }

    fn input(&mut self, name: &str, ty: ValueType) -> ValueIndex {
        let n = self.0.inputs.len() as u32;
        let place = match &ty {
            ValueType::Tensor { elem, .. } if *elem != ElemType::String => Place::Input(n),
            _ => Place::Heap,
        };
        let value = self.value(ty.clone(), place);
        let name = name.to_owned();
        self.0.inputs.push(Port { name, ty, value });
        value
    }

    fn output(&mut self, value: ValueIndex) {
        let ty = self.0.values[value as usize].ty.clone();
        let name = format!("y{}", self.0.outputs.len());
        self.0.outputs.push(Port { name, ty, value });
    }

    fn load(mut self, steps: Vec<Step>) -> Model {
        self.0.body.steps = steps;
        let image = Image {
            program: self.0,
            code: Code::Linked(&[]),
            weights: Weights::Linked(&[]),
            checksum: 0,
        };
        image
            .load(ModelOptions {
                threads: 1,
                ..ModelOptions::default()
            })
            .expect("loads")
    }
}

fn tensor(elem: ElemType, dims: &[Size]) -> ValueType {
    ValueType::Tensor {
        elem,
        dims: Some(dims.to_vec()),
    }
}

fn call(op: &str, operands: &[ValueIndex], result: ValueIndex) -> Step {
    call_with(op, vec![], operands, result)
}

fn call_with(
    op: &str,
    attrs: Vec<(String, CallAttr)>,
    operands: &[ValueIndex],
    result: ValueIndex,
) -> Step {
    Step::Call {
        op: op.into(),
        attrs,
        operands: operands.iter().map(|&v| Some(v)).collect(),
        results: vec![result],
    }
}

fn ints(values: &[i64]) -> Value {
    Tensor::from_i64(vec![values.len()], values)
        .expect("fits")
        .into()
}

fn int(value: i64) -> Value {
    Tensor::from_i64(vec![], &[value]).expect("fits").into()
}

fn read(value: &Value) -> Vec<i64> {
    let bytes = value.as_tensor().expect("a tensor").bytes();
    bytes
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().expect("eight")))
        .collect()
}

/// `for i in 0..trips { part = [1; i + 1]; s.push(part); acc = acc ++ part }`: the symbol of the part's length
/// has another value in each iteration, for the part and for an alias of it.
#[test]
fn symbols_are_bound_anew_in_each_iteration() {
    let mut b = Build::default();
    b.0.symbols = ["len", "sum", "trips"].map(str::to_owned).to_vec();
    let list = |d: Size| tensor(ElemType::I64, &[d]);
    let single = list(Size::Const(1));
    let (scalar, flag) = (tensor(ElemType::I64, &[]), tensor(ElemType::Bool, &[]));
    let any = ValueType::Tensor {
        elem: ElemType::I64,
        dims: None,
    };
    let sequence = ValueType::Sequence(Box::new(any.clone()));
    let trips = b.input("trips", scalar.clone());
    let (one, all) = (
        b.input("one", single.clone()),
        b.input("all", single.clone()),
    );
    let [s0, s, s1, s2] = [(); 4].map(|()| b.heap(sequence.clone()));
    let [acc, acc1, acc2] = [(); 3].map(|()| b.heap(list(Size::Sym(1))));
    let (i, go, before) = (b.heap(scalar), b.heap(flag), b.heap(any));
    let [unit, number] = [(); 2].map(|()| b.heap(single.clone()));
    let (part, flat) = (b.heap(list(Size::Sym(0))), b.heap(list(Size::Sym(0))));
    let row = tensor(ElemType::I64, &[Size::Const(1), Size::Sym(0)]);
    let row = b.value(row, Place::Alias(part));
    let numbers = b.heap(tensor(ElemType::I64, &[Size::Sym(2), Size::Const(1)]));
    [s2, acc2, numbers].into_iter().for_each(|v| b.output(v));
    let axis0 = || vec![("axis".to_owned(), CallAttr::Int(0))];
    let bind = |symbol, value| Step::BindDim {
        symbol,
        value,
        axis: 0,
    };
    let body = Block {
        params: vec![i, go, s, acc],
        steps: vec![
            call("reshape", &[i, one], unit),
            call("tile", &[one, unit], before),
            call("shape", &[before], number),
            call_with("concat", axis0(), &[before, one], part),
            bind(0, part),
            call("reshape", &[row, all], flat),
            call("sequence_insert", &[s, flat], s1),
            call_with("concat", axis0(), &[acc, flat], acc1),
            bind(1, acc1),
        ],
        results: vec![go, s1, acc1, number],
    };
    let model = b.load(vec![
        call("sequence_empty", &[], s0),
        Step::Loop {
            trip_count: Some(trips),
            condition: None,
            carried: vec![s0, one],
            body,
            results: vec![s2, acc2, numbers],
            scan_types: vec![tensor(ElemType::I64, &[Size::Const(0), Size::Const(1)])],
        },
        bind(2, numbers),
    ]);
    for trips in [0i64, 1, 4] {
        let inputs = [int(trips), ints(&[1]), ints(&[-1])];
        let out = model.run(&inputs).expect("runs");
        let Value::Sequence(items) = &out[0] else {
            panic!("a sequence")
        };
        let found: Vec<usize> = items.iter().map(|v| read(v).len()).collect();
        assert_eq!(found, (1..=trips as usize).collect::<Vec<_>>());
        assert_eq!(read(&out[1]).len() as i64, 1 + trips * (trips + 1) / 2);
        assert_eq!(read(&out[2]), (0..trips).collect::<Vec<_>>());
    }
}

/// A carried optional that is empty at first, filled in the first iteration, and kept.
#[test]
fn loops_carry_optionals() {
    let mut b = Build::default();
    let any = ValueType::Tensor {
        elem: ElemType::I64,
        dims: None,
    };
    let (scalar, flag) = (tensor(ElemType::I64, &[]), tensor(ElemType::Bool, &[]));
    let optional = ValueType::Optional(Box::new(any));
    let trips = b.input("trips", scalar.clone());
    let given = b.input("given", optional.clone());
    let [i, go, o, filled, has] = [
        scalar,
        flag.clone(),
        optional.clone(),
        optional.clone(),
        flag.clone(),
    ]
    .map(|t| b.heap(t));
    let [kept, last, had] = [
        optional.clone(),
        optional,
        tensor(ElemType::Bool, &[Size::Const(0)]),
    ]
    .map(|t| b.heap(t));
    [last, had].into_iter().for_each(|v| b.output(v));
    let body = Block {
        params: vec![i, go, o],
        steps: vec![
            call("optional_has_element", &[o], has),
            call("optional", &[i], filled),
            Step::If {
                condition: has,
                then_block: Block {
                    results: vec![o],
                    ..Block::default()
                },
                else_block: Block {
                    results: vec![filled],
                    ..Block::default()
                },
                results: vec![kept],
            },
        ],
        results: vec![go, kept, has],
    };
    let model = b.load(vec![Step::Loop {
        trip_count: Some(trips),
        condition: None,
        carried: vec![given],
        body,
        results: vec![last, had],
        scan_types: vec![flag],
    }]);
    let cases = [(0, None, None), (3, None, Some(0)), (2, Some(7), Some(7))];
    for (trips, given, expected) in cases {
        let given = Value::Optional(given.map(|v| Box::new(int(v))));
        let out = model.run(&[int(trips), given]).expect("runs");
        let Value::Optional(found) = &out[0] else {
            panic!("an optional")
        };
        assert_eq!(found.as_ref().map(|v| read(v)[0]), expected);
        assert_eq!(
            out[1].as_tensor().expect("a tensor").dims(),
            [trips as usize]
        );
    }
}

/// Branches that yield tensors of different lengths; what follows uses the length.
#[test]
fn branches_yield_different_shapes() {
    let mut b = Build::default();
    b.0.symbols = vec!["n".into(), "m".into(), "k".into()];
    let list = |s: u32| tensor(ElemType::I64, &[Size::Sym(s)]);
    let condition = b.input("c", tensor(ElemType::Bool, &[]));
    let (x, y) = (b.input("x", list(0)), b.input("y", list(1)));
    let both = b.heap(tensor(
        ElemType::I64,
        &[Size::Add(Box::new(Size::Sym(0)), Box::new(Size::Sym(1)))],
    ));
    let (chosen, copy) = (b.heap(list(2)), b.heap(list(2)));
    b.output(copy);
    let axis0 = vec![("axis".to_owned(), CallAttr::Int(0))];
    let model = b.load(vec![
        Step::If {
            condition,
            then_block: Block {
                steps: vec![call_with("concat", axis0, &[x, y], both)],
                results: vec![both],
                ..Block::default()
            },
            else_block: Block {
                results: vec![y],
                ..Block::default()
            },
            results: vec![chosen],
        },
        Step::BindDim {
            symbol: 2,
            value: chosen,
            axis: 0,
        },
        Step::Require {
            left: Size::Sym(2),
            right: Size::Sym(2),
            message: String::new(),
        },
        Step::Move {
            from: chosen,
            to: copy,
        },
    ]);
    for (c, expected) in [(true, vec![1, 2, 3]), (false, vec![2, 3])] {
        let c = Tensor::from_bool(c).expect("small").into();
        let out = model.run(&[c, ints(&[1]), ints(&[2, 3])]).expect("runs");
        assert_eq!(read(&out[0]), expected);
    }
}

/// Loops that end by their condition, in loops; the outer one's values survive the inner one's.
#[test]
fn loops_nest() {
    let mut b = Build::default();
    let (scalar, flag) = (tensor(ElemType::I64, &[]), tensor(ElemType::Bool, &[]));
    let sequence = ValueType::Sequence(Box::new(scalar.clone()));
    let trips = b.input("trips", scalar.clone());
    let s0 = b.heap(sequence.clone());
    let [i, go, s, j, on, t, t1, s1, s2] = [
        scalar.clone(),
        flag.clone(),
        sequence.clone(),
        scalar,
        flag,
        sequence.clone(),
        sequence.clone(),
        sequence.clone(),
        sequence,
    ]
    .map(|t| b.heap(t));
    b.output(s2);
    let repeat = |trip_count, carried, body, result| Step::Loop {
        trip_count: Some(trip_count),
        condition: None,
        carried: vec![carried],
        body,
        results: vec![result],
        scan_types: vec![],
    };
    // For each i, push i once for each j < i.
    let inner = Block {
        params: vec![j, on, t],
        steps: vec![call("sequence_insert", &[t, i], t1)],
        results: vec![on, t1],
    };
    let outer = Block {
        params: vec![i, go, s],
        steps: vec![repeat(i, s, inner, s1)],
        results: vec![go, s1],
    };
    let model = b.load(vec![
        call("sequence_empty", &[], s0),
        repeat(trips, s0, outer, s2),
    ]);
    let out = model.run(&[int(4)]).expect("runs");
    let Value::Sequence(items) = &out[0] else {
        panic!("a sequence")
    };
    let found: Vec<i64> = items.iter().map(|v| read(v)[0]).collect();
    assert_eq!(found, [1, 2, 2, 3, 3, 3]);
}
