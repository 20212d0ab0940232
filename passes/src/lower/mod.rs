//! Lowering: a graph becomes kernels and the host program that launches them.
//!
//! * [`expr`], [`index`]: what one element of a result is; `expand` builds it through fused producers;
//! * [`schedule`], `emit`: loops and statements for it;
//! * the family files (`arith`, `shape`, …): one rule per op, listed in [`RULES`];
//! * `library`: the ops that the runtime computes, each with the reason;
//! * `decompose`: ops without a rule become simpler ones first;
//! * `program`, `control`, `memory`: values, steps, branches and loops, storage.
//!
//! An op needs a row in its family's list: how it fuses, and its element function. An op whose fast form is
//! a hand-scheduled kernel has a [`Form::Steps`] function, which may fall back to elements.

pub mod channels;
#[cfg(test)]
pub(crate) mod checks;
mod control;
pub(crate) mod decompose;
mod emit;
mod expand;
pub mod expr;
pub mod index;
pub mod library;
mod max_pool;
mod memory;
mod program;
mod scan;
pub mod schedule;
pub mod testing;

mod activation;
mod arith;
mod attention;
mod blocked;
mod cache;
mod cast;
mod codes;
mod conv;
mod conv_kernel;
mod experts;
mod halves;
mod indexing;
mod kv;
mod linear;
mod norm;
mod pool;
mod prepare;
mod reduce;
mod refine;
pub(crate) mod round;
mod sample;
mod scatter;
mod shape;
mod sparse;

pub use emit::KernelArg;
pub use expand::{Element, Expand};
pub use program::Lowerer;
pub use schedule::Spec;

pub(crate) use blocked::taken;
pub(crate) use memory::blocks;

use crate::encode::encode;
use crate::fold::{Limits, fold_constants};
use expr::E;
use index::Pos;
use lapidary_abi::program::Program;
use lapidary_ir::encodings::open_constants;
use lapidary_ir::kernel::Kernel;
use lapidary_ir::ops::OpError;
use lapidary_ir::sources::Sources;
use lapidary_ir::target::Target;
use lapidary_ir::{Constant, Module, NodeId, ValueId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Compute chains of element-wise ops in one kernel.
    pub fuse: bool,
    /// Leave out weights that are zero where that is predicted to be faster.
    pub sparse: bool,
    /// Compute what depends on weights alone when the model is loaded, not in every run.
    pub prepare: bool,
    /// Round what is multiplied with weights of a few bits to 8-bit codes in blocks: faster, a little less exact.
    pub round: bool,
    /// Keep caches of keys and values between runs, as states of the program instead of inputs and outputs. A cache
    /// is an input that is only added to (`tensor_scatter`), attended to, and given back.
    pub caches: bool,
    /// Bits of keys and of values that attention reads, where they are not the newest: 2, 4 or 8, or 16 of both for halves. A little
    /// less exact.
    pub kv: Option<[i64; 2]>,
    /// Round to `f16`, or to `bf16` where weights are, what a GPU's tensor cores multiply, where that is predicted to be faster: a little
    /// less exact, and numbers beyond 65504 become infinite in `f16`.
    pub halves: bool,
    /// Round numbers and constant weights to `bf16` where the target multiplies those faster, with sums of `f32`: less exact.
    pub bf16: bool,
    /// Caches may lose tokens: beside them is counted how much attention each token gets ([`lapidary_abi::attended`]).
    pub evictable: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            fuse: true,
            sparse: true,
            prepare: true,
            round: false,
            caches: false,
            kv: None,
            halves: false,
            bf16: false,
            evictable: false,
        }
    }
}

/// A lowered module.
#[derive(Debug)]
pub struct Lowered {
    /// The host program; `code_offset` is a kernel's index until code exists.
    pub program: Program,
    /// The kernels, in the program's order.
    pub kernels: Vec<Kernel>,
    /// The weights blob, piece by piece.
    pub weights: Vec<WeightPiece>,
    /// Numbers for people.
    pub report: Report,
}

/// Part of the weights blob.
#[derive(Clone, Debug)]
pub struct WeightPiece {
    /// Where it begins, 64-byte aligned.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// What it is.
    pub source: WeightSource,
    /// The files that it may be read from.
    pub files: Sources,
}

