//! `lapidary serve`, and executables with a server: what clients get, right and wrong ones, quick and slow ones, and many of them.

use super::generate::{build, checkpoint, endless, lapidary, reference, run, str};
use super::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server; it ends when this is dropped.
pub(super) struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    pub(super) fn start(mut command: Command, args: &[&str]) -> Server {
        command.args(["--listen", "127.0.0.1:0", "--threads", "2"]);
        command.args(args).stdout(Stdio::piped());
        let mut process = command.spawn().expect("it starts");
        let out = process.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(out)
            .read_line(&mut line)
            .expect("it says where it is");
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| panic!("{line}"));
        Server {
            process,
            address: address.parse().expect("an address"),
        }
    }

    pub(super) fn of(folder: &tempfile::TempDir, args: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
        command.args(["serve", str(folder.path())]);
        Server::start(command, args)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).expect("a time");
        stream
    }

    /// A request whose answer ends with the connection.
    pub(super) fn send(&self, method: &str, path: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("sent");
        // A request that is refused may not be read to its end.
        let _ = stream.write_all(body);
        stream
    }

    pub(super) fn post(&self, path: &str, body: &serde_json::Value) -> Answer {
        received(self.send("POST", path, body.to_string().as_bytes()))
    }

    fn get(&self, path: &str) -> Answer {
        received(self.send("GET", path, b""))
    }

    /// Texts that are being written or wait.
    fn texts(&self) -> u64 {
        self.get("/health").json()["texts"]
            .as_u64()
            .expect("a number")
    }

    /// Waits until there are no texts left.
    pub(super) fn settle(&self) {
        let begin = Instant::now();
        while self.texts() > 0 {
            assert!(begin.elapsed() < Duration::from_secs(20), "texts are left");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Bytes of memory that are resident.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("Linux tells");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.expect("a number") * 1024
    }

    fn signal(&self) {
        let done = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        assert!(done.expect("there is `kill`").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The events of a stream, without the last one, which says that it is.
    fn events(&self) -> Vec<serde_json::Value> {
        let mut lines: Vec<&str> = self.body.split("\n\n").collect();
        assert_eq!(lines.pop(), Some(""));
        assert_eq!(lines.pop(), Some("data: [DONE]"));
        let event = |l: &str| serde_json::from_str(l.strip_prefix("data: ").expect("an event"));
        lines.into_iter().map(|l| event(l).expect("JSON")).collect()
    }
}

pub(super) fn received(mut stream: TcpStream) -> Answer {
    let mut bytes = vec![];
    // A server that refuses a request closes the connection with what it did not read.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("no status: {text}")),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

fn with_template(folder: &tempfile::TempDir) {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}";
    let config = json!({"chat_template": template}).to_string();
    fs::write(folder.path().join("tokenizer_config.json"), config).expect("written");
}

/// Weights as codes that products read as they are: the numbers of a row are the same, however many rows there are.
fn exact(folder: &tempfile::TempDir) -> [String; 3] {
    let recipe = folder.path().join("recipe.toml");
    let codes = "[[weight]]\nname = \"*_proj.weight\"\nmethod = \"rtn\"\nbits = 8\ngroup = 32\nsymmetric = true\n";
    fs::write(&recipe, codes).expect("written");
    ["--recipe", str(&recipe), "--round-activations"].map(str::to_owned)
}

fn text_of(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["choices"][0]["text"]
        .as_str()
        .expect("a text")
        .to_owned()
}

#[test]
fn texts_are_those_of_the_command_whoever_else_asks() {
    let folder = checkpoint(128, endless());
    let own = exact(&folder);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let server = Server::of(&folder, &[&own[..], &["--parallel", "3"]].concat());
    let prompts = [
        "Once",
        "upon a time",
        "x",
        "The quick brown fox jumps",
        "zz",
        "Once",
    ];
    let alone = |prompt: &str, seed: usize| {
        let seed = seed.to_string();
        let more = [
            "--prompt",
            prompt,
            "--max-tokens",
            "40",
            "--temperature",
            "0.9",
            "--seed",
            &seed,
        ];
        let args = [&["run", str(folder.path())][..], &own, &more].concat();
        let (status, out, message) = lapidary(&args, b"");
        assert_eq!(status, Some(0), "{message}");
        String::from_utf8(out)
            .expect("text")
            .trim_end_matches('\n')
            .to_owned()
    };
    let together: Vec<TcpStream> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| {
            let body = json!({"prompt": prompt, "max_tokens": 40, "temperature": 0.9, "seed": i});
            server.send("POST", "/v1/completions", body.to_string().as_bytes())
        })
        .collect();
    for (i, stream) in together.into_iter().enumerate() {
        let text = text_of(&received(stream));
        assert_eq!(
            text.trim_end_matches('\n'),
            alone(prompts[i], i),
            "{}",
            prompts[i]
        );
    }
    // In pieces, several of one prompt, and by tokens.
    let body = json!({
        "prompt": ["Once", "x"], "n": 2, "max_tokens": 12, "temperature": 0.9, "seed": 5, "stream": true,
        "stream_options": {"include_usage": true}, "logprobs": 2,
    });
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.head.contains("text/event-stream"), "{}", answer.head);
    let events = answer.events();
    let mut texts = vec![String::new(); 4];
    let mut tokens = [0; 4];
    for choice in events
        .iter()
        .flat_map(|e| e["choices"].as_array().expect("a list"))
    {
        let index = choice["index"].as_u64().expect("a number") as usize;
        texts[index] += choice["text"].as_str().expect("a text");
        let probabilities = &choice["logprobs"];
        tokens[index] += probabilities["tokens"].as_array().map_or(0, Vec::len);
        for top in probabilities["top_logprobs"]
            .as_array()
            .into_iter()
            .flatten()
        {
            assert_eq!(top.as_object().map(|t| t.len()), Some(2), "{top}");
        }
    }
    assert_eq!(tokens, [12; 4]);
    let last = events.last().expect("usage");
    assert_eq!(last["usage"]["completion_tokens"], 48);
    assert_eq!(last["usage"]["prompt_tokens"], 5);
    for (i, text) in texts.iter().enumerate() {
        let tokens: Vec<u8> = ["Once", "x"][i / 2].bytes().collect();
        let body = json!({"prompt": tokens, "max_tokens": 12, "temperature": 0.9, "seed": 5 + i});
        assert_eq!(text, &text_of(&server.post("/v1/completions", &body)));
    }
    server.settle();
}

