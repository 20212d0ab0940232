//! Programs that write text: what transformers wrote, the same for any number of threads, and what is said of requests that
//! cannot be answered.

use super::*;
use std::io::Write;
use std::process::{Command, Stdio};

/// A program's exit status, standard output and standard error.
pub(super) type Done = (Option<i32>, Vec<u8>, String);

pub(super) fn run(program: &Path, args: &[&str], input: &[u8]) -> Done {
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

pub(super) fn lapidary(args: &[&str], input: &[u8]) -> Done {
    run(Path::new(env!("CARGO_BIN_EXE_lapidary")), args, input)
}

pub(super) fn str(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A tokenizer whose token n is byte n, for so many tokens (at most 128, which are characters).
pub(super) fn bytes_tokenizer(tokens: u32) -> String {
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
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
    .to_string()
}

/// The bundled Llama with a tokenizer and these settings of generation.
pub(super) fn checkpoint(tokens: u32, settings: serde_json::Value) -> tempfile::TempDir {
    let folder = changed("llama31-rope", |_| {});
    let write =
        |name: &str, text: String| fs::write(folder.path().join(name), text).expect("written");
    write("tokenizer.json", bytes_tokenizer(tokens));
    write("generation_config.json", settings.to_string());
    folder
}

/// What transformers wrote after a prompt, as bytes.
pub(super) fn reference() -> (Vec<u8>, Vec<u8>) {
    let stored = arrays(&bundled().join("llama31-rope/reference.npz"));
    let all = stored["greedy"].bytes().chunks_exact(8).map(|b| b[0]);
    let all: Vec<u8> = all.collect();
    let length = stored["input_ids"].dims()[1];
    (all[..length].to_vec(), all[length..].to_vec())
}

pub(super) fn build(folder: &tempfile::TempDir, args: &[&str]) -> PathBuf {
    let program = folder.path().join("program");
    let all = [&["build", str(folder.path()), "-o", str(&program)], args].concat();
    let (status, _, message) = lapidary(&all, b"");
    assert_eq!(status, Some(0), "{message}");
    program
}

/// No token ends a text.
pub(super) fn endless() -> serde_json::Value {
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
    // Keys and values of a few bits, and as halves.
    let long: Vec<u8> = prompt.iter().copied().cycle().take(100).collect();
    for kv in ["8,4", "16"] {
        let narrow = build(&folder, &["--kv", kv]);
        let texts = ["1", "2"].map(|threads| {
            let args = ["--max-tokens", "16", "--threads", threads];
            let (status, out, message) = self::run(&narrow, &args, &long);
            assert_eq!(status, Some(0), "{message}");
            out
        });
        assert_eq!(texts[0], texts[1]);
    }
    for kv in ["3", "16,4", "4,16"] {
        let refused = ["build", str(folder.path()), "-o", "nowhere", "--kv", kv];
        let (status, _, message) = lapidary(&refused, b"");
        assert_eq!(status, Some(2), "{message}");
    }
    let small = build(&folder, &["--size", "0.3x"]);
    let (status, out, message) = self::run(&small, &["--max-tokens", "16"], &prompt);
    assert_eq!((status, out.len()), (Some(0), 17), "{message}");
}

#[test]
fn programs_use_the_weights_that_there_is_memory_for() {
    let folder = checkpoint(128, endless());
    let program = build(&folder, &["--adjustable"]);
    let (prompt, _) = reference();
    // Text, and bytes of weights that are used, and of all.
    let text = |more: &[&str]| {
        let args = [&["--max-tokens", "24", "--stats"], more].concat();
        let (status, out, message) = self::run(&program, &args, &prompt);
        assert_eq!(status, Some(0), "{message}");
        let words: Vec<&str> = message.split_whitespace().collect();
        let numbers = words.windows(4).find(|w| w[1] == "of" && w[3] == "bytes");
        let numbers = numbers.unwrap_or_else(|| panic!("{message}"));
        let number = |i: usize| numbers[i].parse::<u64>().expect("a number");
        (out, number(0), number(2))
    };
    let (whole, used, all) = text(&[]);
    assert_eq!(used, all);
    assert_eq!(text(&["--memory", "1GiB"]), (whole.clone(), all, all));
    // There is no room beside what the process itself takes.
    let (_, few, _) = text(&["--memory", "24MiB"]);
    assert!(few < all, "{few} of {all} bytes");
    let limit = folder.path().join("limit");
    fs::write(&limit, "1GiB\n").expect("written");
    let file = format!("@{}", str(&limit));
    assert_eq!(text(&["--memory", &file]), (whole, all, all));
}

/// Writes a model to a GGUF file as it is, vocabulary and all.
fn gguf(folder: &Path, place: &Path) -> PathBuf {
    let [file, recipe] = ["m.gguf", "keep.toml"].map(|n| place.join(n));
    fs::write(&recipe, "").expect("written");
    let args = [
        "compress",
        str(folder),
        "-o",
        str(&file),
        "--recipe",
        str(&recipe),
    ];
    let (status, _, message) = lapidary(&args, b"");
    assert_eq!(status, Some(0), "{message}");
    assert!(!message.contains("no vocabulary"), "{message}");
    file
}

#[test]
fn gguf_files_write_what_their_checkpoints_write() {
    let folder = checkpoint(128, endless());
    let (prompt, want) = reference();
    let file = gguf(folder.path(), folder.path());
    let max = want.len().to_string();
    let args = ["run", str(&file), "--max-tokens", &max];
    let (status, out, message) = lapidary(&args, &prompt);
    let line = [&want[..], b"\n"].concat();
    assert_eq!((status, out), (Some(0), line), "{message}");
    // Without the tokenizer there is no vocabulary to be written, which is said.
    fs::remove_file(folder.path().join("tokenizer.json")).expect("removed");
    let keep = folder.path().join("keep.toml");
    let again = [
        "compress",
        str(folder.path()),
        "-o",
        str(&file),
        "--recipe",
        str(&keep),
    ];
    let (status, out, message) = lapidary(&again, b"");
    let said = message.clone() + &String::from_utf8_lossy(&out);
    assert!(said.contains("no `tokenizer.json`"), "{said}");
    assert_eq!(status, Some(0), "{message}");
    let (status, _, message) = lapidary(&args, &prompt);
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("a GGUF file"), "{message}");
}

/// Both kinds of vocabularies give the same tokens through a GGUF file.
#[test]
fn vocabularies_survive_gguf_files() {
    for (model, texts) in [
        ("stories260k", "stories260k/tinystories-sample.txt"),
        ("llama-wt2", "text/wikitext-2-valid.txt"),
    ] {
        let (Some(model), Some(texts)) = (data(model), data(texts)) else {
            return;
        };
        let place = tempfile::tempdir().expect("a folder");
        let file = gguf(&model, place.path());
        let files = lapidary_frontend::gguf::texts(&file).unwrap_or_else(|e| panic!("{e}"));
        let files = files.expect("a vocabulary");
        let read = |text: &[u8]| lapidary_language::vocabulary::tokenizer(text).expect("read");
        let ours = read(files[0].1.as_bytes());
        let theirs = read(&super::read(model.join("tokenizer.json")));
        let text = String::from_utf8(super::read(texts)).expect("text");
        let mut count = 0;
        for line in text
            .lines()
            .take(2000)
            .chain([" \u{1F600} a\tb  c\u{301} "])
        {
            let ids = |t: &lapidary_language::vocabulary::Tokenizer| {
                let found = t.encode_fast(line, true).expect("encoded");
                (
                    t.decode(found.get_ids(), true).expect("decoded"),
                    found.get_ids().to_vec(),
                )
            };
            let (own, want) = (ids(&ours), ids(&theirs));
            count += want.1.len();
            assert_eq!(own, want, "{line}");
        }
        assert!(count > 10_000, "{count}");
    }
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
    // The same for several at a time, in their order.
    let together = [&args[..], &["--parallel", "3", "--stats"]].concat();
    let input: String = requests.iter().map(|r| format!("{r}\n")).collect();
    let (status, again, message) = lapidary(&together, (input + "{\n").as_bytes());
    assert_eq!(status, Some(1), "{message}");
    let again = String::from_utf8(again).expect("text");
    assert_eq!(again.lines().count(), 7);
    for (line, answer) in again.lines().zip(&answers) {
        let mut found: serde_json::Value = serde_json::from_str(line).expect("JSON");
        // Products of several rows of f32 may round differently.
        let told = |a: &serde_json::Value| -> Vec<f64> {
            let all = a["logprobs"].as_array().into_iter().flatten();
            all.filter_map(|t| t["logprob"].as_f64()).collect()
        };
        let mut both = told(&found).into_iter().zip(told(answer));
        assert!(both.all(|(a, b)| (a - b).abs() < 1e-4), "{line}");
        if !found["logprobs"].is_null() {
            found["logprobs"] = answer["logprobs"].clone();
        }
        assert_eq!(&found, answer);
    }
    assert!(message.contains("7 requests, 13 tokens"), "{message}");
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

/// The bundled Llama for long texts, as a program.
fn long_program() -> (tempfile::TempDir, PathBuf) {
    let folder = checkpoint(128, endless());
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&read(&path)).expect("JSON");
    config["max_position_embeddings"] = json!(4096);
    fs::write(&path, config.to_string()).expect("written");
    let program = build(&folder, &[]);
    (folder, program)
}

/// Characters, so many, none of which repeat for long.
fn words(n: u32) -> String {
    (0..n)
        .map(|i| char::from((32 + (i * i + 7 * i) % 90) as u8))
        .collect()
}

#[test]
fn prompts_are_kept_in_files() {
    let (folder, program) = long_program();
    let cache = folder.path().join("cache");
    let write = |prompt: &str, more: &[&str]| {
        let args = [
            &[
                "--prompt",
                prompt,
                "--max-tokens",
                "30",
                "--temperature",
                "0.8",
            ],
            more,
        ]
        .concat();
        self::run(&program, &args, b"")
    };
    let text = |prompt: &str, more: &[&str]| {
        let (status, out, message) = write(prompt, more);
        assert_eq!(status, Some(0), "{message}");
        out
    };
    let with = ["--prompt-cache", str(&cache)];
    let prompt = words(700);
    let want = text(&prompt, &[]);
    assert_eq!(text(&prompt, &with), want);
    let kept = read(&cache);
    // The same again, from the file alone: it is not written anew.
    assert_eq!(text(&prompt, &with), want);
    assert_eq!(read(&cache), kept);
    assert_eq!(
        text(&prompt, &[&with[..], &["--threads", "1"]].concat()),
        want
    );
    // Longer ones, shorter ones, ones that differ after a while or at once.
    let middle = prompt.replacen(&prompt[500..510], "something!", 1);
    for other in [
        &(prompt.clone() + " and more"),
        &prompt[..600],
        &prompt[..100],
        &middle,
        "x",
    ] {
        fs::write(&cache, &kept).expect("written");
        assert_eq!(text(other, &with), text(other, &[]), "{other}");
    }
    // Files that are something else.
    let refused = |path: &Path, bytes: &[u8], why: &str| {
        fs::write(path, bytes).expect("written");
        let (status, out, message) = write(&prompt, &with);
        assert_eq!((status, out.len()), (Some(1), 0), "{why}: {message}");
        assert!(message.contains(why), "{message}");
        assert_eq!(read(path), bytes, "it is left alone");
    };
    refused(&cache, b"", "is no prompt cache");
    refused(
        &cache,
        &read(folder.path().join("config.json")),
        "is no prompt cache",
    );
    for len in [40, 48, 1000, kept.len() - 1] {
        refused(
            &cache,
            &kept[..len],
            if len < 48 {
                "is no prompt cache"
            } else {
                "is cut"
            },
        );
    }
    refused(&cache, &[&kept[..], b"x"].concat(), "is cut");
    let flipped = |at: usize| {
        let mut bytes = kept.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    refused(&cache, &flipped(3), "is no prompt cache");
    refused(&cache, &flipped(25), "another model");
    refused(&cache, &flipped(33), "is cut");
    refused(&cache, &flipped(39), "is cut");
    for at in [41, 48, 3000, kept.len() / 2, kept.len() - 1] {
        refused(&cache, &flipped(at), "is damaged");
    }
    let compressed = build(&folder, &["--bits", "8"]);
    fs::write(&cache, &kept).expect("written");
    let args = [
        "--prompt",
        &prompt,
        "--max-tokens",
        "3",
        "--prompt-cache",
        str(&cache),
    ];
    let (status, _, message) = self::run(&compressed, &args, b"");
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("another model"), "{message}");
    let nowhere = folder.path().join("none/cache");
    let (status, _, message) = write("x", &["--prompt-cache", str(&nowhere)]);
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("none/cache"), "{message}");
    let left = fs::read_dir(folder.path()).expect("a folder");
    let left = left.filter(|f| {
        f.as_ref()
            .is_ok_and(|f| f.file_name().to_string_lossy().contains("cache."))
    });
    assert_eq!(left.count(), 0, "nothing half-written is left");
}

