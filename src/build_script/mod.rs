//! Models in Rust programs: what a build script calls, for `lapidary_runtime::include_model!` to include.
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), lapidary::BuildError> {
//!     lapidary::Build::new("model.onnx").dim("batch", 1).compile("digits")
//! }
//! ```
//!
//! leaves three files in `OUT_DIR`: the image `digits.image` (code, weights, host program), the module
//! `digits.rs` that holds it and gives its inputs and outputs their Rust types ([`module`]), and `digits.key`,
//! which tells the next build whether anything changed ([`key`]). In the program:
//!
//! ```ignore
//! lapidary_runtime::include_model!(digits);
//!
//! let model = digits::Model::new()?;
//! let outputs = model.run(&digits::Inputs { image: &pixels })?;
//! println!("{:?}", outputs.scores);
//! ```

mod key;
mod module;

use crate::artefact::{Parts, write_image, write_text};
use crate::backend::BACKENDS;
use crate::calibrate::{self, Calibration};
use crate::driver::{self, CompileOptions, Compression};
use crate::error::Error;
use lapidary_frontend::files_of;
use lapidary_ir::target::{Feature, Target};
use lapidary_passes::compress::{Activations, Budget};
use miette::Diagnostic;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A model to be compiled by a build script.
#[derive(Clone, Debug)]
#[must_use = "nothing is compiled until `compile` is called"]
pub struct Build {
    model: PathBuf,
    dims: BTreeMap<String, i64>,
    optimize: bool,
    bf16: bool,
    packed: bool,
    compression: Option<Asked>,
    data: Option<PathBuf>,
}

/// What becomes of the weights.
#[derive(Clone, Debug)]
enum Asked {
    Size(String),
    Quantize(String),
    Recipe(PathBuf),
}

impl Build {
    /// The model in this ONNX file; a relative path begins at the package's folder.
    pub fn new(model: impl Into<PathBuf>) -> Build {
        Build {
            model: model.into(),
            dims: BTreeMap::new(),
            optimize: true,
            bf16: false,
            packed: false,
            compression: None,
            data: None,
        }
    }

    /// Data that compression looks at, as the command's `--calibrate` takes it; a relative path begins at the package's folder.
    pub fn calibrate(mut self, data: impl Into<PathBuf>) -> Build {
        self.data = Some(data.into());
        self
    }

    /// Compresses the weights to a share of their size, `0.25x`, or to bytes, `12MB`.
    pub fn size(mut self, size: &str) -> Build {
        self.compression = Some(Asked::Size(size.to_owned()));
        self
    }

    /// Computes with 8-bit codes, as the command's `--quantize` does: `int8` or `bct`. Needs [`Build::calibrate`], and takes the
    /// place of [`Build::size`].
    pub fn quantize(mut self, how: &str) -> Build {
        self.compression = Some(Asked::Quantize(how.to_owned()));
        self
    }

    /// Compresses as the recipe in this file says; a relative path begins at the package's folder. Takes the place of
    /// [`Build::size`].
    pub fn recipe(mut self, file: impl Into<PathBuf>) -> Build {
        self.compression = Some(Asked::Recipe(file.into()));
        self
    }

    /// Fixes a symbolic dimension.
    pub fn dim(mut self, name: &str, size: u32) -> Build {
        self.dims.insert(name.to_owned(), size.into());
        self
    }

    /// Whether the graph is rewritten (it is unless said otherwise).
    pub fn optimize(mut self, yes: bool) -> Build {
        self.optimize = yes;
        self
    }

    /// Whether products are of `bf16` where the target has them, as the command's `--bf16` says (they are not unless said so).
    pub fn bf16(mut self, yes: bool) -> Build {
        self.bf16 = yes;
        self
    }

    /// Whether weights are compressed only to what products read as it is, as the command's `--packed` says (they are not unless
    /// said so).
    pub fn packed(mut self, yes: bool) -> Build {
        self.packed = yes;
        self
    }

    /// Compiles the model for cargo's `TARGET` into `OUT_DIR`, for `include_model!(name)`, and tells cargo
    /// which files it depends on. Code may use what the target's features allow (`-C target-cpu=…`); the
    /// micro-kernels choose for themselves when the program starts. Does nothing when the model, the
    /// options and the compiler are those of the last time.
    ///
    /// Fails if the model cannot be compiled, and outside of a build script.
    pub fn compile(&self, name: &str) -> Result<(), BuildError> {
        let cargo = Cargo::from_environment()?;
        self.compile_for(name, &cargo, &mut |line| println!("{line}"))
            .map(|_| ())
    }

    /// As [`Build::compile`]; `tell` gets the lines for cargo. Gives whether anything had to be done.
    fn compile_for(
        &self,
        name: &str,
        cargo: &Cargo,
        tell: &mut dyn FnMut(String),
    ) -> Result<bool, BuildError> {
        tell(depends_on(&self.model));
        if !module::is_name(name) {
            return Err(BuildError::from(Error::Usage {
                message: format!("`{name}` cannot be the name of a module"),
                help: "use lower-case letters, digits and `_`, as for every module of Rust"
                    .to_owned(),
            }));
        }
        let files = files_of(&self.model);
        let others = files.iter().filter(|file| **file != self.model);
        others.for_each(|file| tell(depends_on(file)));
        let mut data = vec![];
        if let Some(path) = &self.data {
            tell(depends_on(path));
            data = calibrate::files_of(path)?;
        }
        if let Some(Asked::Recipe(path)) = &self.compression {
            tell(depends_on(path));
        }
        let options = self.options(cargo)?;
        let place = |ending: &str| cargo.out_dir.join(format!("{name}.{ending}"));
        let (image, source, key_file) = (place("image"), place("rs"), place("key"));
        let said = format!(
            "{name} {:?} {:?} {} {} {} {:?}",
            options.dims,
            options.target,
            options.optimize,
            options.bf16,
            options.packed,
            options.compression
        );
        // A file that cannot be read leaves no key; what is wrong with it is for the importer to say.
        let key = key::of(&said, files.iter().chain(&data));
        let is_current = key.is_some() && fs::read_to_string(&key_file).ok() == key;
        if is_current && image.exists() && source.exists() {
            return Ok(false);
        }
        let _ = fs::remove_file(&key_file);
        let file = self.model.display().to_string();
        let model = driver::import(&self.model, &options)?;
        let compiled = driver::compile(model, &file, &options, None)?;
        let parts = Parts {
            file: &file,
            triple: &options.target.triple,
            program: &compiled.program,
            code: &compiled.code,
            weights: &compiled.weights,
        };
        write_image(&image, &parts)?;
        let text = module::source(&file, name, &compiled.program);
        write_text(&source, &text)?;
        if let Some(key) = key {
            write_text(&key_file, &key)?;
        }
        Ok(true)
    }

    fn options(&self, cargo: &Cargo) -> Result<CompileOptions, Error> {
        let target = Target::named(Some(&cargo.target), Some("generic"))
            .map_err(|[message, help]| Error::Usage { message, help })?;
        let has = |feature: &&str| cargo.features.iter().any(|f| f == feature);
        // What the code generator uses of x86-64-v3, all of which rustc must have been allowed.
        let wide = ["avx2", "fma", "bmi1", "bmi2", "lzcnt"].iter().all(has);
        let features = match target.arch() {
            "x86_64" if wide => vec![Feature::Avx2],
            _ => vec![],
        };
        let mut options = CompileOptions::host(1);
        let threads = options.target.threads;
        let target = Target {
            threads,
            ..target.with_features(features)
        };
        options.generate_for(target, &BACKENDS[0]);
        options.dims = self.dims.clone();
        options.optimize = self.optimize;
        options.bf16 = self.bf16;
        options.packed = self.packed;
        options.calibration = self.data.as_ref().map(|data| Calibration {
            data: data.clone(),
            model: self.model.clone(),
            samples: calibrate::SAMPLES,
            seq: None,
            normalization: calibrate::Normalization::default(),
        });
        options.compression = match &self.compression {
            None => None,
            Some(Asked::Size(size)) => {
                let budget = Budget::size(size).map_err(|message| Error::Usage {
                    message,
                    help: "as in `.size(\"0.25x\")`".to_owned(),
                })?;
                Some(Compression::Goal(budget.into()))
            }
            Some(Asked::Quantize(how)) => {
                let activations = Activations::preset(how).ok_or_else(|| Error::Usage {
                    message: format!("`{how}` is no way to compute with codes"),
                    help: "as in `.quantize(\"int8\")`; the other is `bct`".to_owned(),
                })?;
                Some(activations.into())
            }
            Some(Asked::Recipe(path)) => Some(Compression::of_file(path)?),
        };
        Ok(options)
    }
}

/// What cargo tells a build script.
struct Cargo {
    out_dir: PathBuf,
    target: String,
    features: Vec<String>,
}

impl Cargo {
    fn from_environment() -> Result<Cargo, BuildError> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| {
                BuildError::from(Error::Usage {
                    message: format!("the variable `{name}` is not set"),
                    help: "`lapidary::Build` works in a build script, which cargo runs; elsewhere use the \
                           `lapidary` command"
                        .to_owned(),
                })
            })
        };
        let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
        Ok(Cargo {
            out_dir: variable("OUT_DIR")?.into(),
            target: variable("TARGET")?,
            features: features.split(',').map(str::to_owned).collect(),
        })
    }
}

fn depends_on(file: &Path) -> String {
    format!("cargo::rerun-if-changed={}", file.display())
}

/// Why a build script could not compile a model. Cargo shows what `main` returns by `Debug`, so that is the
/// message for people too.
pub struct BuildError(Box<Error>);

impl BuildError {
    /// What is wrong.
    pub fn error(&self) -> &Error {
        &self.0
    }
}

impl From<Error> for BuildError {
    fn from(error: Error) -> BuildError {
        BuildError(Box::new(error))
    }
}

impl std::error::Error for BuildError {}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        match self.0.help() {
            Some(help) => write!(f, "\nhelp: {help}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
