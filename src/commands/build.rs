//! `lapidary build`: a model as an artefact.

use super::print;
use crate::cli::{Build, Emit, Model};
use lapidary::artefact::{
    Parts, write_dylib, write_exe, write_image, write_listing, write_object, write_ptx,
    write_staticlib, write_text,
};
use lapidary::report::html;
use lapidary::{Compiled, Error, driver, language};
use lapidary_frontend::Purpose;
use lapidary_passes::compress;
use lapidary_passes::lower::{Choice, Noticed};

/// Runs the command.
pub fn build(args: &Build) -> Result<(), Error> {
    match args.emit {
        Emit::Hls => return super::hls::build(args),
        Emit::Flight => return super::flight::build(args),
        _ => {}
    }
    let target = match (&args.target, args.emit) {
        (None, Emit::Ptx) => Some("ptx"),
        (target, _) => target.as_deref(),
    };
    let mut options = args.model.options(target)?;
    if args.emit == Emit::Ptx && options.target.arch() != "nvptx64" {
        return Err(Error::Usage {
            message: format!("PTX is no code for `{}`", options.target.triple),
            help:
                "leave out `--target`, or give it `ptx`; `--cpu sm_90a` and the like choose a GPU"
                    .to_owned(),
        });
    }
    if args.model.adjustable {
        let mapped = matches!(args.emit, Emit::Exe | Emit::Image);
        if !mapped || options.target.arch() == "nvptx64" {
            return Err(Error::Usage {
                message: "`--adjustable` is for executables and images: they read weights from their file as these are used".to_owned(),
                help: "leave it out, or leave out `--emit` and `--target`".to_owned(),
            });
        }
    }
    if args.emit == Emit::Obj {
        options.target.micro_kernels = false;
        // A freestanding object is one function: there is nothing that would prepare.
        options.prepare = false;
    }
    let file = args.model.file();
    let path = &args.model.model;
    let texts = args.emit == Emit::Exe && !args.scores;
    let purpose = language::purpose(path).filter(|_| texts);
    if args.with_server && purpose.is_none() {
        return Err(Error::Usage {
            message: format!("{file}: `--with-server` is for executables that write or embed text"),
            help: "give the folder of a language model's checkpoint with its `tokenizer.json`"
                .to_owned(),
        });
    }
    if args.kv_evictable && purpose != Some(Purpose::WriteText) {
        return Err(Error::Usage {
            message: format!("{file}: `--kv-evictable` is for executables that write text"),
            help: "give the folder of a decoder's checkpoint with its `tokenizer.json`".to_owned(),
        });
    }
    options.evictable = args.kv_evictable;
    let compiled = match purpose {
        Some(purpose) => language::compile_for(purpose, path, &file, &options)?,
        None => {
            let module = driver::import(path, &options)?;
            driver::compile(module, &file, &options, None)?
        }
    };
    let parts = Parts {
        file: &file,
        triple: &options.target.triple,
        program: &compiled.program,
        code: &compiled.code,
        weights: &compiled.weights,
    };
    match args.emit {
        Emit::Exe => write_exe(&args.output, &parts, args.with_server)?,
        Emit::Image => write_image(&args.output, &parts)?,
        Emit::Staticlib => write_staticlib(&args.output, &parts, &options.target)?,
        Emit::Dylib => write_dylib(&args.output, &parts, &options.target)?,
        Emit::Obj => write_object(&args.output, &parts, &options.target)?,
        Emit::Ptx => write_ptx(&args.output, &parts)?,
        Emit::Asm => write_listing(&args.output, &parts, &compiled.kernels, &options)?,
        // Done above: it makes no machine code.
        Emit::Hls | Emit::Flight => {}
    }
    write_recipe(args, &compiled)?;
    if let Some(compression) = &compiled.compression {
        write_page(&args.model, compression)?;
    }
    report(args, &compiled, compiled.predict(&options).ns() / 1e6)
}

