//! Data that compression looks at: the user's files as samples of a model's inputs, and programs compiled for them.
//!
//! Tokens (`.npy`, little-endian numbers) and texts become windows, as for `eval`. Any other model takes arrays: a folder with a
//! file for each input, or an `.npz`, whose first axis is cut into samples; or a folder of such folders, each a sample; or a folder
//! of pictures.

mod images;

pub use images::Normalization;

use crate::driver::{self, CompileOptions};
use crate::error::Error;
use crate::eval::inputs::{TokenInputs, tokens_input};
use crate::eval::{tokens, windows};
use crate::specialize::Given;
use crate::values::input_ports;
use lapidary_ir::text::checksum;
use lapidary_ir::{Module, ValueId};
use lapidary_passes::compress::{Failure, Program, Samples};
use lapidary_runtime::io::folder::{read_archive, read_inputs};
use lapidary_runtime::{Model, ModelOptions, Tensor, Value, bytes::Bytes};
use std::path::{Path, PathBuf};

/// Samples that are used where nothing else is said.
pub const SAMPLES: usize = 256;

/// Rows of arrays that make a sample where the model takes any number.
const BATCH: usize = 32;

/// Where data is, and how much of it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Tokens, a text, an `.npz` or a folder.
    pub data: PathBuf,
    /// The model, for its tokenizer.
    pub model: PathBuf,
    /// Most samples, spread evenly over the data.
    pub samples: usize,
    /// Tokens of a window.
    pub seq: Option<usize>,
    /// What becomes of the numbers of pictures.
    pub normalization: Normalization,
}

/// The samples of a model.
pub struct Data {
    samples: Vec<Vec<Value>>,
    options: CompileOptions,
    file: String,
}

impl Calibration {
    /// Reads the samples of a module that is compiled with these options.
    ///
    /// # Errors
    /// A file cannot be read, or is not what the model takes.
    pub fn read(
        &self,
        module: &Module,
        file: &str,
        options: &CompileOptions,
    ) -> Result<Data, Error> {
        let samples = match (self.data.is_dir(), extension(&self.data)) {
            (false, "npz") | (true, _) => self.arrays(module)?,
            _ => self.windows(module, file)?,
        };
        let Some(first) = samples.first() else {
            return Err(self.wrong("has no samples".to_owned()));
        };
        let types = |s: &[Value]| s.iter().map(Value::describe).collect::<Vec<_>>();
        if let Some(other) = samples.iter().find(|s| types(s) != types(first)) {
            let (a, b) = (types(first).join(", "), types(other).join(", "));
            return Err(self.wrong(format!("samples have different shapes: {a}; and {b}")));
        }
        // What is observed runs here, whatever the model is for.
        let mut here = options.clone();
        if !here.backend.native || !here.target.runs_here() {
            let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
            let host = CompileOptions::host(threads);
            here.generate_for(host.target, host.backend);
        }
        Ok(Data {
            samples,
            options: CompileOptions {
                calibration: None,
                compression: None,
                adjustable: false,
                progress: driver::Progress::default(),
                ..here
            },
            file: file.to_owned(),
        })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Usage {
            message: format!("{}: {reason}", self.data.display()),
            help: "data is tokens (`.npy`, `.bin`), a text, an `.npz` or a folder with an array for each input whose first axis \
                   is cut into samples, a folder of such folders, or a folder of pictures (`.png`, `.jpg`)"
                .to_owned(),
        }
    }

    fn windows(&self, module: &Module, file: &str) -> Result<Vec<Vec<Value>>, Error> {
        if tokens_input(module).is_none() {
            return Err(self.wrong("is a file, but the model takes no tokens".to_owned()));
        }
        let found = match extension(&self.data) {
            "npy" | "bin" => tokens::read(&self.data)?,
            _ => tokens::encode(&self.data, false, &self.model, None)?,
        };
        let mut inputs = TokenInputs::of(module, file, self.seq)?;
        let vocabulary = vocabulary(module);
        let cut = spread(windows(&found, inputs.seq).collect(), self.samples);
        let sample = |window: &[u32]| {
            let seen = &window[..window.len() - 1];
            if let Some(t) = seen
                .iter()
                .find(|&&t| vocabulary.is_some_and(|n| t as usize >= n))
            {
                return Err(self.wrong(format!("has token {t}, which the model does not know")));
            }
            inputs.show(seen).map_err(|error| Error::Run {
                file: file.to_owned(),
                error,
            })?;
            Ok(inputs.values.clone())
        };
        cut.into_iter().map(sample).collect()
    }