/// Bytes that are there, or are made when the blob is written.
#[derive(Clone)]
pub enum WeightSource {
    /// A view of the source file.
    Bytes(bytes::Bytes),
    /// Made on demand, so that they are never all in memory.
    Made(Arc<dyn Fn() -> Result<Vec<u8>, String> + Send + Sync>),
}

impl fmt::Debug for WeightSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightSource::Bytes(b) => write!(f, "{} bytes", b.len()),
            WeightSource::Made(_) => f.write_str("made"),
        }
    }
}

impl WeightPiece {
    /// The bytes. Memory of the model's files that reading them took is given back, if it is much.
    pub fn read(&self) -> Result<bytes::Bytes, String> {
        let bytes = match &self.source {
            WeightSource::Bytes(b) => b.clone(),
            WeightSource::Made(f) => f()?.into(),
        };
        self.files.release(bytes.len());
        if bytes.len() as u64 == self.bytes {
            Ok(bytes)
        } else {
            Err(format!(
                "a weight has {} bytes, {} are planned",
                bytes.len(),
                self.bytes
            ))
        }
    }
}

/// What lowering did, in numbers.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Kernel launches in the program.
    pub launches: usize,
    /// Different kernels.
    pub kernels: usize,
    /// Library calls, by op.
    pub calls: Vec<String>,
    /// Weights in which zeros were noticed, in the order of the program.
    pub noticed: Vec<Noticed>,
    /// How products are computed for which a GPU has kernels of its own, in the order of the program.
    pub choices: Vec<Choice>,
    /// Bytes of the arena: the peak of what is live at once, with alignment.
    pub arena_bytes: u64,
    /// Bytes of all arena values, had none shared storage.
    pub unshared_bytes: u64,
}

/// A weight in which zeros were noticed, and what was made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Noticed {
    /// Its name in the model, or the path of the node that multiplies with it.
    pub weight: String,
    /// Weights.
    pub weights: u64,
    /// Those that are not zero.
    pub nonzeros: u64,
    /// Predicted time of the product with sparse weights, over that with dense ones.
    pub predicted: f64,
    /// It is computed with sparse weights.
    pub sparse: bool,
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.nonzeros as f64 / self.weights.max(1) as f64;
        let made = if self.sparse { "sparse" } else { "dense" };
        write!(
            f,
            "`{}`: {share:.1} % of {} weights are not zero; predicted {:.2} of the dense time, so it is {made}",
            self.weight, self.weights, self.predicted
        )
    }
}

/// How a product is computed on a GPU that has kernels of its own for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Path of the node in the source model.
    pub node: String,
    /// Rows that are multiplied, as an expression.
    pub rows: String,
    /// Outputs and inputs.
    pub weights: [usize; 2],
    /// What the weights are.
    pub form: String,
    /// Names of the kernels: for one row, and for more, where the rows are not known.
    pub kernels: Vec<String>,
    /// Predicted nanoseconds, of one row where they are not known; what goes with the product included.
    pub predicted_ns: f64,
    /// The way that was not chosen.
    pub others: Vec<String>,
    /// Its time.
    pub others_ns: f64,
}

impl Choice {
    /// The faster of two ways, each with its kernels and nanoseconds; true if it is the first.
    fn between(
        [node, rows, form]: [String; 3],
        weights: [usize; 2],
        first: (Vec<String>, f64),
        second: (Vec<String>, f64),
        always_first: bool,
    ) -> (Choice, bool) {
        let is_first = always_first || first.1 < second.1;
        let (this, other) = match is_first {
            true => (first, second),
            false => (second, first),
        };
        let choice = Choice {
            node,
            rows,
            weights,
            form,
            kernels: this.0,
            predicted_ns: this.1,
            others: other.0,
            others_ns: other.1,
        };
        (choice, is_first)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [outputs, inputs] = self.weights;
        let [these, others] = [&self.kernels, &self.others].map(|k| k.join("`, `"));
        let [this, other] = [self.predicted_ns, self.others_ns].map(|ns| ns / 1e3);
        write!(
            f,
            "`{}`: {} rows times {outputs} x {inputs} {}: `{these}`, predicted {this:.1} us; `{others}` {other:.1} us",
            self.node, self.rows, self.form
        )
    }
}