/// Beside the artefact: the choices that a budget led to, or a preset, so that the next build repeats them, or a part of them.
fn write_recipe(args: &Build, compiled: &Compiled) -> Result<(), Error> {
    let searched = |c: &&compress::Report| c.bound.is_some() || args.model.quantize.is_some();
    let Some(compression) = compiled.compression.as_ref().filter(searched) else {
        return Ok(());
    };
    let mut path = args.output.clone().into_os_string();
    path.push(".recipe.toml");
    let text = toml::to_string(&compression.recipe()).map_err(|e| Error::Usage {
        message: format!("the recipe cannot be written: {e}"),
        help: "names of weights must be text".to_owned(),
    })?;
    write_text(path.as_ref(), &text)
}

/// The page that `--report` asks for.
pub(super) fn write_page(model: &Model, compression: &compress::Report) -> Result<(), Error> {
    match &model.report {
        Some(path) => write_text(path, &html(&model.file(), compression)?),
        None => Ok(()),
    }
}

fn report(args: &Build, compiled: &Compiled, predicted_ms: f64) -> Result<(), Error> {
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
            "unshared_bytes": compiled.report.unshared_bytes, "prepared_bytes": program.prepared_bytes,
            "compression": compiled.compression.as_ref().map(compression),
            "sparse": compiled.report.noticed.iter().map(noticed).collect::<Vec<_>>(),
            "products": compiled.report.choices.iter().map(choice).collect::<Vec<_>>(),
            "predicted_ms": predicted_ms, "kernels": program.kernels.len(), "compile_s": seconds, "peak_bytes": peak_bytes(),
        });
        print(&format!("{report}\n"));
    } else {
        print(&format!(
            "{output}: {} bytes ({} of code, {} of weights), compiled in {seconds:.2} s\n\
             memory plan: a peak of {} bytes of working memory; {} if nothing shared storage\n\
             a run is predicted to take {predicted_ms:.3} ms\n",
            bytes.len(),
            compiled.code.len(),
            program.weights_bytes,
            program.arena_bytes,
            compiled.report.unshared_bytes
        ));
        if let Some(c) = &compiled.compression {
            print(&compressed(c));
        }
        if program.prepared_bytes > 0 {
            print(&format!(
                "prepared when loaded: {} bytes computed from weights (`--no-prepare` computes them in every run)\n",
                program.prepared_bytes
            ));
        }
        for noticed in &compiled.report.noticed {
            print(&format!("{noticed}\n"));
        }
        for choice in &compiled.report.choices {
            print(&format!("{choice}\n"));
        }
    }
    Ok(())
}

/// What became of the weights, a line for each.
pub(super) fn compressed(report: &compress::Report) -> String {
    let mut text = String::new();
    for (cut, removed) in &report.cuts {
        let ((groups, of), (parameters, of_all)) = (removed.groups, removed.parameters);
        text += &format!(
            "cut `{}`: {groups} of {of} structures, {parameters} of their {of_all} parameters\n",
            cut.name
        );
    }
    for w in &report.weights {
        let ([rows, columns], (before, after)) = (w.shape, w.bytes);
        let bits = 8.0 * after as f64 / (rows * columns).max(1) as f64;
        text += &format!(
            "`{}` [{rows},{columns}]: {} -> {bits:.2} bits, error {:.2e}, {before} -> {after} bytes\n",
            w.name, w.level.method, w.error
        );
        for assumption in &w.assumptions {
            text += &format!("  {assumption}\n");
        }
    }
    let (before, after) = report.bytes;
    text += &format!(
        "weights: {before} -> {after} bytes ({:.3}x)\n",
        after as f64 / before.max(1) as f64
    );
    if let Some((_, coded)) = &report.activations {
        text += &codes(coded);
    }
    match (report.bound, &report.measured) {
        (Some((error, bound)), None) => {
            text += &format!(
                "mean relative error of a weight: {error:.4e}; no choice within the budget is below {bound:.4e}\n\
                 these are errors of weights (of their outputs, where data was given), not of the model's results\n"
            );
        }
        (bound, Some(m)) => text += &measured(m, bound),
        (None, None) => (),
    }
    if let Some((before, after)) = report.latency_ns {
        text += &format!(
            "predicted latency: {:.3} -> {:.3} ms\n",
            before / 1e6,
            after / 1e6
        );
    }
    text
}

