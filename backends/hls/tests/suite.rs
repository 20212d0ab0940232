//! Every kernel of the suite as C++, compiled with sanitizers, against the interpreter.
//!
//! Compiling hundreds of kernels one by one would take minutes, so the suite goes round twice: first what it runs is noted
//! (and the interpreter's answers are given), then all of it is one program, and the suite judges what that program answered.

use lapidary_hls::{Folding, cost};
use lapidary_ir::kernel::{Kernel, Param};
use lapidary_ir::target::Target;
use lapidary_suite::{Backend, FUNCTIONS, run_interpreted};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::RangeFrom;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// A kernel that was to be run.
struct Case {
    function: usize,
    buffers: Vec<Vec<u8>>,
    sizes: Vec<i64>,
}

/// What the first round asked for: the distinct kernels, and what they run on.
static NOTED: Mutex<(Vec<Kernel>, Vec<Case>)> = Mutex::new((vec![], vec![]));
/// What the program answered, in the same order.
static ANSWERS: Mutex<VecDeque<Vec<Vec<u8>>>> = Mutex::new(VecDeque::new());

fn note(_: &Backend, k: &Kernel, _: &Target, buffers: &[Vec<u8>], sizes: &[i64]) -> Vec<Vec<u8>> {
    let mut noted = NOTED.lock().unwrap();
    let known = noted.0.iter().position(|n| n == k);
    let function = known.unwrap_or_else(|| {
        noted.0.push(k.clone());
        noted.0.len() - 1
    });
    noted.1.push(Case {
        function,
        buffers: buffers.to_vec(),
        sizes: sizes.to_vec(),
    });
    run_interpreted(k, buffers, sizes)
}

fn answer(_: &Backend, k: &Kernel, _: &Target, _: &[Vec<u8>], _: &[i64]) -> Vec<Vec<u8>> {
    let next = ANSWERS.lock().unwrap().pop_front();
    next.unwrap_or_else(|| panic!("no answer for `{}`", k.name))
}

fn backend(run: fn(&Backend, &Kernel, &Target, &[Vec<u8>], &[i64]) -> Vec<Vec<u8>>) -> Backend {
    Backend {
        compile: |_, _| unreachable!("there is no machine code"),
        targets: || vec![Target::x86_64()],
        run,
    }
}

/// Foldings in turn: all columns of a product at once, one, and a group of them.
fn folding(function: usize) -> Folding {
    Folding {
        pe: [u32::MAX, 1, 8][function % 3],
    }
}

/// Reads cases from standard input, writes their buffers to standard output. Every buffer is an allocation of its own, so
/// that the sanitizer sees each access outside of it.
fn program(kernels: &[Kernel]) -> String {
    let mut text =
        "static long cycles;\n#define LP_CYCLE() ((void)++cycles)\n#include \"lapidary.h\"\n#include <cstdio>\n#include <cstdlib>\n#include <vector>\n\n"
            .to_owned();
    let mut calls = String::new();
    for (n, kernel) in kernels.iter().enumerate() {
        let name = format!("k{n}_{}", kernel.name);
        let folding = folding(n);
        text +=
            &lapidary_hls::function(kernel, &name, folding, &[]).unwrap_or_else(|e| panic!("{e}"));
        let (mut buffers, mut sizes) = (0.., 0..);
        let args: Vec<String> = kernel
            .params
            .iter()
            .map(|p| match p {
                Param::Buffer { elem, .. } => {
                    format!(
                        "({} *)b[{}]",
                        lapidary_hls::storage(*elem),
                        count(&mut buffers)
                    )
                }
                Param::Size { .. } => format!("s[{}]", count(&mut sizes)),
            })
            .collect();
        let _ = writeln!(calls, "    case {n}: {name}({}); break;", args.join(", "));
    }
    text + "\nstatic int64_t number() { int64_t n; if (std::fread(&n, 8, 1, stdin) != 1) std::exit(0); return n; }\n\
            int main() {\n  for (;;) {\n    int64_t k = number();\n    \
            std::vector<int64_t> lengths(number()), s(number());\n    std::vector<void *> b;\n    \
            for (int64_t &n : lengths) {\n      n = number();\n      b.push_back(std::malloc(n ? n : 1));\n      \
            if (n && std::fread(b.back(), n, 1, stdin) != 1) return 3;\n    }\n    \
            for (int64_t &n : s) n = number();\n    cycles = 0;\n    switch (k) {\n"
        + &calls
        + "    default: return 4;\n    }\n    for (size_t i = 0; i < b.size(); ++i) {\n      \
           std::fwrite(b[i], lengths[i], 1, stdout);\n      std::free(b[i]);\n    }\n    \
           std::fwrite(&cycles, sizeof cycles, 1, stdout);\n  }\n}\n"
}

fn count(numbers: &mut RangeFrom<usize>) -> usize {
    numbers.next().unwrap()
}

fn compile(folder: &Path, text: &str) {
    std::fs::write(folder.join("cases.cpp"), text).unwrap();
    for (name, text) in lapidary_hls::HEADERS {
        std::fs::write(folder.join(name), text).unwrap();
    }
    let out = Command::new("g++")
        .args(
            "-std=c++17 -O0 -Wall -Werror -Wno-unknown-pragmas -Wno-unused -ffp-contract=off"
                .split(' '),
        )
        .args(
            "-fsanitize=address,undefined -fno-sanitize-recover=all -o cases cases.cpp".split(' '),
        )
        .current_dir(folder)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{}",
        &errors[..errors.len().min(4000)]
    );
}

fn run(folder: &Path, cases: &[Case]) -> Vec<u8> {
    let mut input = vec![];
    for case in cases {
        let head = [case.function, case.buffers.len(), case.sizes.len()];
        head.iter()
            .for_each(|&n| input.extend((n as i64).to_le_bytes()));
        for b in &case.buffers {
            input.extend((b.len() as i64).to_le_bytes());
            input.extend(b);
        }
        case.sizes
            .iter()
            .for_each(|s| input.extend(s.to_le_bytes()));
    }
    let mut child = Command::new(folder.join("cases"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "the program stopped: {}", out.status);
    writer.join().unwrap().unwrap();
    out.stdout
}

#[test]
fn kernels_in_c_simulation_are_the_interpreters() {
    if Command::new("g++").arg("--version").output().is_err() {
        eprintln!("skipped: there is no g++");
        return;
    }
    FUNCTIONS.iter().for_each(|f| f(&backend(note)));
    let (kernels, cases) = std::mem::take(&mut *NOTED.lock().unwrap());
    let folder = tempfile::tempdir().unwrap();
    compile(folder.path(), &program(&kernels));
    let mut bytes = &run(folder.path(), &cases)[..];
    for case in &cases {
        let buffers = case.buffers.iter().map(|b| {
            let (now, rest) = bytes.split_at(b.len());
            bytes = rest;
            now.to_vec()
        });
        ANSWERS.lock().unwrap().push_back(buffers.collect());
        let (counted, rest) = bytes.split_at(8);
        bytes = rest;
        // Nothing in these depends on data, so the prediction must be exact.
        let kernel = &kernels[case.function];
        if kernel.name == "gemm" {
            let predicted = cost(kernel, &[], folding(case.function)).unwrap();
            let counted = i64::from_le_bytes(counted.try_into().unwrap());
            assert_eq!(
                predicted.iterations,
                counted as f64,
                "{:?}",
                folding(case.function)
            );
        }
    }
    assert!(bytes.is_empty());
    FUNCTIONS.iter().for_each(|f| f(&backend(answer)));
    eprintln!("{} kernels, {} cases", kernels.len(), cases.len());
}
