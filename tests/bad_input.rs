//! Bad models and bad data through the command and through built executables: exit status 1, one message with
//! file, place, reason and remedy; no panic, nothing left behind, memory and time bounded.
#![cfg(unix)]

#[allow(missing_docs, reason = "helpers of tests")]
mod support;

use lapidary_frontend::onnx::proto::{
    ElementTypeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TypeProto, ValueInfoProto, encode,
};
use std::path::{Path, PathBuf};
use std::process::Output;
use support::*;

/// Runs a program that must fail as bad models and data do; gives its message.
fn refused(program: &str, args: &[&str], limits: &[&str]) -> String {
    let out = bounded(program, args, limits);
    let message = text(&out.stderr);
    assert_eq!(
        out.status.code(),
        Some(1),
        "{program} {args:?}: {:?} {message}",
        out.status
    );
    assert!(
        !message.contains("panicked"),
        "{program} {args:?}: {message}"
    );
    message
}

/// The words of a message in one line, as they were before it was wrapped.
fn unwrapped(message: &str) -> String {
    let words = message
        .split_whitespace()
        .filter(|w| !["│", "|", "×", "╰─▶", "├─▶"].contains(w));
    words.collect::<Vec<_>>().join(" ")
}

fn assert_says(message: &str, wanted: &[&str]) {
    let message = unwrapped(message);
    for want in wanted {
        // Long words are broken where a line ends.
        let (m, w) = (message.replace(' ', ""), want.replace(' ', ""));
        assert!(m.contains(&w), "no {want:?} in: {message}");
    }
}

/// Whether a message says what to do: a remedy in brackets, or a line of help.
fn assert_has_remedy(message: &str) {
    assert!(
        message.contains(')') || message.contains("help:"),
        "no remedy: {message}"
    );
}

/// A model that no command takes, and words of the message.
fn refused_by_every_command(folder: &Path, name: &str, model: &ModelProto, wanted: &[&str]) {
    let path = save(folder, &format!("{name}.onnx"), model);
    refused_file(folder, &path, wanted);
}