/// What is computed with codes.
fn codes(coded: &compress::Coded) -> String {
    let mut text = format!(
        "8-bit codes: {} values, read by {} products with weights; {} softmaxes and normalizations in integers\n",
        coded.values, coded.products, coded.integers
    );
    for reason in &coded.left {
        text += &format!("stays floats: {reason}\n");
    }
    text
}

/// How far the compressed model's results are from the original's; with what was predicted, and the bound of all choices.
fn measured(m: &compress::Measured, bound: Option<(f64, f64)>) -> String {
    let (loss, (used, given)) = (m.difference.loss, m.samples);
    let what = match m.distance {
        compress::Distance::Divergence => "divergence of a prediction from the original's, in nats",
        compress::Distance::Squares => {
            "squared difference of the results, relative to the original's squares"
        }
    };
    let mut text = format!("{what}: {loss:.3e} measured on {used} of {given} samples");
    if let Some((predicted, bound)) = bound {
        text += &format!(" ({predicted:.3e} predicted, no choice is predicted below {bound:.3e})");
    }
    text.push('\n');
    if let Some(agreement) = m.difference.agreement {
        text += &format!(
            "the most probable class is the original's for {:.2} % of predictions\n",
            100.0 * agreement
        );
    }
    if let Some(s) = m.difference.spread {
        text += &format!(
            "standard error {:.1e}; 95 % of predictions diverge by at most {:.3e}, 99 % by {:.3e}\n",
            s.standard_error, s.p95, s.p99
        );
    }
    text
}

/// The same for programs.
pub(super) fn compression(report: &compress::Report) -> serde_json::Value {
    let weight = |w: &compress::Chosen| {
        serde_json::json!({
            "name": w.name, "shape": w.shape, "choice": w.level, "encoding": w.encoding,
            "bytes_before": w.bytes.0, "bytes": w.bytes.1, "error": w.error, "assumptions": w.assumptions,
        })
    };
    let spread =
        |of: fn(compress::Spread) -> f64| report.measured.and_then(|m| m.difference.spread).map(of);
    let cut = |(cut, removed): &(compress::Cut, compress::Removed)| {
        serde_json::json!({
            "cut": cut, "structures": removed.groups.1, "structures_cut": removed.groups.0,
            "parameters": removed.parameters.1, "parameters_cut": removed.parameters.0,
        })
    };
    let codes = report.activations.as_ref().map(|(asked, coded)| {
        serde_json::json!({
            "asked": asked, "values": coded.values, "products": coded.products, "integers": coded.integers, "left": coded.left,
        })
    });
    serde_json::json!({
        "codes": codes, "cuts": report.cuts.iter().map(cut).collect::<Vec<_>>(),
        "weights": report.weights.iter().map(weight).collect::<Vec<_>>(),
        "bytes_before": report.bytes.0, "bytes": report.bytes.1,
        "error": report.bound.map(|b| b.0), "bound": report.bound.map(|b| b.1),
        "front": report.front,
        "loss": report.measured.map(|m| m.difference.loss),
        "loss_standard_error": spread(|s| s.standard_error), "loss_p95": spread(|s| s.p95), "loss_p99": spread(|s| s.p99),
        "predicted_ms_before": report.latency_ns.map(|l| l.0 / 1e6), "predicted_ms": report.latency_ns.map(|l| l.1 / 1e6),
        "top1_agreement": report.measured.and_then(|m| m.difference.agreement),
    })
}

/// A weight with zeros, for programs.
fn noticed(n: &Noticed) -> serde_json::Value {
    serde_json::json!({
        "weight": n.weight, "weights": n.weights, "nonzeros": n.nonzeros,
        "predicted_of_dense": n.predicted, "sparse": n.sparse,
    })
}

/// How a product is computed, for programs.
fn choice(c: &Choice) -> serde_json::Value {
    serde_json::json!({
        "node": c.node, "rows": c.rows, "weights": c.weights, "form": c.form,
        "kernels": c.kernels, "predicted_us": c.predicted_ns / 1e3,
        "others": c.others, "others_us": c.others_ns / 1e3,
    })
}

/// Most memory that this process has had resident, mapped files included, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
