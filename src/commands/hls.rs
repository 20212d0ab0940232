//! `lapidary build --emit hls`: a model as a project for FPGAs.

use super::build::write_page;
use super::print;
use crate::cli::Build;
use lapidary::artefact::hls::{Project, for_circuits, vectors, write_hls};
use lapidary::driver::{Compression, compress, import, lower_only};
use lapidary::{CompileOptions, Error};
use lapidary_hls::Design;
use lapidary_hls::project::report;
use lapidary_passes::compress::Goal;

/// Runs the command.
pub fn build(args: &Build) -> Result<(), Error> {
    let part = args.part;
    let mut options = args.model.options(None)?;
    for_circuits(&mut options);
    circuits_are_limited(&mut options);
    let file = args.model.file();
    let mut module = import(&args.model.model, &options)?;
    let compression = compress(&mut module, &file, &options)?;
    options.progress.stage("evaluate");
    let vectors = vectors(&module, &file, args.vectors.as_deref())?;
    let lowered = lower_only(module, &file, &options)?;
    options.progress.stage("circuits");
    let project = Project {
        file: &file,
        part,
        latency_ns: args.model.latency,
        vectors: &vectors,
    };
    let design = write_hls(&args.output, &lowered, &project)?;
    if let Some(compression) = &compression {
        write_page(&args.model, compression)?;
    }
    if args.model.json {
        print(&format!("{}\n", json(args, &design)));
    } else {
        print(&format!(
            "{}:\n{}",
            args.output.display(),
            report(&design, part)
        ));
    }
    Ok(())
}

/// A limit of time is the circuit's, not one that weights are compressed for.
fn circuits_are_limited(options: &mut CompileOptions) {
    if let Some(Compression::Goal(goal)) = &mut options.compression {
        goal.latency_ns = None;
        if *goal == Goal::default() {
            options.compression = None;
        }
    }
}

/// The report for programs.
fn json(args: &Build, design: &Design) -> serde_json::Value {
    let (dsp, lut) = design.resources();
    let layers: Vec<_> = design
        .layers
        .iter()
        .map(|l| {
            serde_json::json!({
                "kernel": l.name, "pe": l.pe, "iterations": l.cost.iterations, "cycles": l.cycles,
                "dsp": l.cost.dsp, "lut": l.cost.lut, "bus_bytes": l.streamed_bytes,
            })
        })
        .collect();
    serde_json::json!({
        "output": args.output.display().to_string(), "part": args.part.name, "dsp": dsp, "lut": lut, "bram18": design.bram18,
        "latency_cycles": design.latency(), "interval_cycles": design.interval(), "dataflow": design.dataflow,
        "layers": layers,
    })
}
