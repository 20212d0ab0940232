//! Programs that write text: what transformers wrote, the same for any number of threads, and what is said of requests that
//! cannot be answered.

use super::*;
use std::io::Write;
use std::process::{Command, Stdio};

/// A program's exit status, standard output and standard error.
type Done = (Option<i32>, Vec<u8>, String);

fn run(program: &Path, args: &[&str], input: &[u8]) -> Done {
    let mut child = Command::new(program)
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let out = child.wait_with_output().expect("it ends");
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    (out.status.code(), out.stdout, message)
}

fn lapidary(args: &[&str], input: &[u8]) -> Done {
    run(Path::new(env!("CARGO_BIN_EXE_lapidary")), args, input)
}

fn str(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A tokenizer whose token n is byte n, for so many tokens (at most 128, which are characters).
fn bytes_tokenizer(tokens: u32) -> String {
    // The alphabet of byte-level tokenizers: printable bytes are themselves, others follow from 256 on.
    let mut spare = 256;
    let mut letter = |b: u32| match b {
        33..=126 => b,
        _ => {
            spare += 1;
            spare - 1
        }
    };
    let letter = |b| {
        (
            char::from_u32(letter(b)).expect("a character").to_string(),
            json!(b),
        )
    };
    let vocabulary: serde_json::Map<_, _> = (0..tokens).map(letter).collect();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
    .to_string()
}

/// The bundled Llama with a tokenizer and these settings of generation.
fn checkpoint(tokens: u32, settings: serde_json::Value) -> tempfile::TempDir {
    let folder = changed("llama31-rope", |_| {});
    let write =
        |name: &str, text: String| fs::write(folder.path().join(name), text).expect("written");
    write("tokenizer.json", bytes_tokenizer(tokens));
    write("generation_config.json", settings.to_string());
    folder
}

/// What transformers wrote after a prompt, as bytes.
fn reference() -> (Vec<u8>, Vec<u8>) {
    let stored = arrays(&bundled().join("llama31-rope/reference.npz"));
    let all = stored["greedy"].bytes().chunks_exact(8).map(|b| b[0]);
    let all: Vec<u8> = all.collect();
    let length = stored["input_ids"].dims()[1];
    (all[..length].to_vec(), all[length..].to_vec())
}

fn build(folder: &tempfile::TempDir, args: &[&str]) -> PathBuf {
    let program = folder.path().join("program");
    let all = [&["build", str(folder.path()), "-o", str(&program)], args].concat();
    let (status, _, message) = lapidary(&all, b"");
    assert_eq!(status, Some(0), "{message}");
    program
}

/// No token ends a text.
fn endless() -> serde_json::Value {
    json!({"eos_token_id": 999})
}

#[test]
fn executables_write_what_transformers_wrote() {
    let folder = checkpoint(128, endless());
    let (prompt, want) = reference();
    let program = build(&folder, &[]);
    let max = want.len().to_string();
    let line = |text: &[u8]| [text, b"\n"].concat();
    for threads in ["1", "2", "2"] {
        let args = ["--max-tokens", &max, "--threads", threads];
        let (status, out, message) = self::run(&program, &args, &prompt);
        assert_eq!(status, Some(0), "{message}");
        assert_eq!(out, line(&want), "{threads} threads");
    }
    let args = ["run", str(folder.path()), "--max-tokens", &max];
    let (status, out, message) = lapidary(&args, &prompt);
    assert_eq!((status, out), (Some(0), line(&want)), "{message}");
    // A token that ends the text is no part of it.
    let end = want.iter().position(|t| *t != want[0]).expect("others");
    let settings = json!({"eos_token_id": [999, want[end]]});
    fs::write(
        folder.path().join("generation_config.json"),
        settings.to_string(),
    )
    .expect("written");
    let (status, out, message) = lapidary(&args, &prompt);
    assert_eq!((status, out), (Some(0), line(&want[..end])), "{message}");
}

#[test]
fn seeds_decide_the_text() {
    let folder = checkpoint(
        128,
        json!({"eos_token_id": 999, "do_sample": true, "temperature": 0.9, "top_k": 50}),
    );
    let program = build(&folder, &[]);
    let write = |more: &[&str]| {
        let args = [&["--prompt", "Once", "--max-tokens", "40"], more].concat();
        let (status, out, message) = self::run(&program, &args, b"");
        assert_eq!(status, Some(0), "{message}");
        out
    };
    let one = write(&["--seed", "1", "--threads", "1"]);
    assert_eq!(one, write(&["--seed", "1", "--threads", "2"]));
    assert_ne!(one, write(&["--seed", "2"]));
    let greedy = write(&["--temperature", "0"]);
    assert_eq!(greedy, write(&["--temperature", "0", "--seed", "5"]));
    assert_eq!(greedy, write(&["--top-k", "1", "--seed", "5"]));
    // A text that stops before its own fifth character, and the prompt with it.
    let text = String::from_utf8(greedy).expect("characters");
    let stop: String = text.chars().skip(4).take(2).collect();
    let until = text.find(&stop).expect("it is part of it");
    let out = write(&["--temperature", "0", "--echo", "--stop", &stop]);
    assert_eq!(
        String::from_utf8(out).expect("characters"),
        format!("Once{}\n", &text[..until])
    );
    let lines = write(&["--temperature", "0", "--logprobs"]);
    let lines: Vec<serde_json::Value> = String::from_utf8(lines)
        .expect("text")
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 40);
    assert!(
        lines
            .iter()
            .all(|l| l["logprob"].as_f64().is_some_and(|p| p <= 0.0))
    );
    let joined: String = lines
        .iter()
        .map(|l| l["text"].as_str().expect("text"))
        .collect();
    assert_eq!(joined + "\n", text);
}

