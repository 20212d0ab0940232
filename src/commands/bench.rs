//! `lapidary bench`: how fast a model runs here, kernel by kernel, beside what was predicted and what the machine can do.

use super::{print, run_error};
use crate::cli::Bench;
use lapidary::{Error, driver};
use lapidary_runtime::cli::{kernel_times, zeros};
use lapidary_runtime::{ModelOptions, Value, ceiling, pool};
use std::time::{Duration, Instant};

/// Runs whose times are not counted.
const WARM_UP: Duration = Duration::from_millis(300);

/// Runs the command.
pub fn bench(args: &Bench) -> Result<(), Error> {
    let file = args.model.file();
    let failed = run_error(&file);
    let threads = args.model.thread_count();
    let mut options = args.model.options(None)?;
    let start = Instant::now();
    let mut module = driver::import(&args.model.model, &options)?;
    // What is still symbolic is measured at 1, as harnesses do with a batch.
    for &v in &module.top().inputs.clone() {
        let mut names = vec![];
        for d in module.value(v).ty.shape().unwrap_or_default() {
            d.visit_symbols(&mut |s| names.push(s.to_owned()));
        }
        for name in names {
            options.dims.entry(name).or_insert(1);
        }
    }
    let problems = lapidary_ir::infer::bind_symbols(&mut module, &options.dims);
    if !problems.is_empty() {
        return Err(Error::Types { file, problems });
    }
    let compiled = driver::compile(module, &file, &options, None)?;
    let stages = compiled.times.clone();
    let predicted = compiled.predict(&options);
    let predicted_ms = predicted.ns() / 1e6;
    let weights_bytes = compiled.program.weights_bytes;
    let arena_bytes = compiled.program.arena_bytes;
    let model = compiled.load(ModelOptions {
        threads,
        ..ModelOptions::default()
    })?;
    pool::pin_this_thread(threads);
    let load_s = start.elapsed().as_secs_f64();
    let inputs: Vec<Value> = zeros(&model).map_err(&failed)?;
    let warm = Instant::now();
    while {
        model.run(&inputs).map_err(&failed)?;
        warm.elapsed() < WARM_UP
    } {}
    let begin = Instant::now();
    let mut times: Vec<f64> = vec![];
    while times.len() < 3 || begin.elapsed().as_secs_f64() < args.seconds {
        let one = Instant::now();
        model.run(&inputs).map_err(&failed)?;
        times.push(one.elapsed().as_secs_f64() * 1e3);
    }
    if args.latencies_json {
        let report = serde_json::json!({
            "engine": "lapidary",
            "version": env!("CARGO_PKG_VERSION"),
            "threads": threads,
            "load_s": load_s,
            "lat_ms": times,
            "predicted_ms": predicted_ms,
            "weights_bytes": weights_bytes,
            "arena_bytes": arena_bytes,
        });
        print(&format!("{report}\n"));
        return Ok(());
    }
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let at = |q: f64| sorted[((sorted.len() - 1) as f64 * q).round() as usize];
    let kernels = kernel_times(&model, &inputs).map_err(&failed)?;
    let of_kernels = predicted.kernels();
    let predicted_of = |name: &str| {
        let found = of_kernels.iter().find(|k| k.name == name);
        found.map(|k| k.ns)
    };
    if args.model.json {
        let kernels: Vec<_> = kernels
            .iter()
            .map(|k| {
                serde_json::json!({
                    "name": k.name, "calls": k.calls, "ns": k.nanoseconds, "flops": k.flops, "bytes": k.bytes,
                    "predicted_ns": predicted_of(&k.name),
                })
            })
            .collect();
        let report = serde_json::json!({
            "threads": threads, "load_s": load_s, "runs": times.len(), "median_ms": at(0.5),
            "p10_ms": at(0.1), "p90_ms": at(0.9), "predicted_ms": predicted_ms,
            "profile": options.target.measured.is_some(), "kernels": kernels,
        });
        print(&format!("{report}\n"));
        return Ok(());
    }
    let ceiling = ceiling::measure(threads).map_err(&failed)?;
    let mut text = String::new();
    for (stage, time) in &stages.0 {
        text += &format!("{stage:>12} {:>9.1} ms\n", time.as_secs_f64() * 1e3);
    }
    text += &format!(
        "{:>12} {:.1} MB, working memory {:.1} MB\n",
        "weights",
        weights_bytes as f64 / 1e6,
        arena_bytes as f64 / 1e6
    );
    text += &format!(
        "{} runs, {threads} threads: median {:.3} ms (p10 {:.3}, p90 {:.3})\n",
        times.len(),
        at(0.5),
        at(0.1),
        at(0.9)
    );
    let by = match options.target.measured {
        Some(_) => "by this machine's profile",
        None => "by the target's description; `lapidary tune` measures this machine",
    };
    text += &format!("predicted {predicted_ms:.3} ms ({by})\n");
    text += &format!(
        "this machine: {:.0} GFLOP/s, {:.1} GB/s with {threads} threads\n",
        ceiling.gflops, ceiling.gbytes
    );
    text += " predicted    measured\n";
    for k in &kernels {
        text += &format!(
            "{:>10} ",
            predicted_of(&k.name).map_or("-".to_owned(), |ns| format!("{:.1}", ns / 1e3))
        );
        text += &format!("{k}\n");
    }
    print(&text);
    Ok(())
}
