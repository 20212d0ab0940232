//! From a model's file to something that runs: import, rewrite, lower, generate code.
//!
//! Every command and the build-script interface go through here, so that they mean the same.

use crate::backend::{BACKENDS, Backend};
use crate::calibrate::Calibration;
use crate::error::Error;
use crate::specialize::{Given, specialize};
use crate::work::WorkFolder;
use lapidary_abi::program::Program;
use lapidary_frontend::Form;
use lapidary_frontend::onnx::ImportOptions;
use lapidary_ir::Module;
use lapidary_ir::encodings::open_constants;
use lapidary_ir::kernel::Kernel;
use lapidary_ir::target::Target;
use lapidary_passes::adjust::adjust;
use lapidary_passes::compress::{
    self, Activations, CompressError, Cost, Failure, Goal, Level, Means, Recipe, Samples, Store,
    Weight,
};
use lapidary_passes::egraph;
use lapidary_passes::encode::encode;
use lapidary_passes::fold::{Limits, fold_constants};
use lapidary_passes::lower::{self, Lowered, Report, WeightPiece, lower};
use lapidary_passes::predict::{Prediction, Setting, predict};
use lapidary_passes::rules::FAMILIES;
use lapidary_passes::tables::tabulate;
use lapidary_passes::tails::attach;
use lapidary_runtime::bytes::Bytes;
use lapidary_runtime::device::Device;
use lapidary_runtime::image::Image;
use lapidary_runtime::memory::Weights;
use lapidary_runtime::{Model, ModelOptions};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What becomes of the weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Compression {
    /// What is best towards a goal.
    Goal(Goal),
    /// What a recipe says.
    Recipe(Recipe),
    /// Stacks of grids, of which the first are weights, too.
    Stacks,
}

impl Compression {
    /// What the recipe in a file says.
    ///
    /// # Errors
    /// The file cannot be read, or is no recipe.
    pub fn of_file(path: &Path) -> Result<Compression, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::File {
            path: path.to_owned(),
            error,
        })?;
        let recipe = toml::from_str(&text).map_err(|e| Error::Usage {
            message: format!("{}: {}", path.display(), e.message()),
            help: "a recipe is a list of `[[weight]]` with `name`, `method`, `bits` and `group`, and may have `[activations]`; \
                   `build --size` writes one"
                .to_owned(),
        })?;
        Ok(Compression::Recipe(recipe))
    }

    /// Does it to a module's weights.
    ///
    /// # Errors
    /// The budget cannot be met, or the recipe does not fit.
    pub fn apply(
        &self,
        module: &mut Module,
        means: &Means,
    ) -> Result<compress::Report, CompressError> {
        match self {
            Compression::Goal(goal) => compress::compress(module, goal, means),
            Compression::Recipe(recipe) => compress::follow(module, recipe, means),
            Compression::Stacks => {
                let recipe = compress::stacked(module);
                compress::follow(module, &recipe, means)
            }
        }
    }
}

impl From<Activations> for Compression {
    /// Weights stay as they are, but for those that are multiplied with codes.
    fn from(activations: Activations) -> Compression {
        Compression::Recipe(Recipe {
            activations: Some(activations),
            ..Recipe::default()
        })
    }
}