#[test]
fn compressed_programs_write_too() {
    let folder = checkpoint(128, endless());
    let (prompt, want) = reference();
    let program = build(&folder, &["--bits", "8"]);
    let (status, out, message) = self::run(&program, &["--max-tokens", "16", "--stats"], &prompt);
    assert_eq!(status, Some(0), "{message}");
    assert!(message.contains("tokens/s"), "{message}");
    // Eight bits are near enough for the first tokens to stay the same.
    assert_eq!(out[..3], want[..3]);
    // Codes that products read as they are, with numbers that are rounded for them.
    let recipe = folder.path().join("recipe.toml");
    let codes = "[[weight]]\nname = \"*_proj.weight\"\nmethod = \"rtn\"\nbits = 8\ngroup = 32\nsymmetric = true\n";
    fs::write(&recipe, codes).expect("written");
    let rounded = build(&folder, &["--recipe", str(&recipe), "--round-activations"]);
    for threads in ["1", "2"] {
        let args = ["--max-tokens", "16", "--threads", threads];
        let (status, out, message) = self::run(&rounded, &args, &prompt);
        assert_eq!(status, Some(0), "{message}");
        assert_eq!(out[..3], want[..3]);
    }
    // Keys and values of a few bits.
    let narrow = build(&folder, &["--kv", "8,4"]);
    let long: Vec<u8> = prompt.iter().copied().cycle().take(100).collect();
    let texts = ["1", "2"].map(|threads| {
        let args = ["--max-tokens", "16", "--threads", threads];
        let (status, out, message) = self::run(&narrow, &args, &long);
        assert_eq!(status, Some(0), "{message}");
        out
    });
    assert_eq!(texts[0], texts[1]);
    let refused = ["build", str(folder.path()), "-o", "nowhere", "--kv", "3"];
    let (status, _, message) = lapidary(&refused, b"");
    assert_eq!(status, Some(2), "{message}");
    let small = build(&folder, &["--size", "0.3x"]);
    let (status, out, message) = self::run(&small, &["--max-tokens", "16"], &prompt);
    assert_eq!((status, out.len()), (Some(0), 17), "{message}");
}

#[test]
fn requests_of_a_batch_are_answered_one_by_one() {
    let folder = checkpoint(128, endless());
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}";
    let config = json!({"chat_template": template});
    fs::write(
        folder.path().join("tokenizer_config.json"),
        config.to_string(),
    )
    .expect("written");
    let requests = [
        json!({"prompt": "Once", "max_tokens": 5}),
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "logprobs": true}),
        json!({"prompt": "Once", "max_tokens": 5, "colour": "red"}),
        json!({"max_tokens": 5}),
        json!([1]),
        json!({"prompt": "Once", "max_tokens": 5}),
    ];
    let input: String = requests.iter().map(|r| format!("{r}\n")).collect();
    let args = ["run", str(folder.path()), "--batch", "-"];
    let (status, out, message) = lapidary(&args, (input + "{\n").as_bytes());
    assert_eq!(status, Some(1), "{message}");
    let out = String::from_utf8(out).expect("text");
    let answers: Vec<serde_json::Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(answers.len(), 7);
    assert_eq!(answers[0]["tokens"], 5);
    assert_eq!(answers[0]["finish"], "length");
    assert_eq!(answers[1]["prompt_tokens"], "user: Hi|".len());
    assert_eq!(
        answers[1]["logprobs"].as_array().expect("asked for").len(),
        3
    );
    for (answer, why) in [
        (2, "`colour`"),
        (3, "no `prompt`"),
        (4, "no object"),
        (6, "the request"),
    ] {
        let error = answers[answer]["error"].as_str().expect("an error");
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(answers[0], answers[5]);
    let chat = [
        "run",
        str(folder.path()),
        "--chat",
        "--prompt",
        "Hi",
        "--max-tokens",
        "3",
    ];
    let (status, out, message) = lapidary(&chat, b"");
    assert_eq!(status, Some(0), "{message}");
    let text = answers[1]["text"].as_str().expect("text");
    assert_eq!(String::from_utf8(out).expect("text"), format!("{text}\n"));
}

