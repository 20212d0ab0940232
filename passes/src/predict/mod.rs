//! The time that a lowered program takes, predicted.
//!
//! A launch takes what its work takes at the machine's speeds, or what reading its operands from where they are takes, whichever is
//! longer, and the costs of starting and sharing it. Weights are where everything that a run uses fits: they are read once in
//! each run. Other operands are where the launch's own fit, as a step before has just written them.
//!
//! Not known before a run: how often loops of the model go round (they count as one iteration), which branch is taken (the
//! longer), and lengths that depend on data (the dimension is then 1, as every symbol that nobody gave).

mod count;
pub mod experts;

pub use count::{Amounts, Launch, count};

use crate::lower::blocks;
use lapidary_abi::Size;
use lapidary_abi::kernel::{
    UNARY_ERF, UNARY_EXP, UNARY_GELU, UNARY_GELU_TANH, UNARY_SIGMOID, UNARY_SWISH, UNARY_TANH,
};
use lapidary_abi::program::{Arg, Block, Place, Program, Step, ValueIndex, ValueType};
use lapidary_ir::kernel::Kernel;
use lapidary_ir::speeds::{Speeds, Work, at};
use lapidary_ir::target::Target;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

/// The kind of work of a function that a micro-kernel computes, by its number.
pub(crate) fn function(number: u32) -> Option<Work> {
    Some(match number {
        UNARY_EXP => Work::Exp,
        UNARY_TANH => Work::Tanh,
        UNARY_ERF => Work::Erf,
        UNARY_SIGMOID => Work::Sigmoid,
        UNARY_SWISH => Work::Swish,
        UNARY_GELU => Work::Gelu,
        UNARY_GELU_TANH => Work::GeluTanh,
        _ => return None,
    })
}

/// Where and how a program runs.
#[derive(Clone, Debug)]
pub struct Setting<'a> {
    /// The machine; its threads are those that the program runs on.
    pub target: &'a Target,
    /// Numbers for symbolic dimensions; others are 1.
    pub dims: &'a BTreeMap<String, i64>,
    /// Where the program is part of another: how many times its own weights are read besides, between two of its runs.
    pub beside: f64,
}

/// Predicted times of the launches of a kernel, or of the calls of a library operation.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// Its name.
    pub name: String,
    /// How many there are in a run.
    pub calls: u64,
    /// Time of all of them, in nanoseconds.
    pub ns: f64,
}

/// A predicted run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Nanoseconds of each step of the body that does work, in order: the name of what runs, and its time.
    pub steps: Vec<(String, f64)>,
}

impl Prediction {
    /// Time of a run, in nanoseconds.
    pub fn ns(&self) -> f64 {
        self.steps.iter().map(|s| s.1).sum()
    }

    /// By what runs, the longest first.
    pub fn kernels(&self) -> Vec<KernelTime> {
        let mut found: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
        for (name, ns) in &self.steps {
            let sum = found.entry(name).or_default();
            *sum = (sum.0 + 1, sum.1 + ns);
        }
        let time = |(name, (calls, ns)): (&str, (u64, f64))| KernelTime {
            name: name.to_owned(),
            calls,
            ns,
        };
        let mut kernels: Vec<KernelTime> = found.into_iter().map(time).collect();
        kernels.sort_by(|a, b| b.ns.total_cmp(&a.ns));
        kernels
    }
}

/// Predicts a run of a program, which was lowered to these kernels, in the order of [`Program::kernels`].
pub fn predict(program: &Program, kernels: &[Kernel], setting: &Setting) -> Prediction {
    let symbols = program.symbols.iter();
    let mut symbols: Vec<i64> = symbols
        .map(|s| setting.dims.get(s).copied().unwrap_or(1))
        .collect();
    if let Some(detail) = &program.detail {
        // All of the weights.
        symbols[detail.symbol as usize] = detail.parts.len() as i64;
    }
    let mut run = Run {
        program,
        kernels,
        target: setting.target,
        speeds: &setting.target.speeds(),
        symbols,
        resident: 0,
        counted: RefCell::default(),
        steps: vec![],
    };
    let constants = run.constants() * (1.0 + setting.beside.max(0.0));
    run.resident = constants as u64 + program.arena_bytes;
    run.block(&program.body);
    Prediction { steps: run.steps }
}

struct Run<'a> {
    program: &'a Program,
    kernels: &'a [Kernel],
    target: &'a Target,
    speeds: &'a Speeds,
    symbols: Vec<i64>,
    /// Bytes that a run uses.
    resident: u64,
    /// Launches that were counted, by kernel, sizes and operations: layers are alike.
    counted: RefCell<HashMap<(u32, Vec<Option<i64>>, i64), Rc<Amounts>>>,
    steps: Vec<(String, f64)>,
}

