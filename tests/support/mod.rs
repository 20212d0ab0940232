//! Small ONNX models and files of inputs, made by hand; and the command, run in bounded memory and time.
#![allow(dead_code, reason = "each test uses a part")]

pub mod data;

use lapidary_frontend::onnx::proto::{
    AttributeProto, Dimension, EXTERNAL, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, attribute_type, encode,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// ONNX's numbers of element types.
pub const F32: i32 = 1;
pub const I64: i32 = 7;
pub const BOOL: i32 = 9;

pub fn node(name: &str, op: &str, input: &[&str], output: &[&str]) -> NodeProto {
    let strings = |names: &[&str]| names.iter().map(|s| s.to_string()).collect();
    NodeProto {
        name: name.into(),
        op_type: op.into(),
        input: strings(input),
        output: strings(output),
        ..NodeProto::default()
    }
}

pub fn with_int(mut node: NodeProto, name: &str, value: i64) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.into(),
        r#type: attribute_type::INT,
        i: Some(value),
        ..AttributeProto::default()
    });
    node
}

pub fn with_graph(mut node: NodeProto, name: &str, graph: GraphProto) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.into(),
        r#type: attribute_type::GRAPH,
        g: Some(graph),
        ..AttributeProto::default()
    });
    node
}

/// An input or output; a dimension that is no number is a symbol.
pub fn port(name: &str, elem: i32, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| Dimension {
        dim_value: d.parse().ok(),
        dim_param: d.parse::<i64>().is_err().then(|| d.to_string()),
    };
    let tensor = TensorTypeProto {
        elem_type: Some(elem),
        shape: Some(TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
            ..TypeProto::default()
        }),
    }
}

/// An output without a type.
pub fn untyped(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: name.into(),
        r#type: None,
    }
}

pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    raw(
        name,
        F32,
        dims,
        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    )
}

pub fn ints(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    raw(
        name,
        I64,
        dims,
        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    )
}

fn raw(name: &str, elem: i32, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: Some(elem),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

/// A tensor whose bytes are elsewhere.
pub fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    let entry = |&(key, value): &(&str, &str)| StringStringEntryProto {
        key: key.into(),
        value: value.into(),
    };
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: Some(F32),
        data_location: Some(EXTERNAL),
        external_data: entries.iter().map(entry).collect(),
        ..TensorProto::default()
    }
}

pub fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![OperatorSetIdProto {
            version: Some(21),
            ..OperatorSetIdProto::default()
        }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// `y = x + w`, with `x` and `w` of two numbers.
pub fn sum() -> GraphProto {
    GraphProto {
        name: "sum".into(),
        node: vec![node("add", "Add", &["x", "w"], &["y"])],
        initializer: vec![floats("w", &[2], &[1.0, 2.0])],
        input: vec![port("x", F32, &["2"])],
        output: vec![port("y", F32, &["2"])],
        ..GraphProto::default()
    }
}

/// Writes a model under this name into the folder.
pub fn save(folder: &Path, name: &str, model: &ModelProto) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, encode(model)).expect("the folder is writable");
    path
}

/// Writes `input_0.pb`, … into a folder of this name.
pub fn save_inputs(folder: &Path, name: &str, inputs: &[TensorProto]) -> PathBuf {
    let inputs_folder = folder.join(name);
    std::fs::create_dir_all(&inputs_folder).expect("the folder is writable");
    for (n, input) in inputs.iter().enumerate() {
        let path = inputs_folder.join(format!("input_{n}.pb"));
        std::fs::write(path, encode(input)).expect("the folder is writable");
    }
    inputs_folder
}

pub fn lapidary() -> &'static str {
    env!("CARGO_BIN_EXE_lapidary")
}

pub fn str(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program that may have a gigabyte of addresses and 30 seconds of the processor; `limits` are
/// further options of `ulimit`.
#[cfg(unix)]
pub fn bounded(program: &str, args: &[&str], limits: &[&str]) -> Output {
    let limits: String = limits.iter().map(|l| format!("ulimit {l}; ")).collect();
    let script =
        format!("trap '' XFSZ; ulimit -v 1048576; ulimit -t 30; {limits}exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, program]).args(args);
    command.env("NO_COLOR", "1").output().expect("a shell")
}

/// Names in a folder, in order.
pub fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    let name = |e: std::io::Result<std::fs::DirEntry>| {
        e.expect("an entry")
            .file_name()
            .to_string_lossy()
            .into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}