#[test]
fn what_cannot_be_answered_is_said() {
    let folder = checkpoint(128, endless());
    let program = build(&folder, &[]);
    let fails = |args: &[&str], input: &[u8], status: i32, why: &str| {
        let (found, out, message) = self::run(&program, args, input);
        assert_eq!(found, Some(status), "{message}");
        assert!(message.contains(why), "{message}");
        assert!(out.is_empty());
    };
    let context = lapidary_frontend::checkpoint::config::Config::read(folder.path())
        .and_then(|c| c.size("max_position_embeddings"))
        .expect("it is set");
    let long = "a".repeat(context + 1);
    let why = format!(
        "{} tokens, the model's context holds {context}",
        context + 1
    );
    fails(&["--prompt", &long], b"", 1, &why);
    fails(&[], &[b'a', 0xFF], 1, "invalid utf-8");
    fails(&["--prompt", "é"], b"", 1, "token");
    fails(&["--chat", "--prompt", "a"], b"", 1, "no template");
    fails(&["--batch", "missing.jsonl"], b"", 1, "missing.jsonl");
    fails(&["--top-p", "7"], b"", 2, "`7` is not a number from 0 to 1");
    fails(&["--inputs", "a"], b"", 2, "unknown argument");
    // A text ends where the context does.
    let (status, out, message) = self::run(&program, &[], &long.as_bytes()[..context - 3]);
    assert_eq!((status, out.len()), (Some(0), 4), "{message}");
    // A tokenizer that knows too few of the model's tokens, and one that is none.
    let few = checkpoint(100, endless());
    let args = [
        "run",
        str(few.path()),
        "--max-tokens",
        "60",
        "--temperature",
        "3",
        "--prompt",
        "Once",
    ];
    let (status, out, message) = lapidary(&args, b"");
    assert_eq!(status, Some(0), "{message}");
    assert!(
        out.iter().all(|&b| b < 100),
        "tokens without a text are never chosen"
    );
    fs::write(few.path().join("tokenizer.json"), "{}").expect("written");
    let (status, _, message) = lapidary(&args, b"");
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("`tokenizer.json`"), "{message}");
    let (status, _, message) = lapidary(
        &["run", str(&bundled().join("gemma3")), "--prompt", "a"],
        b"",
    );
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn stories_are_those_of_the_reference() {
    let Some(folder) = data("stories260k") else {
        return;
    };
    let reference: serde_json::Value =
        serde_json::from_slice(&read(folder.join("greedy-reference.json"))).expect("JSON");
    let want = reference["text"].as_str().expect("a text");
    let place = tempfile::tempdir().expect("a folder");
    let story = place.path().join("story");
    let (status, _, message) = lapidary(&["build", str(&folder), "-o", str(&story)], b"");
    assert_eq!(status, Some(0), "{message}");
    for threads in ["1", "2"] {
        let args = ["--prompt", "", "--max-tokens", "200", "--threads", threads];
        let (status, out, message) = self::run(&story, &args, b"");
        assert_eq!(status, Some(0), "{message}");
        assert_eq!(
            String::from_utf8(out).expect("text").trim_end(),
            want.trim_end()
        );
    }
    // The beginning of the same text as a prompt, with its space.
    let prompt = "Once upon a time, there was";
    let (status, out, message) =
        self::run(&story, &["--prompt", prompt, "--max-tokens", "20"], b"");
    assert_eq!(status, Some(0), "{message}");
    let text = prompt.to_owned() + String::from_utf8(out).expect("text").trim_end();
    assert!(want.starts_with(&text), "{text}");
}
