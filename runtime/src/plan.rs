//! A program checked once and made ready to run: indices in range, places inside their blobs, operations
//! known, aliases resolved, and for each block which heap values begin in it.

use crate::error::RunError;
use crate::ops::{self, Function};
use crate::sizes;
use lapidary_abi::program::{
    Arg, Block, CallAttr, Detail, KernelDecl, Place, Port, Program, Step, ValueIndex, ValueType,
};
use lapidary_abi::{ElemType, Size};

mod mixtures;

pub use mixtures::{Expert, Mixture, Part};

/// Blocks nested deeper than this are refused, so that running them cannot exhaust the stack.
const MAX_DEPTH: usize = 100;

/// Most scratch that a kernel may ask for.
const MAX_SCRATCH: u64 = 1 << 32;

pub struct Plan {
    pub name: String,
    pub symbols: Vec<String>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    pub states: Vec<Port>,
    pub values: Vec<Decl>,
    pub kernels: Vec<KernelDecl>,
    /// Run once, when the model is loaded.
    pub prepare: Body,
    pub body: Body,
    pub arena_bytes: usize,
    pub prepared_bytes: usize,
    pub scratch_bytes: usize,
    pub weights_bytes: u64,
    /// Parts of the weights that runs may leave out.
    pub detail: Option<Detail>,
}

/// A value: its own type, and the place of the value it is an alias of.
pub struct Decl {
    pub ty: ValueType,
    pub place: Place,
    /// The value that has the place: itself, unless it is an alias.
    pub root: usize,
    /// Dimensions, when they are constant.
    pub dims: Option<Vec<usize>>,
}

/// A checked block.
pub struct Body {
    pub params: Vec<ValueIndex>,
    pub ops: Vec<Op>,
    pub results: Vec<ValueIndex>,
    /// Heap values that the block defines itself; emptied whenever it begins anew.
    pub locals: Vec<ValueIndex>,
}

/// A checked step.
pub enum Op {
    Launch {
        kernel: usize,
        grid: Size,
        grain: u32,
        args: Vec<Arg>,
        flops: Size,
        /// Values without a fixed place that this launch writes first: they are allocated here.
        fresh: Vec<ValueIndex>,
    },
    Call {
        function: Function,
        op: String,
        attrs: Vec<(String, CallAttr)>,
        operands: Vec<Option<ValueIndex>>,
        results: Vec<ValueIndex>,
    },
    BindDim {
        symbol: usize,
        value: ValueIndex,
        axis: usize,
    },
    BindElement {
        symbol: usize,
        value: ValueIndex,
        element: usize,
    },
    Move {
        from: ValueIndex,
        to: ValueIndex,
    },
    If {
        condition: ValueIndex,
        then_body: Body,
        else_body: Body,
        results: Vec<ValueIndex>,
    },
    Loop(Box<Loop>),
    Free {
        value: ValueIndex,
    },
    Require {
        left: Size,
        right: Size,
        message: String,
    },
    Experts(Mixture),
}

pub struct Loop {
    pub trip_count: Option<ValueIndex>,
    pub condition: Option<ValueIndex>,
    pub carried: Vec<ValueIndex>,
    pub body: Body,
    pub results: Vec<ValueIndex>,
    pub scan_types: Vec<ValueType>,
}

fn bad<T>(message: impl Into<String>) -> Result<T, RunError> {
    Err(RunError::Program(message.into()))
}