fn refused_file(folder: &Path, path: &Path, wanted: &[&str]) {
    let file = path.file_name().and_then(|n| n.to_str()).expect("a name");
    let inputs = save_inputs(folder, "inputs", &[floats("x", &[2], &[1.0, 2.0])]);
    let (out, outputs) = (folder.join("out"), folder.join("outputs"));
    let commands: [&[&str]; 4] = [
        &["build", str(path), "-o", str(&out)],
        &[
            "run",
            str(path),
            "--inputs",
            str(&inputs),
            "--outputs",
            str(&outputs),
        ],
        &["inspect", str(path)],
        &["bench", str(path), "--seconds", "0.01"],
    ];
    let before = files(folder);
    for args in commands {
        let message = refused(lapidary(), args, &[]);
        assert_says(&message, &[file]);
        assert_says(&message, wanted);
        assert_has_remedy(&message);
        assert_eq!(files(folder), before, "{args:?} left something");
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn cut_models_never_panic_at_any_length() {
    let dir = folder();
    let whole = encode(&model(sum()));
    let check = |bytes: &[u8]| {
        let path = dir.path().join("cut.onnx");
        std::fs::write(&path, bytes).expect("it is written");
        let options = lapidary::CompileOptions::host(1);
        let module = lapidary::driver::import(&path, &options)?;
        lapidary::driver::compile(module, "cut.onnx", &options, None)
    };
    check(&whole).expect("the whole model compiles");
    for len in 0..whole.len() {
        if let Err(error) = check(&whole[..len]) {
            assert!(!error.to_string().is_empty());
        }
        for flip in [0x01, 0x10, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[len] ^= flip;
            let _ = check(&damaged);
        }
    }
    // The same from outside, at some lengths, and a real model.
    let path = dir.path().join("cut.onnx");
    for len in [0, 1, whole.len() / 2, whole.len() - 30] {
        std::fs::write(&path, &whole[..len]).expect("it is written");
        refused_file(dir.path(), &path, &[]);
    }
    let mnist = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mnist/mnist-8.onnx");
    let mnist = std::fs::read(mnist).expect("the bundled model");
    std::fs::write(&path, &mnist[..20_000]).expect("it is written");
    refused_file(dir.path(), &path, &["byte", "of 20000"]);
}

#[test]
fn graphs_that_mean_nothing_are_refused() {
    let dir = folder();
    let of = |nodes: Vec<NodeProto>| {
        model(GraphProto {
            node: nodes,
            ..sum()
        })
    };
    let add = |a: &str, b: &str, y: &str| node(&format!("add_{y}"), "Add", &[a, b], &[y]);
    let wrong_element = GraphProto {
        input: vec![port("x", I64, &["2"])],
        ..sum()
    };
    let wrong_shape = GraphProto {
        input: vec![port("x", F32, &["3"])],
        ..sum()
    };
    let cases: Vec<(&str, ModelProto, &[&str])> = vec![
        (
            "cycle",
            of(vec![
                add("x", "b", "a"),
                add("a", "w", "b"),
                add("a", "b", "y"),
            ]),
            &["cycl"],
        ),
        ("self", of(vec![add("x", "y", "y")]), &["cycl"]),
        (
            "undefined",
            of(vec![add("x", "nothing", "y")]),
            &["`add_y` (Add)", "`nothing`"],
        ),
        (
            "element",
            model(wrong_element),
            &["`add` (Add)", "i64", "f32"],
        ),
        ("shape", model(wrong_shape), &["`add` (Add)", "3", "2"]),
        (
            "rank",
            of(vec![node("c", "Conv", &["x", "w"], &["y"])]),
            &["`c` (Conv)"],
        ),
        (
            "operator",
            of(vec![node("s", "Sharpen", &["x"], &["y"])]),
            &["`s` (Sharpen)", "not supported"],
        ),
        (
            "operands",
            of(vec![node("a", "Add", &["x"], &["y"])]),
            &["`a` (Add)"],
        ),
        (
            "attribute",
            of(vec![with_int(add("x", "w", "y"), "colour", 1)]),
            &["`add_y` (Add)", "`colour`"],
        ),
        (
            "results",
            of(vec![node("a", "Add", &["x", "w"], &["y", "z"])]),
            &["`a` (Add)", "2"],
        ),
    ];
    for (name, model, wanted) in &cases {
        refused_by_every_command(dir.path(), name, model, wanted);
    }
}

/// A product of two numbers with packed weights, `[2, 16]` of 4 bits, whose operands have these lengths.
fn packed_weights(codes: i64, scales: i64, zeros: i64, attrs: &[(&str, i64)]) -> ModelProto {
    let inputs = ["x", "codes", "scales", "zeros"];
    let mut product = node("product", "MatMulNBits", &inputs, &["y"]);
    product.domain = "com.microsoft".into();
    let own = [
        ("K", 16),
        ("N", 2),
        ("bits", 4),
        ("block_size", 16),
        ("accuracy_level", 4),
    ];
    for (name, value) in own {
        let given = attrs.iter().find(|a| a.0 == name).map_or(value, |a| a.1);
        product = with_int(product, name, given);
    }
    let bytes = |name: &str, n: i64| TensorProto {
        name: name.into(),
        dims: vec![n],
        data_type: Some(2),
        raw_data: Some(vec![0x53; n as usize].into()),
        ..TensorProto::default()
    };
    let mut model = model(GraphProto {
        name: "packed".into(),
        node: vec![product],
        initializer: vec![
            bytes("codes", codes),
            floats("scales", &[scales], &vec![0.5; scales as usize]),
            bytes("zeros", zeros),
        ],
        input: vec![port("x", F32, &["1", "16"])],
        output: vec![port("y", F32, &["1", "2"])],
        ..GraphProto::default()
    });
    model.opset_import.push(OperatorSetIdProto {
        domain: Some("com.microsoft".into()),
        version: Some(1),
    });
    model
}

#[test]
fn packed_weights_that_do_not_fit_are_refused() {
    let dir = folder();
    let path = save(dir.path(), "good.onnx", &packed_weights(16, 2, 2, &[]));
    let out = dir.path().join("good");
    let built = bounded(lapidary(), &["build", str(&path), "-o", str(&out)], &[]);
    assert!(built.status.success(), "{}", text(&built.stderr));
    std::fs::remove_file(&path).expect("it is there");
    std::fs::remove_file(&out).expect("it is there");
    type Case = (&'static str, ModelProto, &'static [&'static str]);
    let cases: Vec<Case> = vec![
        (
            "codes",
            packed_weights(15, 2, 2, &[]),
            &["operand 1", "15", "16"],
        ),
        (
            "scales",
            packed_weights(16, 3, 2, &[]),
            &["operand 2", "3", "2"],
        ),
        (
            "zeros",
            packed_weights(16, 2, 1, &[]),
            &["operand 3", "1", "2"],
        ),
        (
            "bits",
            packed_weights(16, 2, 2, &[("bits", 3)]),
            &["`bits`", "3"],
        ),
        (
            "block",
            packed_weights(16, 2, 2, &[("block_size", 0)]),
            &["`block_size`"],
        ),
        (
            "rows",
            packed_weights(16, 2, 2, &[("K", 1 << 40)]),
            &["`K`"],
        ),
        ("columns", packed_weights(16, 2, 2, &[("N", -2)]), &["`N`"]),
        (
            "inner",
            packed_weights(16, 2, 2, &[("K", 15)]),
            &["operand 0", "16", "15"],
        ),
    ];
    for (name, model, wanted) in &cases {
        refused_by_every_command(dir.path(), name, model, wanted);
    }
}

#[test]
fn absurd_shapes_in_a_model_are_refused() {
    let dir = folder();
    let weight = |dims: &[i64]| {
        model(GraphProto {
            initializer: vec![floats("w", dims, &[1.0, 2.0])],
            ..sum()
        })
    };
    let cases: Vec<(&str, ModelProto, &[&str])> = vec![
        ("long", weight(&[1 << 40]), &["`w`"]),
        ("wide", weight(&[1 << 40, 1 << 40]), &["`w`"]),
        ("negative", weight(&[-2]), &["`w`"]),
    ];
    for (name, model, wanted) in &cases {
        refused_by_every_command(dir.path(), name, model, wanted);
    }
}

/// A model that makes a tensor of 2^40 elements, from numbers in the model or given when it runs.
struct Absurd {
    name: &'static str,
    node: NodeProto,
    /// Numbers that say how large the result is, and what is made larger.
    sizes: TensorProto,
    data: Option<TensorProto>,
}

fn absurd_results() -> Vec<Absurd> {
    const HUGE: i64 = 1 << 40;
    let one = || Some(floats("d", &[1], &[1.0]));
    let case = |name, node, sizes, data| Absurd {
        name,
        node,
        sizes,
        data,
    };
    let op = |op, inputs: &[&str]| node("grow", op, inputs, &["y"]);
    let mut resize = op("Resize", &["d", "", "", "s"]);
    resize = with_int(resize, "antialias", 0);
    vec![
        case(
            "constant",
            op("ConstantOfShape", &["s"]),
            ints("s", &[1], &[HUGE]),
            None,
        ),
        case(
            "many",
            op("ConstantOfShape", &["s"]),
            ints("s", &[3], &[HUGE, HUGE, HUGE]),
            None,
        ),
        case(
            "expand",
            op("Expand", &["d", "s"]),
            ints("s", &[1], &[HUGE]),
            one(),
        ),
        case(
            "tile",
            op("Tile", &["d", "s"]),
            ints("s", &[1], &[HUGE]),
            one(),
        ),
        case(
            "pad",
            op("Pad", &["d", "s"]),
            ints("s", &[2], &[0, HUGE]),
            one(),
        ),
        case("resize", resize, ints("s", &[1], &[HUGE]), one()),
        case(
            "range",
            op("Range", &["z", "s", "o"]),
            ints("s", &[], &[HUGE]),
            None,
        ),
        case(
            "eye",
            op("OneHot", &["i", "s", "v"]),
            ints("s", &[], &[HUGE]),
            None,
        ),
    ]
}

impl Absurd {
    /// As a model; the sizes are an input if they are `given`.
    fn model(&self, given: bool) -> ModelProto {
        let mut initializer = vec![
            ints("z", &[], &[0]),
            ints("o", &[], &[1]),
            ints("i", &[1], &[0]),
            floats("v", &[2], &[0.0, 1.0]),
        ];
        initializer.extend(self.data.clone());
        let mut input = vec![];
        if given {
            let dims: Vec<String> = self.sizes.dims.iter().map(i64::to_string).collect();
            let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
            input.push(port("s", I64, &dims));
        } else {
            initializer.push(self.sizes.clone());
        }
        model(GraphProto {
            node: vec![self.node.clone()],
            initializer,
            input,
            output: vec![untyped("y")],
            ..sum()
        })
    }
}

/// What must hold of a command that may accept a model, but must not run it to its end.
fn bounded_and_clear(program: &str, args: &[&str], file: &str) -> Output {
    let out = bounded(program, args, &[]);
    let message = text(&out.stderr);
    let code = out.status.code();
    assert!(
        matches!(code, Some(0 | 1)),
        "{args:?}: {:?} {message}",
        out.status
    );
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    if code == Some(1) {
        assert_says(&message, &[file]);
        assert_has_remedy(&message);
    }
    out
}

#[test]
fn absurd_results_are_refused_in_bounded_memory() {
    for absurd in absurd_results() {
        for given in [false, true] {
            let dir = folder();
            let file = format!("{}.onnx", absurd.name);
            let path = save(dir.path(), &file, &absurd.model(given));
            let sizes = [absurd.sizes.clone()];
            let inputs = save_inputs(dir.path(), "inputs", if given { &sizes } else { &[] });
            let (exe, outputs) = (dir.path().join("exe"), dir.path().join("outputs"));
            let run = ["--inputs", str(&inputs), "--outputs", str(&outputs)];
            let mut args = vec!["run", str(&path)];
            args.extend(run);
            let message = refused(lapidary(), &args, &[]);
            assert_says(&message, &[&file]);
            assert_has_remedy(&message);
            args.push("--reference");
            let message = refused(lapidary(), &args, &[]);
            assert_says(&message, &[&file]);
            assert!(!outputs.exists(), "{file}");
            let built =
                bounded_and_clear(lapidary(), &["build", str(&path), "-o", str(&exe)], &file);
            assert_eq!(exe.exists(), built.status.success(), "{file}");
            if exe.exists() {
                let message = refused(str(&exe), &run, &[]);
                assert_has_remedy(&message);
                assert!(!outputs.exists(), "{file}");
            }
        }
    }
}

/// `If` inside `If`, this many deep.
fn nested(depth: usize) -> GraphProto {
    let mut graph = GraphProto {
        name: "inner".into(),
        node: vec![node("n", "Neg", &["x"], &["inner_y"])],
        output: vec![untyped("inner_y")],
        ..GraphProto::default()
    };
    for level in 0..depth {
        let y = format!("y{level}");
        let choose = node(&format!("if{level}"), "If", &["c"], &[&y]);
        let choose = with_graph(choose, "then_branch", graph);
        let other = GraphProto {
            name: "other".into(),
            node: vec![node("n", "Neg", &["x"], &["other_y"])],
            output: vec![untyped("other_y")],
            ..GraphProto::default()
        };
        graph = GraphProto {
            name: "outer".into(),
            node: vec![with_graph(choose, "else_branch", other)],
            output: vec![untyped(&y)],
            ..GraphProto::default()
        };
    }
    GraphProto {
        input: vec![port("x", F32, &["2"]), port("c", BOOL, &[])],
        ..graph
    }
}

#[test]
fn deep_nesting_is_refused() {
    let dir = folder();
    let fine = save(dir.path(), "fine.onnx", &model(nested(10)));
    let built = bounded(
        lapidary(),
        &["build", str(&fine), "-o", str(&dir.path().join("fine"))],
        &[],
    );
    assert!(built.status.success(), "{}", text(&built.stderr));
    refused_by_every_command(
        dir.path(),
        "graphs",
        &model(nested(1000)),
        &["nested too deeply"],
    );
    let mut ty = port("x", F32, &["2"]).r#type.expect("it has one");
    for _ in 0..1000 {
        ty = TypeProto {
            sequence_type: Some(Box::new(ElementTypeProto {
                elem_type: Some(Box::new(ty)),
            })),
            ..TypeProto::default()
        };
    }
    let x = ValueInfoProto {
        name: "x".into(),
        r#type: Some(ty),
    };
    let types = GraphProto {
        input: vec![x],
        ..sum()
    };
    refused_by_every_command(dir.path(), "types", &model(types), &["nested too deeply"]);
}

#[test]
fn external_data_is_checked() {
    let outer = folder();
    let dir = outer.path().join("model");
    std::fs::create_dir(&dir).expect("a folder");
    std::fs::write(outer.path().join("secret"), [0; 8]).expect("it is written");
    std::fs::write(dir.join("w.bin"), [0; 8]).expect("it is written");
    std::os::unix::fs::symlink(outer.path().join("secret"), dir.join("link")).expect("a link");
    let absolute = outer.path().join("secret");
    let cases: [(&str, &[(&str, &str)], &str); 9] = [
        ("missing", &[("location", "absent.bin")], "absent.bin"),
        (
            "parent",
            &[("location", "../secret")],
            "inside the model's folder",
        ),
        (
            "absolute",
            &[("location", str(&absolute))],
            "inside the model's folder",
        ),
        ("link", &[("location", "link")], "leaves the model's folder"),
        ("nowhere", &[], "`location`"),
        ("offset", &[("location", "w.bin"), ("offset", "4")], "4"),
        (
            "length",
            &[("location", "w.bin"), ("length", "9")],
            "which has 8 bytes",
        ),
        (
            "overflow",
            &[
                ("location", "w.bin"),
                ("offset", "18446744073709551615"),
                ("length", "8"),
            ],
            "overflow",
        ),
        (
            "number",
            &[("location", "w.bin"), ("offset", "two")],
            "not a number",
        ),
    ];
    for (name, entries, want) in cases {
        let model = model(GraphProto {
            initializer: vec![external("w", &[2], entries)],
            ..sum()
        });
        let wanted = ["initializer `w`", want, "put the weights' file, complete"];
        refused_by_every_command(&dir, name, &model, &wanted);
    }
}

#[test]
fn inputs_are_checked_by_the_command_and_by_executables() {
    let dir = folder();
    let path = save(dir.path(), "sum.onnx", &model(sum()));
    let exe = dir.path().join("sum");
    let built = bounded(lapidary(), &["build", str(&path), "-o", str(&exe)], &[]);
    assert!(built.status.success(), "{}", text(&built.stderr));
    let npy = |folder: &str, name: &str, descr: &str, shape: &str, data: &[u8]| {
        let inputs = dir.path().join(folder);
        std::fs::create_dir_all(&inputs).expect("a folder");
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.bytes());
        file.extend(data);
        std::fs::write(inputs.join(format!("{name}.npy")), file).expect("it is written");
        inputs
    };
    let absurd = TensorProto {
        dims: vec![1 << 40],
        ..floats("x", &[], &[])
    };
    let cases: Vec<(PathBuf, &[&str])> = vec![
        (
            save_inputs(dir.path(), "shape", &[floats("x", &[3], &[0.0; 3])]),
            &["`x`", "3", "2"],
        ),
        (
            save_inputs(dir.path(), "rank", &[floats("x", &[2, 1], &[0.0; 2])]),
            &["`x`"],
        ),
        (
            save_inputs(dir.path(), "type", &[ints("x", &[2], &[0, 0])]),
            &["i64", "f32"],
        ),
        (save_inputs(dir.path(), "huge", &[absurd]), &["input_0.pb"]),
        (save_inputs(dir.path(), "none", &[]), &["`x`", "input_0.pb"]),
        (npy("npy-0", "z", "<f4", "(2,)", &[0; 8]), &["`x`", "z.npy"]),
        (
            npy("npy-1", "x", "<f4", "(3,)", &[0; 12]),
            &["`x`", "3", "2"],
        ),
        (npy("npy-2", "x", "<f4", "(2,)", &[0; 7]), &["x.npy"]),
        (
            npy("npy-3", "x", "<f4", "(1099511627776,)", &[0; 8]),
            &["x.npy"],
        ),
        (npy("npy-4", "x", "|O", "(2,)", &[0; 16]), &["x.npy"]),
        (dir.path().join("absent"), &["absent"]),
    ];
    let outputs = dir.path().join("outputs");
    for (inputs, wanted) in &cases {
        let data = ["--inputs", str(inputs), "--outputs", str(&outputs)];
        let run = [&["run", str(&path)][..], &data].concat();
        let reference = [&run[..], &["--reference"]].concat();
        for (program, args) in [
            (lapidary(), &run[..]),
            (lapidary(), &reference),
            (str(&exe), &data),
        ] {
            let message = refused(program, args, &[]);
            assert_says(&message, wanted);
            assert_has_remedy(&message);
            assert!(!outputs.exists(), "{args:?}");
        }
    }
}

#[test]
fn a_dimension_that_the_model_does_not_have_is_refused() {
    let dir = folder();
    let graph = GraphProto {
        input: vec![port("x", F32, &["batch", "2"])],
        output: vec![untyped("y")],
        ..sum()
    };
    let path = save(dir.path(), "sum.onnx", &model(graph));
    let exe = dir.path().join("exe");
    let mut args = ["build", str(&path), "-o", str(&exe), "--dim", "bach=3"];
    let message = refused(lapidary(), &args, &[]);
    assert_says(&message, &["sum.onnx", "`bach`", "`batch`"]);
    args[5] = "batch=3";
    assert!(bounded(lapidary(), &args, &[]).status.success());
}

#[test]
fn a_disk_that_fills_up_leaves_nothing_behind() {
    let dir = folder();
    let big = GraphProto {
        initializer: vec![floats("w", &[100_000], &[1.5; 100_000])],
        input: vec![port("x", F32, &["100000"])],
        output: vec![port("y", F32, &["100000"])],
        ..sum()
    };
    let path = save(dir.path(), "big.onnx", &model(big));
    let x = floats("x", &[100_000], &[0.5; 100_000]);
    let inputs = save_inputs(dir.path(), "inputs", &[x]);
    // In units of 512 or 1024 bytes, as the shell has it: nothing, and less than the smallest output.
    for limit in ["-f 0", "-f 100"] {
        let place = dir.path().join("place");
        std::fs::create_dir(&place).expect("a folder");
        for emit in ["exe", "image", "obj", "staticlib", "dylib", "asm"] {
            if (emit, limit) == ("asm", "-f 100") {
                continue; // A listing is small enough.
            }
            let output = place.join("artefact");
            let args = ["build", str(&path), "-o", str(&output), "--emit", emit];
            let message = refused(lapidary(), &args, &[limit]);
            assert_says(&message, &["artefact"]);
            assert_has_remedy(&message);
            assert_eq!(files(&place), [""; 0], "{emit} {limit}");
        }
        let exe = dir.path().join("exe");
        let built = bounded(lapidary(), &["build", str(&path), "-o", str(&exe)], &[]);
        assert!(built.status.success(), "{}", text(&built.stderr));
        let data = ["--inputs", str(&inputs), "--outputs", str(&place)];
        let run = [&["run", str(&path)][..], &data].concat();
        for (program, args) in [(lapidary(), &run[..]), (str(&exe), &data)] {
            let message = refused(program, args, &[limit]);
            assert_says(&message, &["output_0.pb"]);
            assert_has_remedy(&message);
            assert_eq!(files(&place), [""; 0], "{program} {limit}");
        }
        std::fs::remove_dir(&place).expect("it is empty");
    }
}
