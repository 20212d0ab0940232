//! `lapidary build --emit flight`: a language model as instructions for an FPGA overlay.

use super::print;
use crate::cli::Build;
use lapidary::Error;
use lapidary::artefact::flight::{Flight, write_flight};
use lapidary::driver::import;
use lapidary_flight::model::Quantization;
use lapidary_frontend::arch::LlamaSizes;

/// Runs the command.
pub fn build(args: &Build) -> Result<(), Error> {
    let options = args.model.options(None)?;
    if options.compression.is_some() {
        return Err(Error::Usage {
            message:
                "the overlay has weights of its own form, which budgets and recipes do not choose"
                    .to_owned(),
            help: "`--keep` and `--tolerance` say how small they are".to_owned(),
        });
    }
    let sizes = LlamaSizes::read(&args.model.model).map_err(Error::Import)?;
    let module = import(&args.model.model, &options)?;
    options.progress.stage("instructions");
    let how = Quantization {
        keep: args.keep.into(),
        tolerance: args.tolerance,
    };
    let model = (&module, &sizes, &*args.model.file());
    let flight = write_flight(&args.output, model, &how, args.part)?;
    if args.model.json {
        print(&format!("{}\n", json(args, &flight)));
    } else {
        print(&format!(
            "{}:\n{}",
            args.output.display(),
            flight.report(args.part)
        ));
    }
    Ok(())
}

/// The report for programs.
fn json(args: &Build, flight: &Flight) -> serde_json::Value {
    let (stream_bytes, per_length) = flight.program.stream_bytes();
    let predicted = flight.predicted.iter().map(|(bucket, p)| {
        serde_json::json!({ "position": 16 * bucket, "seconds": p.seconds, "busy_seconds": p.busy, "instructions": p.count })
    });
    serde_json::json!({
        "output": args.output.display().to_string(), "part": args.part.name, "image_bytes": flight.program.image.len(),
        "streams": flight.program.streams.len(), "stream_bytes": stream_bytes, "stream_bytes_per_length": per_length,
        "predicted": predicted.collect::<Vec<_>>(), "assumptions": flight.assumptions,
    })
}
