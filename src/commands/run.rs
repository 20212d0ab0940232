//! `lapidary run`: compile in memory for the inputs at hand, and run.

use super::{print, run_error};
use crate::cli::Run;
use lapidary::specialize::Given;
use lapidary::{Error, driver, values};
use lapidary_runtime::cli::show;
use lapidary_runtime::io::folder::{read_inputs, write_outputs};
use lapidary_runtime::{ModelOptions, Value};
use std::time::Instant;

/// Runs the command.
pub fn run(args: &Run) -> Result<(), Error> {
    let file = args.model.file();
    let failed = run_error(&file);
    let options = args.model.options(None)?;
    let start = Instant::now();
    let module = driver::import(&args.model.model, &options)?;
    let (inputs, kind) =
        read_inputs(&args.inputs, &values::input_ports(&module)).map_err(&failed)?;
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
        let model = compiled.load(ModelOptions {
            threads: args.model.thread_count(),
            ..ModelOptions::default()
        })?;
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
