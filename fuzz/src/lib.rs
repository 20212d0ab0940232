//! What the fuzzers run: functions that take any bytes and must not panic, hang or use much memory, and
//! mutations that get past the first checks.
//!
//! Used by the targets in `fuzz_targets/`, with libFuzzer, and by the test `tests/fuzz.rs`, without.

mod generate;
pub mod numbers;
pub mod random;
pub mod wire;
pub mod words;

use lapidary_frontend::gguf;
use lapidary_frontend::onnx::{ImportOptions, import_bytes};
use lapidary_ir::diagnostic::{Code, SHARED_NAME, STRUCTURE, TYPE_DIFFERS, TYPE_RULE};
use lapidary_ir::infer::infer_module;
use lapidary_ir::{Module, ValueId, text, verify};
use std::collections::BTreeMap;

/// The ONNX reader: what it accepts is valid, prints and reads back.
pub fn onnx(data: &[u8]) {
    let options = ImportOptions {
        max_nodes: 2000,
        ..ImportOptions::default()
    };
    match import_bytes(data.to_vec().into(), "fuzz.onnx", None, &options) {
        Ok(module) => {
            let errors = verify::errors(&module);
            assert!(errors.is_empty(), "imported, but not valid: {}", errors[0]);
            reads_back(&module);
        }
        Err(error) => assert!(!error.problems.is_empty() && !error.to_string().is_empty()),
    }
}

/// The GGUF reader: what it accepts is valid, and every tensor decodes or says why not.
pub fn gguf(data: &[u8]) {
    match gguf::import_bytes(&data.to_vec().into(), "fuzz.gguf", &BTreeMap::new()) {
        Ok(module) => {
            let errors = verify::errors(&module);
            assert!(errors.is_empty(), "imported, but not valid: {}", errors[0]);
            let constants = (0..module.value_count() as u32).map(ValueId);
            constants
                .filter_map(|v| module.as_constant(v))
                .for_each(|c| {
                    let _ = c.decode();
                });
        }
        Err(error) => assert!(!error.problems.is_empty() && !error.to_string().is_empty()),
    }
}

/// The text reader, then the verifier and inference: what is accepted prints and reads back.
pub fn text(data: &[u8]) {
    let source = String::from_utf8_lossy(data);
    match text::parse_located(&source, None) {
        Ok(parsed) => {
            for d in verify::verify(&parsed.module) {
                let _ = parsed.locate(d).to_string();
            }
            valid(parsed.module);
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for e in errors {
                if let lapidary_ir::diagnostic::Place::Text(span) = e.place {
                    assert!(source.get(span).is_some(), "a place inside the text");
                }
            }
        }
    }
}

/// The verifier and inference, on a module made as the bytes say.
pub fn graph(data: &[u8]) {
    valid(generate::module(data));
}

/// What must hold of any module.
fn valid(mut module: Module) {
    let wrong: Vec<&Code> = verify::verify(&module)
        .into_iter()
        .map(|d| d.code)
        .collect();
    let types_only = [&TYPE_DIFFERS, &TYPE_RULE, &SHARED_NAME];
    if !wrong.iter().all(|code| types_only.contains(code)) {
        if !wrong.contains(&&STRUCTURE) {
            let _ = text::print_elided(&module); // Even what is not valid can be looked at.
        }
        return;
    }
    if wrong.iter().all(|code| *code == &SHARED_NAME) {
        reads_back(&module);
    }
    if infer_module(&mut module).is_empty() {
        let errors = verify::errors(&module);
        assert!(
            errors.is_empty(),
            "inferred, but not valid: {}\n{}",
            errors[0],
            text::print(&module)
        );
        reads_back(&module);
    }
}

fn reads_back(module: &Module) {
    let printed = text::print(module);
    match text::parse(&printed) {
        Ok(back) => {
            let difference = module.first_difference(&back);
            assert!(difference.is_none(), "{difference:?}\n{printed}");
        }
        Err(errors) => panic!("{}\n{printed}", errors[0]),
    }
}
