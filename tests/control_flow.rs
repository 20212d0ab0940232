//! Control flow through compiled code equals the evaluator: scans along every axis and in both directions, maps
//! over sequences, with sizes that are known and sizes that are not.

use lapidary::driver::{CompileOptions, compile};
use lapidary::values::{to_evaluator, to_runtime};
use lapidary_ir::builder::Builder;
use lapidary_ir::ops::control::ScanAxes;
use lapidary_ir::tensor::{Tensor, Value};
use lapidary_ir::{Attr, Attrs, Dim, ElemType, Module, Op, Type, eval};
use lapidary_runtime::ModelOptions;
use std::cell::Cell;

fn tensor(shape: &[usize]) -> Value {
    let n: usize = shape.iter().product();
    let values = (0..n).map(|i| (i % 7) as f64 - 2.5).collect();
    Tensor::from_f64(ElemType::F32, shape, values).into()
}

/// Runs a module both ways.
fn both(module: Module, inputs: &[Value], what: &str) {
    let expected = eval::run(&module, inputs.to_vec()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let compiled = compile(module, "test", &CompileOptions::host(1), None)
        .unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let model = compiled.load(ModelOptions::default()).expect("loads");
    let inputs: Vec<_> = inputs
        .iter()
        .map(|v| to_runtime(v).expect("fits"))
        .collect();
    let found = model.run(&inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
    let found: Vec<_> = found
        .iter()
        .map(to_evaluator)
        .collect::<Option<_>>()
        .expect("whole");
    assert_eq!(found, expected, "{what}");
}

/// `scan` with one state (a running sum), two inputs and two outputs.
fn scan(ty: &Type, lists: [[i64; 2]; 4]) -> Module {
    let mut module = Module::new("scan");
    let fresh = Cell::new(0);
    let row = Type::tensor(ElemType::F32, [2i64]);
    let state = module.add_input(Module::TOP, "state", row.clone());
    let inputs = ["a", "b"].map(|n| module.add_input(Module::TOP, n, ty.clone()));
    let body = module.add_region();
    let [s, a, b] = ["s", "x", "y"].map(|n| module.add_input(body, n, row.clone()));
    let mut builder = Builder::new(&mut module, body, "body", &fresh);
    let sum = builder.op("add", &[s, a]).expect("adds");
    let product = builder.op("mul", &[sum, b]).expect("multiplies");
    module.region_mut(body).outputs = vec![sum, product, a];
    let names = [
        "scan_input_axes",
        "scan_input_directions",
        "scan_output_axes",
        "scan_output_directions",
    ];
    let mut attrs: Attrs = names
        .iter()
        .zip(lists)
        .map(|(n, l)| ((*n).to_owned(), Attr::Ints(l.to_vec())))
        .collect();
    attrs.insert("num_scan_inputs".into(), Attr::Int(2));
    let operands = [state, inputs[0], inputs[1]].map(Some).to_vec();
    let op = Op::named("scan").expect("an op");
    let n = module.make_node(op, "scan", operands, attrs, vec![body], vec![]);
    let axes = ScanAxes::new(module.node(n), 3).expect("right attributes");
    let steps = ty.shape().expect("ranked")[axes.inputs.axis(0, 2).expect("in range")].clone();
    let mut types = vec![row];
    for k in 0..2 {
        let mut dims = vec![Dim::from(2i64)];
        dims.insert(axes.output_axis(k, 2).expect("in range"), steps.clone());
        types.push(Type::tensor(ElemType::F32, dims));
    }
    module.set_result_types(n, types);
    module.region_mut(Module::TOP).nodes.push(n);
    module.region_mut(Module::TOP).outputs = module.node(n).results.clone();
    module
}

#[test]
fn scans_run_along_every_axis_in_both_directions() {
    for bits in 0..16i64 {
        let [reversed_a, reversed_b, out, reversed_out] =
            [1, 2, 4, 8].map(|b| i64::from(bits & b != 0));
        for (axis, symbolic) in [(0i64, false), (1, false), (-1, true), (0, true)] {
            let lists = [
                [axis, axis],
                [reversed_a, reversed_b],
                [out, -1],
                [reversed_out, reversed_b],
            ];
            let steps = 3usize;
            let shape = if axis == 0 { [steps, 2] } else { [2, steps] };
            let dims = shape.map(|d| match d {
                3 if symbolic => Dim::sym("t"),
                d => Dim::from(d as i64),
            });
            let ty = Type::tensor(ElemType::F32, dims);
            let inputs = [tensor(&[2]), tensor(&shape), tensor(&shape)];
            both(
                scan(&ty, lists),
                &inputs,
                &format!("{lists:?}, symbolic: {symbolic}"),
            );
        }
    }
}

#[test]
fn maps_run_on_items_of_different_lengths() {
    let mut module = Module::new("map");
    let fresh = Cell::new(0);
    let item = Type::tensor(ElemType::F32, [Dim::sym("n")]);
    let list = Type::Sequence(Box::new(item.clone()));
    let sequence = module.add_input(Module::TOP, "sequence", list.clone());
    let scale = module.add_input(Module::TOP, "scale", Type::tensor(ElemType::F32, [1i64]));
    let body = module.add_region();
    let x = module.add_input(body, "x", item.clone());
    let k = module.add_input(body, "k", Type::tensor(ElemType::F32, [1i64]));
    let mut builder = Builder::new(&mut module, body, "body", &fresh);
    let y = builder.op("mul", &[x, k]).expect("multiplies");
    let z = builder.op("shape", &[y]).expect("has one");
    module.region_mut(body).outputs = vec![y, z];
    let lengths = Type::Sequence(Box::new(Type::tensor(ElemType::I64, [1i64])));
    let mut builder = Builder::new(&mut module, Module::TOP, "map", &fresh);
    let operands = vec![Some(sequence), Some(scale)];
    let results = builder.control("sequence_map", operands, vec![body], vec![list, lengths]);
    module.region_mut(Module::TOP).outputs = results.expect("an op");
    for lens in [&[][..], &[3], &[2, 1, 5]] {
        let items = Value::Sequence(lens.iter().map(|&n| tensor(&[n])).collect());
        both(module.clone(), &[items, tensor(&[1])], &format!("{lens:?}"));
    }
}
