//! Our hand-written messages against an encoder that shares no code with them.

use bytes::Bytes;
use lapidary_frontend::onnx::proto::{ModelProto, SequenceProto, decode};
use lapidary_frontend::onnx::{ImportOptions, import_bytes};
use lapidary_ir::{ElemType, Tensor, Type};
use onnx_protobuf as theirs;
use protobuf::{EnumOrUnknown, Message, MessageField};

type Kind = theirs::attribute_proto::AttributeType;

fn attribute(
    name: &str,
    kind: Kind,
    set: impl FnOnce(&mut theirs::AttributeProto),
) -> theirs::AttributeProto {
    let mut a = theirs::AttributeProto {
        name: name.into(),
        type_: EnumOrUnknown::new(kind),
        ..Default::default()
    };
    set(&mut a);
    a
}

fn tensor(
    name: &str,
    elem: ElemType,
    dims: &[i64],
    set: impl FnOnce(&mut theirs::TensorProto),
) -> theirs::TensorProto {
    let mut t = theirs::TensorProto {
        name: name.into(),
        data_type: elem.onnx(),
        dims: dims.to_vec(),
        ..Default::default()
    };
    set(&mut t);
    t
}

fn input(name: &str, elem: ElemType, dims: &[Result<i64, &str>]) -> theirs::ValueInfoProto {
    use theirs::tensor_shape_proto::Dimension;
    let mut tensor = theirs::type_proto::Tensor {
        elem_type: elem.onnx(),
        ..Default::default()
    };
    let mut shape = theirs::TensorShapeProto::new();
    for dim in dims {
        let mut d = Dimension::new();
        match dim {
            Ok(n) => d.set_dim_value(*n),
            Err(s) => d.set_dim_param(s.to_string()),
        }
        shape.dim.push(d);
    }
    tensor.shape = MessageField::some(shape);
    let mut ty = theirs::TypeProto::new();
    ty.set_tensor_type(tensor);
    theirs::ValueInfoProto {
        name: name.into(),
        type_: MessageField::some(ty),
        ..Default::default()
    }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> theirs::NodeProto {
    let own = |names: &[&str]| names.iter().map(|s| s.to_string()).collect();
    theirs::NodeProto {
        op_type: op.into(),
        input: own(inputs),
        output: own(outputs),
        ..Default::default()
    }
}

fn model(graph: theirs::GraphProto) -> theirs::ModelProto {
    let opset = theirs::OperatorSetIdProto {
        version: 21,
        ..Default::default()
    };
    theirs::ModelProto {
        ir_version: 9,
        producer_name: "test".into(),
        opset_import: vec![opset],
        graph: MessageField::some(graph),
        ..Default::default()
    }
}

fn encoded(message: &impl Message) -> Bytes {
    Bytes::from(message.write_to_bytes().expect("encodes"))
}

#[test]
fn models_are_read_as_they_were_written() {
    let raw = tensor("raw", ElemType::F32, &[2], |t| {
        t.raw_data = [1f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect()
    });
    let typed = tensor("typed", ElemType::F32, &[2], |t| {
        t.float_data = vec![3.0, -4.0]
    });
    let graph = theirs::GraphProto {
        name: "g".into(),
        initializer: vec![raw, typed],
        input: vec![input("x", ElemType::F32, &[Err("batch"), Ok(2)])],
        output: vec![input("y", ElemType::F32, &[Err("batch"), Ok(2)])],
        node: vec![
            node("Add", &["x", "raw"], &["t"]),
            node("Add", &["t", "typed"], &["y"]),
        ],
        ..Default::default()
    };
    let module = import_bytes(
        encoded(&model(graph)),
        "theirs",
        None,
        &ImportOptions::default(),
    )
    .unwrap_or_else(|e| panic!("{e}"));
    let top = module.top();
    assert_eq!((module.name.as_str(), top.nodes.len()), ("g", 2));
    assert_eq!(module.value(top.outputs[0]).ty.to_string(), "f32[batch,2]");
    let weights: Vec<Tensor> = (0..2)
        .map(|i| {
            module
                .constant(lapidary_ir::ConstId(i))
                .decode()
                .expect("valid")
        })
        .collect();
    let want = [[1.0, 2.0], [3.0, -4.0]].map(|v| Tensor::from_f64(ElemType::F32, [2], v.to_vec()));
    assert_eq!(weights, want);
}

#[test]
fn every_kind_of_attribute_and_field_arrives() {
    let small = tensor("t", ElemType::I64, &[3], |t| {
        t.int64_data = vec![1, -2, i64::MAX]
    });
    let inner = theirs::GraphProto {
        name: "inner".into(),
        node: vec![node("Neg", &["a"], &["b"])],
        ..Default::default()
    };
    let mut n = node("Op", &["a", "", "b"], &["c"]);
    n.attribute = vec![
        attribute("f", Kind::FLOAT, |a| a.f = -0.5),
        attribute("i", Kind::INT, |a| a.i = i64::MIN),
        attribute("s", Kind::STRING, |a| a.s = "text".into()),
        attribute("floats", Kind::FLOATS, |a| a.floats = vec![1.0, 2.0]),
        attribute("ints", Kind::INTS, |a| a.ints = vec![-1, 300]),
        attribute("strings", Kind::STRINGS, |a| {
            a.strings = vec!["a".into(), "b".into()]
        }),
        attribute("t", Kind::TENSOR, |a| a.t = MessageField::some(small)),
        attribute("g", Kind::GRAPH, |a| a.g = MessageField::some(inner)),
        attribute("r", Kind::INT, |a| a.ref_attr_name = "outer".into()),
    ];
    let graph = theirs::GraphProto {
        name: "g".into(),
        node: vec![n],
        ..Default::default()
    };
    let ours: ModelProto = decode(encoded(&model(graph))).expect("valid");
    let node = &ours.graph.expect("given").node[0];
    let a = &node.attribute;
    assert_eq!(node.input, ["a", "", "b"]);
    assert_eq!(
        (a[0].f, a[1].i, a[2].s.as_deref()),
        (Some(-0.5), Some(i64::MIN), Some(&b"text"[..]))
    );
    assert_eq!(
        (a[3].floats.as_slice(), a[4].ints.as_slice()),
        (&[1.0, 2.0][..], &[-1, 300][..])
    );
    assert_eq!(a[5].strings, ["a", "b"]);
    assert_eq!(
        a[6].t.as_ref().map(|t| t.int64_data.clone()),
        Some(vec![1, -2, i64::MAX])
    );
    assert_eq!(
        a[7].g.as_ref().map(|g| g.node[0].op_type.clone()),
        Some("Neg".into())
    );
    assert_eq!(a[8].ref_attr_name, "outer");
    let numbers: Vec<i32> = a.iter().map(|a| a.r#type).collect();
    assert_eq!(numbers, [1, 2, 3, 6, 7, 8, 4, 5, 2]);
}

#[test]
fn what_we_write_they_read() {
    let value = Tensor::from_f64(ElemType::F32, [2, 1], vec![1.5, -2.5]);
    let item = lapidary_ir::tensor::Value::Tensor(value);
    let bytes = lapidary_frontend::onnx::tensor_file::value_to_bytes("v", &item);
    let read = theirs::TensorProto::parse_from_bytes(&bytes).expect("valid");
    assert_eq!(
        (read.name.as_str(), read.data_type, read.dims.as_slice()),
        ("v", 1, &[2, 1][..])
    );
    assert_eq!(
        read.raw_data,
        [1.5f32, -2.5]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect::<Vec<u8>>()
    );
    let sequence = lapidary_ir::tensor::Value::Sequence(vec![item.clone(), item]);
    let bytes = Bytes::from(lapidary_frontend::onnx::tensor_file::value_to_bytes(
        "s", &sequence,
    ));
    let ours: SequenceProto = decode(bytes.clone()).expect("valid");
    assert_eq!(ours.tensor_values.len(), 2);
    let ty = Type::Sequence(Box::new(Type::unranked(ElemType::F32)));
    assert_eq!(
        lapidary_frontend::onnx::tensor_file::value_from_bytes(bytes, &ty),
        Ok(sequence)
    );
}
