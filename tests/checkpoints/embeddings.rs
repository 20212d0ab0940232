//! Embeddings of texts: what encoders' states become, by the command, by executables and by servers, beside states that the
//! evaluator gives and that are pooled here.

use super::generate::{build, bytes_tokenizer, checkpoint, endless, lapidary, run as start, str};
use super::server::{Server, the_openai_client_passes};
use super::*;
use lapidary::language;
use lapidary_frontend::Purpose;
use lapidary_language::{Embedder, Program};
use std::process::Command;
use std::time::{Duration, Instant};

const TEXTS: [&str; 6] = [
    "Once upon a time",
    "x",
    "the quick brown fox jumps over the lazy dog",
    "a b",
    "Once upon a tree",
    "lapidary",
];

/// The encoder of a folder with a tokenizer whose tokens are bytes, and these files.
fn encoder(of: &Path, files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(of.join(name), folder.path().join(name)).expect("copied");
    }
    let tokenizer = serde_json::from_str(&bytes_tokenizer(128)).expect("JSON");
    for (name, value) in files.iter().chain([&("tokenizer.json", tokenizer)]) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, value.to_string()).expect("written");
    }
    folder
}

fn bert(files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    encoder(&bundled().join("bert"), files)
}

/// What sentence-transformers writes for a way of pooling, with or without a step that makes vectors' lengths 1.
fn pooling(mode: &str, unit: bool) -> Vec<(&'static str, serde_json::Value)> {
    let module = |kind: &str, path: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let mut modules = vec![module("Transformer", ""), module("Pooling", "1_Pooling")];
    if unit {
        modules.push(module("Normalize", "2_Normalize"));
    }
    let modes = ["cls_token", "mean_tokens", "max_tokens"];
    let modes = modes.map(|m| (format!("pooling_mode_{m}"), json!(m.starts_with(mode))));
    let modes: serde_json::Map<_, _> = modes.into_iter().collect();
    vec![
        ("modules.json", modules.into()),
        ("1_Pooling/config.json", modes.into()),
    ]
}

/// The states of a text, `[tokens][width]`, by the evaluator.
fn states(module: &Module, tokens: &[i64]) -> Vec<Vec<f64>> {
    let all = |value: &dyn Fn(i64) -> i64| {
        let numbers: Vec<i64> = tokens.iter().map(|&t| value(t)).collect();
        Tensor::from_i64(vec![1, tokens.len()], &numbers).expect("the values fill the shape")
    };
    let input = |&v: &lapidary_ir::ValueId| {
        let tensor = match module.value(v).name.as_str() {
            "input_ids" => all(&|t| t),
            "attention_mask" => all(&|_| 1),
            _ => all(&|_| 0),
        };
        values::to_evaluator(&tensor.into()).expect("whole")
    };
    let inputs = module.top().inputs.iter().map(input).collect();
    let out = lapidary_ir::eval::run(module, inputs).expect("evaluated");
    let states = floats(&values::to_runtime(&out[0]).expect("whole"));
    let width = states.len() / tokens.len();
    let wide = |row: &[f32]| row.iter().map(|&v| f64::from(v)).collect();
    states.chunks_exact(width).map(wide).collect()
}