/// How to compile.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Numbers for symbolic dimensions.
    pub dims: BTreeMap<String, i64>,
    /// What code is for; [`CompileOptions::generate_for`] fits it to the code generator.
    pub target: Target,
    /// What generates code.
    pub backend: &'static Backend,
    /// Compress the weights first.
    pub compression: Option<Compression>,
    /// Data that compression looks at.
    pub calibration: Option<Calibration>,
    /// Folder where compression keeps its work between runs.
    pub work: Option<PathBuf>,
    /// Rewrite the graph; without it, it is compiled as imported.
    pub optimize: bool,
    /// Leave out weights that are zero where that is predicted to be faster.
    pub sparse: bool,
    /// Compute what depends on weights alone when the model is loaded, not in every run.
    pub prepare: bool,
    /// Round what is multiplied with weights of a few bits to 8-bit codes in blocks: faster, a little less exact.
    pub round: bool,
    /// Round to `f16` what a GPU's tensor cores multiply, where that is predicted to be faster: a little less exact, and numbers
    /// beyond 65504 become infinite.
    pub halves: bool,
    /// Round numbers and constant weights to `bf16` where the target multiplies those faster, with sums of `f32`: less exact.
    pub bf16: bool,
    /// How long to search for better choices of encodings; [`compress::Means::search_time`].
    pub search_time: Option<Duration>,
    /// Compress weights only to what products read as it is, so that memory holds what is multiplied as small as the file does.
    pub packed: bool,
    /// Keep weights in parts of which programs use as many as there is memory for; compression makes only such that have some.
    pub adjustable: bool,
    /// Bits of keys and of values that attention reads, where they are not the newest; else they are numbers.
    pub kv: Option<[i64; 2]>,
    /// Compile a language model that predicts token by token and keeps what came before: see [`lapidary_frontend::Form`].
    pub stepwise: bool,
    /// Such a model counts the attention that tokens get, so that its caches may lose some.
    pub evictable: bool,
    /// Told what begins, for people who wait.
    pub progress: Progress,
}

/// Who is told what the compiler is doing; nobody by default.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(&str) + Send + Sync>>);

impl Progress {
    /// Tells `f` the name of each stage as it begins.
    pub fn to(f: impl Fn(&str) + Send + Sync + 'static) -> Progress {
        Progress(Some(Arc::new(f)))
    }

    /// A stage begins.
    pub fn stage(&self, name: &str) {
        if let Some(f) = &self.0 {
            f(name);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "told" } else { "silent" })
    }
}

impl CompileOptions {
    /// For this machine and this many threads.
    pub fn host(threads: usize) -> CompileOptions {
        CompileOptions {
            dims: BTreeMap::new(),
            backend: &BACKENDS[0],
            target: (BACKENDS[0].fit)(Target {
                threads: threads as u32,
                ..Target::host()
            }),
            compression: None,
            calibration: None,
            work: None,
            optimize: true,
            sparse: true,
            prepare: true,
            round: false,
            halves: false,
            bf16: false,
            packed: false,
            adjustable: false,
            search_time: None,
            kv: None,
            stepwise: false,
            evictable: false,
            progress: Progress::default(),
        }
    }

    /// What the user may choose of lowering.
    pub fn lowering(&self) -> lower::Options {
        lower::Options {
            sparse: self.sparse,
            prepare: self.prepare,
            round: self.round,
            halves: self.halves,
            bf16: self.bf16,
            kv: self.kv,
            caches: self.stepwise,
            evictable: self.stepwise && self.evictable,
            ..lower::Options::default()
        }
    }

    /// Chooses machine and code generator.
    pub fn generate_for(&mut self, target: Target, backend: &'static Backend) {
        self.backend = backend;
        self.target = (backend.fit)(target);
    }
}

/// What each stage took.
#[derive(Clone, Debug, Default)]
pub struct Times(pub Vec<(&'static str, Duration)>);

/// Announces and times the stages of one compilation.
struct Stages<'p> {
    progress: &'p Progress,
    times: Times,
}

impl Stages<'_> {
    fn stage<T>(&mut self, name: &'static str, f: impl FnOnce() -> T) -> T {
        self.progress.stage(name);
        let start = Instant::now();
        let out = f();
        self.times.0.push((name, start.elapsed()));
        out
    }
}

/// A compiled model: host program, machine code, and where its weights come from.
#[derive(Debug)]
pub struct Compiled {
    /// The model's file, for messages.
    pub file: String,
    /// The host program; kernels lie at their offsets in `code`.
    pub program: Program,
    /// Position-independent machine code.
    pub code: Vec<u8>,
    /// What the code was made from, in the order of [`Program::kernels`].
    pub kernels: Vec<Kernel>,
    /// The weights blob, piece by piece.
    pub weights: Vec<WeightPiece>,
    /// What lowering did.
    pub report: Report,
    /// What became of the weights, if they were to be compressed.
    pub compression: Option<compress::Report>,
    /// What each stage took.
    pub times: Times,
}

