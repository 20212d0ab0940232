//! Whole models through the importer: what is imported, and what is refused and how it is said.

use bytes::Bytes;
use lapidary_frontend::ImportError;
use lapidary_frontend::onnx::import::import_model;
use lapidary_frontend::onnx::proto::{
    AttributeProto, Dimension, EXTERNAL, FunctionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto, attribute_type,
};
use lapidary_frontend::onnx::{ImportOptions, import_file, tensor};
use lapidary_ir::{ElemType, Module, Tensor, eval, tensor::Value};
use prost::Message;
use std::io::{Seek, SeekFrom, Write};

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|s| s.to_string()).collect()
}

fn node(op: &str, input: &[&str], output: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: strings(input),
        output: strings(output),
        ..NodeProto::default()
    }
}

fn with(mut node: NodeProto, name: &str, set: impl FnOnce(&mut AttributeProto)) -> NodeProto {
    let mut a = AttributeProto {
        name: name.into(),
        ..AttributeProto::default()
    };
    set(&mut a);
    node.attribute.push(a);
    node
}

/// `f32` unless said otherwise; dimensions that are no numbers are symbols.
fn info(name: &str, elem: ElemType, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| match d.parse() {
        Ok(n) => Dimension {
            dim_value: Some(n),
            dim_param: None,
        },
        Err(_) => Dimension {
            dim_value: None,
            dim_param: Some(d.to_string()),
        },
    };
    let shape = TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
    };
    let tensor = TensorTypeProto {
        elem_type: Some(elem.onnx()),
        shape: Some(shape),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
            ..TypeProto::default()
        }),
    }
}

fn f32_in(name: &str, dims: &[&str]) -> ValueInfoProto {
    info(name, ElemType::F32, dims)
}

fn weight(name: &str, values: &[f64]) -> TensorProto {
    tensor::to_proto(
        name,
        &Tensor::from_f64(ElemType::F32, [values.len()], values.to_vec()),
    )
}