/// Checks `program` against the lengths of its code and weights.
pub fn prepare(
    program: Program,
    code_bytes: usize,
    weights_bytes: usize,
) -> Result<Plan, RunError> {
    let memory = |bytes: u64| {
        let bytes = usize::try_from(bytes).ok();
        bytes
            .filter(|&b| b <= isize::MAX as usize / 2)
            .ok_or_else(|| RunError::program("the arena is too large"))
    };
    let arena_bytes = memory(program.arena_bytes)?;
    let prepared_bytes = memory(program.prepared_bytes)?;
    if program.weights_bytes > weights_bytes as u64 {
        return bad(format!(
            "needs {} bytes of weights, found {weights_bytes}",
            program.weights_bytes
        ));
    }
    if let Some(detail) = &program.detail {
        check_detail(detail, &program)?;
    }
    let mut scratch_bytes = 0;
    for kernel in &program.kernels {
        if kernel.code_offset >= code_bytes as u64 || kernel.scratch_bytes > MAX_SCRATCH {
            return bad(format!("kernel `{}` is out of range", kernel.name));
        }
        scratch_bytes = scratch_bytes.max(kernel.scratch_bytes as usize);
    }
    let limits = Limits {
        arena: arena_bytes as u64,
        prepared: prepared_bytes as u64,
        weights: weights_bytes as u64,
        inputs: program.inputs.len(),
        outputs: program.outputs.len(),
        states: program.states.len(),
    };
    let values = declare(&program, &limits)?;
    let mut checker = Checker {
        program: &program,
        values: &values,
        defined: vec![false; values.len()],
    };
    // No input is there when the model is loaded.
    let prepare = checker.block(&program.prepare, 0)?;
    for port in &program.inputs {
        checker.value(port.value)?;
        checker.define(port.value);
    }
    let mut body = checker.block(&program.body, 0)?;
    body.ops = mixtures::gather(body.ops, &program.mixtures, &values)?;
    for port in program.outputs.iter().chain(&program.inputs) {
        checker.value(port.value)?;
        checker.ty(&port.ty)?;
    }
    for (n, port) in program.states.iter().enumerate() {
        let decl = checker.value(port.value)?;
        let own = matches!(decl.place, Place::State(m) if m as usize == n);
        if !own || decl.ty != port.ty {
            return bad(format!("the state `{}` has no place of its own", port.name));
        }
    }
    Ok(Plan {
        prepare,
        body,
        values,
        arena_bytes,
        prepared_bytes,
        scratch_bytes,
        weights_bytes: program.weights_bytes,
        detail: program.detail,
        name: program.name,
        symbols: program.symbols,
        inputs: program.inputs,
        outputs: program.outputs,
        states: program.states,
        kernels: program.kernels,
    })
}

/// Parts lie one behind the other among the weights.
fn check_detail(detail: &Detail, program: &Program) -> Result<(), RunError> {
    let mut end = 0u64;
    for part in &detail.parts {
        let begin = if part.bytes == 0 { end } else { part.offset };
        let next = begin.checked_add(part.bytes).filter(|_| begin >= end);
        end = next.ok_or_else(|| RunError::program("parts of the weights overlap"))?;
    }
    if end > program.weights_bytes || detail.symbol as usize >= program.symbols.len() {
        return bad("parts of the weights are out of range");
    }
    Ok(())
}

struct Limits {
    arena: u64,
    prepared: u64,
    weights: u64,
    inputs: usize,
    outputs: usize,
    states: usize,
}

fn declare(program: &Program, limits: &Limits) -> Result<Vec<Decl>, RunError> {
    let mut values = Vec::with_capacity(program.values.len());
    for (index, decl) in program.values.iter().enumerate() {
        let root = root_of(program, index)?;
        let place = program.values[root].place.clone();
        let dims = match &decl.ty {
            ValueType::Tensor { dims: Some(d), .. } => sizes::dims(d, &[]),
            _ => None,
        };
        let bytes = match (&decl.ty, &dims) {
            (ValueType::Tensor { elem, .. }, Some(dims)) => Some(byte_len(*elem, dims)?),
            _ => None,
        };
        check_place(&place, &decl.ty, bytes, limits)
            .map_err(|m| RunError::Program(format!("value {index} {m}")))?;
        values.push(Decl {
            ty: decl.ty.clone(),
            place,
            root,
            dims,
        });
    }
    Ok(values)
}

fn root_of(program: &Program, mut index: usize) -> Result<usize, RunError> {
    for _ in 0..=program.values.len() {
        match program.values.get(index).map(|d| &d.place) {
            None => return bad("an alias of a value that does not exist"),
            Some(Place::Alias(next)) => index = *next as usize,
            Some(_) => return Ok(index),
        }
    }
    bad("aliases in a circle")
}