#[test]
fn drafts_change_nothing_but_speed() {
    let (folder, program) = long_program();
    let text = |prompt: &str, more: &[&str]| {
        let args = [&["--prompt", prompt, "--max-tokens", "80", "--stats"], more].concat();
        let (status, out, message) = self::run(&program, &args, b"");
        assert_eq!(status, Some(0), "{message}");
        (out, message)
    };
    let accepted = |message: &str| -> (usize, usize) {
        let (_, part) = message.rsplit_once("; ").expect("parts");
        let numbers: Vec<usize> = part.split(' ').filter_map(|w| w.parse().ok()).collect();
        (numbers[0], numbers[1])
    };
    let own = program.with_extension("same");
    fs::copy(&program, &own).expect("copied");
    // Of the same tokens, but with other opinions.
    let small = folder.path().join("small");
    let path = folder.path().join("model.safetensors");
    let weights = read(&path);
    let mut other = weights.clone();
    let half = other.len() / 2;
    // Signs of the second half.
    let begin = 8 + half - half % 4;
    let signs = other[begin..].iter_mut().skip(3).step_by(4);
    signs.for_each(|byte| *byte ^= 0x80);
    fs::write(&path, other).expect("written");
    let args = ["build", str(folder.path()), "-o", str(&small)];
    let (status, _, message) = lapidary(&args, b"");
    assert_eq!(status, Some(0), "{message}");
    fs::write(&path, weights).expect("written");
    for prompt in ["Once", &words(300)] {
        let (want, _) = text(prompt, &[]);
        let (found, message) = text(prompt, &["--draft", str(&own)]);
        assert_eq!(found, want);
        let (right, proposed) = accepted(&message);
        assert!(right == proposed && proposed >= 60, "{message}");
        for threads in ["1", "2"] {
            let (found, message) = text(prompt, &["--draft", str(&small), "--threads", threads]);
            assert_eq!(found, want);
            let (right, proposed) = accepted(&message);
            assert!(right < proposed, "{message}");
        }
        let stop = String::from_utf8(want[20..23].to_vec()).expect("characters");
        assert_eq!(
            text(prompt, &["--draft", str(&small), "--stop", &stop]).0,
            text(prompt, &["--stop", &stop]).0
        );
    }
    let drawn = |seed: &str| {
        text(
            "Once",
            &[
                "--draft",
                str(&small),
                "--temperature",
                "0.9",
                "--seed",
                seed,
            ],
        )
        .0
    };
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    // A folder, compiled in memory; and models of other tokens.
    let args = [
        "run",
        str(folder.path()),
        "--prompt",
        "Once",
        "--max-tokens",
        "80",
        "--draft",
        str(folder.path()),
    ];
    let (status, out, message) = lapidary(&args, b"");
    assert_eq!((status, out), (Some(0), text("Once", &[]).0), "{message}");
    let others = checkpoint(100, endless());
    let other = build(&others, &[]);
    let args = ["--prompt", "Once", "--draft", str(&other)];
    let (status, _, message) = self::run(&program, &args, b"");
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("another tokenizer"), "{message}");
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
