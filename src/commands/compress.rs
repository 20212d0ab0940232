//! `lapidary compress`: a smaller model in a form that other programs load too.

use super::{build, print};
use crate::cli::{Compress, Export};
use lapidary::artefact::{write_folder, write_pieces};
use lapidary::driver::Compression;
use lapidary::work::WorkFolder;
use lapidary::{Error, driver};
use lapidary_frontend::Problem;
use lapidary_frontend::export::{self, Format, Weight, Written};
use lapidary_ir::{Module, ValueId};
use lapidary_passes::compress::{self, Budget, CompressError, Entry, Goal, Level, Recipe, Report};
use std::path::{Path, PathBuf};

/// Runs the command.
pub fn compress(args: &Compress) -> Result<(), Error> {
    let format = format(args)?;
    let folder = matches!(format, Format::CompressedTensors | Format::Gptq);
    if folder && args.output.exists() {
        // It would be found out in the end, after all the work.
        return Err(Error::Usage {
            message: format!("`{}` exists already", args.output.display()),
            help: "name another folder, or remove this one".to_owned(),
        });
    }
    if args.model.latency.is_some() {
        return Err(Error::Usage {
            message: "a file for other programs has no latency".to_owned(),
            help: "`lapidary build --latency` compresses for a program of ours".to_owned(),
        });
    }
    let ours = [
        ("packed", args.model.packed),
        ("adjustable", args.model.adjustable),
    ];
    if let Some((name, _)) = ours.into_iter().find(|(_, given)| *given) {
        return Err(Error::Usage {
            message: "what a file for other programs holds is for its format to say".to_owned(),
            help: format!(
                "leave `--{name}` out; `lapidary build --{name}` makes a program of ours"
            ),
        });
    }
    let options = args.model.options(None)?;
    let refused = |problem| refused(&args.output, problem);
    let target = format.target(&args.model.model).map_err(refused)?;
    let file = args.model.file();
    let mut module = driver::import(&args.model.model, &options)?;
    let compression = options.compression.clone().ok_or_else(|| Error::Usage {
        message: "there is nothing to compress to".to_owned(),
        help: "say a size (`--size 0.25x`), bits (`--bits 4.5`), a limit (`--max-kl 0.02`) or a recipe (`--recipe FILE`)"
            .to_owned(),
    })?;
    if matches!(&compression, Compression::Recipe(recipe) if recipe.activations.is_some()) {
        return Err(Error::Usage {
            message: "a file for other programs has codes of weights alone".to_owned(),
            help: "`lapidary build --quantize` makes a program that computes with codes".to_owned(),
        });
    }
    if matches!(&compression, Compression::Recipe(recipe) if !recipe.cuts.is_empty()) {
        return Err(Error::Usage {
            message: "a file for other programs keeps the graph of its model, which a recipe's `[[cut]]` changes".to_owned(),
            help: "`lapidary build --recipe` makes a program of the smaller model".to_owned(),
        });
    }
    let kinds = |w: &compress::Weight| target.grids(&w.name, w.shape, w.by_columns);
    let levels = |w: &compress::Weight| {
        let held = kinds(w).into_iter().map(|kind| level(kind, w.observed));
        std::iter::once(Level::keep()).chain(held).collect()
    };
    let compression = match compression {
        Compression::Goal(goal) if format == Format::Gptq => Compression::Recipe(uniform(
            &module,
            &goal,
            options.calibration.is_some(),
            &kinds,
        )?),
        other => other,
    };
    let made = driver::with_means(
        &mut module,
        &file,
        &options,
        Some(&levels),
        |module, means| {
            if args.plan {
                compress::prepare(module, means)?;
                return Ok(Made::Plan(compress::weights(module)));
            }
            if let Some(job) = args.job {
                compress::job(module, job, means)?;
                return Ok(Made::Job);
            }
            if args.merge
                && let [first, ..] = compress::missing(module, means)?[..]
            {
                return Err(CompressError::Undone(first));
            }
            let report = compression.apply(module, means);
            report.map(|r| Made::Report(Box::new(r)))
        },
    )?;
    let report = match made {
        Made::Report(report) => *report,
        Made::Plan(weights) => {
            print(&plan(args, &weights));
            return Ok(());
        }
        Made::Job => return Ok(()),
    };
    options.progress.stage("write");
    // Where no temporary folder can be had memory must do.
    let folder = WorkFolder::temporary().ok();
    let aside = |bytes: Vec<u8>| match &folder {
        Some(folder) => folder.aside(bytes).map_err(|error| Problem {
            place: "output".to_owned(),
            reason: format!("cannot be put aside: {error}"),
            remedy: Some("is there room among the temporary files (TMPDIR)?".to_owned()),
        }),
        None => Ok(bytes.into()),
    };
    let made = weights(&module, &report);
    let written = target.write(&made, &aside).map_err(refused)?;
    let released = |bytes: usize| {
        written.sources.release(bytes);
        if let Some(folder) = &folder {
            folder.sources().release(bytes);
        }
    };
    let bytes = write(&args.output, format, &written, &released)?;
    build::write_page(&args.model, &report)?;
    print(&summary(args, &report, &written, bytes));
    Ok(())
}