fn graph(node: Vec<NodeProto>, input: Vec<ValueInfoProto>, output: &[&str]) -> GraphProto {
    let output = output
        .iter()
        .map(|n| ValueInfoProto {
            name: n.to_string(),
            r#type: None,
        })
        .collect();
    GraphProto {
        name: "g".into(),
        node,
        input,
        output,
        ..GraphProto::default()
    }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    }
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![opset("", 21)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn import(model: &ModelProto) -> Result<Module, ImportError> {
    import_model(model, "test.onnx", None, &ImportOptions::default())
}

/// Imports and evaluates on 1-D `f32` inputs.
fn run(model: &ModelProto, inputs: &[&[f64]]) -> Vec<f64> {
    let module = import(model).unwrap_or_else(|e| panic!("{e}"));
    let tensor = |v: &&[f64]| Value::Tensor(Tensor::from_f64(ElemType::F32, [v.len()], v.to_vec()));
    let out =
        eval::run(&module, inputs.iter().map(tensor).collect()).unwrap_or_else(|e| panic!("{e}"));
    out[0]
        .as_tensor()
        .and_then(Tensor::floats)
        .expect("a float tensor")
        .to_vec()
}

fn double(name: &str) -> FunctionProto {
    FunctionProto {
        name: name.into(),
        domain: "own".into(),
        input: strings(&["a"]),
        output: strings(&["b"]),
        node: vec![node("Add", &["a", "a"], &["b"])],
        opset_import: vec![opset("", 21)],
        ..FunctionProto::default()
    }
}

fn own(mut n: NodeProto) -> NodeProto {
    n.domain = "own".into();
    n
}

#[test]
fn weights_constants_and_order() {
    let constant = with(node("Constant", &[], &["c"]), "value_floats", |a| {
        a.floats = vec![10.0, 20.0];
        a.r#type = attribute_type::FLOATS;
    });
    let nodes = vec![
        node("Add", &["t", "c"], &["y"]),
        node("Add", &["x", "w"], &["t"]),
        constant,
    ];
    let mut g = graph(
        nodes,
        vec![f32_in("x", &["n"]), f32_in("w", &["2"])],
        &["y"],
    );
    g.initializer = vec![weight("w", &[1.0, 2.0])];
    assert_eq!(run(&model(g), &[&[0.0, 0.5]]), [11.0, 22.5]);
}

#[test]
fn subgraphs_see_outer_names() {
    let branch = |op_input: &str| {
        graph(
            vec![node("Add", &["x", op_input], &["inner"])],
            vec![],
            &["inner"],
        )
    };
    let choice = node("If", &["cond"], &["y"]);
    let choice = with(choice, "then_branch", |a| {
        (a.g, a.r#type) = (Some(branch("x")), attribute_type::GRAPH)
    });
    let choice = with(choice, "else_branch", |a| {
        (a.g, a.r#type) = (Some(branch("w")), attribute_type::GRAPH)
    });
    let mut g = graph(vec![choice], vec![f32_in("x", &["2"])], &["y"]);
    g.initializer = vec![
        weight("w", &[5.0, 5.0]),
        tensor::to_proto("cond", &Tensor::bool(false)),
    ];
    assert_eq!(run(&model(g), &[&[1.0, 2.0]]), [6.0, 7.0]);
}

#[test]
fn functions_are_inlined_with_their_attributes() {
    let constant = with(node("Constant", &[], &["c"]), "value_float", |a| {
        a.ref_attr_name = "bias".into();
        a.r#type = attribute_type::FLOAT;
    });
    let mut shifted = double("Shifted");
    shifted.attribute = strings(&["bias"]);
    shifted.node = vec![
        constant,
        own(node("Double", &["a"], &["t"])),
        node("Add", &["t", "c"], &["b"]),
    ];
    shifted.opset_import.push(opset("own", 1));
    let call = with(own(node("Shifted", &["x"], &["y"])), "bias", |a| {
        (a.f, a.r#type) = (Some(0.5), attribute_type::FLOAT)
    });
    let mut m = model(graph(vec![call], vec![f32_in("x", &["2"])], &["y"]));
    m.opset_import.push(opset("own", 1));
    m.functions = vec![shifted, double("Double")];
    assert_eq!(run(&m, &[&[1.0, 2.0]]), [2.5, 4.5]);
}

#[test]
fn functions_that_recur_or_multiply_are_refused() {
    let mut m = model(graph(
        vec![own(node("F0", &["x"], &["y"]))],
        vec![f32_in("x", &["2"])],
        &["y"],
    ));
    m.opset_import.push(opset("own", 1));
    let calling = |name: &str, callee: &str| {
        let nodes = vec![
            own(node(callee, &["a"], &["t"])),
            own(node(callee, &["t"], &["b"])),
        ];
        FunctionProto {
            node: nodes,
            opset_import: vec![opset("own", 1)],
            ..double(name)
        }
    };
    m.functions = vec![calling("F0", "F1"), calling("F1", "F0")];
    refused(&m, "calls itself");
    m.functions = (0..60)
        .map(|i| calling(&format!("F{i}"), &format!("F{}", i + 1)))
        .chain([double("F60")])
        .collect();
    let options = ImportOptions {
        max_nodes: 1000,
        ..ImportOptions::default()
    };
    let error = import_model(&m, "test.onnx", None, &options)
        .expect_err("2^60 nodes")
        .to_string();
    assert!(error.contains("more than 1000 nodes"), "{error}");
    m.functions = (0..500)
        .map(|i| calling(&format!("F{i}"), &format!("F{}", i + 1)))
        .collect();
    m.functions.iter_mut().for_each(|f| {
        f.node.truncate(1);
        f.output = strings(&["t"]);
    });
    refused(&m, "nested more than");
}

#[track_caller]
fn refused(model: &ModelProto, want: &str) {
    let error = import(model).expect_err(want).to_string();
    assert!(error.contains(want), "{error}");
}

#[test]
fn dimensions_can_be_bound() {
    let m = model(graph(
        vec![node("Add", &["x", "x"], &["y"])],
        vec![f32_in("x", &["batch", "4"])],
        &["y"],
    ));
    let options = ImportOptions {
        dims: [("batch".to_owned(), 3)].into(),
        ..ImportOptions::default()
    };
    let module = import_model(&m, "test.onnx", None, &options).expect("valid");
    assert_eq!(
        module.value(module.top().outputs[0]).ty.to_string(),
        "f32[3,4]"
    );
}

#[test]
fn bad_models_are_refused_with_reasons() {
    let x = || vec![f32_in("x", &["2"])];
    let add = || vec![node("Add", &["x", "x"], &["y"])];
    let good = || graph(add(), x(), &["y"]);
    let typed = |ty: ValueInfoProto| GraphProto {
        output: vec![ty],
        ..good()
    };
    let attribute = |name: &str, v: i64| {
        with(node("Add", &["x", "x"], &["y"]), name, |a| {
            (a.i, a.r#type) = (Some(v), attribute_type::INT)
        })
    };
    let huge = TensorProto {
        dims: vec![1 << 40],
        ..weight("w", &[1.0])
    };
    let external = TensorProto {
        data_location: Some(EXTERNAL),
        raw_data: None,
        ..weight("w", &[1.0])
    };
    let cases = [
        (ModelProto::default(), "has no graph"),
        (
            model(graph(vec![node("Exp", &["x"], &[])], x(), &["x"])),
            "no result is named",
        ),
        (
            ModelProto {
                ir_version: Some(99),
                ..model(good())
            },
            "IR version 99",
        ),
        (
            ModelProto {
                opset_import: vec![opset("", 99)],
                ..model(good())
            },
            "version 99 of operator set `ai.onnx`",
        ),
        (
            ModelProto {
                opset_import: vec![],
                ..model(good())
            },
            "not among the model's imports",
        ),
        (
            model(graph(vec![node("Frobnicate", &["x"], &["y"])], x(), &["y"])),
            "operator is not supported (opset 21)",
        ),
        (
            model(graph(vec![node("Add", &["x", "z"], &["y"])], x(), &["y"])),
            "operand `z` is not defined",
        ),
        (
            model(graph(vec![node("Add", &["x"], &["y"])], x(), &["y"])),
            "operand 1 (`b`) is missing",
        ),
        (
            model(graph(
                vec![node("Add", &["x", "x", "x"], &["y"])],
                x(),
                &["y"],
            )),
            "at most 2 operands",
        ),
        (
            model(graph(
                vec![node("Add", &["x", "x"], &["y", "z"])],
                x(),
                &["y"],
            )),
            "has 1 results",
        ),
        (
            model(graph(vec![attribute("colour", 1)], x(), &["y"])),
            "attribute `colour` is not supported by `add`",
        ),
        (
            model(graph(add(), x(), &["q"])),
            "output `q`: is not defined",
        ),
        (
            model(graph(vec![node("Add", &["y", "x"], &["y"])], x(), &["y"])),
            "in a cycle: `Add(y)`",
        ),
        (
            model(graph(
                vec![node("Add", &["x", "i"], &["y"])],
                vec![f32_in("x", &["2"]), info("i", ElemType::I64, &["2"])],
                &["y"],
            )),
            "node `Add(y)` (Add)",
        ),
        (
            model(graph(
                vec![node("Add", &["x", "w"], &["y"])],
                vec![f32_in("x", &["2"]), f32_in("w", &["3"])],
                &["y"],
            )),
            "broadcast",
        ),
        (
            model(typed(f32_in("y", &["3"]))),
            "declared as `f32[3]`, but computed as `f32[2]`",
        ),
        (
            model(typed(info("y", ElemType::I64, &["2"]))),
            "declared as `i64[2]`",
        ),
        (
            model(GraphProto {
                initializer: vec![huge],
                ..good()
            }),
            "initializer `w`",
        ),
        (
            model(GraphProto {
                initializer: vec![external],
                ..good()
            }),
            "external data has no `location`",
        ),
        (
            model(GraphProto {
                input: vec![ValueInfoProto {
                    name: "x".into(),
                    r#type: None,
                }],
                ..good()
            }),
            "type is missing",
        ),
        (
            model(graph(vec![node("If", &["x"], &["y"])], x(), &["y"])),
            "`then_branch` must be a graph",
        ),
        (
            model(graph(vec![node("Constant", &[], &["y"])], x(), &["y"])),
            "exactly one attribute",
        ),
    ];
    for (m, want) in &cases {
        refused(m, want);
    }
}

#[test]
fn every_cause_is_reported_once() {
    let nodes = vec![
        node("Bad", &["x"], &["a"]),
        node("Add", &["a", "a"], &["b"]),
        node("Worse", &["b"], &["y"]),
    ];
    let error = import(&model(graph(nodes, vec![f32_in("x", &["2"])], &["y"])))
        .expect_err("two unknown operators");
    let places: Vec<&str> = error.problems.iter().map(|p| p.place.as_str()).collect();
    assert_eq!(places, ["node `Bad(a)` (Bad)", "node `Worse(y)` (Worse)"]);
}

#[test]
fn damaged_files_never_panic() {
    let mut g = graph(
        vec![node("Add", &["x", "w"], &["y"])],
        vec![f32_in("x", &["2"])],
        &["y"],
    );
    g.initializer = vec![weight("w", &[1.0, 2.0])];
    let bytes = model(g).encode_to_vec();
    let import = |b: Vec<u8>| {
        lapidary_frontend::onnx::import_bytes(
            Bytes::from(b),
            "test",
            None,
            &ImportOptions::default(),
        )
    };
    assert!(import(bytes.clone()).is_ok());
    for i in 0..bytes.len() {
        let _ = import(bytes[..i].to_vec());
        for flip in [1, 0x80, 0xFF] {
            let mut damaged = bytes.clone();
            damaged[i] ^= flip;
            let _ = import(damaged);
        }
    }
}

/// Anonymous memory of this process, in bytes.
#[cfg(target_os = "linux")]
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status
        .lines()
        .find(|l| l.starts_with("RssAnon:"))
        .expect("present");
    let kilobytes: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    kilobytes * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn weights_are_not_copied() {
    let dir = tempfile::tempdir().expect("temporary folder");
    // Two weights of 1.5 GB each, in files with holes: one inside the model, one beside it.
    let elements: i64 = 3 << 27;
    let size = elements as u64 * 4;
    let dims = vec![elements];
    let entry = |k: &str, v: &str| StringStringEntryProto {
        key: k.into(),
        value: v.into(),
    };
    let beside = TensorProto {
        data_location: Some(EXTERNAL),
        external_data: vec![entry("location", "w.bin")],
        raw_data: None,
        dims: dims.clone(),
        ..weight("v", &[])
    };
    let rest = GraphProto {
        initializer: vec![beside],
        ..graph(vec![node("Add", &["w", "v"], &["y"])], vec![], &["y"])
    }
    .encode_to_vec();
    let head = TensorProto {
        raw_data: None,
        dims,
        ..weight("w", &[])
    }
    .encode_to_vec();
    let prefix = |tag: u8, len: u64| {
        let mut out = vec![tag << 3 | 2];
        prost::encoding::encode_varint(len, &mut out);
        out
    };
    let data = prefix(9, size);
    let tensor = prefix(5, head.len() as u64 + data.len() as u64 + size);
    let inner =
        tensor.len() as u64 + head.len() as u64 + data.len() as u64 + size + rest.len() as u64;
    let path = dir.path().join("model.onnx");
    let mut file = std::fs::File::create(&path).expect("create");
    let model = ModelProto {
        graph: None,
        ..model(GraphProto::default())
    }
    .encode_to_vec();
    for part in [model, prefix(7, inner), tensor, head, data] {
        file.write_all(&part).expect("write");
    }
    file.seek(SeekFrom::Current(size as i64)).expect("seek");
    file.write_all(&rest).expect("write");
    std::fs::File::create(dir.path().join("w.bin"))
        .and_then(|f| f.set_len(size))
        .expect("create");

    let before = anonymous_bytes();
    let module = import_file(&path, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let grown = anonymous_bytes().saturating_sub(before);
    assert_eq!(module.constant_count(), 2);
    assert!(
        grown < 200 << 20,
        "importing took {} MB of memory",
        grown >> 20
    );
}
