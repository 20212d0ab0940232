//! The host program: values, symbols, weights, and the steps of every region.

mod calls;
mod detail;
mod inline;
mod values;

use super::cache::Caches;
use super::emit::KernelArg;
use super::expand::{Expand, Facts};
use super::index::{LoopVar, Pos};
use super::schedule::{Scheduled, Spec, schedule};
use super::{
    Choice, ElementFn, Form, Fuse, LowerError, LowerErrors, Lowered, Noticed, Options, Report,
    WeightPiece, blocked, experts, memory, prepare, refine, rule, sparse,
};
use crate::schedules::pack::width_bf16;
use lapidary_abi::program::{
    Arg, Block, KernelDecl, Place, Port, Program, Step, ValueIndex, ValueType,
};
use lapidary_ir::kernel::Kernel;
use lapidary_ir::ops::OpError;
use lapidary_ir::target::{Feature, Target};
use lapidary_ir::{Dim, ElemType, Module, NodeId, RegionId, Type, ValueId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Expressions grow at most this large before a value is stored after all.
const MAX_INLINE: usize = 48;

/// Writes the program of one module.
#[derive(Debug)]
pub struct Lowerer {
    /// The module and what is known of it.
    pub facts: Facts,
    /// What code is for.
    pub target: Target,
    pub(super) options: Options,
    program: Program,
    kernels: Vec<Kernel>,
    known_kernels: HashMap<String, u32>,
    weights: Vec<WeightPiece>,
    /// Where views of files are among the weights, by their addresses and lengths.
    views: HashMap<(usize, usize), u64>,
    indices: HashMap<ValueId, ValueIndex>,
    symbols: HashMap<String, u32>,
    /// Symbols whose value earlier steps have set.
    bound: HashSet<String>,
    steps: Vec<Step>,
    depth: usize,
    /// Values made while the current block is written that other blocks cannot see.
    local: Vec<ValueId>,
    scratch: RegionId,
    /// Channels-last copies, by what they copy and its padding.
    pub(super) copies: HashMap<(ValueId, Vec<(i64, i64)>, u8), ValueId>,
    calls: Vec<String>,
    /// Weights with zeros, by the node that multiplies with them.
    pub(super) sparse: HashMap<NodeId, Noticed>,
    /// Products with compressed weights.
    pub(super) blocked: blocked::Found,
    /// How products are computed for which a GPU has kernels of its own.
    pub(super) choices: BTreeMap<NodeId, Choice>,
    /// Left sides as halves, by what they were.
    pub(super) rounded: HashMap<(ValueId, ElemType), ValueId>,
    /// What the runtime keeps between runs.
    pub(super) caches: Caches,
    /// Weights that runs may leave out.
    parts: Option<detail::Parts>,
    errors: Vec<LowerError>,
}

impl Lowerer {
    /// Looks at a decomposed module.
    pub fn new(mut module: Module, target: Target, options: Options) -> Lowerer {
        let scratch = module.add_region();
        let name = module.name.clone();
        Lowerer {
            facts: Facts {
                module,
                inlined: HashSet::new(),
                contents: HashMap::new(),
                channels: HashMap::new(),
                sums: HashMap::new(),
            },
            target,
            options,
            program: Program {
                name,
                ..Program::default()
            },
            kernels: vec![],
            known_kernels: HashMap::new(),
            weights: vec![],
            views: HashMap::new(),
            indices: HashMap::new(),
            symbols: HashMap::new(),
            bound: HashSet::new(),
            steps: vec![],
            depth: 0,
            local: vec![],
            scratch,
            copies: HashMap::new(),
            calls: vec![],
            sparse: HashMap::new(),
            blocked: blocked::Found::default(),
            choices: BTreeMap::new(),
            rounded: HashMap::new(),
            caches: Caches::default(),
            parts: None,
            errors: vec![],
        }
    }

    /// Lowers the top region.
    pub fn run(mut self) -> Result<Lowered, LowerErrors> {
        self.caches = super::caches(&self.facts.module, &self.options);
        let detail = refine::detail(&self.facts.module);
        if let Some(v) = detail {
            self.bind_detail(v);
        }
        for v in self.facts.module.top().inputs.clone() {
            let ty = self.facts.module.value(v).ty.clone();
            // What sequences and optionals hold has no dimensions before it is taken out.
            if matches!(ty, Type::Tensor(_)) {
                visit_symbols(&ty, &mut |s| {
                    self.bound.insert(s.to_owned());
                });
            }
            if self.caches.holds(v) || detail == Some(v) {
                continue;
            }
            let n = self.program.inputs.len() as u32;
            let place = match &ty {
                Type::Tensor(t) if t.elem != ElemType::String => Place::Input(n),
                _ => Place::Heap,
            };
            let value = self.declare(v, place);
            let name = self.facts.module.value(v).name.clone();
            let ty = self.program.values[value as usize].ty.clone();
            self.program.inputs.push(Port { name, ty, value });
        }
        self.find_contents();
        sparse::find(&mut self);
        self.find_channels();
        self.find_inlined();
        sparse::leave_unstored(&mut self);
        blocked::find(&mut self);
        let outputs = self.facts.module.top().outputs.clone();
        self.region(Module::TOP);
        let mut placed = HashSet::new();
        for (i, &v) in outputs.iter().enumerate() {
            if self.caches.holds(v) {
                continue;
            }
            let Some(value) = self.attempt(None, |s| s.stored(v)) else {
                continue;
            };
            let n = self.program.outputs.len() as u32;
            let decl = &mut self.program.values[value as usize];
            let plain = matches!(decl.ty, ValueType::Tensor { elem, dims: Some(_) } if elem != ElemType::String);
            if plain
                && matches!(decl.place, Place::Arena { .. } | Place::Heap)
                && placed.insert(value)
            {
                decl.place = Place::Output(n);
            }
            let ty = decl.ty.clone();
            let name = self.facts.module.output_names.get(i).cloned();
            let name = name.unwrap_or_else(|| self.facts.module.value(v).name.clone());
            self.program.outputs.push(Port { name, ty, value });
        }
        if !self.errors.is_empty() {
            return Err(LowerErrors(self.errors));
        }
        self.program.body.steps = std::mem::take(&mut self.steps);
        if self.options.prepare {
            prepare::hoist(&mut self.program, &self.kernels);
        }
        experts::group(&mut self.program, &self.kernels);
        self.arrange_parts();
        let unshared_bytes = memory::plan(&mut self.program);
        self.program.weights_bytes = self
            .weights
            .last()
            .map_or(0, |w| (w.offset + w.bytes).next_multiple_of(64));
        let report = Report {
            launches: count_launches(&self.program.body),
            kernels: self.kernels.len(),
            calls: self.calls,
            noticed: {
                let mut noticed: Vec<_> = self.sparse.into_iter().collect();
                noticed.sort_by_key(|(n, _)| *n);
                noticed.into_iter().map(|(_, n)| n).collect()
            },
            choices: self.choices.into_values().collect(),
            arena_bytes: self.program.arena_bytes,
            unshared_bytes,
        };
        Ok(Lowered {
            program: self.program,
            kernels: self.kernels,
            weights: self.weights,
            report,
        })
    }

    /// Runs `f`; an error is noted against the node.
    pub(super) fn attempt<T>(
        &mut self,
        node: Option<NodeId>,
        f: impl FnOnce(&mut Self) -> Result<T, OpError>,
    ) -> Option<T> {
        match f(self) {
            Ok(v) => Some(v),
            Err(e) => {
                let module = &self.facts.module;
                let (node, op) = match node {
                    Some(n) => (
                        module.node(n).name.clone(),
                        module.node(n).op.name.to_owned(),
                    ),
                    None => (module.name.clone(), String::new()),
                };
                self.errors.push(LowerError {
                    node,
                    op,
                    reason: e.0,
                });
                None
            }
        }
    }

    /// Writes the steps of a region's nodes.
    pub(super) fn region(&mut self, r: RegionId) {
        let nodes = self.facts.module.region(r).nodes.clone();
        let needed = self.needed(r);
        for n in nodes {
            let node = self.facts.module.node(n);
            if !node.results.iter().any(|v| needed.contains(v)) {
                continue;
            }
            self.attempt(Some(n), |s| s.node(n, &needed));
        }
    }

    /// Values that some step of the region reads.
    fn needed(&self, r: RegionId) -> HashSet<ValueId> {
        let module = &self.facts.module;
        let mut needed: HashSet<ValueId> = HashSet::new();
        let mut visit = vec![r];
        // Values of this region that inner regions use count as used here.
        while let Some(inner) = visit.pop() {
            needed.extend(&module.region(inner).outputs);
            for &n in &module.region(inner).nodes {
                visit.extend(&module.node(n).regions);
                if inner != r {
                    needed.extend(module.node(n).operands.iter().flatten());
                }
            }
        }
        needed.retain(|v| !self.facts.contents.contains_key(v));
        for &n in module.region(r).nodes.iter().rev() {
            let node = module.node(n);
            let live = node.results.iter().any(|v| needed.contains(v));
            if live || !node.regions.is_empty() {
                let operands = node.operands.iter().flatten();
                needed.extend(operands.filter(|v| !self.facts.contents.contains_key(v)));
            }
        }
        needed
    }

    fn node(&mut self, n: NodeId, needed: &HashSet<ValueId>) -> Result<(), OpError> {
        let node = self.facts.module.node(n).clone();
        if !node.regions.is_empty() {
            return self.control(n);
        }
        if self.caches.covers(n) {
            // Where it is attended to.
            return Ok(());
        }
        if self.is_called(n) {
            return self.call(n);
        }
        let rule = rule(node.op.name).ok_or_else(|| {
            OpError::new("has no lowering, no decomposition, and is no library operation")
        })?;
        if let Some(v) = node
            .results
            .iter()
            .find(|v| self.facts.module.value(**v).ty.shape().is_none())
        {
            let name = &self.facts.module.value(*v).name;
            return Err(OpError::new(format!(
                "the rank of its result `{name}` is not known"
            )));
        }
        match rule.form {
            Form::Steps(f) => f(self, n),
            Form::Elements(f) => {
                if let Some(schedule) = rule.schedule
                    && schedule(self, n)?
                {
                    return Ok(());
                }
                for &v in &node.results {
                    let wanted = needed.contains(&v) && !self.facts.inlined.contains(&v);
                    if wanted && !self.facts.contents.contains_key(&v) {
                        if rule.fuse == Fuse::Reshape && self.alias(n, v)? {
                            continue;
                        }
                        self.elements(n, v, f)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Makes a reshaped value another name of its operand, if that one is stored.
    fn alias(&mut self, n: NodeId, v: ValueId) -> Result<bool, OpError> {
        let Some(from) = self.facts.module.node(n).operand(0) else {
            return Ok(false);
        };
        let same = self.facts.elem(v)? == self.facts.elem(from)?;
        if !same
            || !self.facts.is_row_major(from)
            || self.facts.channels.contains_key(&v)
            || self.facts.inlined.contains(&from)
            || self.facts.contents.contains_key(&from)
        {
            return Ok(false);
        }
        let of = self.stored(from)?;
        self.declare(v, Place::Alias(of));
        Ok(true)
    }

    /// One kernel that computes every element of a node's result by `f`.
    pub fn elements(&mut self, n: NodeId, v: ValueId, f: ElementFn) -> Result<(), OpError> {
        let name = self.kernel_name(n);
        self.kernel(&name, v, |x| {
            let shape = x.facts.shape(v)?;
            let vars = x.body.loop_vars(&shape);
            let pos = Pos::At(vars.iter().map(|v| v.dim()).collect());
            let value = x.result_by(f, n, v, &pos)?;
            let order = x.facts.memory_order(v, shape.len());
            Ok(Spec {
                offset: x.facts.offset(&x.body, v, &shape, &pos),
                vars: order.into_iter().map(|i| vars[i]).collect(),
                mask: None,
                value,
                serial: vec![],
            })
        })
    }

    /// Name of a kernel for a node: its op after the ops computed in place.
    fn kernel_name(&self, n: NodeId) -> String {
        let module = &self.facts.module;
        let mut names = vec![module.node(n).op.name];
        let mut at = n;
        while let Some(&v) = module
            .node(at)
            .operands
            .iter()
            .flatten()
            .find(|v| self.facts.inlined.contains(v))
            && let Some(p) = module.producer(v)
            && names.len() < 4
        {
            names.push(module.node(p).op.name);
            at = p;
        }
        names.reverse();
        names.join("_")
    }

    /// One kernel that writes (part of) a stored value.
    pub fn kernel(
        &mut self,
        name: &str,
        out: ValueId,
        build: impl FnOnce(&mut Expand) -> Result<Spec, OpError>,
    ) -> Result<(), OpError> {
        let elem = self.facts.elem(out)?;
        let mut x = Expand::new(&self.facts);
        let spec = build(&mut x)?;
        let body = x.body;
        let empty = |v: &LoopVar| body.extent(*v).as_const() == Some(0);
        if spec.vars.iter().any(empty) {
            // Nothing to compute: a constant without elements.
            let (offset, bytes) = (0, 0);
            self.declare(out, Place::Weights { offset, bytes });
            return Ok(());
        }
        let Scheduled {
            kernel,
            args,
            grid,
            grain,
            flops,
        } = schedule(name, body, spec, (self.facts.root(out), elem), &self.target);
        self.launch(kernel, &args, &grid, grain, &flops)
    }

    /// Launches a kernel; values that it names are stored first.
    pub fn launch(
        &mut self,
        kernel: Kernel,
        args: &[KernelArg],
        grid: &Dim,
        grain: u32,
        flops: &Dim,
    ) -> Result<(), OpError> {
        let args = args
            .iter()
            .map(|a| {
                Ok(match a {
                    KernelArg::Value(v) => Arg::Buffer(self.stored(*v)?),
                    KernelArg::Size(d) => Arg::Size(self.size(d)?),
                })
            })
            .collect::<Result<_, OpError>>()?;
        let (grid, flops) = (self.size(grid)?, self.size(flops)?);
        let kernel = self.add_kernel(kernel);
        self.steps.push(Step::Launch {
            kernel,
            grid,
            grain,
            args,
            flops,
        });
        Ok(())
    }

    fn add_kernel(&mut self, kernel: Kernel) -> u32 {
        let key = format!(
            "{:?}",
            Kernel {
                name: String::new(),
                ..kernel.clone()
            }
        );
        if let Some(&k) = self.known_kernels.get(&key) {
            return k;
        }
        let k = self.kernels.len() as u32;
        self.program.kernels.push(KernelDecl {
            name: kernel.name.clone(),
            code_offset: u64::from(k),
            scratch_bytes: kernel.scratch_bytes(),
        });
        self.kernels.push(kernel);
        self.known_kernels.insert(key, k);
        k
    }

    /// Binds the symbols that appear for the first time as dimensions of these values.
    pub(super) fn bind_results(&mut self, values: &[ValueId], indices: &[ValueIndex]) {
        for (&v, &value) in values.iter().zip(indices) {
            let shape = self.facts.module.value(v).ty.shape().map(<[Dim]>::to_vec);
            for (axis, d) in shape.unwrap_or_default().iter().enumerate() {
                let mut names = vec![];
                d.visit_symbols(&mut |s| names.push(s.to_owned()));
                if let [name] = names.as_slice()
                    && *d == Dim::sym(name)
                    && self.bound.insert(name.clone())
                {
                    let symbol = self.symbol(name);
                    self.steps.push(Step::BindDim {
                        symbol,
                        value,
                        axis: axis as u32,
                    });
                }
            }
        }
    }

    /// Writes a region as a block whose parameters are the region's inputs.
    pub(super) fn block(&mut self, r: RegionId) -> Result<Block, OpError> {
        self.block_after(r, |_, inputs| Ok(inputs.to_vec()))
    }

    /// Writes a region as a block. `enter` gets the region's inputs, writes the first steps, and returns the
    /// block's parameters.
    pub(super) fn block_after(
        &mut self,
        r: RegionId,
        enter: impl FnOnce(&mut Self, &[ValueIndex]) -> Result<Vec<ValueIndex>, OpError>,
    ) -> Result<Block, OpError> {
        let outer = std::mem::take(&mut self.steps);
        let outer_local = std::mem::take(&mut self.local);
        let bound = self.bound.clone();
        self.depth += 1;
        let region = self.facts.module.region(r).clone();
        let inputs: Vec<ValueIndex> = region
            .inputs
            .iter()
            .map(|&v| self.declare(v, Place::Heap))
            .collect();
        let params = enter(self, &inputs);
        self.bind_results(&region.inputs, &inputs);
        self.region(r);
        let results = region
            .outputs
            .iter()
            .map(|&v| self.stored(v))
            .collect::<Result<Vec<_>, _>>();
        self.depth -= 1;
        self.bound = bound;
        for v in std::mem::replace(&mut self.local, outer_local) {
            self.indices.remove(&v);
        }
        let steps = std::mem::replace(&mut self.steps, outer);
        Ok(Block {
            params: params?,
            steps,
            results: results?,
        })
    }

    /// True if a value made by lowering can be used here.
    pub(super) fn is_declared(&self, v: ValueId) -> bool {
        self.indices.contains_key(&v)
    }

    /// True if products of numbers and constant weights are of `bf16`: the user allows it, and the target has micro-kernels for it.
    pub(super) fn multiplies_bf16(&self) -> bool {
        let has = self.target.features.contains(&Feature::Avx512Bf16);
        self.options.bf16 && has && self.target.micro_kernels
    }

    /// Columns of the panels of a product of `bf16` for `m` rows, `n` columns and `k` elements of each, if it is to be one; `possible`:
    /// it is one of numbers, with constant weights.
    pub(super) fn width_bf16(&self, possible: bool, sizes: [i64; 3]) -> Option<u32> {
        let width = || width_bf16(sizes, self.target.l2_bytes);
        (possible && self.multiplies_bf16()).then(width).flatten()
    }

    /// A value that other blocks cannot see.
    pub(super) fn mark_local(&mut self, v: ValueId) {
        self.local.push(v);
    }

    pub(super) fn step(&mut self, step: Step) {
        self.steps.push(step);
    }
}

fn visit_symbols(ty: &Type, f: &mut dyn FnMut(&str)) {
    match ty {
        Type::Tensor(t) => t.shape.iter().flatten().for_each(|d| d.visit_symbols(f)),
        Type::Sequence(t) | Type::Optional(t) => visit_symbols(t, f),
    }
}

fn count_launches(block: &Block) -> usize {
    block
        .steps
        .iter()
        .map(|s| match s {
            Step::Launch { .. } => 1,
            Step::If {
                then_block,
                else_block,
                ..
            } => count_launches(then_block) + count_launches(else_block),
            Step::Loop { body, .. } => count_launches(body),
            _ => 0,
        })
        .sum()
}