    fn arrays(&self, module: &Module) -> Result<Vec<Vec<Value>>, Error> {
        let ports = input_ports(module);
        let failed = |error| Error::Run {
            file: self.data.display().to_string(),
            error,
        };
        if self.data.is_dir() {
            let mut pictures = files_of(&self.data)?;
            pictures.retain(|f| images::is_picture(f));
            if !pictures.is_empty() {
                return images::samples(self, module, pictures);
            }
        }
        let mut folders = folders(&self.data)?;
        if !folders.is_empty() {
            folders.sort();
            let read = |f: &PathBuf| Ok(read_inputs(f, &ports).map_err(failed)?.0);
            return spread(folders, self.samples).iter().map(read).collect();
        }
        let values = match self.data.is_dir() {
            true => read_inputs(&self.data, &ports).map_err(failed)?.0,
            false => read_archive(&self.data, &ports).map_err(failed)?,
        };
        let dims = |v: &Value| v.as_tensor().map(|t| t.dims().to_vec());
        let rows = values
            .iter()
            .filter_map(dims)
            .filter_map(|d| d.first().copied());
        let rows = rows.max().unwrap_or(1);
        let own = |v: ValueId| module.value(v).ty.shape()?.first()?.as_const();
        let batch = module.top().inputs.iter().find_map(|&v| own(v));
        let batch = batch.map_or(BATCH, |n| n as usize).clamp(1, rows.max(1));
        let count = rows / batch;
        let cut = |k: usize| {
            let part = |v: &Value| match v.as_tensor() {
                Some(t) if t.dims().first() == Some(&rows) => {
                    slice(t, k * batch, batch).map(Value::from)
                }
                _ => Ok(v.clone()),
            };
            values
                .iter()
                .map(part)
                .collect::<Result<Vec<_>, _>>()
                .map_err(failed)
        };
        spread((0..count).collect(), self.samples)
            .into_iter()
            .map(cut)
            .collect()
    }
}

/// The files of data: itself, or those in a folder and in its folders.
pub fn files_of(data: &Path) -> Result<Vec<PathBuf>, Error> {
    if !data.is_dir() {
        return Ok(vec![data.to_owned()]);
    }
    let mut found = entries(data)?;
    for folder in found.clone().iter().filter(|f| f.is_dir()) {
        found.extend(entries(folder)?);
    }
    found.retain(|f| f.is_file());
    found.sort();
    Ok(found)
}

/// Rows of a table that the tokens look up.
fn vocabulary(module: &Module) -> Option<usize> {
    let ids = module.top().inputs[tokens_input(module)?];
    let looked_up = module.top().nodes.iter().find_map(|&n| {
        let node = module.node(n);
        let is_lookup = node.op.name == "gather" && node.operand(1) == Some(ids);
        is_lookup.then(|| node.operand(0)).flatten()
    })?;
    Some(module.value(looked_up).ty.shape()?.first()?.as_const()? as usize)
}

fn extension(path: &Path) -> &str {
    path.extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |error| Error::File {
        path: folder.to_owned(),
        error,
    };
    let all = std::fs::read_dir(folder).map_err(failed)?;
    all.map(|e| Ok(e.map_err(failed)?.path())).collect()
}

fn folders(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![]);
    }
    let mut found = entries(path)?;
    found.retain(|f| f.is_dir());
    Ok(found)
}

