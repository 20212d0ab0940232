//! `lapidary compress`: what it writes is what other programs read. Judges are onnxruntime, gguf-py and compressed-tensors where
//! `LAPIDARY_PYTHON` has them; tests say when they are skipped.

use lapidary_frontend::gguf::{blocks, file};
use lapidary_frontend::onnx::ImportOptions;
use lapidary_ir::{Module, Tensor, eval};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

fn path(of: &Path) -> &str {
    of.to_str().expect("test paths are UTF-8")
}

/// Runs a script with the Python that has other people's programs; false, said aloud, if there is none.
fn script(file: &str, args: &[&str]) -> bool {
    let Some(python) = std::env::var_os("LAPIDARY_PYTHON") else {
        println!("skipped: LAPIDARY_PYTHON names no Python");
        return false;
    };
    let out = Command::new(python)
        .arg(root(file))
        .args(args)
        .output()
        .expect("starts");
    let (said, message) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(out.status.success(), "{args:?}: {message}");
    if said.starts_with("skipped") {
        println!("{said}");
        return false;
    }
    true
}

fn compress(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command
        .arg("compress")
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .expect("starts")
}

fn done(out: &Output) -> String {
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn import(model: &Path) -> Module {
    lapidary_frontend::import(model, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn floats(path: &Path) -> Vec<f32> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.floats()
        .expect("floats")
        .iter()
        .map(|&v| v as f32)
        .collect()
}

/// Models of old and new opsets, with products, filters and tables: onnxruntime's results are ours.
#[test]
fn onnxruntime_runs_what_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for opset in ["11", "17", "21"] {
        let model = at(&format!("{opset}.onnx"));
        if !script("tests/compress.py", &["onnx-model", opset, path(&model)]) {
            return;
        }
        for bits in ["8.5", "5"] {
            let small = at("small.onnx");
            // What opset 11 holds are products alone.
            let bits = if opset == "11" { "12" } else { bits };
            let said = done(&compress(&[
                path(&model),
                "-o",
                path(&small),
                "--bits",
                bits,
            ]));
            assert!(said.contains("rtn"), "{said}");
            let (before, after) = (
                fs::metadata(&model).expect("there").len(),
                fs::metadata(&small).expect("there").len(),
            );
            assert!(after < before, "{before} {after}");
            script(
                "tests/compress.py",
                &[
                    "onnx-run",
                    path(&small),
                    path(&at("x.f32")),
                    path(&at("y.f32")),
                ],
            );
            let module = import(&small);
            let x = floats(&at("x.f32")).into_iter().map(f64::from).collect();
            let x = Tensor::from_f64(lapidary_ir::ElemType::F32, [3, 4, 8, 8], x);
            let y = eval::run(&module, vec![x.into()]).unwrap_or_else(|e| panic!("{e}"));
            let (ours, theirs) = (
                values(y[0].as_tensor().expect("a tensor")),
                floats(&at("y.f32")),
            );
            let far = ours
                .iter()
                .zip(&theirs)
                .map(|(a, b)| (a - b).abs() / (1.0 + b.abs()))
                .fold(0.0, f32::max);
            assert!(
                far < 1e-4 && ours.len() == theirs.len(),
                "opset {opset}, {bits} bits: {far}"
            );
        }
    }
}

fn llama() -> PathBuf {
    root("tests/checkpoints/models/llama31-rope")
}

/// Weights of a module by name.
fn weight(module: &Module, name: &str) -> Option<Tensor> {
    let mut all = (0..module.value_count() as u32).map(lapidary_ir::ValueId);
    let v = all.find(|&v| module.value(v).name == name && module.as_constant(v).is_some())?;
    Some(module.as_constant(v)?.decode().expect("valid"))
}

#[test]
fn gguf_files_read_back_here_and_in_python() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = folder.path().join("small.gguf");
    let said = done(&compress(&[
        path(&llama()),
        "-o",
        path(&small),
        "--bits",
        "6",
    ]));
    assert!(
        said.contains("rtn") && said.contains("small.gguf: "),
        "{said}"
    );
    // Rows of queries are back in a checkpoint's order.
    let (found, want) = (import(&small), import(&llama()));
    for name in [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "mlp.down_proj",
        "input_layernorm",
    ] {
        let far = farthest(&found, &want, &format!("model.layers.1.{name}.weight"));
        assert!(far < 0.2, "{name}: {far}");
    }
    assert!(judged(&small).contains("Q8_0"));
}

