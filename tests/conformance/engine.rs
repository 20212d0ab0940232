//! Engines, and running cases on them: two at a time, a panic counting as the failure of its case.

use crate::cases::Case;
use crate::compare::same;
use lapidary::specialize::Given;
use lapidary::{CompileOptions, backend, driver, values};
use lapidary_frontend::onnx::{ImportOptions, import_file, tensor_file::read_value};
use lapidary_ir::tensor::Value;
use lapidary_ir::{Module, Type};
use lapidary_runtime::ModelOptions;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Something that runs modules.
pub struct Engine {
    /// Name, as in `expected-failures-NAME.txt`.
    pub name: &'static str,
    /// Runs a module on inputs.
    pub run: fn(&Module, Vec<Value>) -> Result<Vec<Value>, String>,
}

/// The reference evaluator.
pub static EVALUATOR: Engine = Engine {
    name: "evaluator",
    run: |module, inputs| lapidary_ir::eval::run(module, inputs).map_err(|e| e.to_string()),
};

/// Compiled code: specialised to the inputs, rewritten, lowered, and run by the runtime.
pub static COMPILED: Engine = Engine {
    name: "compiled",
    run: |module, inputs| compiled(module, inputs, "cranelift"),
};

/// The same by the other code generator; what it does not pass is on the same list.
#[cfg(feature = "llvm")]
pub static COMPILED_BY_LLVM: Engine = Engine {
    name: "compiled",
    run: |module, inputs| compiled(module, inputs, "llvm"),
};

fn compiled(module: &Module, inputs: Vec<Value>, backend: &str) -> Result<Vec<Value>, String> {
    let given = Given::from_values(&inputs);
    let mut options = CompileOptions::host(1);
    let backend = backend::named(backend).map_err(|e| e.to_string())?;
    options.generate_for(options.target.clone(), backend);
    let compiled = driver::compile(module.clone(), "model.onnx", &options, Some(&given))
        .map_err(|e| e.to_string())?;
    let options = ModelOptions {
        threads: 1,
        pin: false,
        ..ModelOptions::default()
    };
    let model = compiled.load(options).map_err(|e| e.to_string())?;
    let inputs = inputs
        .iter()
        .map(values::to_runtime)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| e.to_string())?;
    let outputs = model.run(&inputs).map_err(|e| e.to_string())?;
    outputs
        .iter()
        .map(|v| values::to_evaluator(v).ok_or_else(|| "an output is damaged".to_owned()))
        .collect()
}

/// A case and why it failed, if it did.
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// `None` if it passes.
    pub failure: Option<String>,
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs all cases, in their order.
pub fn run_all(engine: &Engine, root: &Path, cases: &[Case]) -> Vec<Outcome> {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        PANIC.with(|p| *p.borrow_mut() = info.to_string())
    }));
    let next = AtomicUsize::new(0);
    let failures: Mutex<Vec<Option<String>>> = Mutex::new(vec![None; cases.len()]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let work = || {
                while let Some((i, case)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|i| Some((i, cases.get(i)?)))
                {
                    let failure = guarded(engine, root, case).err();
                    failures.lock().unwrap_or_else(|e| e.into_inner())[i] = failure;
                }
            };
            let builder = std::thread::Builder::new().stack_size(64 << 20);
            builder
                .spawn_scoped(scope, work)
                .expect("threads can be started");
        }
    });
    std::panic::set_hook(usual);
    let failures = failures.into_inner().unwrap_or_else(|e| e.into_inner());
    cases
        .iter()
        .cloned()
        .zip(failures)
        .map(|(case, failure)| Outcome { case, failure })
        .collect()
}

fn guarded(engine: &Engine, root: &Path, case: &Case) -> Result<(), String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run_case(engine, root, case)));
    outcome.unwrap_or_else(|_| Err(format!("panic: {}", PANIC.with(|p| p.borrow().clone()))))
}

fn run_case(engine: &Engine, root: &Path, case: &Case) -> Result<(), String> {
    let dir = root.join(&case.dir);
    let model = import_file(&dir.join("model.onnx"), &ImportOptions::default()).map_err(|e| {
        let first = e
            .problems
            .first()
            .map(|p| format!("{}: {}", p.place, p.reason))
            .unwrap_or_default();
        format!("import: {first}")
    })?;
    let top = model.top();
    for set in data_sets(&dir)? {
        let read =
            |kind: &str, i: usize, ty: &Type| read_value(&set.join(format!("{kind}_{i}.pb")), ty);
        let types = top.inputs.iter().map(|&v| &model.value(v).ty).enumerate();
        let inputs = types
            .map(|(i, ty)| read("input", i, ty))
            .collect::<Result<Vec<_>, _>>()?;
        let outputs = (engine.run)(&model, inputs)?;
        for (i, (&v, got)) in top.outputs.iter().zip(&outputs).enumerate() {
            if !set.join(format!("output_{i}.pb")).exists() {
                continue;
            }
            let want = read("output", i, &model.value(v).ty)?;
            same(&want, got, case.rtol, case.atol).map_err(|e| format!("output {i}: {e}"))?;
        }
    }
    Ok(())
}

fn data_sets(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let is_set = |p: &PathBuf| {
        p.file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with("test_data_set_"))
    };
    let mut sets: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(is_set)
        .collect();
    sets.sort();
    if sets.is_empty() {
        Err("has no data set".into())
    } else {
        Ok(sets)
    }
}