impl Run<'_> {
    fn size(&self, size: &Size) -> i64 {
        size.eval(&self.symbols).unwrap_or(1).max(0)
    }

    /// The value whose bytes a value is.
    fn root(&self, mut v: ValueIndex) -> ValueIndex {
        while let Some(Place::Alias(of)) = self.program.values.get(v as usize).map(|d| &d.place) {
            v = *of;
        }
        v
    }

    fn is_constant(&self, v: ValueIndex) -> bool {
        let decl = self.program.values.get(self.root(v) as usize);
        decl.is_some_and(|d| matches!(d.place, Place::Weights { .. } | Place::Prepared { .. }))
    }

    fn bytes(&self, v: ValueIndex) -> f64 {
        let Some(decl) = self.program.values.get(v as usize) else {
            return 0.0;
        };
        match (&decl.place, &decl.ty) {
            (Place::Weights { bytes, .. }, _) => *bytes as f64,
            (
                _,
                ValueType::Tensor {
                    elem,
                    dims: Some(dims),
                },
            ) => {
                let elements = dims.iter().map(|d| self.size(d) as f64).product::<f64>();
                elements * elem.size_bytes() as f64
            }
            _ => 0.0,
        }
    }

    /// Bytes of what was made before the first run and is read in each: not of tables, of which a run reads some rows.
    fn constants(&self) -> f64 {
        let mut found = BTreeMap::new();
        self.read(&self.program.body, &mut found);
        found.values().sum()
    }

    fn read(&self, block: &Block, found: &mut BTreeMap<ValueIndex, f64>) {
        for step in &block.steps {
            if let Some((_, args, amounts)) = self.launched(step) {
                for (v, bytes) in self.touched(args, &amounts) {
                    if self.is_constant(v) {
                        let most = found.entry(self.root(v)).or_default();
                        *most = most.max(bytes);
                    }
                }
            }
            for inner in blocks(step) {
                self.read(inner, found);
            }
        }
    }

    fn launched<'s>(&self, step: &'s Step) -> Option<(&str, &'s [Arg], Rc<Amounts>)> {
        let Step::Launch {
            kernel: index,
            args,
            flops,
            ..
        } = step
        else {
            return None;
        };
        let kernel = self.kernels.get(*index as usize)?;
        let sizes: Vec<Option<i64>> = args
            .iter()
            .map(|a| match a {
                Arg::Size(s) => Some(self.size(s)),
                Arg::Buffer(_) => None,
            })
            .collect();
        let flops = self.size(flops);
        let key = (*index, sizes, flops);
        let known = self.counted.borrow().get(&key).cloned();
        let amounts = known.unwrap_or_else(|| {
            let launch = Launch {
                kernel,
                sizes: &key.1,
                flops: flops as f64,
            };
            Rc::new(count(&launch, self.target))
        });
        self.counted.borrow_mut().insert(key, Rc::clone(&amounts));
        Some((&kernel.name, args, amounts))
    }

    /// Values of a launch, and how many bytes of each it reads or writes.
    fn touched(&self, args: &[Arg], amounts: &Amounts) -> Vec<(ValueIndex, f64)> {
        let value = |(i, arg): (usize, &Arg)| match arg {
            Arg::Buffer(v) => {
                let touched = amounts.touched.get(&(i as u32)).copied().unwrap_or(0.0);
                Some((*v, touched.min(self.bytes(*v))))
            }
            Arg::Size(_) => None,
        };
        args.iter().enumerate().filter_map(value).collect()
    }

    fn block(&mut self, block: &Block) {
        for step in &block.steps {
            match step {
                // Nothing is launched without blocks.
                Step::Launch { grid, .. } if self.size(grid) == 0 => {}
                Step::Launch { grid, grain, .. } => {
                    if let Some((name, args, amounts)) = self.launched(step) {
                        let shares = shares(self.size(grid), *grain, self.target.threads);
                        let touched = self.touched(args, &amounts);
                        let ns = self.launch(&amounts, &touched, shares);
                        let name = name.to_owned();
                        self.steps.push((name, ns));
                    }
                }
                Step::Call {
                    op,
                    operands,
                    results,
                    ..
                } => {
                    let values = operands.iter().flatten().chain(results);
                    let bytes: f64 = values.map(|&v| self.bytes(v)).sum();
                    let scalars = bytes / 4.0 / self.speeds.rate(Work::Scalar, 0.0);
                    self.steps
                        .push((op.clone(), self.speeds.launch_ns + 4.0 * scalars));
                }
                Step::If {
                    then_block,
                    else_block,
                    ..
                } => {
                    let [yes, no] = [then_block, else_block].map(|b| {
                        let before = self.steps.len();
                        self.block(b);
                        self.steps.split_off(before)
                    });
                    let sum = |steps: &[(String, f64)]| steps.iter().map(|s| s.1).sum::<f64>();
                    self.steps
                        .extend(if sum(&yes) >= sum(&no) { yes } else { no });
                }
                Step::Loop { body, .. } => self.block(body),
                _ => (),
            }
        }
    }

    fn launch(&self, amounts: &Amounts, touched: &[(ValueIndex, f64)], shares: Shares) -> f64 {
        let mut seen = BTreeSet::new();
        let (mut constants, mut others) = (0.0, 0.0);
        for &(v, bytes) in touched {
            if !seen.insert(self.root(v)) {
                continue;
            }
            match self.is_constant(v) {
                true => constants += bytes,
                false => others += bytes,
            }
        }
        time(
            self.speeds,
            amounts,
            [constants, others],
            self.resident,
            shares,
        )
    }
}