/// The largest difference of a weight of two modules, as a share of its largest number.
fn farthest(found: &Module, want: &Module, name: &str) -> f32 {
    let [found, want] = [found, want].map(|m| values(&weight(m, name).expect("a weight")));
    let most = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert_eq!(found.len(), want.len());
    found
        .iter()
        .zip(&want)
        .map(|(a, b)| (a - b).abs() / most)
        .fold(0.0, f32::max)
}

/// Every tensor of a file is decoded by gguf-py to the same bits; the types that it has.
fn judged(gguf: &Path) -> BTreeSet<&'static str> {
    let folder = tempfile::tempdir().expect("a folder");
    let read = file::read(&fs::read(gguf).expect("written").into(), "m").expect("a valid file");
    if script(
        "tests/checkpoints/formats.py",
        &["gguf-decode", path(gguf), path(folder.path())],
    ) {
        for (name, t) in &read.tensors {
            let (&columns, rows) = t.shape.split_last().expect("a shape");
            let rows = rows.iter().product();
            let ours = blocks::term(t.kind, &[(rows, 1)], 0, columns, &t.bytes);
            let theirs = floats(&folder.path().join(format!("{name}.f32")));
            assert_eq!(values(&ours.decode().expect("valid")), theirs, "{name}");
        }
    }
    read.tensors.values().map(|t| t.kind.name).collect()
}