fn length(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn unit(v: &[f64]) -> Vec<f64> {
    v.iter().map(|x| x / length(v)).collect()
}

/// What the states of a text become.
fn pooled(states: &[Vec<f64>], mode: &str) -> Vec<f64> {
    let column = |i: usize| states.iter().map(move |row| row[i]);
    let of = |i: usize| match mode {
        "cls" => states[0][i],
        "mean" => column(i).sum::<f64>() / states.len() as f64,
        "max" => column(i).fold(f64::NEG_INFINITY, f64::max),
        other => panic!("{other}"),
    };
    (0..states[0].len()).map(of).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let product: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
    product / (length(a) * length(b))
}

fn embedder(folder: &Path) -> Embedder {
    assert_eq!(language::purpose(folder), Some(Purpose::Embed));
    let options = CompileOptions::host(THREADS);
    let compiled = language::compile_for(Purpose::Embed, folder, "encoder", &options);
    let mut compiled = compiled.unwrap_or_else(|e| panic!("{e}"));
    let files = std::mem::take(&mut compiled.program.files);
    let options = ModelOptions {
        threads: THREADS,
        pin: false,
        ..ModelOptions::default()
    };
    let model = compiled.load(options).unwrap_or_else(|e| panic!("{e}"));
    match Program::new(model, files).unwrap_or_else(|e| panic!("{e}")) {
        Program::Embeds(embedder) => embedder,
        Program::Writes(_) => panic!("an encoder writes no text"),
    }
}

fn bytes(text: &str) -> Vec<i64> {
    text.bytes().map(i64::from).collect()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    let all = value.as_array().unwrap_or_else(|| panic!("{value}"));
    all.iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// The embeddings of the texts are the pooled states, whoever else is in a run.
fn check(folder: &Path, mode: &str, is_unit: bool) {
    let (module, embedder) = (import(folder), embedder(folder));
    let tokens = TEXTS.map(|t| embedder.encode(t).expect("encoded"));
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    for together in [1, 4] {
        let found = embedder.embed(&tokens, together).expect("embedded");
        for (text, vector) in TEXTS.iter().zip(found) {
            let want = pooled(&states(&module, &bytes(text)), mode);
            let vector: Vec<f64> = vector.into_iter().map(f64::from).collect();
            let near = cosine(&vector, &want);
            assert!(
                near >= 0.99999,
                "{}: {mode}: {text}: {near}",
                folder.display()
            );
            let scale = if is_unit { 1.0 } else { length(&want) };
            assert!(
                (length(&vector) / scale - 1.0).abs() < 1e-5,
                "{mode}: {text}"
            );
        }
    }
}

#[test]
fn embeddings_are_pooled_states() {
    for (mode, unit) in [
        ("mean", false),
        ("cls", true),
        ("max", false),
        ("max", true),
    ] {
        check(bert(&pooling(mode, unit)).path(), mode, unit);
    }
    check(bert(&[]).path(), "mean", true);
    let Some(arch) = data("arch") else { return };
    for name in ["roberta", "distilbert"] {
        check(
            encoder(&arch.join(name), &pooling("mean", true)).path(),
            "mean",
            true,
        );
    }
}

#[test]
fn sequences_are_as_long_as_there_are_positions() {
    let limit = |folder: tempfile::TempDir| embedder(folder.path()).limits().longest;
    assert_eq!(limit(bert(&[])), 128);
    let settings = |n: u32| [("sentence_bert_config.json", json!({"max_seq_length": n}))];
    assert_eq!(limit(bert(&settings(16))), 16);
    assert_eq!(limit(bert(&settings(512))), 128);
    let Some(arch) = data("arch") else { return };
    // 130 positions, the first of them after that of padding.
    assert_eq!(limit(encoder(&arch.join("roberta"), &[])), 127);
    let embedder = embedder(encoder(&arch.join("roberta"), &[]).path());
    let longest = vec![5; 127];
    assert!(embedder.embed(&[&longest, &[5]], 2).is_ok());
}

#[test]
fn commands_print_embeddings() {
    let folder = bert(&[]);
    let module = import(folder.path());
    let want = |text: &str| unit(&pooled(&states(&module, &bytes(text)), "mean"));
    let is = |line: &str, text: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(
            cosine(&numbers(&value["embedding"]), &want(text)) >= 0.99999,
            "{text}"
        );
        assert_eq!(value["prompt_tokens"], text.len());
    };
    let program = build(&folder, &[]);
    let command = Path::new(env!("CARGO_BIN_EXE_lapidary"));
    let own = ["run", str(folder.path())];
    for (program, own) in [(command, &own[..]), (program.as_path(), &own[..0])] {
        let run = |args: &[&str], input: &str| {
            let (status, out, message) = start(program, &[own, args].concat(), input.as_bytes());
            (status, String::from_utf8(out).expect("text"), message)
        };
        let (status, out, message) = run(&["--prompt", "Once upon a time"], "");
        assert_eq!(status, Some(0), "{message}");
        is(&out, "Once upon a time");
        is(&run(&[], "a\nb").1, "a\nb");
        // Lines are answered in order; those that cannot be say why.
        let mut lines: Vec<String> = TEXTS
            .iter()
            .map(|t| json!({"prompt": t}).to_string())
            .collect();
        lines.insert(2, json!({"prompt": "a".repeat(129)}).to_string());
        lines.insert(4, json!({"prompt": "a", "dimensions": 3}).to_string());
        lines.extend([
            json!({"prompt": "a", "top_k": 3}).to_string(),
            "{".to_owned(),
            "{}".to_owned(),
        ]);
        for parallel in ["1", "4"] {
            let args = ["--batch", "-", "--parallel", parallel, "--stats"];
            let (status, out, message) = run(&args, &lines.join("\n"));
            assert_eq!(status, Some(1), "{message}");
            assert!(message.contains("texts/s"), "{message}");
            let mut lines: Vec<&str> = out.lines().collect();
            assert_eq!(lines.len(), 11, "{out}");
            for (line, why) in lines
                .drain(8..)
                .zip(["--dimensions", "the request", "no `prompt`"])
            {
                assert!(line.contains("\"error\"") && line.contains(why), "{line}");
            }
            let short: serde_json::Value = serde_json::from_str(lines.remove(4)).expect("JSON");
            let short = numbers(&short["embedding"]);
            assert!(
                cosine(&short, &want("a")[..3]) > 0.99999 && (length(&short) - 1.0).abs() < 1e-6
            );
            let long = lines.remove(2);
            assert!(
                long.contains("129 tokens, the model takes at most 128"),
                "{long}"
            );
            lines
                .iter()
                .zip(TEXTS)
                .for_each(|(line, text)| is(line, text));
        }
        for (args, why) in [
            (&["--prompt", ""][..], "the text is empty"),
            (&["--prompt", "é"], "token"),
            (
                &["--prompt", "a", "--temperature", "1"],
                "for embeddings there are --prompt",
            ),
            (&["--prompt", "a", "--dimensions", "65"], "65 dimensions"),
        ] {
            let (status, _, message) = run(args, "");
            assert_eq!(status, Some(1), "{args:?}");
            assert!(message.contains(why), "{message}");
        }
    }
    let (status, out, _) = start(&program, &["--help"], b"");
    let help = String::from_utf8(out).expect("text");
    assert_eq!(status, Some(0));
    assert!(
        help.contains("gives embeddings of texts") && help.contains("--dimensions"),
        "{help}"
    );
    assert!(!help.contains("--temperature"), "{help}");
    // Models that write text have none, and `--scores` still makes programs that give states.
    let decoder = checkpoint(128, endless());
    let (status, _, message) = lapidary(
        &[
            "run",
            str(decoder.path()),
            "--prompt",
            "a",
            "--dimensions",
            "2",
        ],
        b"",
    );
    assert_eq!(status, Some(1));
    assert!(message.contains("writes text"), "{message}");
    let states = build(&folder, &["--scores"]);
    let (_, out, _) = start(&states, &["--help"], b"");
    assert!(String::from_utf8_lossy(&out).contains("last_hidden_state"));
}

#[test]
fn settings_that_are_not_supported_are_refused() {
    let sqrt = json!({"pooling_mode_mean_sqrt_len_tokens": true});
    let folder = bert(&[("1_Pooling/config.json", sqrt)]);
    let (status, _, message) = lapidary(&["run", str(folder.path()), "--prompt", "a"], b"");
    assert_eq!(status, Some(1));
    for what in [
        "pooling_mode_mean_sqrt_len_tokens",
        "supported is one of cls, mean and max",
    ] {
        let message = message.replace('\n', " ");
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn compressed_encoders_give_embeddings() {
    let folder = bert(&[]);
    let program = build(&folder, &["--bits", "8"]);
    let (status, out, message) = start(&program, &["--prompt", TEXTS[0]], b"");
    assert_eq!(status, Some(0), "{message}");
    let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    let want = pooled(&states(&import(folder.path()), &bytes(TEXTS[0])), "mean");
    let near = cosine(&numbers(&value["embedding"]), &want);
    assert!(near > 0.999, "{near}");
}

#[test]
fn servers_give_embeddings() {
    let folder = bert(&[]);
    let module = import(folder.path());
    let program = build(&folder, &["--with-server"]);
    for server in [
        Server::of(&folder, &["--parallel", "3"]),
        Server::start(Command::new(&program), &[]),
    ] {
        let answer = server.post(
            "/v1/embeddings",
            &json!({"input": TEXTS, "user": "somebody"}),
        );
        assert_eq!(answer.status, 200, "{}", answer.body);
        let value = answer.json();
        for (i, text) in TEXTS.iter().enumerate() {
            let want = pooled(&states(&module, &bytes(text)), "mean");
            assert_eq!(value["data"][i]["index"], i);
            assert!(
                cosine(&numbers(&value["data"][i]["embedding"]), &want) >= 0.99999,
                "{text}"
            );
        }
        let wrong = server.post("/v1/embeddings", &json!({"input": "a".repeat(200)}));
        assert_eq!(
            (wrong.status, &wrong.json()["error"]["param"]),
            (400, &json!("input"))
        );
        assert!(
            wrong
                .body
                .contains("200 tokens, the model takes at most 128"),
            "{}",
            wrong.body
        );
        let text = server.post("/v1/completions", &json!({"prompt": "a"}));
        assert_eq!(text.status, 400);
        assert!(
            text.body.contains("kind `bert`, which gives embeddings"),
            "{}",
            text.body
        );
        server.settle();
    }
    // Options that are of text are no options of this model.
    let (status, _, message) = lapidary(
        &[
            "serve",
            str(folder.path()),
            "--listen",
            "127.0.0.1:0",
            "--temperature",
            "1",
        ],
        b"",
    );
    assert_eq!(status, Some(1));
    assert!(message.contains("gives embeddings"), "{message}");
}

#[test]
fn what_there_is_no_room_for_is_refused_and_clients_may_leave() {
    let server = Server::of(&bert(&[]), &["--parallel", "1", "--queue", "15"]);
    let many = |n: usize| json!({"input": vec!["a".repeat(128); n]});
    let whole = server.post("/v1/embeddings", &many(17));
    assert_eq!(whole.status, 400, "{}", whole.body);
    assert!(whole.body.contains("the server takes 16"), "{}", whole.body);
    // Clients that leave give their places back.
    for _ in 0..20 {
        drop(server.send("POST", "/v1/embeddings", many(16).to_string().as_bytes()));
    }
    // What a client sent may be read after it has left, so its places may be taken for a while yet.
    let begin = Instant::now();
    loop {
        let statuses: Vec<u16> = (0..10)
            .map(|_| server.send("POST", "/v1/embeddings", many(16).to_string().as_bytes()))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|s| super::server::received(s).status)
            .collect();
        assert!(
            statuses.iter().all(|s| [200, 429].contains(s)),
            "{statuses:?}"
        );
        if statuses.contains(&200) {
            break;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "nobody is answered"
        );
    }
    server.settle();
}

#[test]
fn the_openai_client_understands_embeddings() {
    let options = ["--parallel", "4", "--queue", "200"];
    the_openai_client_passes(&bert(&[]), &options, "embeddings.py");
}

#[test]
fn minilm_embeds_sentences_from_their_text() {
    let (Some(folder), Some(sts)) = (data("all-MiniLM-L6-v2"), data("stsbenchmark")) else {
        return;
    };
    let want = npy::read(&read(folder.join("sts-test-emb-a-first64.npy")), None).expect("an array");
    let want = floats(&want.into());
    let table = String::from_utf8(read(sts.join("sts-test.tsv"))).expect("UTF-8");
    let texts = table.lines().filter_map(|line| line.split('\t').nth(1));
    let lines: String = texts
        .take(64)
        .map(|text| format!("{}\n", json!({"prompt": text})))
        .collect();
    let args = ["run", str(&folder), "--batch", "-", "--threads", "2"];
    let (status, out, message) = lapidary(&args, lines.as_bytes());
    assert_eq!(status, Some(0), "{message}");
    let out = String::from_utf8(out).expect("text");
    assert_eq!(out.lines().count(), 64);
    let mut least = 1f64;
    for (line, want) in out.lines().zip(want.chunks_exact(384)) {
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let vector = numbers(&value["embedding"]);
        let want: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
        assert!((length(&vector) - 1.0).abs() < 1e-5);
        least = least.min(cosine(&vector, &want));
    }
    println!("all-MiniLM-L6-v2: cosines of 64 sentences are at least {least}");
    assert!(least >= 0.99999, "{least}");
}