fn check_place(
    place: &Place,
    ty: &ValueType,
    bytes: Option<usize>,
    limits: &Limits,
) -> Result<(), &'static str> {
    let inside = |offset: u64, end: u64| {
        let fits = offset
            .checked_add(bytes.unwrap_or(0) as u64)
            .is_some_and(|e| e <= end);
        if !offset.is_multiple_of(64) {
            Err("is not aligned")
        } else if !fits {
            Err("lies outside its memory")
        } else {
            Ok(())
        }
    };
    let is_plain_tensor = matches!(ty, ValueType::Tensor { elem, .. } if *elem != ElemType::String);
    match place {
        Place::Arena { .. } | Place::Prepared { .. } | Place::Weights { .. } | Place::State(_)
            if !is_plain_tensor =>
        {
            Err("is no tensor of numbers but has a fixed place")
        }
        Place::Arena { offset } => inside(*offset, limits.arena),
        Place::Prepared { offset } => inside(*offset, limits.prepared),
        Place::Weights { offset, bytes } => {
            let end = offset.checked_add(*bytes).filter(|&e| e <= limits.weights);
            inside(*offset, end.ok_or("lies outside the weights")?)
        }
        Place::Input(n) if *n as usize >= limits.inputs => Err("is an input that does not exist"),
        Place::Output(n) if *n as usize >= limits.outputs => {
            Err("is an output that does not exist")
        }
        Place::State(n) if *n as usize >= limits.states => Err("is a state that does not exist"),
        _ => Ok(()),
    }
}

/// Bytes of a tensor; an error when no address space could hold it.
pub fn byte_len(elem: ElemType, dims: &[usize]) -> Result<usize, RunError> {
    if dims.contains(&0) {
        return Ok(0);
    }
    dims.iter()
        .try_fold(elem.size_bytes(), |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize / 2)
        .ok_or_else(|| RunError::Program(format!("a tensor of shape {dims:?} is too large")))
}

struct Checker<'a> {
    program: &'a Program,
    values: &'a [Decl],
    /// For roots without a fixed place: whether a step before this one defined it.
    defined: Vec<bool>,
}