/// Nanoseconds of a launch that reads and writes so many bytes of constants, which are where `resident` bytes fit, and of others.
fn time(
    speeds: &Speeds,
    amounts: &Amounts,
    [constants, others]: [f64; 2],
    resident: u64,
    shares: Shares,
) -> f64 {
    let work =
        |&(work, shape, units): &(Work, u32, f64)| units / speeds.rate(work, f64::from(shape));
    let compute = amounts.work.iter().map(work).sum::<f64>() * shares.largest;
    let read = |bytes: f64, among: u64| bytes / speeds.bandwidth(among, shares.threads);
    let moved = read(constants, resident) + read(others, others as u64);
    speeds.launch_ns + at(&speeds.fork_ns, f64::from(shares.threads)) + compute.max(moved)
}

/// What a launch that is no program's yet is given for a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operand {
    /// So many bytes; true for weights.
    Bytes(u64, bool),
    /// A size.
    Size(i64),
}

impl Operand {
    /// Weights.
    pub fn constant(bytes: u64) -> Operand {
        Operand::Bytes(bytes, true)
    }

    /// What a step before has written, or the result.
    pub fn made(bytes: u64) -> Operand {
        Operand::Bytes(bytes, false)
    }
}

/// Predicted nanoseconds of a launch of so many blocks, whose weights are in memory, beyond the caches.
pub(crate) fn alone(kernel: &Kernel, operands: &[Operand], blocks: i64, target: &Target) -> f64 {
    let sizes: Vec<Option<i64>> = operands
        .iter()
        .map(|o| match o {
            Operand::Size(n) => Some(*n),
            Operand::Bytes(..) => None,
        })
        .collect();
    let launch = Launch {
        kernel,
        sizes: &sizes,
        flops: 0.0,
    };
    let amounts = count(&launch, target);
    let mut bytes = [0.0, 0.0];
    for (i, operand) in operands.iter().enumerate() {
        if let Operand::Bytes(all, constant) = *operand {
            let touched = amounts.touched.get(&(i as u32)).copied().unwrap_or(0.0);
            bytes[usize::from(!constant)] += touched.min(all as f64);
        }
    }
    let shares = shares(blocks, 1, target.threads);
    time(&target.speeds(), &amounts, bytes, u64::MAX, shares)
}

/// Predicted nanoseconds of a launch that only moves so many bytes which a step before has written.
pub(crate) fn moved(bytes: u64, target: &Target) -> f64 {
    let speeds = target.speeds();
    speeds.launch_ns + bytes as f64 / speeds.bandwidth(bytes, target.threads)
}

/// How a launch is shared.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shares {
    /// Threads that take part.
    threads: u32,
    /// The largest part of the work that one of them does.
    largest: f64,
}

/// As the runtime's pool does it: pieces of `grain` blocks, equally many for each thread, or one more.
fn shares(grid: i64, grain: u32, threads: u32) -> Shares {
    let grain = i64::from(grain.max(1));
    let pieces = (grid as u64).div_ceil(grain as u64) as i64;
    let threads = i64::from(threads.max(1)).min(pieces);
    if threads < 2 {
        return Shares {
            threads: 1,
            largest: 1.0,
        };
    }
    let most = (pieces as u64).div_ceil(threads as u64) as i64;
    Shares {
        threads: threads as u32,
        largest: ((most * grain) as f64 / grid as f64).min(1.0),
    }
}

#[cfg(test)]
mod tests;
