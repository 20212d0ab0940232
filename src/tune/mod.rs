//! Measuring a machine for the cost model.
//!
//! For each kind of work there are small programs (`probes`) that are mostly that. Each is compiled as models are; of its launches,
//! the one with most of that work is timed, what its other work takes is taken off, and the rest is the kind's rate at that
//! shape. Launches, shared work and reading memory are timed by themselves.

mod probes;

use crate::driver::{self, CompileOptions, Compiled, Progress};
use crate::error::Error;
use lapidary_abi::program::{Arg, Step};
use lapidary_ir::ops::OpError;
use lapidary_ir::speeds::{Memory, Points, Speeds, WORKS, Work};
use lapidary_ir::target::Target;
use lapidary_passes::predict::{Amounts, Launch, count};
use lapidary_runtime::cli::zeros;
use lapidary_runtime::pool::Pool;
use lapidary_runtime::value::Operand;
use lapidary_runtime::{Model, ModelOptions, RunError, Value, ceiling};
use probes::{Probe, probes};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where errors say that they happened.
const HERE: &str = "the probes of `tune`";

/// Time that each probe is measured for.
const TIME: Duration = Duration::from_millis(120);

/// Sizes that reading is measured at, from what the first cache holds to what none does.
const SIZES: [u64; 10] = [
    16 << 10,
    128 << 10,
    512 << 10,
    1 << 20,
    2 << 20,
    4 << 20,
    8 << 20,
    16 << 20,
    48 << 20,
    192 << 20,
];