/// The Python of `LAPIDARY_PYTHON`, if it has the client; says so if there is none.
fn python_with_openai() -> Option<std::ffi::OsString> {
    let Some(python) = std::env::var_os("LAPIDARY_PYTHON") else {
        println!("skipped: LAPIDARY_PYTHON does not name a Python with openai");
        return None;
    };
    let found = Command::new(&python).args(["-c", "import openai"]).output();
    if !found.is_ok_and(|o| o.status.success()) {
        println!("skipped: the Python of LAPIDARY_PYTHON has no openai");
        return None;
    }
    Some(python)
}

#[test]
fn the_openai_client_understands_the_server() {
    let folder = checkpoint(128, endless());
    with_template(&folder);
    the_openai_client_passes(&folder, &["--parallel", "2", "--queue", "6"], "client.py");
}

/// Runs a script of this folder against a server of a model; skipped, visibly, without the client.
pub(super) fn the_openai_client_passes(model: &tempfile::TempDir, options: &[&str], script: &str) {
    let Some(python) = python_with_openai() else {
        return;
    };
    let server = Server::of(model, options);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints");
    let done = Command::new(python)
        .arg(folder.join(script))
        .arg(format!("http://{}", server.address))
        .output()
        .expect("Python starts");
    assert!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    server.settle();
}

