//! What each command does.

pub mod bench;
pub mod build;
pub mod compress;
pub mod eval;
mod flight;
mod hls;
pub mod inspect;
mod kernels;
pub mod run;
pub mod serve;
pub mod tune;

use crate::cli;
use clap::CommandFactory;
use indicatif::{ProgressBar, ProgressStyle};
use lapidary::calibrate::{Calibration, Normalization};
use lapidary::driver::{Compression, Progress};
use lapidary::profile::{self, Profile};
use lapidary::{CompileOptions, Error, backend};
use lapidary_ir::target::Target;
use lapidary_passes::compress::Goal;
use std::io::Write;
use std::time::Duration;

impl cli::Model {
    /// Threads to plan for and to run with.
    fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(all_threads).max(1)
    }

    /// For a triple, or for this machine.
    fn options(&self, triple: Option<&str>) -> Result<CompileOptions, Error> {
        let threads = self.thread_count();
        let mut options = CompileOptions::host(threads);
        let target = Target::named(triple, self.cpu.as_deref())
            .map_err(|[message, help]| Error::Usage { message, help })?;
        let target = self.measured(target, triple.is_none() && self.cpu.is_none())?;
        let threads = threads as u32;
        let backend = backend::for_target(self.backend.as_deref(), &target)?;
        // Threads of the host say nothing of a device.
        let threads = if backend.native {
            threads
        } else {
            target.threads
        };
        options.generate_for(Target { threads, ..target }, backend);
        options.dims = self.dims.iter().cloned().collect();
        let goal = Goal {
            budget: self.size.or(self.bits),
            latency_ns: self.latency,
            max_divergence: self.max_kl,
            min_agreement: self.min_top1,
            max_error: self.max_error,
        };
        options.compression = match (&self.recipe, &self.quantize) {
            (Some(path), _) => Some(Compression::of_file(path)?),
            (None, Some(activations)) => Some(activations.clone().into()),
            (None, None) if goal != Goal::default() => Some(Compression::Goal(goal)),
            (None, None) => self.adjustable.then_some(Compression::Stacks),
        };
        options.calibration = self.calibrate.as_ref().map(|data| Calibration {
            data: data.clone(),
            model: self.model.clone(),
            samples: self.samples,
            seq: None,
            normalization: Normalization {
                mean: self.image_mean.unwrap_or(Normalization::default().mean),
                deviation: self.image_std.unwrap_or(Normalization::default().deviation),
            },
        });
        options.work = self.work.clone();
        options.optimize = !self.no_optimize;
        options.sparse = !self.no_sparse;
        options.prepare = !self.no_prepare;
        options.round = self.round_activations;
        options.halves = self.half_activations;
        options.bf16 = self.bf16;
        options.packed = self.packed;
        options.adjustable = self.adjustable;
        options.search_time = self.search_time.map(|ns| Duration::from_nanos(ns as u64));
        options.kv = self.kv;
        options.progress = progress();
        Ok(options)
    }

    /// The target with the speeds of its profile, if there is one; `own`: it is this machine, as it is.
    fn measured(&self, target: Target, own: bool) -> Result<Target, Error> {
        if let Some(path) = &self.target_profile {
            let profile = Profile::read(path, &target)?;
            return Ok(profile.describe(target));
        }
        let found =
            profile::default_path().filter(|p| own && !self.no_target_profile && p.exists());
        Ok(match found.map(|path| Profile::read(&path, &target)) {
            Some(Ok(profile)) => profile.describe(target),
            // Nobody asked for it, so nothing fails because of it.
            Some(Err(error)) => {
                eprintln!(
                    "{:?}",
                    miette::Report::new(error).wrap_err("the profile is not used")
                );
                target
            }
            None => target,
        })
    }

    pub(crate) fn file(&self) -> String {
        self.model.display().to_string()
    }
}

/// One thread for each core.
fn all_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// A spinner with the stage and the time, on a terminal; nothing elsewhere. It is gone when the command ends.
fn progress() -> Progress {
    let bar = ProgressBar::new_spinner();
    if bar.is_hidden() {
        return Progress::default();
    }
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    Progress::to(move |stage| bar.set_message(stage.to_owned()))
}

/// Writes a completion script to standard output.
pub fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(
        shell,
        &mut cli::Cli::command(),
        "lapidary",
        &mut std::io::stdout(),
    );
}

/// Prints; a reader that has gone away is no error of ours.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// An error about a model that is being run.
fn run_error(file: &str) -> impl Fn(lapidary_runtime::RunError) -> Error + use<> {
    let file = file.to_owned();
    move |error| Error::Run {
        file: file.clone(),
        error,
    }
}