/// Measures this machine with up to so many threads.
///
/// # Errors
/// The machine has no memory for it, or a probe does not compile.
pub fn tune(threads: usize, progress: &Progress) -> Result<Speeds, Error> {
    let mut options = CompileOptions::host(1);
    options.optimize = false;
    let mut speeds = Speeds::of(&options.target);
    speeds.threads = threads as u32;
    progress.stage("memory");
    speeds.memory = memory(threads).map_err(run_error)?;
    progress.stage("launches");
    speeds.fork_ns = forks(threads);
    let all = probes().map_err(|OpError(reason)| Error::Evaluate {
        file: HERE.to_owned(),
        reason,
    })?;
    let mut measured: Vec<(Work, f64, f64)> = vec![];
    for probe in all {
        progress.stage(
            WORKS
                .iter()
                .find(|w| w.work == probe.work)
                .map_or("", |w| w.unit),
        );
        // What is known by now is taken off.
        options.target.measured = Some(Arc::new(speeds.clone()));
        let Some(found) = Prepared::new(&probe, &options)? else {
            // This machine has no kernel for it: the description's rate stays.
            continue;
        };
        let ns = found.measure().map_err(run_error)?;
        let rate = found.units / (ns - found.others_ns(&speeds)).max(ns * LEAST_OWN);
        let shape = f64::from(found.shape);
        measured.retain(|m| (m.0, m.1) != (probe.work, shape));
        measured.push((probe.work, shape, rate));
        let of_work = measured.iter().filter(|m| m.0 == probe.work);
        let mut points: Points = of_work.map(|m| (m.1, m.2)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        speeds.rates.insert(probe.work, points);
    }
    progress.stage("launches");
    options.target.measured = Some(Arc::new(speeds.clone()));
    speeds.launch_ns = launch(&options)?;
    Ok(speeds)
}

/// The least share of a launch's time that is its own kind of work, however much the rest was predicted to take.
const LEAST_OWN: f64 = 0.2;

fn run_error(error: RunError) -> Error {
    Error::Run {
        file: HERE.to_owned(),
        error,
    }
}

/// A probe that is ready to run.
struct Prepared {
    model: Model,
    inputs: Vec<Value>,
    /// Which of the launches is timed.
    launch: usize,
    work: Work,
    shape: u32,
    units: f64,
    amounts: Amounts,
}

impl Prepared {
    /// Compiles a probe; none if no launch of its program does its kind of work.
    fn new(probe: &Probe, options: &CompileOptions) -> Result<Option<Prepared>, Error> {
        let mut options = options.clone();
        options.bf16 = probe.work == Work::GemmBf16;
        let compiled = driver::compile(probe.module.clone(), HERE, &options, None)?;
        let launches = launches(&compiled, &options.target).into_iter().enumerate();
        let units = |a: &Amounts| a.units(probe.work);
        let most = launches.max_by(|a, b| units(&a.1).total_cmp(&units(&b.1)));
        let Some((launch, amounts)) = most.filter(|m| units(&m.1) > 0.0) else {
            return Ok(None);
        };
        let own = amounts.work.iter().filter(|w| w.0 == probe.work);
        let shape = own.max_by(|a, b| a.2.total_cmp(&b.2)).map_or(0, |w| w.1);
        let model = compiled.load(ModelOptions {
            threads: 1,
            ..ModelOptions::default()
        })?;
        Ok(Some(Prepared {
            inputs: zeros(&model).map_err(run_error)?,
            model,
            launch,
            work: probe.work,
            shape,
            units: units(&amounts),
            amounts,
        }))
    }

    /// Nanoseconds of the launch: the median of many.
    fn measure(&self) -> Result<f64, RunError> {
        let operands: Vec<Operand> = self.inputs.iter().map(Value::operand).collect();
        let mut times = vec![];
        let begin = Instant::now();
        while times.len() < 5 || begin.elapsed() < TIME {
            let mut n = 0;
            let mut told = |t: lapidary_runtime::KernelTiming| {
                if n == self.launch {
                    times.push(t.nanoseconds as f64);
                }
                n += 1;
            };
            self.model.run_with(&operands, &mut [], Some(&mut told))?;
        }
        Ok(median(times))
    }

    /// Predicted nanoseconds of what the launch does besides.
    fn others_ns(&self, speeds: &Speeds) -> f64 {
        let others = self.amounts.work.iter().filter(|w| w.0 != self.work);
        let time =
            |&(work, shape, units): &(Work, u32, f64)| units / speeds.rate(work, f64::from(shape));
        others.map(time).sum()
    }
}

/// The work of each launch of a run.
fn launches(compiled: &Compiled, target: &Target) -> Vec<Amounts> {
    let amounts = |step: &Step| {
        let Step::Launch {
            kernel,
            args,
            flops,
            ..
        } = step
        else {
            return None;
        };
        let sizes: Vec<Option<i64>> = args
            .iter()
            .map(|a| match a {
                Arg::Size(s) => s.as_const(),
                Arg::Buffer(_) => None,
            })
            .collect();
        let launch = Launch {
            kernel: compiled.kernels.get(*kernel as usize)?,
            sizes: &sizes,
            flops: flops.as_const().unwrap_or(0) as f64,
        };
        Some(count(&launch, target))
    };
    compiled
        .program
        .body
        .steps
        .iter()
        .filter_map(amounts)
        .collect()
}

/// What reading takes at each size, by one thread and by all.
fn memory(threads: usize) -> Result<Vec<Memory>, RunError> {
    let pools = [1, threads].map(|n| Pool::new(n, true));
    let level = |bytes: u64| {
        let [one, all] = [&pools[0], &pools[1]].map(|pool| ceiling::reading(pool, bytes as usize));
        Ok(Memory {
            bytes,
            one: one?,
            all: all?,
        })
    };
    SIZES.into_iter().map(level).collect()
}

/// What sharing a launch among threads takes: by halves down from all of them.
fn forks(threads: usize) -> Points {
    const RUNS: usize = 2000;
    let mut points = vec![(1.0, 0.0)];
    let counts = (0..).map(|i| threads >> i).take_while(|&n| n > 1);
    let mut counts: Vec<usize> = counts.collect();
    counts.reverse();
    for n in counts {
        let pool = Pool::new(n, true);
        let one = |_| {
            let start = Instant::now();
            pool.run(n as u64, 1, &|_, begin, end| {
                std::hint::black_box(end - begin);
            });
            start.elapsed().as_nanos() as f64
        };
        points.push((n as f64, median((0..RUNS).map(one).collect())));
    }
    points
}

/// Nanoseconds that a launch adds to a run: what a chain of them takes, less what is in them.
fn launch(options: &CompileOptions) -> Result<f64, Error> {
    const MANY: usize = 128;
    let run = |n| {
        let probe = probes::chain(n).map_err(|OpError(reason)| Error::Evaluate {
            file: HERE.to_owned(),
            reason,
        })?;
        let compiled = driver::compile(probe, HERE, options, None)?;
        let inside = compiled.predict(options).ns();
        let launches = launches(&compiled, &options.target).len();
        let model = compiled.load(ModelOptions {
            threads: 1,
            ..ModelOptions::default()
        })?;
        let inputs = zeros(&model).map_err(run_error)?;
        let mut times = vec![];
        let begin = Instant::now();
        while begin.elapsed() < TIME {
            let start = Instant::now();
            model.run(&inputs).map_err(run_error)?;
            times.push(start.elapsed().as_nanos() as f64);
        }
        let speeds = options.target.speeds();
        Ok((median(times), inside - launches as f64 * speeds.launch_ns))
    };
    let (few, many) = (run(1)?, run(1 + MANY)?);
    let each = ((many.0 - few.0) - (many.1 - few.1)) / MANY as f64;
    Ok(each.max(0.0))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::target::Feature;
    use std::collections::BTreeMap;

    /// Probes do what they are for: none measures something else, and none is left out. (How fast is not a matter of tests.)
    #[test]
    fn every_kind_of_work_has_probes_that_do_it() {
        let mut options = CompileOptions::host(1);
        options.optimize = false;
        let bf16 = options.target.features.contains(&Feature::Avx512Bf16);
        let mut shapes: BTreeMap<Work, Vec<u32>> = BTreeMap::new();
        for probe in probes().expect("they are built") {
            let found = Prepared::new(&probe, &options).expect("compiles");
            let found = match found {
                Some(found) => found,
                None if probe.work == Work::GemmBf16 && !bf16 => continue,
                None => panic!("no {:?}", probe.work),
            };
            let speeds = options.target.speeds();
            let own = found.units / speeds.rate(found.work, f64::from(found.shape));
            let share = own / (own + found.others_ns(&speeds));
            assert!(
                share > LEAST_OWN,
                "{:?} is {share:.2} of its probe",
                probe.work
            );
            found.model.run(&found.inputs).expect("runs");
            shapes.entry(probe.work).or_default().push(found.shape);
        }
        for row in WORKS {
            let mut found = shapes.remove(&row.work).unwrap_or_default();
            found.dedup();
            assert!(!found.is_empty(), "nothing measures {}", row.name);
            assert!(
                found.len() > 1 || row.shape.is_empty(),
                "{}: {found:?}",
                row.name
            );
        }
    }
}