#[test]
fn wrong_requests_are_refused_and_harm_nobody() {
    let folder = checkpoint(128, endless());
    let server = Server::of(&folder, &[]);
    let completions = "/v1/completions";
    let refused = |body: &[u8], status: u16, why: &str| {
        let answer = received(server.send("POST", completions, body));
        assert_eq!(answer.status, status, "{}", answer.body);
        let error = &answer.json()["error"];
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(why), "{message}");
        assert!(error["type"].is_string(), "{error}");
    };
    let one = |name: &str, value: serde_json::Value| {
        let mut body = json!({"prompt": "a", "max_tokens": 1});
        body[name] = value;
        body.to_string().into_bytes()
    };
    refused(b"", 400, "no JSON");
    refused(b"{\"prompt\": \"a\"", 400, "no JSON");
    refused(b"[1]", 400, "no JSON object");
    refused(b"{\"prompt\": \"\xFF\"}", 400, "no JSON");
    refused("[".repeat(100_000).as_bytes(), 400, "no JSON");
    refused(b"{}", 400, "`prompt`");
    refused(&one("prompt", json!([])), 400, "`prompt`");
    refused(&one("prompt", json!([1, "a"])), 400, "`prompt`");
    refused(&one("prompt", json!([128])), 400, "no token 128");
    refused(&one("prompt", json!("a".repeat(128))), 400, "128 tokens");
    refused(&one("prompt", json!(["a", "é"])), 400, "token");
    refused(&one("model", json!("gpt-4")), 404, "`gpt-4` does not exist");
    refused(&one("max_tokens", json!(-1)), 400, "`max_tokens`");
    refused(&one("temperature", json!("hot")), 400, "`temperature`");
    refused(&one("top_p", json!(1.5)), 400, "`top_p`");
    refused(&one("n", json!(0)), 400, "`n`");
    refused(&one("n", json!(1000)), 400, "`n`");
    refused(&one("stop", json!(vec!["x"; 17])), 400, "`stop`");
    refused(&one("logprobs", json!(21)), 400, "`logprobs`");
    refused(&one("suffix", json!("x")), 400, "`suffix` is not supported");
    refused(&one("logit_bias", json!({"5": 1})), 400, "`logit_bias`");
    // Too long, said before it is sent and found while it comes.
    let long = one("prompt", json!("a".repeat(5 << 20)));
    refused(&long, 413, "4194304 bytes");
    let mut stream = server.connect();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("sent");
    let chunk = [
        format!("{:x}\r\n", 1 << 20).into_bytes(),
        vec![b' '; 1 << 20],
        b"\r\n".to_vec(),
    ]
    .concat();
    for _ in 0..5 {
        let _ = stream.write_all(&chunk);
    }
    let _ = stream.write_all(b"0\r\n\r\n");
    assert_eq!(received(stream).status, 413);
    // No HTTP, and heads that are too long.
    for wrong in [
        b"\x16\x03\x01\x00\x00hello\r\n\r\n".to_vec(),
        vec![b'a'; 100_000],
    ] {
        let mut stream = server.connect();
        let _ = stream.write_all(&wrong);
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    let chat = server.post(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": "a"}]}),
    );
    assert_eq!(chat.status, 400);
    assert!(chat.body.contains("no template"), "{}", chat.body);
    let embeddings = server.post("/v1/embeddings", &json!({"input": "a"}));
    assert_eq!(embeddings.status, 400);
    assert!(
        embeddings.body.contains("kind `llama`"),
        "{}",
        embeddings.body
    );
    assert_eq!(server.get("/v1/nothing").status, 404);
    assert_eq!(server.get(completions).status, 405);
    assert_eq!(server.get("/v1/models/other").status, 404);
    let models = server.get("/v1/models").json();
    let name = folder
        .path()
        .file_name()
        .and_then(|n| n.to_str())
        .expect("a name");
    assert_eq!(models["data"][0]["id"], name);
    assert_eq!(server.get(&format!("/v1/models/{name}")).status, 200);
    assert_eq!(
        text_of(&server.post(completions, &json!({"prompt": "a", "model": name}))).len(),
        16
    );
}