/// Each type that is written, on a trained model: what it means in Python, and what it does to predictions.
#[test]
fn a_trained_model_keeps_its_predictions() {
    let data = std::env::var_os("LAPIDARY_DATA").map(PathBuf::from);
    let Some(data) = data.filter(|d| d.join("llama-wt2").exists()) else {
        println!("skipped: LAPIDARY_DATA does not name the folder with `llama-wt2`");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let [recipe, small] = ["recipe.toml", "small.gguf"].map(|n| folder.path().join(n));
    let entry = |(name, bits, symmetric): (&str, u32, bool)| {
        format!(
            "[[weight]]\nname = \"*{name}.weight\"\nmethod = \"rtn\"\nbits = {bits}\ngroup = 32\nsymmetric = {symmetric}\n"
        )
    };
    let all = [
        ("q_proj", 4, true),
        ("k_proj", 4, false),
        ("up_proj", 6, true),
        ("gate_proj", 8, true),
        ("down_proj", 4, false),
    ];
    fs::write(&recipe, all.map(entry).concat()).expect("written");
    let model = data.join("llama-wt2");
    let args = [path(&model), "-o", path(&small), "--recipe", path(&recipe)];
    let said = done(&compress(&args));
    for kind in ["Q4_1", "Q4_K", "Q6_K"] {
        assert!(
            said.contains(&format!("re-encoded as {kind}, error")),
            "{said}"
        );
    }
    let want = ["BF16", "F32", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0"];
    assert_eq!(judged(&small).into_iter().collect::<Vec<_>>(), want);
    let tokens = data.join("text/wikitext-2-test.bpe4096.u16.bin");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.args([
        "eval",
        path(&small),
        "--tokens",
        path(&tokens),
        "--against",
        path(&model),
    ]);
    command.args(["--seq", "256", "--windows", "2", "--json"]);
    let out = command.output().expect("starts");
    let report: serde_json::Value = serde_json::from_str(&done(&out)).expect("JSON");
    let divergence = report["against"]["kl"].as_f64().unwrap_or(f64::NAN);
    assert!(divergence > 0.0 && divergence < 0.02, "{report}");
}

/// Files with a few bytes changed are read, or refused with a reason; what is read decodes, or is refused.
#[test]
fn damaged_gguf_files_do_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let [small, damaged] = ["small.gguf", "damaged.gguf"].map(|n| folder.path().join(n));
    done(&compress(&[
        path(&llama()),
        "-o",
        path(&small),
        "--bits",
        "6",
    ]));
    let whole = fs::read(&small).expect("written");
    let header = 3000.min(whole.len());
    let mut random = lapidary_ir::random::SplitMix64::new(11);
    let mut read = 0;
    for i in 0..600 {
        let mut bytes = whole.clone();
        for _ in 0..1 + i % 3 {
            let at = random.below(header);
            bytes[at] = match i % 2 {
                0 => random.below(256) as u8,
                _ => bytes[at].wrapping_add(1 << random.below(8)),
            };
        }
        if i % 7 == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        fs::write(&damaged, bytes).expect("written");
        match lapidary_frontend::import(&damaged, &ImportOptions::default()) {
            Ok(module) => {
                read += 1;
                let errors = lapidary_ir::verify::errors(&module);
                assert!(errors.is_empty(), "{i}: {}", errors[0]);
            }
            Err(e) => assert!(!e.problems.is_empty() && !e.to_string().is_empty(), "{i}"),
        }
    }
    assert!(read > 10, "{read}");
}

#[test]
fn folders_read_back_here_and_in_python() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let original = import(&llama());
    let tokens = at("tokens.u16.bin");
    let numbers = (0..512u16).flat_map(|i| (i * 37 % 127).to_le_bytes());
    fs::write(&tokens, numbers.collect::<Vec<u8>>()).expect("written");
    let observed = ["--calibrate", path(&tokens), "--samples", "2"];
    let gptq = ["--bits", "4", "--format", "gptq"];
    let cases: [(&str, &str, Vec<&str>); 4] = [
        ("mixed", "rtn", vec!["--bits", "9"]),
        ("gptq", "rtn", gptq.to_vec()),
        (
            "mixed-observed",
            "gptq-refit",
            [&["--bits", "9"], &observed[..]].concat(),
        ),
        (
            "gptq-observed",
            "gptq-refit",
            [&gptq[..], &observed].concat(),
        ),
    ];
    for (name, method, args) in cases {
        let out = at(name);
        let said = done(&compress(
            &[&[path(&llama()), "-o", path(&out)], &args[..]].concat(),
        ));
        assert!(said.contains(method), "{said}");
        let module = import(&out);
        for name in ["self_attn.q_proj", "mlp.down_proj"] {
            let far = farthest(&module, &original, &format!("model.layers.1.{name}.weight"));
            assert!(far > 0.0 && far < 0.5, "{name}: {far}");
        }
        // There is something of this name now.
        let again = compress(&[&[path(&llama()), "-o", path(&out)], &args[..]].concat());
        assert_eq!(again.status.code(), Some(1));
    }
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("there")
        .map(|e| e.expect("there").file_name())
        .collect();
    assert!(
        left.iter().all(|n| !n.to_string_lossy().starts_with('.')),
        "{left:?}"
    );
    if !script(
        "tests/compress.py",
        &["decompress", path(&at("mixed")), path(&at("decoded"))],
    ) {
        return;
    }
    let module = import(&at("mixed"));
    let mut compared = 0;
    for entry in fs::read_dir(at("decoded")).expect("there") {
        let entry = entry.expect("there").path();
        let name = format!(
            "{}.weight",
            entry.file_stem().expect("a name").to_string_lossy()
        );
        let (ours, theirs) = (
            values(&weight(&module, &name).expect("a weight")),
            floats(&entry),
        );
        // Theirs is rounded to the type of the scales.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b.abs() + 1e-6;
        assert!(
            ours.len() == theirs.len() && ours.iter().zip(&theirs).all(near),
            "{name}"
        );
        compared += 1;
    }
    assert!(compared > 4);
}

