//! ONNX's own operator cases, run by every engine that gives models a meaning.
//!
//! The cases are folders made by `generate.py` from the `onnx` package; `LAPIDARY_ONNX_TESTS` names the
//! folder, and without it the tests say that they are skipped. For each engine, the cases that do not pass
//! are listed with their reasons in `expected-failures-ENGINE.txt`: a failing case that is not listed fails
//! the test. `LAPIDARY_BLESS=1` rewrites the list. `LAPIDARY_ONNX_FILTER=softmax` runs only cases with that
//! in their name or operators, and shows each failure; `LAPIDARY_ONNX_LIGHT=1` adds whole networks.

mod cases;
mod compare;
mod engine;
mod report;

use engine::Engine;

fn conformance(engine: &Engine) {
    let Some(root) = std::env::var_os("LAPIDARY_ONNX_TESTS").map(std::path::PathBuf::from) else {
        println!(
            "skipped: LAPIDARY_ONNX_TESTS does not name the folder made by tests/conformance/generate.py"
        );
        return;
    };
    let cases = cases::read_index(&root).expect("the folder has a readable index");
    let outcomes = engine::run_all(engine, &root, &cases);
    report::conclude(engine.name, &outcomes);
}

#[test]
fn evaluator() {
    conformance(&engine::EVALUATOR);
}

#[test]
fn compiled() {
    conformance(&engine::COMPILED);
}

#[cfg(feature = "llvm")]
#[test]
fn compiled_by_llvm() {
    conformance(&engine::COMPILED_BY_LLVM);
}
