//! Older forms of operators mean what they meant then: each is imported and evaluated.

use lapidary_frontend::onnx::import::import_model;
use lapidary_frontend::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
    attribute_type as kind,
};
use lapidary_frontend::onnx::{ImportOptions, tensor};
use lapidary_ir::{ElemType, Tensor, eval};

fn int(name: &str, v: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i: Some(v),
        r#type: kind::INT,
        ..AttributeProto::default()
    }
}

fn ints(name: &str, v: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ints: v.to_vec(),
        r#type: kind::INTS,
        ..AttributeProto::default()
    }
}

fn float(name: &str, v: f32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        f: Some(v),
        r#type: kind::FLOAT,
        ..AttributeProto::default()
    }
}

fn floats(name: &str, v: &[f32]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        floats: v.to_vec(),
        r#type: kind::FLOATS,
        ..AttributeProto::default()
    }
}

fn text(name: &str, v: &str) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        s: Some(v.to_owned().into()),
        r#type: kind::STRING,
        ..AttributeProto::default()
    }
}

fn f32s(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::from_f64(ElemType::F32, shape, values.to_vec())
}

/// Imports one node whose operands are constants, and gives its first result.
fn eval_node(
    op: &str,
    version: i64,
    attributes: Vec<AttributeProto>,
    operands: &[Tensor],
    n_results: usize,
) -> Tensor {
    let names: Vec<String> = (0..operands.len()).map(|i| format!("x{i}")).collect();
    let results: Vec<String> = (0..n_results).map(|i| format!("y{i}")).collect();
    let node = NodeProto {
        op_type: op.into(),
        input: names.clone(),
        output: results.clone(),
        attribute: attributes,
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: vec![node],
        initializer: names
            .iter()
            .zip(operands)
            .map(|(n, t)| tensor::to_proto(n, t))
            .collect(),
        output: results
            .into_iter()
            .map(|name| ValueInfoProto { name, r#type: None })
            .collect(),
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto {
        domain: None,
        version: Some(version),
    };
    let model = ModelProto {
        ir_version: Some(3),
        opset_import: vec![opset],
        graph: Some(graph),
        ..ModelProto::default()
    };
    let module =
        import_model(&model, op, None, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let out = eval::run(&module, vec![]).unwrap_or_else(|e| panic!("{op}-{version}: {e}"));
    out[0].as_tensor().expect("a tensor").clone()
}

struct Case {
    op: &'static str,
    version: i64,
    attributes: Vec<AttributeProto>,
    operands: Vec<Tensor>,
    n_results: usize,
    want: Tensor,
}

fn case(
    op: &'static str,
    version: i64,
    attributes: Vec<AttributeProto>,
    operands: Vec<Tensor>,
    want: Tensor,
) -> Case {
    Case {
        op,
        version,
        attributes,
        operands,
        n_results: 1,
        want,
    }
}

#[test]
fn attributes_that_became_operands() {
    let x = || f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let cases = [
        case(
            "Clip",
            6,
            vec![float("min", 2.0), float("max", 5.0)],
            vec![x()],
            f32s(&[2, 3], &[2.0, 2.0, 3.0, 4.0, 5.0, 5.0]),
        ),
        case(
            "Slice",
            9,
            vec![ints("starts", &[1]), ints("ends", &[3]), ints("axes", &[1])],
            vec![x()],
            f32s(&[2, 2], &[2.0, 3.0, 5.0, 6.0]),
        ),
        case(
            "Pad",
            2,
            vec![ints("pads", &[0, 1, 0, 0]), float("value", 9.0)],
            vec![x()],
            f32s(&[2, 4], &[9.0, 1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0]),
        ),
        case(
            "Unsqueeze",
            11,
            vec![ints("axes", &[0])],
            vec![x()],
            x().with_shape([1, 2, 3]),
        ),
        case(
            "Squeeze",
            11,
            vec![ints("axes", &[0])],
            vec![x().with_shape([1, 2, 3])],
            x(),
        ),
        case(
            "ReduceSum",
            11,
            vec![ints("axes", &[1]), int("keepdims", 0)],
            vec![x()],
            f32s(&[2], &[6.0, 15.0]),
        ),
        case(
            "ReduceMax",
            13,
            vec![ints("axes", &[0]), int("keepdims", 0)],
            vec![x()],
            f32s(&[3], &[4.0, 5.0, 6.0]),
        ),
        case(
            "Reshape",
            1,
            vec![ints("shape", &[3, 2])],
            vec![x()],
            x().with_shape([3, 2]),
        ),
        case(
            "Upsample",
            7,
            vec![floats("scales", &[1.0, 2.0])],
            vec![f32s(&[1, 2], &[1.0, 2.0])],
            f32s(&[1, 4], &[1.0, 1.0, 2.0, 2.0]),
        ),
        Case {
            n_results: 3,
            ..case(
                "Split",
                2,
                vec![int("axis", 1)],
                vec![x()],
                f32s(&[2, 1], &[1.0, 4.0]),
            )
        },
        Case {
            n_results: 2,
            ..case(
                "Split",
                11,
                vec![int("axis", 1), ints("split", &[2, 1])],
                vec![x()],
                f32s(&[2, 2], &[1.0, 2.0, 4.0, 5.0]),
            )
        },
        Case {
            n_results: 2,
            ..case(
                "TopK",
                9,
                vec![int("k", 1)],
                vec![x()],
                f32s(&[2, 1], &[3.0, 6.0]),
            )
        },
        case("Dropout", 7, vec![float("ratio", 0.9)], vec![x()], x()),
        case("Dropout", 6, vec![int("is_test", 1)], vec![x()], x()),
        case(
            "Cast",
            5,
            vec![text("to", "INT32")],
            vec![f32s(&[1], &[2.0])],
            Tensor::from_int(ElemType::I32, [1], vec![2]),
        ),
    ];
    check(&cases);
}

#[test]
fn meanings_that_changed() {
    let half = |n: usize| f32s(&[1, 2, n], &vec![1.0 / (2 * n) as f64; 2 * n]);
    let column = f32s(&[2], &[10.0, 20.0]);
    let cases = [
        // All of a row's elements, not only the last axis.
        case(
            "Softmax",
            11,
            vec![],
            vec![f32s(&[1, 2, 2], &[0.0; 4])],
            half(2),
        ),
        case(
            "Softmax",
            11,
            vec![int("axis", 2)],
            vec![f32s(&[1, 2, 2], &[0.0; 4])],
            f32s(&[1, 2, 2], &[0.5; 4]),
        ),
        case(
            "Hardmax",
            11,
            vec![],
            vec![f32s(&[1, 2, 2], &[0.0, 3.0, 1.0, 2.0])],
            f32s(&[1, 2, 2], &[0.0, 1.0, 0.0, 0.0]),
        ),
        case(
            "Add",
            6,
            vec![int("broadcast", 1), int("axis", 0)],
            vec![f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), column.clone()],
            f32s(&[2, 2], &[11.0, 12.0, 23.0, 24.0]),
        ),
        case(
            "PRelu",
            6,
            vec![],
            vec![f32s(&[1, 2, 2], &[-1.0, 1.0, -1.0, 1.0]), column],
            f32s(&[1, 2, 2], &[-10.0, 1.0, -20.0, 1.0]),
        ),
        case(
            "BatchNormalization",
            8,
            vec![int("spatial", 0), float("epsilon", 0.0)],
            vec![
                f32s(&[1, 1, 2], &[3.0, 5.0]),
                f32s(&[1, 2], &[1.0, 2.0]),
                f32s(&[1, 2], &[0.0, 1.0]),
                f32s(&[1, 2], &[1.0, 1.0]),
                f32s(&[1, 2], &[4.0, 4.0]),
            ],
            f32s(&[1, 1, 2], &[1.0, 5.0]),
        ),
        case(
            "GroupNormalization",
            18,
            vec![int("num_groups", 1), float("epsilon", 0.0)],
            vec![
                f32s(&[1, 2, 1], &[-1.0, 1.0]),
                f32s(&[1], &[2.0]),
                f32s(&[1], &[1.0]),
            ],
            f32s(&[1, 2, 1], &[-1.0, 3.0]),
        ),
    ];
    check(&cases);
}

fn check(cases: &[Case]) {
    for c in cases {
        let got = eval_node(
            c.op,
            c.version,
            c.attributes.clone(),
            &c.operands,
            c.n_results,
        );
        assert_eq!(got, c.want, "{}-{}", c.op, c.version);
    }
}