/// Imports a model: an ONNX file, the folder of a checkpoint, or the text form.
pub fn import(path: &Path, options: &CompileOptions) -> Result<Module, Error> {
    options.progress.stage("import");
    if options.stepwise {
        let form = match options.evictable {
            true => Form::Evictable,
            false => Form::Stepwise,
        };
        return lapidary_frontend::import_language(path, &options.dims, form)
            .map_err(Error::Import);
    }
    let options = ImportOptions {
        dims: options.dims.clone(),
        ..ImportOptions::default()
    };
    lapidary_frontend::import(path, &options).map_err(Error::Import)
}

/// Compresses a module's weights, if that is asked for.
///
/// # Errors
/// The budget cannot be met, or the recipe does not fit.
pub fn compress(
    module: &mut Module,
    file: &str,
    options: &CompileOptions,
) -> Result<Option<compress::Report>, Error> {
    let Some(compression) = &options.compression else {
        return Ok(None);
    };
    let levels: Option<&dyn Fn(&Weight) -> Vec<Level>> = match (options.adjustable, options.packed)
    {
        (true, _) => Some(&compress::stacks),
        (false, true) => Some(&compress::packed),
        (false, false) => None,
    };
    with_means(module, file, options, levels, |module, means| {
        compression.apply(module, means)
    })
    .map(Some)
}

/// Does something with what the options give compression to work with; `levels` is [`Means::levels`].
///
/// # Errors
/// The data or the work folder cannot be used, or it fails.
pub fn with_means<T>(
    module: &mut Module,
    file: &str,
    options: &CompileOptions,
    levels: Option<&dyn Fn(&Weight) -> Vec<Level>>,
    work: impl FnOnce(&mut Module, &Means) -> Result<T, CompressError>,
) -> Result<T, Error> {
    let data = match &options.calibration {
        Some(calibration) => Some(calibration.read(module, file, options)?),
        None => None,
    };
    let folder = match &options.work {
        Some(folder) => Some(WorkFolder::at(folder)?),
        // Where none can be had memory must do.
        None => WorkFolder::temporary().ok(),
    };
    let store = folder.as_ref().map(|f| f as &dyn Store);
    let clock = |part: &Module, beside: f64| cost(part, options, beside);
    let limited =
        matches!(&options.compression, Some(Compression::Goal(g)) if g.latency_ns.is_some());
    let means = Means {
        clock: if limited { Some(&clock) } else { None },
        data: data.as_ref().map(|d| d as &dyn Samples),
        store: store.filter(|_| options.work.is_some()),
        scratch: store,
        levels,
        search_time: options.search_time,
        progress: &|begins| options.progress.stage(begins),
        ..Means::default()
    };
    let done = work(module, &means).map_err(|error| Error::Compress {
        file: file.to_owned(),
        error,
    });
    // What was chosen is read from there.
    if let Some(folder) = folder {
        module.sources.extend(folder.sources());
    }
    done
}

/// What a run of a module is predicted to cost once it is compiled; `beside` is [`Setting::beside`].
fn cost(module: &Module, options: &CompileOptions, beside: f64) -> Result<Cost, Failure> {
    let mut module = module.clone();
    if options.optimize {
        optimize(&mut module, options);
    }
    let lowered: Lowered = lower(&module, &options.target, &options.lowering())?;
    let setting = Setting {
        target: &options.target,
        dims: &options.dims,
        beside,
    };
    Ok(Cost {
        ns: predict(&lowered.program, &lowered.kernels, &setting).ns(),
        bytes: lowered.program.weights_bytes,
    })
}

/// Rewrites a module.
pub fn optimize(module: &mut Module, options: &CompileOptions) -> egraph::Report {
    let codes_stay = Limits {
        decode: false,
        ..Limits::default()
    };
    encode(module);
    fold_constants(module, codes_stay);
    // A term that is not valid is reported where it is lowered.
    let _ = open_constants(module, &|_, e| e.ctor.algebraic);
    let rules: Vec<_> = FAMILIES
        .iter()
        .flat_map(|(_, rules)| rules.iter())
        .collect();
    let report = egraph::saturate(module, &options.target, &egraph::Options::default(), &rules);
    fold_constants(module, Limits::default());
    tabulate(module);
    attach(module);
    report
}