impl Checker<'_> {
    fn value(&self, value: ValueIndex) -> Result<&Decl, RunError> {
        match self.values.get(value as usize) {
            Some(decl) => Ok(decl),
            None => bad(format!("value {value} does not exist")),
        }
    }

    fn values(&self, values: &[ValueIndex]) -> Result<(), RunError> {
        values.iter().try_for_each(|&v| self.value(v).map(|_| ()))
    }

    fn symbol(&self, symbol: u32) -> Result<usize, RunError> {
        if (symbol as usize) < self.program.symbols.len() {
            Ok(symbol as usize)
        } else {
            bad(format!("symbol {symbol} does not exist"))
        }
    }

    fn ty(&self, ty: &ValueType) -> Result<(), RunError> {
        match ty {
            ValueType::Sequence(of) | ValueType::Optional(of) => self.ty(of),
            ValueType::Tensor { .. } => Ok(()),
        }
    }

    fn define(&mut self, value: ValueIndex) -> bool {
        let Some(decl) = self.values.get(value as usize) else {
            return false;
        };
        let root = decl.root;
        if !matches!(self.values[root].place, Place::Heap | Place::Output(_)) {
            return false;
        }
        !std::mem::replace(&mut self.defined[root], true)
    }

    fn define_all(
        &mut self,
        values: &[ValueIndex],
        locals: &mut Vec<ValueIndex>,
    ) -> Result<(), RunError> {
        self.values(values)?;
        for &v in values {
            if self.define(v) {
                locals.push(self.values[v as usize].root as ValueIndex);
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &Block, depth: usize) -> Result<Body, RunError> {
        if depth > MAX_DEPTH {
            return bad("blocks are nested too deep");
        }
        let mut locals = Vec::new();
        self.define_all(&block.params, &mut locals)?;
        let mut ops = Vec::with_capacity(block.steps.len());
        for step in &block.steps {
            ops.push(self.step(step, depth, &mut locals)?);
        }
        self.values(&block.results)?;
        // What a block defined is not visible outside; a later block may define it again.
        for &local in &locals {
            self.defined[local as usize] = depth == 0;
        }
        Ok(Body {
            params: block.params.clone(),
            ops,
            results: block.results.clone(),
            locals: locals
                .into_iter()
                .filter(|l| !block.params.contains(l))
                .collect(),
        })
    }

    fn step(
        &mut self,
        step: &Step,
        depth: usize,
        locals: &mut Vec<ValueIndex>,
    ) -> Result<Op, RunError> {
        Ok(match step {
            Step::Launch {
                kernel,
                grid,
                grain,
                args,
                flops,
            } => {
                let Some(decl) = self.program.kernels.get(*kernel as usize) else {
                    return bad(format!("kernel {kernel} does not exist"));
                };
                let fresh = self.launch_args(&decl.name, args, locals)?;
                Op::Launch {
                    kernel: *kernel as usize,
                    grid: grid.clone(),
                    grain: *grain,
                    args: args.clone(),
                    flops: flops.clone(),
                    fresh,
                }
            }
            Step::Call {
                op,
                attrs,
                operands,
                results,
            } => {
                let Some(function) = ops::find(op) else {
                    return bad(format!("this runtime has no operation `{op}`"));
                };
                for &operand in operands.iter().flatten() {
                    self.value(operand)?;
                }
                for (_, attr) in attrs {
                    if let CallAttr::Value(v) = attr {
                        self.value(*v)?;
                    }
                }
                self.define_all(results, locals)?;
                Op::Call {
                    function,
                    op: op.clone(),
                    attrs: attrs.clone(),
                    operands: operands.clone(),
                    results: results.clone(),
                }
            }
            Step::BindDim {
                symbol,
                value,
                axis,
            } => {
                self.value(*value)?;
                Op::BindDim {
                    symbol: self.symbol(*symbol)?,
                    value: *value,
                    axis: *axis as usize,
                }
            }
            Step::BindElement {
                symbol,
                value,
                element,
            } => {
                self.value(*value)?;
                Op::BindElement {
                    symbol: self.symbol(*symbol)?,
                    value: *value,
                    element: *element as usize,
                }
            }
            Step::Move { from, to } => {
                self.value(*from)?;
                self.define_all(&[*to], locals)?;
                Op::Move {
                    from: *from,
                    to: *to,
                }
            }
            Step::Free { value } => {
                self.value(*value)?;
                Op::Free { value: *value }
            }
            Step::Require {
                left,
                right,
                message,
            } => Op::Require {
                left: left.clone(),
                right: right.clone(),
                message: message.clone(),
            },
            Step::If {
                condition,
                then_block,
                else_block,
                results,
            } => {
                self.value(*condition)?;
                if then_block.results.len() != results.len()
                    || else_block.results.len() != results.len()
                {
                    return bad("a branch yields another number of values than its condition step");
                }
                let then_body = self.block(then_block, depth + 1)?;
                let else_body = self.block(else_block, depth + 1)?;
                self.define_all(results, locals)?;
                Op::If {
                    condition: *condition,
                    then_body,
                    else_body,
                    results: results.clone(),
                }
            }
            Step::Loop {
                trip_count,
                condition,
                carried,
                body,
                results,
                scan_types,
            } => {
                for &v in trip_count.iter().chain(condition).chain(carried) {
                    self.value(v)?;
                }
                let (n, scans) = (carried.len(), scan_types.len());
                if body.params.len() != n + 2
                    || body.results.len() != n + 1 + scans
                    || results.len() != n + scans
                {
                    return bad("a loop and its body differ in number of values");
                }
                let body = self.block(body, depth + 1)?;
                self.define_all(results, locals)?;
                Op::Loop(Box::new(Loop {
                    trip_count: *trip_count,
                    condition: *condition,
                    carried: carried.clone(),
                    body,
                    results: results.clone(),
                    scan_types: scan_types.clone(),
                }))
            }
        })
    }

    fn launch_args(
        &mut self,
        kernel: &str,
        args: &[Arg],
        locals: &mut Vec<ValueIndex>,
    ) -> Result<Vec<ValueIndex>, RunError> {
        let mut fresh = Vec::new();
        for arg in args {
            let Arg::Buffer(v) = arg else { continue };
            let is_plain = matches!(&self.value(*v)?.ty, ValueType::Tensor { elem, .. } if *elem != ElemType::String);
            if !is_plain || matches!(self.value(*v)?.place, Place::Strings(_)) {
                return bad(format!(
                    "kernel `{kernel}` is given a value that has no elements in memory"
                ));
            }
            let root = self.value(*v)?.root as ValueIndex;
            if self.define(root) {
                fresh.push(root);
                locals.push(root);
            }
        }
        Ok(fresh)
    }
}