/// A node that cannot be lowered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{node}` ({op}): {reason}")]
pub struct LowerError {
    /// Path of the node in the source model.
    pub node: String,
    /// The op.
    pub op: String,
    /// Why not.
    pub reason: String,
}

/// Every node that cannot be lowered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerErrors(pub Vec<LowerError>);

impl fmt::Display for LowerErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(LowerError::to_string).collect();
        f.write_str(&texts.join("\n"))
    }
}

impl std::error::Error for LowerErrors {}

/// How an op takes part in fusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// Reads one element of each operand per element of its result, and is cheap.
    Pointwise,
    /// Moves elements.
    View,
    /// Keeps the linear order of elements: the result is the operand's bytes.
    Reshape,
    /// Reads each element of its first operand once in all.
    Reduce,
    /// Reads elements of its operands many times, or in an order of its own.
    Never,
}

/// The expression of the element at a position of a result.
pub type ElementFn = fn(&mut Element, &Pos) -> Result<E, OpError>;
/// Writes the steps of a node.
pub type StepsFn = fn(&mut Lowerer, NodeId) -> Result<(), OpError>;

/// Writes the steps of a node, if there is a schedule for it.
pub type ScheduleFn = fn(&mut Lowerer, NodeId) -> Result<bool, OpError>;

/// How an op is lowered.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// By its elements.
    Elements(ElementFn),
    /// By kernels of its own.
    Steps(StepsFn),
}

/// One op's lowering.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The op.
    pub op: &'static str,
    /// How it fuses.
    pub fuse: Fuse,
    /// Its meaning in kernels.
    pub form: Form,
    /// Which nodes it is for; the others decompose.
    pub takes: fn(&Module, NodeId) -> bool,
    /// Kernels for some nodes of an op that is otherwise lowered by its elements; false if it has none for this one.
    pub schedule: Option<ScheduleFn>,
}

impl Rule {
    /// An element-wise op.
    pub const fn pointwise(op: &'static str, f: ElementFn) -> Rule {
        Rule {
            op,
            fuse: Fuse::Pointwise,
            form: Form::Elements(f),
            takes: |_, _| true,
            schedule: None,
        }
    }

    /// An op that moves elements.
    pub const fn view(op: &'static str, f: ElementFn) -> Rule {
        Rule {
            op,
            fuse: Fuse::View,
            form: Form::Elements(f),
            takes: |_, _| true,
            schedule: None,
        }
    }

    /// An op that only renames positions.
    pub const fn reshape(op: &'static str, f: ElementFn) -> Rule {
        Rule {
            op,
            fuse: Fuse::Reshape,
            form: Form::Elements(f),
            takes: |_, _| true,
            schedule: None,
        }
    }

    /// A reduction of its first operand.
    pub const fn reduce(op: &'static str, f: ElementFn) -> Rule {
        Rule {
            op,
            fuse: Fuse::Reduce,
            form: Form::Elements(f),
            takes: |_, _| true,
            schedule: None,
        }
    }

    /// An op whose elements are computed from many.
    pub const fn general(op: &'static str, f: ElementFn) -> Rule {
        Rule {
            op,
            fuse: Fuse::Never,
            form: Form::Elements(f),
            takes: |_, _| true,
            schedule: None,
        }
    }

    /// An op with kernels of its own.
    pub const fn steps(op: &'static str, f: StepsFn) -> Rule {
        Rule {
            op,
            fuse: Fuse::Never,
            form: Form::Steps(f),
            takes: |_, _| true,
            schedule: None,
        }
    }

    /// An op whose elements are computed from many, and a schedule for some of its nodes.
    pub const fn scheduled(op: &'static str, f: ElementFn, schedule: ScheduleFn) -> Rule {
        Rule {
            schedule: Some(schedule),
            ..Rule::general(op, f)
        }
    }

    /// An op some of whose nodes have kernels of their own.
    pub const fn steps_for(
        op: &'static str,
        f: StepsFn,
        takes: fn(&Module, NodeId) -> bool,
    ) -> Rule {
        Rule {
            takes,
            ..Rule::steps(op, f)
        }
    }
}