/// Compiles an imported module; `given` fits it to inputs at hand.
pub fn compile(
    mut module: Module,
    file: &str,
    options: &CompileOptions,
    given: Option<&Given>,
) -> Result<Compiled, Error> {
    let mut stages = Stages {
        progress: &options.progress,
        times: Times::default(),
    };
    let compression = stages.stage("compress", || compress(&mut module, file, options))?;
    if let Some(given) = given {
        let problems = stages.stage("specialize", || specialize(&mut module, given));
        if !problems.is_empty() {
            return Err(Error::Types {
                file: file.to_owned(),
                problems,
            });
        }
    }
    if options.adjustable {
        stages.stage("split weights", || split(&mut module, file))?;
    }
    let lowered = lower_module(module, file, options, &mut stages)?;
    let code = stages
        .stage("code", || {
            (options.backend.compile)(&lowered.kernels, &options.target)
        })
        .map_err(|error| Error::Code {
            file: file.to_owned(),
            error,
        })?;
    let mut program = lowered.program;
    for kernel in &mut program.kernels {
        kernel.code_offset = code.entries[kernel.code_offset as usize];
    }
    Ok(Compiled {
        file: file.to_owned(),
        program,
        code: code.bytes,
        kernels: lowered.kernels,
        weights: lowered.weights,
        report: lowered.report,
        compression,
        times: stages.times,
    })
}

/// Splits weights into parts.
fn split(module: &mut Module, file: &str) -> Result<(), Error> {
    let parts = adjust(module).map_err(|e| Error::Weights {
        file: file.to_owned(),
        reason: e.0,
    })?;
    if parts > 0 {
        return Ok(());
    }
    Err(Error::Usage {
        message: format!("{file}: no weight that only products read has parts, so a program cannot use less of them"),
        help: "`--adjustable` alone makes stacks of them; of the methods of recipes `stack`, `nested` and `bitstack` give weights with parts"
            .to_owned(),
    })
}

/// Lowers an imported module, whose weights are as they are to be, for a code generator that makes no machine code.
pub fn lower_only(module: Module, file: &str, options: &CompileOptions) -> Result<Lowered, Error> {
    let mut stages = Stages {
        progress: &options.progress,
        times: Times::default(),
    };
    lower_module(module, file, options, &mut stages)
}

fn lower_module(
    mut module: Module,
    file: &str,
    options: &CompileOptions,
    stages: &mut Stages,
) -> Result<Lowered, Error> {
    if options.optimize {
        stages.stage("optimize", || optimize(&mut module, options));
    }
    stages
        .stage("lower", || {
            lower(&module, &options.target, &options.lowering())
        })
        .map_err(|errors| Error::Lower {
            file: file.to_owned(),
            errors,
        })
}

impl Compiled {
    /// The time of a run, predicted for the machine that the code is for. Symbols that the options do not give are 1.
    pub fn predict(&self, options: &CompileOptions) -> Prediction {
        let setting = Setting {
            target: &options.target,
            dims: &options.dims,
            beside: 0.0,
        };
        predict(&self.program, &self.kernels, &setting)
    }

    /// Makes the model ready to run in this process.
    pub fn load(self, options: ModelOptions) -> Result<Model, Error> {
        self.load_on(None, options)
    }

    /// The same for code that a device runs.
    pub fn load_on(
        self,
        device: Option<Arc<dyn Device>>,
        options: ModelOptions,
    ) -> Result<Model, Error> {
        let run = |error| Error::Run {
            file: self.file.clone(),
            error,
        };
        let mut blob = Bytes::zeroed(self.program.weights_bytes as usize).map_err(run)?;
        for piece in &self.weights {
            let bytes = piece.read().map_err(|reason| Error::Weights {
                file: self.file.clone(),
                reason,
            })?;
            let begin = piece.offset as usize;
            blob.as_mut_slice()[begin..begin + bytes.len()].copy_from_slice(&bytes);
        }
        let weights = Weights::Owned(Arc::new(blob));
        Image::from_parts(self.program, &self.code, weights)
            .and_then(|image| Model::on(device, image, options))
            .map_err(run)
    }
}
