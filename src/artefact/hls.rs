//! Projects for FPGAs: a folder with HLS C++, a test bench, and what it takes to run both.

use super::write_folder;
use crate::driver::CompileOptions;
use crate::error::Error;
use crate::values::to_evaluator;
use lapidary_hls::fit::{USABLE, fit};
use lapidary_hls::parts::Part;
use lapidary_hls::project::{self, Vector};
use lapidary_hls::{Design, Source};
use lapidary_ir::backend;
use lapidary_ir::random::SplitMix64;
use lapidary_ir::target::Target;
use lapidary_ir::tensor::Value;
use lapidary_ir::{ElemType, Module, Tensor, Type};
use lapidary_passes::lower::Lowered;
use lapidary_runtime::io::folder::read_inputs;
use std::path::Path;

/// What a project is made for.
#[derive(Clone, Debug)]
pub struct Project<'a> {
    /// The model's file, for messages.
    pub file: &'a str,
    /// The device.
    pub part: &'static Part,
    /// What a run may take, in nanoseconds; as fast as the part allows if `None`.
    pub latency_ns: Option<f64>,
    /// What the test bench checks.
    pub vectors: &'a [Vector],
}

/// Options that lower for circuits: no micro-kernels, nothing computed when a model is loaded, narrow tiles.
pub fn for_circuits(options: &mut CompileOptions) {
    options.target = Target {
        triple: "fpga-unknown-none".to_owned(),
        vector_bytes: 16,
        micro_kernels: false,
        threads: 1,
        measured: None,
        ..Target::x86_64().with_features(vec![])
    };
    options.prepare = false;
}

/// Inputs and the outputs that the reference evaluator gives: of the folder, if one is given, else random numbers from -1 to 1
/// (integers: 0 and 1).
///
/// # Errors
/// The inputs cannot be read, their sizes are not known, or the evaluator fails.
pub fn vectors(module: &Module, file: &str, folder: Option<&Path>) -> Result<Vec<Vector>, Error> {
    let failed = |reason: String| Error::Evaluate {
        file: file.to_owned(),
        reason,
    };
    let inputs: Vec<Value> = match folder {
        Some(folder) => {
            let ports = crate::values::input_ports(module);
            let (inputs, _) = read_inputs(folder, &ports).map_err(|error| Error::Run {
                file: file.to_owned(),
                error,
            })?;
            let inputs = inputs.iter().map(to_evaluator).collect::<Option<_>>();
            inputs.ok_or_else(|| failed("an input is damaged".to_owned()))?
        }
        None => {
            let mut random = SplitMix64::new(1);
            let types = module.top().inputs.iter().map(|&v| &module.value(v).ty);
            let inputs = types.map(|ty| random_value(ty, &mut random));
            inputs.collect::<Option<_>>().ok_or_else(|| Error::Usage {
                message: format!("{file}: has an input whose size is not known"),
                help: "fix dimensions with `--dim NAME=N`".to_owned(),
            })?
        }
    };
    let outputs = lapidary_ir::eval::run(module, inputs.clone());
    let outputs = outputs.map_err(|e| failed(e.to_string()))?;
    let bytes = |values: &[Value]| -> Option<Vec<Vec<u8>>> {
        let tensor = |v: &Value| match v {
            Value::Tensor(t) => t.to_bytes(),
            _ => None,
        };
        values.iter().map(tensor).collect()
    };
    match (bytes(&inputs), bytes(&outputs)) {
        (Some(inputs), Some(outputs)) => Ok(vec![Vector { inputs, outputs }]),
        _ => Err(failed("only tensors of numbers have vectors".to_owned())),
    }
}

fn random_value(ty: &Type, random: &mut SplitMix64) -> Option<Value> {
    let Type::Tensor(t) = ty else { return None };
    let dims = t.shape.as_ref()?.iter();
    let dims: Vec<usize> = dims
        .map(|d| usize::try_from(d.as_const()?).ok())
        .collect::<Option<_>>()?;
    let len = dims.iter().product();
    Some(Value::Tensor(match t.elem {
        ElemType::String => return None,
        e if e.is_float() => {
            let numbers = (0..len).map(|_| 2.0 * random.unit() - 1.0).collect();
            Tensor::from_f64(e, dims, numbers)
        }
        e => Tensor::from_int(
            e,
            dims,
            (0..len).map(|_| (random.unit() < 0.5).into()).collect(),
        ),
    }))
}

/// Writes a project into a folder that is not there yet.
///
/// # Errors
/// The program is no circuit, does not fit the part, cannot be as fast as asked, or the folder cannot be written.
pub fn write_hls(path: &Path, lowered: &Lowered, project: &Project) -> Result<Design, Error> {
    let (part, program) = (project.part, &lowered.program);
    let code = |error: backend::Error| Error::Code {
        file: project.file.to_owned(),
        error,
    };
    let limit = project.latency_ns.map(|ns| ns * part.clock_mhz / 1e3);
    let chosen = fit(program, &lowered.kernels, part, limit).map_err(code)?;
    let mut weights = vec![0; program.weights_bytes as usize];
    for piece in &lowered.weights {
        let bytes = piece.read().map_err(|reason| Error::Weights {
            file: project.file.to_owned(),
            reason,
        })?;
        let begin = piece.offset as usize;
        weights[begin..begin + bytes.len()].copy_from_slice(&bytes);
    }
    let source = Source {
        program,
        kernels: &lowered.kernels,
        weights: &weights,
        part,
    };
    let design = Design::new(&source, &|k| chosen.folding(k)).map_err(code)?;
    let bram36 = design.bram18.div_ceil(2);
    if !chosen.fits || bram36 > part.bram36 {
        let (dsp, lut) = design.resources();
        return Err(Error::Usage {
            message: format!(
                "{}: does not fit `{}`: {dsp:.0} of {} DSP, {lut:.0} of {} LUT, {bram36} of {} BRAM36, where {:.0} % of \
                 the first two can be used",
                project.file,
                part.name,
                part.dsp,
                part.lut,
                part.bram36,
                100.0 * USABLE
            ),
            help: "take a larger `--part`, or a smaller model".to_owned(),
        });
    }
    if !chosen.met {
        return Err(Error::Usage {
            message: format!(
                "{}: a run takes {:.3} ms at best on `{}`, which is more than `--latency` allows",
                project.file,
                chosen.cycles / (part.clock_mhz * 1e3),
                part.name
            ),
            help: "take a larger `--part`, or allow more time".to_owned(),
        });
    }
    let files = project::files(&design, part, &weights, project.vectors);
    write_folder(path, &files, &|_| ())?;
    Ok(design)
}