#[test]
fn what_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let recipe = folder.path().join("recipe.toml");
    fs::write(
        &recipe,
        "[[weight]]\nname = \"*.q_proj.weight\"\nmethod = \"nf4\"\nbits = 4\ngroup = 64\n",
    )
    .expect("written");
    let (model, other) = (llama(), root("Cargo.toml"));
    let cases: &[(&[&str], &str)] = &[
        (
            &["-o", "x.zip", "--bits", "4", path(&other)],
            "is no kind of model",
        ),
        (&["-o", path(&out), path(&model)], "nothing to compress to"),
        (
            &[
                "-o",
                path(&out),
                "--format",
                "onnx",
                "--bits",
                "4",
                path(&model),
            ],
            "is a folder",
        ),
        (
            &[
                "-o",
                path(&out),
                "--format",
                "gptq",
                "--size",
                "0.5x",
                path(&model),
            ],
            "same number of bits",
        ),
        (
            &[
                "-o",
                path(&out),
                "--format",
                "gptq",
                "--bits",
                "5",
                path(&model),
            ],
            "no weights can have 5 bits",
        ),
        (
            &["-o", path(&out), "--recipe", path(&recipe), path(&model)],
            "does not hold",
        ),
        (
            &["-o", path(&out), "--bits", "1", path(&model)],
            "the smallest that the methods reach",
        ),
    ];
    for (args, want) in cases {
        let failed = compress(args);
        let message = String::from_utf8_lossy(&failed.stderr).into_owned();
        // Lines are broken where the terminal ends.
        let words = |s: &str| {
            s.split_whitespace()
                .filter(|w| *w != "│")
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(failed.status.code(), Some(1), "{args:?}: {message}");
        assert!(words(&message).contains(want), "{args:?}: {message}");
        assert!(!out.exists());
    }
}

/// Tokens for the tiny Llama.
fn write_tokens(to: &Path) {
    let numbers = (0..2048u32).flat_map(|i| ((i * 37 % 127) as u16).to_le_bytes());
    fs::write(to, numbers.collect::<Vec<u8>>()).expect("written");
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_result() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (tokens, work) = (at("tokens.u16.bin"), at("work"));
    write_tokens(&tokens);
    let args = |out: &'static str, work: &Path| -> Vec<String> {
        let (model, tokens, out) = (llama(), tokens.clone(), folder.path().join(out));
        [
            "build",
            path(&model),
            "-o",
            path(&out),
            "--emit",
            "image",
            "--bits",
            "4",
            "--calibrate",
            path(&tokens),
        ]
        .into_iter()
        .chain(["--samples", "4", "--work", path(work)])
        .map(str::to_owned)
        .collect()
    };
    let command = |args: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
        command.args(args).env("NO_COLOR", "1");
        command
    };
    let start = std::time::Instant::now();
    let whole = command(&args("whole", &at("other")))
        .output()
        .expect("starts");
    assert!(
        whole.status.success(),
        "{}",
        String::from_utf8_lossy(&whole.stderr)
    );
    let takes = start.elapsed();
    let args = args("resumed", &work);
    for k in 1..=10 {
        let mut child = command(&args).spawn().expect("starts");
        std::thread::sleep(takes.mul_f64(f64::from(k * 7 % 11) / 11.0));
        // SIGKILL: nothing can be tidied up.
        child.kill().expect("is ours");
        child.wait().expect("ends");
    }
    let resumed = command(&args).output().expect("starts");
    assert!(
        resumed.status.success(),
        "{}",
        String::from_utf8_lossy(&resumed.stderr)
    );
    assert_eq!(
        fs::read(at("whole")).expect("written"),
        fs::read(at("resumed")).expect("written")
    );
    let recipe =
        |of: &str| fs::read_to_string(at(of).with_extension("recipe.toml")).expect("written");
    assert_eq!(recipe("whole"), recipe("resumed"));
}