/// Every lowering, by family.
pub static RULES: &[&[Rule]] = &[
    arith::RULES,
    activation::RULES,
    cast::RULES,
    shape::RULES,
    indexing::RULES,
    reduce::RULES,
    linear::RULES,
    blocked::RULES,
    conv::RULES,
    pool::RULES,
    norm::RULES,
    attention::RULES,
    scatter::RULES,
    sample::RULES,
];

/// The rule of an op.
pub fn rule(op: &str) -> Option<&'static Rule> {
    use std::sync::OnceLock;
    static INDEX: OnceLock<HashMap<&'static str, &'static Rule>> = OnceLock::new();
    INDEX
        .get_or_init(|| {
            RULES
                .iter()
                .flat_map(|f| f.iter())
                .map(|r| (r.op, r))
                .collect()
        })
        .get(op)
        .copied()
}

/// Lets look-ups of rows read a compressed table of their own where products read it, too: each then has it in the form that suits it,
/// and neither needs it decoded.
fn untie(module: &mut Module) {
    let mut readers: HashMap<ValueId, (Vec<NodeId>, bool)> = HashMap::new();
    for r in module.reachable_regions() {
        for &n in &module.region(r).nodes {
            let node = module.node(n);
            for (i, v) in node.operands.iter().enumerate() {
                let Some(v) = *v else { continue };
                if !module.as_constant(v).is_some_and(Constant::is_compressed) {
                    continue;
                }
                let (lookups, others) = readers.entry(v).or_default();
                match (node.op.name, i) {
                    ("gather", 0) => lookups.push(n),
                    _ => *others = true,
                }
            }
        }
    }
    let mut tied: Vec<_> = readers.into_iter().filter(|(_, r)| r.1).collect();
    tied.sort_unstable_by_key(|(v, _)| *v);
    for (v, (lookups, _)) in tied {
        let Some(constant) = module
            .as_constant(v)
            .filter(|_| !lookups.is_empty())
            .cloned()
        else {
            continue;
        };
        let name = module.value(v).name.clone();
        let own = module.add_constant(&name, constant);
        for n in lookups {
            module.node_mut(n).operands[0] = Some(own);
        }
    }
}

/// Makes ops of the compressed constants that no kernel takes as they are. They must not be folded: that would store
/// what they decode to.
fn open(module: &mut Module, target: &Target, options: &Options) -> Result<(), LowerErrors> {
    untie(module);
    let mut taken = blocked::taken(module, |_, c| blocked::has_kernel(c, target, options));
    taken.extend(sparse::taken(module, target, options));
    open_constants(module, &|v, _| !taken.contains(&v))
        .map_err(|e| failed(module, "constant", e))?;
    decompose(module, options)
}

fn failed(module: &Module, op: &str, error: OpError) -> LowerErrors {
    LowerErrors(vec![LowerError {
        node: module.name.clone(),
        op: op.to_owned(),
        reason: error.0,
    }])
}

/// Leaves ops that have lowerings.
fn decompose(module: &mut Module, options: &Options) -> Result<(), LowerErrors> {
    let caches = caches(module, options);
    decompose::decompose(module, &|n| caches.of(n).is_some() || caches.covers(n))
        .map_err(LowerErrors)
}

fn caches(module: &Module, options: &Options) -> cache::Caches {
    match options.caches {
        true => cache::Caches::find(module),
        false => cache::Caches::default(),
    }
}

/// Lowers a module whose types are inferred.
pub fn lower(module: &Module, target: &Target, options: &Options) -> Result<Lowered, LowerErrors> {
    let mut module = module.clone();
    encode(&mut module);
    if let Some(bits) = options.kv {
        kv::round(&mut module, bits).map_err(|e| failed(&module, "round_cache", e))?;
    }
    if options.evictable {
        let possible = caches(&module, options).evictable(&module);
        possible.map_err(|e| failed(&module, "attention", e))?;
    }
    decompose(&mut module, options)?;
    // Decompositions leave arithmetic on weights, such as the transposition of a `gemm`'s.
    fold_constants(&mut module, Limits::default());
    if options.round {
        round::round(&mut module).map_err(|e| failed(&module, "round_blocks", e))?;
    }
    open(&mut module, target, options)?;
    Lowerer::new(module, target.clone(), options.clone()).run()
}
