//! The reference evaluator: runs a module on concrete values. It *is* the meaning of the graph IR, so it is
//! written to be read: one node after the other, no fusion, no threads, values freed after their last use.
//!
//! * [`run`] evaluates a whole module;
//! * [`eval_node`] evaluates one node of a module on given operands (what constant folding needs);
//! * [`eval_op`] evaluates an op on values, without a module (what tests need).
//!
//! An op with [`Eval::Direct`] is its function. One with [`Eval::Decompose`] is built in a scratch module
//! from the types (and, when small, the contents) of its actual operands, and that module is run.
//! Control-flow ops are in `control`.

mod control;
#[cfg(test)]
pub mod testing;

use crate::builder::{Builder, SMALL_CONSTANT, infer_node};
use crate::graph::Node;
use crate::ops::{Eval, EvalCtx, OpError};
use crate::tensor::{Data, Tensor, Value, count};
use crate::{Attrs, ConstId, Constant, Module, NodeId, Op, RegionId, Type, ValueId};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Why a module cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{node}` ({op}): {reason}")]
pub struct EvalError {
    /// Path of the node in the source model, or the module's name.
    pub node: String,
    /// The op, empty if no node is at fault.
    pub op: String,
    /// What is wrong.
    pub reason: String,
}

/// Constants up to this many elements stay decoded between uses.
const KEEP_DECODED: usize = 1 << 20;

/// Decompositions nest at most this deep (a table entry that decomposes into itself is a bug, not a hang).
const MAX_DEPTH: usize = 32;

/// Evaluates a module: the top region's inputs in, its outputs out.
pub fn run(module: &Module, inputs: Vec<Value>) -> Result<Vec<Value>, EvalError> {
    let top = module.top();
    let fail = |reason: String| EvalError {
        node: module.name.clone(),
        op: String::new(),
        reason,
    };
    if inputs.len() != top.inputs.len() {
        return Err(fail(format!(
            "{} inputs are given, {} are expected",
            inputs.len(),
            top.inputs.len()
        )));
    }
    for (&id, value) in top.inputs.iter().zip(&inputs) {
        let info = module.value(id);
        if !fits(value, &info.ty) {
            let found =
                type_of(value).map_or("an empty sequence or optional".into(), |t| t.to_string());
            return Err(fail(format!(
                "input `{}` must be `{}`, found `{found}`",
                info.name, info.ty
            )));
        }
    }
    let inputs = inputs.into_iter().map(Rc::new).collect();
    let out = Evaluator::new(module, 0).region(Module::TOP, inputs, None)?;
    Ok(out.into_iter().map(take).collect())
}

/// Evaluates one node of `module` on these operands. Regions of a control-flow node may not use values from
/// outside it, other than constants.
pub fn eval_node(
    module: &Module,
    id: NodeId,
    operands: &[Option<&Value>],
) -> Result<Vec<Value>, EvalError> {
    let operands: Vec<Option<Rc<Value>>> = operands
        .iter()
        .map(|o| o.map(|v| Rc::new(v.clone())))
        .collect();
    let out = Evaluator::new(module, 0).node(id, &operands, &Frame::default())?;
    Ok(out.into_iter().map(take).collect())
}

/// Evaluates an op without regions on these operands, for its first `n_results` results.
pub fn eval_op(
    op: &str,
    operands: &[Option<Value>],
    attrs: Attrs,
    n_results: usize,
) -> Result<Vec<Value>, EvalError> {
    let fail = |reason: String| EvalError {
        node: String::new(),
        op: op.to_owned(),
        reason,
    };
    let def = Op::named(op).ok_or_else(|| fail("there is no such op".into()))?;
    let operands: Vec<_> = operands.iter().map(|o| o.clone().map(Rc::new)).collect();
    let mut scratch = Scratch::new(&operands).map_err(|e| fail(e.0))?;
    let id = scratch
        .module
        .make_node(def, "", scratch.ids.clone(), attrs, vec![], vec![]);
    let mut types = infer_node(&scratch.module, id, &scratch.fresh).map_err(|e| fail(e.0))?;
    types.truncate(n_results);
    scratch.module.set_result_types(id, types);
    let out = Evaluator::new(&scratch.module, 0).node(id, &operands, &Frame::default())?;
    Ok(out.into_iter().map(take).collect())
}

/// The exact type of a value; `None` for an empty sequence or optional, whose element type it cannot tell.
pub fn type_of(value: &Value) -> Option<Type> {
    match value {
        Value::Tensor(t) => Some(Type::tensor(t.elem(), t.shape().iter().copied())),
        Value::Sequence(items) => {
            let mut types = items.iter().map(type_of);
            let first = types.next()??;
            let fresh = Cell::new(0);
            let ty = types.try_fold(first, |a, b| {
                crate::ops::control::join(&a, &b?, &fresh).ok()
            })?;
            Some(Type::Sequence(Box::new(ty)))
        }
        Value::Optional(v) => Some(Type::Optional(Box::new(type_of(v.as_deref()?)?))),
    }
}

/// True if a value can have this type; symbols fit every size.
pub fn fits(value: &Value, ty: &Type) -> bool {
    match (value, ty) {
        (Value::Tensor(t), Type::Tensor(ty)) => {
            t.elem() == ty.elem
                && ty.shape.as_ref().is_none_or(|shape| {
                    shape.len() == t.rank()
                        && shape
                            .iter()
                            .zip(t.shape())
                            .all(|(d, &n)| d.as_const().is_none_or(|d| d == n as i64))
                })
        }
        (Value::Sequence(items), Type::Sequence(ty)) => items.iter().all(|v| fits(v, ty)),
        (Value::Optional(None), Type::Optional(_)) => true,
        (Value::Optional(Some(v)), Type::Optional(ty)) => fits(v, ty),
        // ONNX lets a plain value stand for a filled optional.
        (v, Type::Optional(ty)) => fits(v, ty),
        _ => false,
    }
}

fn take(value: Rc<Value>) -> Value {
    Rc::try_unwrap(value).unwrap_or_else(|shared| (*shared).clone())
}

/// Values of one region under evaluation, and the regions around it.
#[derive(Default)]
struct Frame<'a> {
    values: HashMap<ValueId, Rc<Value>>,
    outer: Option<&'a Frame<'a>>,
}

impl Frame<'_> {
    fn get(&self, id: ValueId) -> Option<Rc<Value>> {
        match self.values.get(&id) {
            Some(v) => Some(v.clone()),
            None => self.outer?.get(id),
        }
    }
}

struct Evaluator<'m> {
    module: &'m Module,
    decoded: RefCell<HashMap<ConstId, Rc<Value>>>,
    /// Which values die after each node of a region; computed once per region.
    deaths: RefCell<HashMap<RegionId, Rc<Vec<Vec<ValueId>>>>>,
    depth: usize,
}

impl<'m> Evaluator<'m> {
    fn new(module: &'m Module, depth: usize) -> Evaluator<'m> {
        Evaluator {
            module,
            decoded: RefCell::default(),
            deaths: RefCell::default(),
            depth,
        }
    }

    /// Runs a region.
    fn region(
        &self,
        id: RegionId,
        inputs: Vec<Rc<Value>>,
        outer: Option<&Frame>,
    ) -> Result<Vec<Rc<Value>>, EvalError> {
        let region = self.module.region(id);
        let mut frame = Frame {
            values: region.inputs.iter().copied().zip(inputs).collect(),
            outer,
        };
        let deaths = self.deaths(id);
        for (&n, dead) in region.nodes.iter().zip(deaths.iter()) {
            let node = self.module.node(n);
            let operands = node
                .operands
                .iter()
                .map(|o| o.map(|v| self.value(v, &frame)).transpose())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|reason| error(node, reason))?;
            let results = self.node(n, &operands, &frame)?;
            drop(operands);
            frame
                .values
                .extend(node.results.iter().copied().zip(results));
            for v in dead {
                frame.values.remove(v);
            }
        }
        region
            .outputs
            .iter()
            .map(|&v| {
                self.value(v, &frame).map_err(|reason| EvalError {
                    node: self.module.name.clone(),
                    op: String::new(),
                    reason,
                })
            })
            .collect()
    }

    /// Values of `id` that no later node of the region needs, by node.
    fn deaths(&self, id: RegionId) -> Rc<Vec<Vec<ValueId>>> {
        if let Some(known) = self.deaths.borrow().get(&id) {
            return known.clone();
        }
        let region = self.module.region(id);
        let mut needed: HashSet<ValueId> = region.outputs.iter().copied().collect();
        let mut out = vec![vec![]; region.nodes.len()];
        for (i, &n) in region.nodes.iter().enumerate().rev() {
            let node = self.module.node(n);
            let mut used = node.results.clone();
            used.extend(node.operands.iter().flatten());
            self.free_uses(&node.regions, &mut used);
            out[i] = used.into_iter().filter(|&v| needed.insert(v)).collect();
        }
        let out = Rc::new(out);
        self.deaths.borrow_mut().insert(id, out.clone());
        out
    }

    fn free_uses(&self, regions: &[RegionId], used: &mut Vec<ValueId>) {
        for &r in regions {
            let region = self.module.region(r);
            used.extend(&region.outputs);
            for &n in &region.nodes {
                let node = self.module.node(n);
                used.extend(node.operands.iter().flatten());
                self.free_uses(&node.regions, used);
            }
        }
    }

    fn value(&self, id: ValueId, frame: &Frame) -> Result<Rc<Value>, String> {
        let crate::graph::Def::Constant(c) = self.module.value(id).def else {
            return frame.get(id).ok_or_else(|| {
                format!(
                    "value `{}` is used before it is defined",
                    self.module.value(id).name
                )
            });
        };
        if let Some(v) = self.decoded.borrow().get(&c) {
            return Ok(v.clone());
        }
        let tensor = self
            .module
            .constant(c)
            .decode()
            .map_err(|e| e.to_string())?;
        let keep = tensor.len() <= KEEP_DECODED;
        let value = Rc::new(Value::Tensor(tensor));
        if keep {
            self.decoded.borrow_mut().insert(c, value.clone());
        }
        Ok(value)
    }

    /// Evaluates one node.
    fn node(
        &self,
        id: NodeId,
        operands: &[Option<Rc<Value>>],
        frame: &Frame,
    ) -> Result<Vec<Rc<Value>>, EvalError> {
        let node = self.module.node(id);
        let mut results = match node.op.eval {
            Eval::Direct(eval) => {
                let ctx = EvalCtx {
                    node,
                    operands: operands.iter().map(Option::as_deref).collect(),
                    result_types: node
                        .results
                        .iter()
                        .map(|&v| &self.module.value(v).ty)
                        .collect(),
                };
                let values = eval(&ctx).map_err(|e| error(node, e.0))?;
                values.into_iter().map(Rc::new).collect()
            }
            Eval::Decompose => self.decomposed(node, operands)?,
            Eval::Control => self.control(node, operands, frame)?,
        };
        if results.len() < node.results.len() {
            let reason = format!(
                "gives {} results, {} are used",
                results.len(),
                node.results.len()
            );
            return Err(error(node, reason));
        }
        results.truncate(node.results.len());
        Ok(results)
    }

    /// Evaluates a node by its decomposition for exactly these operands.
    fn decomposed(
        &self,
        node: &Node,
        operands: &[Option<Rc<Value>>],
    ) -> Result<Vec<Rc<Value>>, EvalError> {
        let fail = |e: OpError| error(node, e.0);
        let decompose = node
            .op
            .decompose
            .ok_or_else(|| error(node, "has neither an evaluation nor a decomposition".into()))?;
        if self.depth >= MAX_DEPTH {
            return Err(error(node, "decomposes without end".into()));
        }
        let mut scratch = Scratch::new(operands).map_err(fail)?;
        let (module, fresh) = (&mut scratch.module, &scratch.fresh);
        let attrs = node.attrs.clone();
        let id = module.make_node(node.op, &node.name, scratch.ids, attrs, vec![], vec![]);
        let mut types = infer_node(module, id, fresh).map_err(fail)?;
        types.truncate(node.results.len());
        module.set_result_types(id, types);
        let copy = module.node(id).clone();
        let mut builder = Builder::new(module, Module::TOP, &node.name, fresh);
        let outputs = decompose(&mut builder, &copy).map_err(fail)?;
        module.region_mut(Module::TOP).outputs = outputs;
        Evaluator::new(module, self.depth + 1)
            .region(Module::TOP, scratch.inputs, None)
            .map_err(|e| {
                error(
                    node,
                    format!("in its decomposition, `{}`: {}", e.op, e.reason),
                )
            })
    }
}

fn error(node: &Node, reason: String) -> EvalError {
    EvalError {
        node: node.name.clone(),
        op: node.op.name.to_owned(),
        reason,
    }
}

/// A module with a value for each operand: a constant where it is small, so that type rules see its
/// contents, else an input.
struct Scratch {
    module: Module,
    ids: Vec<Option<ValueId>>,
    inputs: Vec<Rc<Value>>,
    fresh: Cell<u32>,
}

impl Scratch {
    fn new(operands: &[Option<Rc<Value>>]) -> Result<Scratch, OpError> {
        let mut module = Module::new("decomposition");
        let mut inputs = vec![];
        let ids = operands
            .iter()
            .map(|o| {
                let Some(value) = o else { return Ok(None) };
                if let Value::Tensor(t) = &**value
                    && is_small(t)
                {
                    return Ok(Some(module.add_constant("", Constant::from_tensor(t))));
                }
                let ty = type_of(value).unwrap_or_else(|| empty_type(value));
                inputs.push(value.clone());
                Ok(Some(module.add_input(Module::TOP, "", ty)))
            })
            .collect::<Result<_, _>>()?;
        Ok(Scratch {
            module,
            ids,
            inputs,
            fresh: Cell::new(0),
        })
    }
}

fn is_small(t: &Tensor) -> bool {
    t.len() <= SMALL_CONSTANT && !matches!(t.data(), Data::Str(_))
}

/// A type for values that do not tell theirs (nothing in them can be of the wrong type).
fn empty_type(value: &Value) -> Type {
    let unknown = || Box::new(Type::unranked(crate::ElemType::F32));
    match value {
        Value::Optional(_) => Type::Optional(unknown()),
        _ => Type::Sequence(unknown()),
    }
}

/// An all-zero tensor of a tensor type, unknown dimensions taken as 0.
fn empty_of(ty: &Type) -> Option<Tensor> {
    let t = ty.as_tensor()?;
    let shape: Vec<usize> = t
        .shape
        .iter()
        .flatten()
        .map(|d| {
            d.as_const()
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(0)
        })
        .collect();
    (count(&shape) == 0).then(|| Tensor::zeros(t.elem, shape))
}