#[test]
fn jobs_of_a_plan_are_put_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (tokens, work) = (at("tokens.u16.bin"), at("work"));
    write_tokens(&tokens);
    let run = |out: &str, more: &[&str]| {
        let (model, out) = (llama(), at(out));
        let common = [
            path(&model),
            "-o",
            path(&out),
            "--bits",
            "9",
            "--calibrate",
            path(&tokens),
            "--samples",
            "4",
        ];
        compress(&[&common[..], more].concat())
    };
    let shared = ["--work", path(&work)];
    let with = |more: &[&str]| run("merged", &[&shared[..], more].concat());
    let plan = done(&with(&["--plan"]));
    let jobs = plan.lines().count();
    assert!(jobs > 5 && plan.starts_with("0 `model."), "{plan}");
    let early = with(&["--merge"]);
    assert!(!early.status.success() && !at("merged").exists());
    assert!(String::from_utf8_lossy(&early.stderr).contains("job 0 was not done"));
    for job in (0..jobs).rev() {
        done(&with(&["--job", &job.to_string()]));
    }
    assert!(!with(&["--job", &jobs.to_string()]).status.success());
    done(&with(&["--merge"]));
    done(&run("alone", &[]));
    let weights = |of: &str| fs::read(at(of).join("model.safetensors")).expect("written");
    assert_eq!(weights("merged"), weights("alone"));
}

#[test]
fn limits_need_data_and_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (tokens, out) = (at("tokens.u16.bin"), at("model"));
    write_tokens(&tokens);
    let build = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .args([
                "build",
                path(&llama()),
                "-o",
                path(&out),
                "--emit",
                "image",
                "--json",
            ])
            .args(args)
            .env("NO_COLOR", "1")
            .output()
            .expect("starts")
    };
    let refused = build(&["--max-kl", "0.01"]);
    assert_eq!(refused.status.code(), Some(2), "wrong usage");
    let data = ["--calibrate", path(&tokens), "--samples", "4"];
    let report = done(&build(&[&["--max-kl", "0.01"], &data[..]].concat()));
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let of = |key: &str| report["compression"][key].as_f64().expect("a number");
    assert!(
        of("loss") <= 0.01 && of("bytes") < 0.5 * of("bytes_before"),
        "{report}"
    );
    fs::remove_file(&out).expect("was written");
    let both = [&["--size", "0.1x", "--min-top1", "0.9999"], &data[..]].concat();
    let refused = build(&both);
    // Where lines are broken depends on the folder's name.
    let said = String::from_utf8_lossy(&refused.stderr).replace("\n  │ ", " ");
    assert!(
        refused.status.code() == Some(1) && said.contains("not as near"),
        "{said}"
    );
    let missing = at("nothing.bin");
    let refused = build(&["--bits", "4", "--calibrate", path(&missing)]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nothing.bin"));
    assert!(!out.exists(), "nothing is left of what fails");
}

/// Pictures of another size and colour than the model's input; the page that says what became of it.
#[test]
fn pictures_are_data_and_the_page_is_drawn() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("pictures")).expect("made");
    for k in 0..6u32 {
        let of =
            |x: u32, y: u32| image::Rgb([(x * 5 + k) as u8, (y * 6) as u8, (x * y + 40 * k) as u8]);
        let picture = image::RgbImage::from_fn(40, 32, of);
        picture
            .save(at("pictures").join(format!("{k}.png")))
            .expect("written");
    }
    let (model, out) = (root("examples/mnist/mnist-8.onnx"), at("out"));
    let build = |data: &Path| {
        Command::new(env!("CARGO_BIN_EXE_lapidary"))
            .args([
                "build",
                path(&model),
                "-o",
                path(&out),
                "--emit",
                "image",
                "--json",
            ])
            .args([
                "--bits",
                "4",
                "--calibrate",
                path(data),
                "--image-mean",
                "0,0,0",
            ])
            .args([
                "--image-std",
                "0.1,0.1,0.1",
                "--report",
                path(&at("page.html")),
            ])
            .env("NO_COLOR", "1")
            .output()
            .expect("starts")
    };
    let report: serde_json::Value =
        serde_json::from_str(&done(&build(&at("pictures")))).expect("JSON");
    assert!(report["compression"]["loss"].as_f64().is_some(), "{report}");
    let front = report["compression"]["front"].as_array().expect("points");
    assert!(front.len() > 4);
    let page = fs::read_to_string(at("page.html")).expect("written");
    assert!(page.contains("<svg") && page.contains("mnist-8.onnx"));
    fs::write(at("pictures").join("6.png"), "no picture").expect("written");
    let refused = build(&at("pictures"));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("6.png"),
        "{said}"
    );
}