#[test]
fn slow_and_vanishing_clients_hold_up_nobody() {
    let folder = checkpoint(128, endless());
    let server = Server::of(&folder, &["--timeout", "4", "--parallel", "2"]);
    // Half a head, half a body, and nothing at all; meanwhile others are answered.
    let mut slow: Vec<TcpStream> = (0..60).map(|_| server.connect()).collect();
    for stream in &mut slow[..20] {
        stream
            .write_all(b"POST /v1/completions HTTP/1.1\r\nhost:")
            .expect("sent");
    }
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"prompt\":";
    for stream in &mut slow[20..40] {
        stream.write_all(head.as_bytes()).expect("sent");
    }
    let begin = Instant::now();
    assert_eq!(
        text_of(&server.post("/v1/completions", &json!({"prompt": "a"}))).len(),
        16
    );
    assert!(begin.elapsed() < Duration::from_secs(3), "others wait");
    for (i, stream) in slow.into_iter().enumerate() {
        let mut stream = stream;
        let mut answer = vec![];
        let _ = stream.read_to_end(&mut answer);
        if (20..40).contains(&i) {
            assert!(
                answer.starts_with(b"HTTP/1.1 408"),
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    }
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "they are not let go"
    );
    // Clients that leave: while a text is streamed, while one is written, before anything is read.
    let long = |stream: bool| {
        json!({"prompt": "a", "max_tokens": 120, "n": 8, "stream": stream}).to_string()
    };
    for round in 0..10 {
        let mut stream = server.send("POST", "/v1/completions", long(round % 2 == 0).as_bytes());
        if round % 3 == 0 {
            let _ = stream.read(&mut [0; 10]);
        }
    }
    server.settle();
    assert_eq!(
        text_of(&server.post("/v1/completions", &json!({"prompt": "a"}))).len(),
        16
    );
}

#[test]
fn what_there_is_no_room_for_is_refused_for_now() {
    let folder = checkpoint(128, endless());
    let server = Server::of(&folder, &["--parallel", "1", "--queue", "2"]);
    let body = json!({"prompt": "a", "max_tokens": 120}).to_string();
    let all: Vec<TcpStream> = (0..40)
        .map(|_| server.send("POST", "/v1/completions", body.as_bytes()))
        .collect();
    let answers: Vec<Answer> = all.into_iter().map(received).collect();
    let done = answers.iter().filter(|a| a.status == 200).count();
    let refused: Vec<&Answer> = answers.iter().filter(|a| a.status == 429).collect();
    assert_eq!(done + refused.len(), 40);
    assert!(done >= 3 && !refused.is_empty(), "{done} of 40");
    assert!(refused.iter().all(|a| a.head.contains("retry-after: 1")));
    let many = server.post("/v1/completions", &json!({"prompt": "a", "n": 4}));
    assert_eq!(many.status, 400, "{}", many.body);
    server.settle();
}

#[test]
fn many_connections_take_bounded_memory() {
    let folder = checkpoint(128, endless());
    let server = Server::of(&folder, &[]);
    let round = |pad: usize| {
        let body = json!({"prompt": "Once", "max_tokens": 60, "user": "x".repeat(pad)}).to_string();
        let all: Vec<TcpStream> = (0..200)
            .map(|_| server.send("POST", "/v1/completions", body.as_bytes()))
            .collect();
        let texts: Vec<String> = all.into_iter().map(|s| text_of(&received(s))).collect();
        assert!(texts.iter().all(|t| t.len() == texts[0].len()));
    };
    round(100_000);
    let first = server.resident();
    let begin = Instant::now();
    let mut rounds = 0;
    while begin.elapsed() < Duration::from_secs(6) || rounds < 3 {
        round(100_000);
        rounds += 1;
    }
    let last = server.resident();
    assert!(
        last < first + (32 << 20),
        "{first} bytes, after {rounds} rounds {last}"
    );
    assert!(last < 400 << 20, "{last} bytes");
    // As many that do nothing do not keep others from their answers.
    let idle: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    assert_eq!(
        text_of(&server.post("/v1/completions", &json!({"prompt": "a"}))).len(),
        16
    );
    drop(idle);
}

#[test]
fn servers_end_in_good_order() {
    let folder = checkpoint(128, endless());
    let mut server = Server::of(&folder, &["--parallel", "1"]);
    let body = json!({"prompt": "a", "max_tokens": 120, "n": 12}).to_string();
    let mut running: Vec<TcpStream> = (0..20)
        .map(|_| server.send("POST", "/v1/completions", body.as_bytes()))
        .collect();
    let mut idle = server.connect();
    let begin = Instant::now();
    while server.texts() < 200 {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "they do not come"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    server.signal();
    for stream in running.drain(..) {
        let answer = received(stream);
        assert!(matches!(answer.status, 200 | 503), "{}", answer.body);
    }
    assert_eq!(idle.read(&mut [0]).ok(), Some(0), "it is closed");
    let status = server.process.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn executables_serve_where_that_is_asked_for() {
    let folder = checkpoint(128, endless());
    let (prompt, want) = reference();
    let program = build(&folder, &["--with-server"]);
    let max = want.len().to_string();
    let (status, out, message) = run(&program, &["--max-tokens", &max], &prompt);
    assert_eq!(status, Some(0), "{message}");
    assert_eq!(out, [&want[..], b"\n"].concat());
    let server = Server::start(Command::new(&program), &[]);
    let tokens: Vec<u32> = prompt.iter().map(|&b| b.into()).collect();
    let answer = server.post(
        "/v1/completions",
        &json!({"prompt": tokens, "max_tokens": want.len()}),
    );
    assert_eq!(text_of(&answer).into_bytes(), want);
    drop(server);
    let (status, _, message) = run(&program, &["--listen", "nowhere"], b"");
    assert_eq!(status, Some(2), "{message}");
    let has = |program: &Path| {
        let bytes = read(program);
        bytes.windows(19).any(|w| w == b"/v1/chat/completion")
    };
    assert!(has(&program));
    let program = build(&folder, &[]);
    assert!(!has(&program), "no server where none is asked for");
    let (status, _, message) = run(&program, &["--listen", "127.0.0.1:0"], b"");
    assert_eq!(status, Some(2), "{message}");
}