/// What came of a run of the command.
enum Made {
    /// A list of jobs, one for each weight.
    Plan(Vec<compress::Weight>),
    /// One job.
    Job,
    /// The compressed module.
    Report(Box<Report>),
}

/// The jobs, by number.
fn plan(args: &Compress, weights: &[compress::Weight]) -> String {
    if args.model.json {
        let job = |(n, w): (usize, &compress::Weight)| serde_json::json!({ "job": n, "weight": w.name, "shape": w.shape });
        let jobs: Vec<_> = weights.iter().enumerate().map(job).collect();
        return format!("{}\n", serde_json::json!({ "jobs": jobs }));
    }
    let job = |(n, w): (usize, &compress::Weight)| {
        let [rows, columns] = w.shape;
        format!("{n} `{}` [{rows},{columns}]\n", w.name)
    };
    weights.iter().enumerate().map(job).collect()
}

/// What the user asks for, or what the output's name says.
fn format(args: &Compress) -> Result<Format, Error> {
    let named = args.output.extension().and_then(|e| e.to_str());
    Ok(match (args.format, named) {
        (Some(Export::Onnx), _) | (None, Some("onnx")) => Format::Onnx,
        (Some(Export::Gguf), _) | (None, Some("gguf")) => Format::Gguf,
        (Some(Export::Gptq), _) => Format::Gptq,
        (Some(Export::CompressedTensors), _) | (None, None) => Format::CompressedTensors,
        (None, Some(other))
            if args.model.model.is_dir() && !matches!(other, "lap" | "safetensors") =>
        {
            // A folder may have points in its name.
            Format::CompressedTensors
        }
        (None, Some(other)) => {
            return Err(Error::Usage {
                message: format!("`.{other}` is no kind of model that is written"),
                help: "write a file `.onnx` or `.gguf`, or a folder; `--format` says which if the name does not".to_owned(),
            });
        }
    })
}

/// The method for a kind of grids, with data or without: the range of fine grids is not worth a search.
fn level(kind: export::Kind, observed: bool) -> Level {
    let method = if observed { "gptq-refit" } else { "rtn" };
    Level {
        method: method.to_owned(),
        bits: kind.bits,
        group: kind.group,
        symmetric: kind.symmetric,
        clip: kind.bits < 8,
        ..Level::default()
    }
}

