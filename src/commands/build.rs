//! `lapidary build`: a model as an artefact.

use super::print;
use crate::cli::{Build, Emit};
use lapidary::artefact::{
    Parts, write_dylib, write_exe, write_image, write_object, write_staticlib,
};
use lapidary::{Compiled, Error, driver};
use lapidary_ir::target::Target;

/// Runs the command.
pub fn build(args: &Build) -> Result<(), Error> {
    let mut options = args.model.options();
    if let Some(triple) = &args.target {
        options.target = Target {
            threads: options.target.threads,
            ..target(triple)?
        };
    }
    if args.emit == Emit::Obj {
        options.target.micro_kernels = false;
    }
    let file = args.model.file();
    let module = driver::import(&args.model.model, &options)?;
    let compiled = driver::compile(module, &file, &options, None)?;
    let parts = Parts {
        file: &file,
        triple: &options.target.triple,
        program: &compiled.program,
        code: &compiled.code,
        weights: &compiled.weights,
    };
    match args.emit {
        Emit::Exe => write_exe(&args.output, &parts)?,
        Emit::Image => write_image(&args.output, &parts)?,
        Emit::Staticlib => write_staticlib(&args.output, &parts, &options.target)?,
        Emit::Dylib => write_dylib(&args.output, &parts, &options.target)?,
        Emit::Obj => write_object(&args.output, &parts, &options.target)?,
        Emit::Asm => {
            return Err(Error::Usage {
                message: "a listing cannot be written yet".to_owned(),
                help: "`lapidary inspect --at kernels` shows the kernels".to_owned(),
            });
        }
    }
    report(args, &compiled)
}

/// The description of a target by its triple; this machine's own triple stands for its features as well.
fn target(triple: &str) -> Result<Target, Error> {
    let host = Target::host();
    let base = match triple.split('-').next().unwrap_or_default() {
        _ if triple == host.triple => host,
        "x86_64" => Target {
            fused_multiply_add: false,
            ..Target::x86_64()
        },
        "aarch64" => Target::aarch64(),
        arch if arch.starts_with("riscv64") => Target::riscv64(),
        _ => {
            return Err(Error::Usage {
                message: format!("there is no target `{triple}`"),
                help: "targets begin with `x86_64-`, `aarch64-` or `riscv64gc-`".to_owned(),
            });
        }
    };
    Ok(Target {
        triple: triple.to_owned(),
        ..base
    })
}

fn report(args: &Build, compiled: &Compiled) -> Result<(), Error> {
    let bytes = std::fs::metadata(&args.output).map_err(|error| Error::File {
        path: args.output.clone(),
        error,
    })?;
    let output = args.output.display().to_string();
    let seconds: f64 = compiled.times.0.iter().map(|(_, t)| t.as_secs_f64()).sum();
    let program = &compiled.program;
    if args.model.json {
        let report = serde_json::json!({
            "output": output, "bytes": bytes.len(), "code_bytes": compiled.code.len(),
            "weights_bytes": program.weights_bytes, "arena_bytes": program.arena_bytes,
            "kernels": program.kernels.len(), "compile_s": seconds,
        });
        print(&format!("{report}\n"));
    } else {
        print(&format!(
            "{output}: {} bytes ({} of code, {} of weights), compiled in {seconds:.2} s; working memory {} bytes\n",
            bytes.len(),
            compiled.code.len(),
            program.weights_bytes,
            program.arena_bytes
        ));
    }
    Ok(())
}
