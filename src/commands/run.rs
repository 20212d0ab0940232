//! `lapidary run`: compile in memory for the inputs at hand, and run; or let a language model write text, an encoder embed it.

use super::{print, run_error};
use crate::cli::{Cli, Run};
use clap::CommandFactory;
use lapidary::specialize::Given;
use lapidary::{CompileOptions, Compiled, Error, driver, language, values};
use lapidary_abi::program::File;
use lapidary_language::{Program, cli};
use lapidary_runtime::cli::show;
use lapidary_runtime::device::Device;
use lapidary_runtime::io::folder::{read_inputs, write_outputs};
use lapidary_runtime::{Model, ModelOptions, RunError, Value};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Runs the command.
pub fn run(args: &Run) -> Result<(), Error> {
    let file = args.model.file();
    let failed = run_error(&file);
    let mut options = args.model.options(args.target.as_deref())?;
    options.evictable = args.text.0.kv_budget.is_some();
    let Some(folder) = &args.inputs else {
        return write(args, options);
    };
    let start = Instant::now();
    let module = driver::import(&args.model.model, &options)?;
    let (inputs, kind) = read_inputs(folder, &values::input_ports(&module)).map_err(&failed)?;
    let ports = values::output_ports(&module);
    let compile_s;
    let outputs = if args.reference {
        compile_s = 0.0;
        let inputs = inputs
            .iter()
            .map(values::to_evaluator)
            .collect::<Option<_>>();
        let outputs = inputs
            .ok_or_else(|| "an input is damaged".to_owned())
            .and_then(|i| lapidary_ir::eval::run(&module, i).map_err(|e| e.to_string()))
            .map_err(|reason| Error::Evaluate {
                file: file.clone(),
                reason,
            })?;
        outputs
            .iter()
            .map(values::to_runtime)
            .collect::<Result<Vec<Value>, _>>()
            .map_err(&failed)?
    } else {
        let given = Given::from_runtime(&inputs);
        let compiled = driver::compile(module, &file, &options, Some(&given))?;
        let device = match options.backend.native {
            true => None,
            false => Some(on_gpu(&compiled, args.device).map_err(&failed)?),
        };
        let model = compiled.load_on(device, model_options(args.model.thread_count()))?;
        compile_s = start.elapsed().as_secs_f64();
        model.run(&inputs).map_err(&failed)?
    };
    let run_s = start.elapsed().as_secs_f64() - compile_s;
    if let Some(folder) = &args.outputs {
        write_outputs(folder, &ports, &outputs, kind).map_err(&failed)?;
    }
    if args.model.json {
        let outputs: Vec<_> = ports
            .iter()
            .zip(&outputs)
            .map(|(p, v)| serde_json::json!({ "name": p.name, "type": v.describe() }))
            .collect();
        let report =
            serde_json::json!({ "compile_s": compile_s, "run_s": run_s, "outputs": outputs });
        print(&format!("{report}\n"));
    } else if args.outputs.is_none() {
        for (port, value) in ports.iter().zip(&outputs) {
            print(&show(port, value));
        }
    }
    Ok(())
}

/// The GPU of this number, with the model's kernels.
fn on_gpu(compiled: &Compiled, number: u32) -> Result<Arc<dyn Device>, RunError> {
    let text = String::from_utf8_lossy(&compiled.code);
    lapidary_cuda::open(number, &text)
}

fn model_options(threads: usize) -> ModelOptions {
    ModelOptions {
        threads,
        ..ModelOptions::default()
    }
}

/// A language model that is ready to write text, or an encoder to embed it; and the files that belong to it.
pub(super) fn loaded(
    path: &Path,
    threads: usize,
    options: CompileOptions,
) -> Result<(Model, Vec<File>), Error> {
    let file = path.display().to_string();
    let Some(purpose) = language::purpose(path) else {
        return Err(Error::Usage {
            message: format!("{file}: is no language model with a tokenizer, so it neither writes text nor embeds it"),
            help: "a checkpoint needs its `tokenizer.json`, a GGUF file a vocabulary; other models take --inputs DIR"
                .to_owned(),
        });
    };
    let mut compiled = language::compile_for(purpose, path, &file, &options)?;
    // With its spinner, which would stand in the text.
    drop(options);
    let files = std::mem::take(&mut compiled.program.files);
    Ok((compiled.load(model_options(threads))?, files))
}

/// Lets a language model write text, or an encoder embed it.
fn write(args: &Run, options: CompileOptions) -> Result<(), Error> {
    let (path, file) = (&args.model.model, args.model.file());
    if !path.is_dir() && !language::is_gguf(path) {
        let message =
            "`--inputs DIR` is missing: only a language model's folder or GGUF file runs without\n";
        let kind = clap::error::ErrorKind::MissingRequiredArgument;
        Cli::command().error(kind, message).exit();
    }
    // A draft that is a folder is compiled the same way, but for what is asked of the model's size.
    let draft = match args.text.0.draft.as_ref().filter(|d| d.is_dir()) {
        Some(folder) => {
            let options = CompileOptions {
                compression: None,
                ..options.clone()
            };
            Some(loaded(folder, args.model.thread_count(), options)?)
        }
        None => None,
    };
    let (model, files) = loaded(path, args.model.thread_count(), options)?;
    let program = Program::new(model, files).and_then(|p| p.within_budget(&args.text.0));
    match program.and_then(|p| cli::run(&p, draft, &args.text.0)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Usage {
            message: "some requests could not be answered".to_owned(),
            help: "each of them has its own message in the answers".to_owned(),
        }),
        Err(error) => Err(Error::Text { file, error }),
    }
}