/// One kind for all weights that may have it: so many bits, in the longest groups.
fn uniform(
    module: &Module,
    goal: &Goal,
    observed: bool,
    kinds: &dyn Fn(&compress::Weight) -> Vec<export::Kind>,
) -> Result<Recipe, Error> {
    let bits = match goal.budget {
        Some(Budget::Bits(bits)) if bits.fract() == 0.0 => bits as u32,
        _ => {
            return Err(Error::Usage {
                message: "this format has the same number of bits for all weights".to_owned(),
                help: "say it: `--bits 4`".to_owned(),
            });
        }
    };
    let all = compress::weights(module);
    let may: Vec<_> = all
        .iter()
        .map(|w| (w, kinds(w)))
        .filter(|(_, k)| !k.is_empty())
        .collect();
    // The longest groups that divide every weight.
    let shared =
        |k: &&export::Kind| k.bits == bits && may.iter().all(|(_, kinds)| kinds.contains(k));
    let kind = may
        .first()
        .and_then(|(_, k)| k.iter().filter(shared).max_by_key(|k| k.group));
    let kind = kind.ok_or_else(|| Error::Usage {
        message: format!("no weights can have {bits} bits in this format"),
        help: "2, 4 and 8 bits are written, of layers whose sizes are multiples of 32".to_owned(),
    })?;
    let entry = |(w, _): &(&compress::Weight, _)| Entry {
        name: w.name.clone(),
        level: level(*kind, observed),
    };
    Ok(Recipe {
        weights: may.iter().map(entry).collect(),
        ..Recipe::default()
    })
}

/// The terms that took the place of weights.
fn weights<'m>(module: &'m Module, report: &'m Report) -> Vec<Weight<'m>> {
    let terms = (0..module.value_count() as u32)
        .map(ValueId)
        .filter_map(|v| {
            let constant = module.as_constant(v).filter(|c| c.is_compressed())?;
            Some((module.value(v).name.as_str(), &**constant.encoding()))
        });
    let terms: std::collections::HashMap<&str, _> = terms.collect();
    let chosen = report.weights.iter().filter(|c| !c.level.keeps());
    let weight = |c: &'m compress::Chosen| {
        terms.get(c.name.as_str()).map(|&term| Weight {
            name: &c.name,
            term,
            by_columns: c.by_columns,
        })
    };
    chosen.filter_map(weight).collect()
}

/// Writes all files; gives their bytes.
fn write(
    output: &Path,
    format: Format,
    written: &Written,
    released: &dyn Fn(usize),
) -> Result<u64, Error> {
    let pieces = |f: &export::File| f.pieces.clone();
    match format {
        Format::CompressedTensors | Format::Gptq => {
            let files: Vec<_> = written
                .files
                .iter()
                .map(|f| (f.name.clone(), pieces(f)))
                .collect();
            write_folder(output, &files, released)?;
        }
        Format::Onnx | Format::Gguf => {
            let place = |f: &export::File| match f.name.is_empty() {
                true => output.to_owned(),
                false => output.with_file_name("").join(&f.name),
            };
            let files: Vec<(PathBuf, _)> = written
                .files
                .iter()
                .map(|f| (place(f), pieces(f)))
                .collect();
            write_pieces(&files, released)?;
        }
    }
    let lengths = written
        .files
        .iter()
        .flat_map(|f| &f.pieces)
        .map(|p| p.len() as u64);
    Ok(lengths.sum())
}

fn summary(args: &Compress, report: &Report, written: &Written, bytes: u64) -> String {
    let output = args.output.display().to_string();
    if args.model.json {
        let report = serde_json::json!({
            "output": output, "bytes": bytes, "notes": written.notes, "compression": build::compression(report),
        });
        return format!("{report}\n");
    }
    let notes: String = written.notes.iter().map(|n| format!("{n}\n")).collect();
    format!(
        "{}{notes}{output}: {bytes} bytes\n",
        build::compressed(report)
    )
}

fn refused(output: &Path, problem: Problem) -> Error {
    Error::Export {
        output: output.display().to_string(),
        place: problem.place,
        reason: problem.reason,
        help: problem.remedy.unwrap_or_else(|| {
            "is the model complete, and does `lapidary inspect` read it?".to_owned()
        }),
    }
}