/// At most `most` of them, evenly spread.
fn spread<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let (n, most) = (all.len(), most.max(1));
    if n <= most {
        return all;
    }
    let mut wanted = (0..most).map(|k| k * n / most).peekable();
    let take = |(i, v)| wanted.next_if_eq(&i).map(|_| v);
    all.into_iter().enumerate().filter_map(take).collect()
}

/// Rows of a tensor.
fn slice(t: &Tensor, begin: usize, rows: usize) -> Result<Tensor, lapidary_runtime::RunError> {
    let mut dims = t.dims().to_vec();
    let all = dims[0].max(1);
    dims[0] = rows;
    let row = t.bytes().len() / all;
    let bytes = Bytes::copy_of(&t.bytes()[begin * row..(begin + rows) * row])?;
    Tensor::from_bytes(t.elem(), dims, bytes)
}

/// Bytes of an input, if it is a tensor.
fn bytes_of(sample: &[Value], input: usize) -> Option<&[u8]> {
    Some(sample.get(input)?.as_tensor()?.bytes())
}

struct Ready<'d> {
    model: Model,
    samples: &'d [Vec<Value>],
    extras: Vec<Value>,
}

impl Samples for Data {
    fn count(&self) -> usize {
        self.samples.len()
    }

    fn key(&self) -> u64 {
        let values = self.samples.iter().flatten();
        let sums = values.flat_map(|v| {
            let bytes = v.as_tensor().map(Tensor::bytes).unwrap_or_default();
            [checksum(v.describe().as_bytes()), checksum(bytes)]
        });
        checksum(&sums.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
    }

    fn prepare(&self, module: Module) -> Result<Box<dyn Program + '_>, Failure> {
        let own = self.samples[0].len();
        let mut inputs = self.samples[0].clone();
        let mut extras = vec![];
        for &v in module.top().inputs.iter().skip(own) {
            let info = module.value(v);
            let shape = info.ty.shape().unwrap_or_default();
            let dims = shape
                .iter()
                .map(|d| Some(d.as_const()? as usize))
                .collect::<Option<Vec<_>>>();
            let dims: Vec<usize> = dims.ok_or("an extra input has no known shape")?;
            let elem = info.ty.elem().ok_or("an extra input is no tensor")?;
            extras.push(Value::from(Tensor::zeros(elem, dims)?));
        }
        inputs.extend(extras.iter().cloned());
        let mut given = Given::from_runtime(&inputs);
        // What a sample has is not known of the others, unless it is the same in all.
        for (i, small) in given.small.iter_mut().enumerate() {
            if small.is_none() {
                continue;
            }
            let first = bytes_of(&self.samples[0], i);
            if first.is_none() || self.samples.iter().any(|s| bytes_of(s, i) != first) {
                *small = None;
            }
        }
        let compiled = driver::compile(module, &self.file, &self.options, Some(&given))?;
        let model = compiled.load(ModelOptions {
            threads: self.options.target.threads as usize,
            ..ModelOptions::default()
        })?;
        Ok(Box::new(Ready {
            model,
            samples: &self.samples,
            extras,
        }))
    }
}

impl Program for Ready<'_> {
    fn set(&mut self, index: usize, values: &[f32]) -> Result<(), Failure> {
        let extra = self
            .extras
            .get_mut(index)
            .ok_or("there is no such extra input")?;
        let dims = extra
            .as_tensor()
            .map(|t| t.dims().to_vec())
            .unwrap_or_default();
        *extra = Tensor::from_f32(dims, values)?.into();
        Ok(())
    }

    fn run(
        &mut self,
        sample: usize,
        see: &mut dyn FnMut(usize, &[f32]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let inputs: Vec<Value> = self.samples[sample]
            .iter()
            .chain(&self.extras)
            .cloned()
            .collect();
        for (i, value) in self.model.run(&inputs)?.into_iter().enumerate() {
            let bytes = value.as_tensor().map(Tensor::bytes).unwrap_or_default();
            let numbers = bytes.as_chunks::<4>().0.iter();
            let numbers: Vec<f32> = numbers.map(|&b| f32::from_le_bytes(b)).collect();
            see(i, &numbers)?;
        }
        Ok(())
    }
}
