//! The `lapidary` command from outside: results, exit status, messages, and what is left behind on failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn mnist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/mnist")
}

fn lapidary(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.args(args).env("NO_COLOR", "1");
    command.output().expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must fail as bad models and data do; gives its message.
fn refused(args: &[&str]) -> String {
    let out = lapidary(args);
    let message = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    message
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    let name = |e: std::io::Result<std::fs::DirEntry>| {
        let name = e.expect("an entry").file_name();
        name.to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

fn str(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[test]
fn run_writes_what_the_model_gives() {
    let model = mnist().join("mnist-8.onnx");
    for digit in 0..3 {
        let inputs = mnist().join(format!("digit_{digit}"));
        let want = std::fs::read(inputs.join("output_0.pb")).expect("the stored output");
        for extra in [
            &[][..],
            &["--reference"],
            &["--no-optimize"],
            &["--threads", "2"],
        ] {
            let outputs = tempfile::tempdir().expect("a folder");
            let mut args = vec!["run", str(&model), "--inputs", str(&inputs)];
            args.extend(["--outputs", str(outputs.path())]);
            args.extend(extra);
            let out = lapidary(&args);
            assert!(out.status.success(), "{}", text(&out.stderr));
            assert_eq!(files(outputs.path()), ["output_0.pb"]);
            let got = std::fs::read(outputs.path().join("output_0.pb")).expect("the output");
            // Both hold ten raw floats at the end or behind the name: compare the predictions.
            assert_eq!(best(&got), best(&want), "digit {digit} {extra:?}");
        }
    }
}

/// Index of the largest of the ten scores in a tensor file.
fn best(file: &[u8]) -> Option<usize> {
    let ty = lapidary_ir::Type::tensor(lapidary_ir::ElemType::F32, [1i64, 10]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.pb");
    std::fs::write(&path, file).expect("it is written");
    let value = lapidary_frontend::onnx::tensor_file::read_value(&path, &ty).expect("a tensor");
    let tensor = value.as_tensor()?.clone();
    let scores = tensor.floats()?.to_vec();
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
}

#[test]
fn wrong_usage_ends_with_status_2() {
    for args in [
        &["run"][..],
        &["walk"],
        &["run", "m.onnx"],
        &["build", "m.onnx", "--dim", "n=-1", "-o", "x"],
    ] {
        assert_eq!(lapidary(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn bad_models_are_refused_with_the_file_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = std::fs::read(mnist().join("mnist-8.onnx")).expect("the model");
    let inputs = mnist().join("digit_0");
    let cut = folder.path().join("cut.onnx");
    std::fs::write(&cut, &model[..model.len() / 2]).expect("it is written");
    let text_file = folder.path().join("text.onnx");
    std::fs::write(&text_file, "this is no model").expect("it is written");
    for path in [folder.path().join("absent.onnx"), cut, text_file] {
        let message = refused(&["run", str(&path), "--inputs", str(&inputs)]);
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
        assert!(message.contains(name), "{message}");
        let out = folder.path().join("out");
        refused(&["build", str(&path), "-o", str(&out)]);
        assert!(!out.exists());
        refused(&["inspect", str(&path)]);
        refused(&["bench", str(&path)]);
    }
}

#[test]
fn bad_inputs_are_refused_and_nothing_is_written() {
    let model = mnist().join("mnist-8.onnx");
    let folder = tempfile::tempdir().expect("a folder");
    let outputs = folder.path().join("outputs");
    let case = |name: &str, bytes: &[u8]| {
        let inputs = folder.path().join(name);
        std::fs::create_dir(&inputs).expect("a folder");
        std::fs::write(inputs.join("input_0.pb"), bytes).expect("it is written");
        let mut args = vec!["run", str(&model), "--inputs", str(&inputs)];
        args.extend(["--outputs", str(&outputs)]);
        let message = refused(&args);
        assert!(!outputs.exists() || files(&outputs).is_empty(), "{name}");
        message
    };
    let right = std::fs::read(mnist().join("digit_0/input_0.pb")).expect("an input");
    case("cut", &right[..100]);
    case("empty", &[]);
    // dims = [2, 2], data_type = 1 (f32), raw_data = 16 bytes
    let shape = [&[0x08, 2, 0x08, 2, 0x10, 1, 0x4a, 16][..], &[0; 16]].concat();
    let message = case("shape", &shape);
    assert!(message.contains("Input3"), "the input is named: {message}");
    // data_type = 7 (i64)
    let ty = [&[0x08, 1, 0x10, 7, 0x4a, 8][..], &[0; 8]].concat();
    let message = case("type", &ty);
    assert!(message.contains("f32"), "what is expected: {message}");
    let nothing = folder.path().join("nothing");
    std::fs::create_dir(&nothing).expect("a folder");
    let message = refused(&["run", str(&model), "--inputs", str(&nothing)]);
    assert!(message.contains("input_0.pb"), "{message}");
}

/// A disk that takes no more bytes: a file size limit of zero, whose signal is ignored, so that writes fail.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, inputs) = (mnist().join("mnist-8.onnx"), mnist().join("digit_0"));
    let run = format!(
        "run {} --inputs {} --outputs {}",
        str(&model),
        str(&inputs),
        str(folder.path())
    );
    let script = format!(
        "trap '' XFSZ; ulimit -f 0; exec {} {run}",
        env!("CARGO_BIN_EXE_lapidary")
    );
    let out = Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("a shell");
    let message = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(
        files(folder.path()).is_empty(),
        "{:?}",
        files(folder.path())
    );
}

#[test]
fn reports_can_be_read_by_programs() {
    let model = mnist().join("mnist-8.onnx");
    let inputs = mnist().join("digit_0");
    let json = |args: &[&str]| -> serde_json::Value {
        let out = lapidary(args);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("one JSON value")
    };
    let run = json(&["run", str(&model), "--inputs", str(&inputs), "--json"]);
    assert_eq!(run["outputs"][0]["name"], "Plus214_Output_0");
    let bench = json(&[
        "bench",
        str(&model),
        "--seconds",
        "0.05",
        "--threads",
        "1",
        "--latencies-json",
    ]);
    assert!(bench["lat_ms"].as_array().is_some_and(|l| l.len() >= 3));
    let out = tempfile::tempdir().expect("a folder");
    let exe = out.path().join("mnist");
    let build = json(&["build", str(&model), "-o", str(&exe), "--json"]);
    assert!(build["bytes"].as_u64() > build["weights_bytes"].as_u64());
    let bench = json(&["bench", str(&model), "--seconds", "0.05", "--json"]);
    assert!(bench["median_ms"].as_f64() <= bench["p90_ms"].as_f64());
    for shell in ["bash", "zsh", "fish"] {
        assert!(lapidary(&["completions", shell]).status.success());
    }
}

#[test]
fn every_stage_is_shown_in_every_format() {
    let model = mnist().join("mnist-8.onnx");
    let show = |more: &[&str]| {
        let out = lapidary(&[&["inspect", str(&model)], more].concat());
        assert!(out.status.success(), "{more:?}: {}", text(&out.stderr));
        text(&out.stdout)
    };
    let mut sizes = vec![];
    for stage in ["imported", "optimized", "kernels"] {
        let shown = show(&["--at", stage]);
        let want = if stage == "kernels" {
            "kernel "
        } else {
            "Input3"
        };
        assert!(shown.contains(want), "{stage}: {shown}");
        let dot = show(&["--at", stage, "--format", "dot"]);
        assert!(dot.starts_with("digraph") && dot.contains(" -> "), "{dot}");
        assert_eq!(dot.matches('{').count(), dot.matches('}').count(), "{dot}");
        let json = show(&["--at", stage, "--format", "json"]);
        assert_eq!(json, show(&["--at", stage, "--json"]));
        let json: serde_json::Value = serde_json::from_str(&json).expect("one JSON value");
        let list = match stage {
            "kernels" => &json["program"]["body"]["steps"],
            _ => &json["regions"][0]["nodes"],
        };
        sizes.push(list.as_array().map_or(0, Vec::len));
        assert!(stage != "kernels" || json["unshared_bytes"].is_u64());
    }
    assert!(sizes[1] < sizes[0] && sizes[2] > 0, "{sizes:?}");
}

#[test]
fn rules_are_shown_with_how_often_and_why_not() {
    let model = mnist().join("mnist-8.onnx");
    let out = lapidary(&["inspect", str(&model), "--rules"]);
    let shown = text(&out.stdout);
    let (fired, refused) = shown
        .split_once("matched but refused:\n")
        .expect("both lists");
    assert!(fired.lines().skip(1).any(|l| l.contains(" x ")), "{shown}");
    assert!(
        refused
            .lines()
            .all(|l| l.contains(" x ") && l.contains(": ")),
        "{shown}"
    );
    let json = lapidary(&["inspect", str(&model), "--rules", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("one JSON value");
    let n = |key: &str| match &json[key] {
        serde_json::Value::Array(list) => list.len(),
        serde_json::Value::Object(map) => map.len(),
        _ => 0,
    };
    assert_eq!(n("fired"), fired.lines().count() - 1);
    assert_eq!(n("refused"), refused.lines().count());
}

#[test]
fn completions_know_every_command_and_option() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = lapidary(&["completions", shell]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let script = text(&out.stdout);
        for word in ["inspect", "bench", "emit", "no-optimize"] {
            assert!(script.contains(word), "{shell}: no `{word}`");
        }
    }
    let script = lapidary(&["completions", "bash"]).stdout;
    match Command::new("bash")
        .args(["-n", "-c", &text(&script)])
        .output()
    {
        Ok(out) => assert!(out.status.success(), "{}", text(&out.stderr)),
        Err(_) => eprintln!("skipped: `bash` is not installed"),
    }
}

/// On a terminal, what is long shows a bar; in a pipe nothing but the result. `script` gives a terminal.
#[cfg(target_os = "linux")]
#[test]
fn progress_is_for_terminals_only() {
    let model = mnist().join("mnist-8.onnx");
    let out = tempfile::tempdir().expect("a folder");
    let exe = out.path().join("mnist");
    let piped = lapidary(&["build", str(&model), "-o", str(&exe)]);
    assert!(piped.stderr.is_empty(), "{}", text(&piped.stderr));
    let line = format!(
        "{} build {} -o {}",
        env!("CARGO_BIN_EXE_lapidary"),
        str(&model),
        str(&exe)
    );
    let Ok(terminal) = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .output()
    else {
        eprintln!("skipped: `script` is not installed");
        return;
    };
    let shown = text(&terminal.stdout);
    assert!(
        shown.contains("optimize") || shown.contains("import"),
        "{shown:?}"
    );
}

/// Messages name a code, the file, and help; without a terminal they have no colours.
#[test]
fn diagnostics_have_a_code_and_help() {
    let model = mnist().join("mnist-8.onnx");
    let message = refused(&["build", str(&model), "-o", "x", "--target", "pdp11"]);
    for want in ["lapidary::usage", "pdp11", "help:"] {
        assert!(message.contains(want), "{want} is not in {message}");
    }
    assert!(!message.contains('\u{1b}'), "{message}");
}

#[test]
fn a_budget_writes_the_recipe_that_repeats_it() {
    let (model, folder) = (
        mnist().join("mnist-8.onnx"),
        tempfile::tempdir().expect("a folder"),
    );
    let build = |name: &str, extra: &[&str]| {
        let output = folder.path().join(name);
        let mut args = vec![
            "build",
            str(&model),
            "-o",
            str(&output),
            "--emit",
            "image",
            "--json",
        ];
        args.extend(extra);
        let out = lapidary(&args);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        (std::fs::read(&output).expect("an image"), report)
    };
    let (_, plain) = build("plain", &[]);
    let (small, report) = build("small", &["--size", "0.6x"]);
    let bytes = |key: &str| report["compression"][key].as_u64().expect("a number");
    assert!(bytes("bytes") * 10 <= bytes("bytes_before") * 6);
    // Code that decodes comes on top; the model is tiny.
    let stored = |r: &serde_json::Value| r["weights_bytes"].as_u64().expect("a number");
    assert!(stored(&report) < stored(&plain));
    let recipe = folder.path().join("small.recipe.toml");
    let (again, _) = build("again", &["--recipe", str(&recipe)]);
    assert_eq!(small, again);
    // What cannot be met leaves nothing behind.
    let output = folder.path().join("tiny");
    let message = refused(&["build", str(&model), "-o", str(&output), "--size", "0.001x"]);
    assert!(message.contains("smallest"), "{message}");
    assert_eq!(
        files(folder.path()),
        ["again", "plain", "small", "small.recipe.toml"]
    );
}

/// The bundled checkpoint of a Llama; its dimensions are one sequence of 16.
fn llama() -> [String; 5] {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/models/llama31-rope");
    [str(&model), "--dim", "batch=1", "--dim", "seq=16"].map(str::to_owned)
}

#[test]
fn latency_is_a_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("program");
    let build = |latency: &str| {
        let model = llama();
        let mut args = vec!["build"];
        args.extend(model.iter().map(String::as_str));
        args.extend([
            "-o",
            str(&program),
            "--no-target-profile",
            "--json",
            "--latency",
            latency,
        ]);
        lapidary(&args)
    };
    let json = |out: &Output| -> serde_json::Value {
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    };
    let all = json(&build("1s"));
    let before = all["compression"]["predicted_ms_before"]
        .as_f64()
        .expect("a number");
    // There is time enough for every weight as it is.
    assert_eq!(all["compression"]["error"], 0.0);
    assert_eq!(all["predicted_ms"], all["compression"]["predicted_ms"]);
    let some = json(&build(&format!("{}ms", 0.97 * before)));
    let after = some["predicted_ms"].as_f64().expect("a number");
    assert!(after <= 0.97 * before, "{after} {before}");
    assert!(some["compression"]["error"].as_f64().expect("a number") > 0.0);
    // The recipe beside it leads to the same program.
    let recipe = folder.path().join("program.recipe.toml");
    let model = llama();
    let mut args = vec!["build"];
    args.extend(model.iter().map(String::as_str));
    let again = folder.path().join("again");
    args.extend([
        "-o",
        str(&again),
        "--no-target-profile",
        "--json",
        "--recipe",
        str(&recipe),
    ]);
    assert_eq!(json(&lapidary(&args))["predicted_ms"], some["predicted_ms"]);

    let out = build("1ns");
    assert_eq!(out.status.code(), Some(1));
    let message = text(&out.stderr);
    assert!(
        message.contains("latency") && message.contains("least"),
        "{message}"
    );
    assert_eq!(build("5").status.code(), Some(2));
    let model = llama();
    let gguf = folder.path().join("small.gguf");
    let message = refused(&["compress", &model[0], "-o", str(&gguf), "--latency", "5ms"]);
    assert!(message.contains("lapidary build --latency"), "{message}");
}

/// What `tune` writes is what predictions are made by; others' profiles are refused, or left aside if nobody named them.
#[test]
fn a_profile_is_measured_and_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let bench = |cache: &Path, extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
        command.args(["bench", str(&mnist().join("mnist-8.onnx")), "--json"]);
        command
            .args(["--seconds", "0.05", "--threads", "1"])
            .args(extra);
        let command = command.env("NO_COLOR", "1").env("XDG_CACHE_HOME", cache);
        command.output().expect("the command starts")
    };
    let said = |out: &Output| -> serde_json::Value {
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).expect("JSON")
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.args(["tune", "--threads", "1", "--json"]);
    let report = said(
        &command
            .env("XDG_CACHE_HOME", folder.path())
            .output()
            .expect("starts"),
    );
    let profile = folder.path().join("lapidary/target.toml");
    assert_eq!(report["profile"], str(&profile));
    assert_eq!(files(&folder.path().join("lapidary")), ["target.toml"]);
    let found = said(&bench(folder.path(), &[]));
    assert_eq!(found["profile"], true);
    let kernels = found["kernels"].as_array().expect("a list");
    assert!(
        kernels
            .iter()
            .all(|k| k["predicted_ns"].as_f64().is_some_and(|ns| ns > 0.0))
    );
    assert!(found["predicted_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    assert_eq!(
        said(&bench(folder.path(), &["--no-target-profile"]))["profile"],
        false
    );

    let text_of = std::fs::read_to_string(&profile).expect("there");
    std::fs::write(&profile, text_of.replace("version = 1", "version = 999")).expect("written");
    let out = bench(folder.path(), &[]);
    assert_eq!(said(&out)["profile"], false);
    assert!(
        text(&out.stderr).contains("version 999"),
        "{}",
        text(&out.stderr)
    );
    let out = bench(folder.path(), &["--target-profile", str(&profile)]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text(&out.stderr).contains("lapidary tune"),
        "{}",
        text(&out.stderr)
    );
}
