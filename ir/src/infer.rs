//! Shape and type inference over a whole module: runs each op's type rule in order, regions included.
//!
//! A rule's result *refines* what is known of a value (from an earlier run, or declared by the source
//! model): a number beats a symbol, and a name from the model beats one of the compiler's own (`?7`).
//! What a rule derives beats what was declared.

use crate::builder::infer_node;
use crate::ops::control::{join, region_input_types};
use crate::types::TensorType;
use crate::{Constant, Dim, Module, NodeId, RegionId, Type, ValueId};
use std::cell::Cell;
use std::collections::BTreeMap;

/// A node whose type rule failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{node}` ({op}): {reason}")]
pub struct InferError {
    /// Path of the node in the source model.
    pub node: String,
    /// The op.
    pub op: String,
    /// What is wrong.
    pub reason: String,
}

/// Rounds after which a loop's carried types are made unranked rather than widened once more.
const MAX_ROUNDS: usize = 4;

/// Infers the types of all values; gathers every error. Results of a failing node keep their types.
pub fn infer_module(module: &mut Module) -> Vec<InferError> {
    for v in (0..module.value_count() as u32).map(ValueId) {
        if let Some(ty) = module.as_constant(v).map(Constant::ty) {
            module.value_mut(v).ty = ty;
        }
    }
    let mut run = Inference {
        fresh: Cell::new(first_fresh(module)),
        module,
        errors: vec![],
    };
    run.region(Module::TOP);
    run.errors
}

/// Gives symbols values in every type, and infers again.
pub fn bind_symbols(module: &mut Module, values: &BTreeMap<String, i64>) -> Vec<InferError> {
    for i in 0..module.value_count() {
        let info = module.value_mut(ValueId(i as u32));
        info.ty = info
            .ty
            .substitute(&|name| values.get(name).map(|&v| Dim::from(v)));
    }
    infer_module(module)
}

/// A number above those of all `?n` symbols in the module.
pub fn first_fresh(module: &Module) -> u32 {
    let mut first = 0;
    for i in 0..module.value_count() {
        visit_dims(&module.value(ValueId(i as u32)).ty, &mut |d| {
            d.visit_symbols(&mut |name| {
                if let Some(n) = name.strip_prefix('?').and_then(|n| n.parse::<u32>().ok()) {
                    first = first.max(n.saturating_add(1));
                }
            });
        });
    }
    first
}

fn visit_dims(ty: &Type, f: &mut dyn FnMut(&Dim)) {
    match ty {
        Type::Tensor(t) => t.shape.iter().flatten().for_each(f),
        Type::Sequence(t) | Type::Optional(t) => visit_dims(t, f),
    }
}

struct Inference<'m> {
    module: &'m mut Module,
    fresh: Cell<u32>,
    errors: Vec<InferError>,
}

impl Inference<'_> {
    fn region(&mut self, id: RegionId) {
        for node in self.module.region(id).nodes.clone() {
            if let Err(reason) = self.node(node) {
                let node = self.module.node(node);
                self.errors.push(InferError {
                    node: node.name.clone(),
                    op: node.op.name.to_owned(),
                    reason,
                });
            }
        }
    }

    fn node(&mut self, id: NodeId) -> Result<(), String> {
        if !self.module.node(id).regions.is_empty() {
            self.bodies(id)?;
        }
        let types = infer_node(self.module, id, &self.fresh).map_err(|e| e.0)?;
        let results = self.module.node(id).results.clone();
        if types.len() < results.len() {
            return Err(format!(
                "has {} results, {} are used",
                types.len(),
                results.len()
            ));
        }
        for (v, ty) in results.into_iter().zip(types) {
            let info = self.module.value_mut(v);
            info.ty = refine(&info.ty, ty);
        }
        Ok(())
    }

    /// Types the regions of a control-flow node, widening carried values until they are stable.
    fn bodies(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.module.node(id);
        let operands: Vec<Option<&Type>> = node
            .operands
            .iter()
            .map(|o| o.map(|v| &self.module.value(v).ty))
            .collect();
        let inputs = region_input_types(node, &operands).map_err(|e| e.0)?;
        let regions = node.regions.clone();
        // Which outputs become which inputs in the next iteration: (first output, first input, how many).
        let carried = match node.op.name {
            "loop" => (0, 1, node.operands.len().saturating_sub(1)),
            "scan" => {
                let slices = match node.attr("num_scan_inputs") {
                    Some(crate::Attr::Int(n)) => usize::try_from(n).unwrap_or(0),
                    _ => 0,
                };
                (0, 0, node.operands.len().saturating_sub(slices))
            }
            _ => (0, 0, 0),
        };
        if inputs.len() != regions.len() {
            return Err(format!(
                "has {} regions instead of {}",
                regions.len(),
                inputs.len()
            ));
        }
        for (region, types) in regions.into_iter().zip(inputs) {
            self.body(region, types, carried)?;
        }
        Ok(())
    }

    fn body(
        &mut self,
        region: RegionId,
        mut types: Vec<Type>,
        carried: (usize, usize, usize),
    ) -> Result<(), String> {
        let inputs = self.module.region(region).inputs.clone();
        if inputs.len() != types.len() {
            return Err(format!(
                "its region takes {} inputs instead of {}",
                inputs.len(),
                types.len()
            ));
        }
        let declared = self.snapshot(region);
        for round in 0.. {
            for (&v, ty) in inputs.iter().zip(&types) {
                self.module.value_mut(v).ty = ty.clone();
            }
            let errors = self.errors.len();
            self.region(region);
            let mut stable = true;
            let (from, to, n) = carried;
            let outputs = self.module.region(region).outputs.clone();
            for k in 0..n {
                let (Some(&out), Some(before)) = (outputs.get(from + k), types.get_mut(to + k))
                else {
                    return Err("its body yields fewer values than it carries".into());
                };
                let wider =
                    join(before, &self.module.value(out).ty, &self.fresh).map_err(|e| e.0)?;
                if !same_up_to_fresh(before, &wider) {
                    stable = false;
                    *before = if round >= MAX_ROUNDS {
                        unranked(&wider)
                    } else {
                        wider
                    };
                }
            }
            if stable || round > 2 * MAX_ROUNDS {
                return Ok(());
            }
            // What a narrower assumption derived must not outlive it.
            self.errors.truncate(errors);
            for (v, ty) in &declared {
                self.module.value_mut(*v).ty = ty.clone();
            }
        }
        Ok(())
    }

    /// Types of all node results inside a region.
    fn snapshot(&self, region: RegionId) -> Vec<(ValueId, Type)> {
        let mut out = vec![];
        for &n in &self.module.region(region).nodes {
            let node = self.module.node(n);
            out.extend(
                node.results
                    .iter()
                    .map(|&v| (v, self.module.value(v).ty.clone())),
            );
            for &r in &node.regions {
                out.extend(self.snapshot(r));
            }
        }
        out
    }
}

/// True if widening changed nothing but put one own symbol for another.
fn same_up_to_fresh(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Tensor(x), Type::Tensor(y)) => match (&x.shape, &y.shape) {
            (Some(p), Some(q)) => {
                x.elem == y.elem
                    && p.len() == q.len()
                    && p.iter()
                        .zip(q)
                        .all(|(p, q)| p == q || is_fresh(p) && is_fresh(q))
            }
            _ => x == y,
        },
        (Type::Sequence(x), Type::Sequence(y)) | (Type::Optional(x), Type::Optional(y)) => {
            same_up_to_fresh(x, y)
        }
        _ => a == b,
    }
}

/// True if the dimension is one of the compiler's own symbols and nothing else.
fn is_fresh(d: &Dim) -> bool {
    let mut symbols = 0;
    d.visit_symbols(&mut |name| symbols += if name.starts_with('?') { 1 } else { 2 });
    symbols == 1 && d.terms().count() == 1
}

fn unranked(ty: &Type) -> Type {
    match ty {
        Type::Tensor(t) => Type::unranked(t.elem),
        Type::Sequence(t) => Type::Sequence(Box::new(unranked(t))),
        Type::Optional(t) => Type::Optional(Box::new(unranked(t))),
    }
}

/// What is known of a value when `old` was known and a rule derives `new`.
pub fn refine(old: &Type, new: Type) -> Type {
    match (old, new) {
        (
            Type::Tensor(TensorType {
                elem,
                shape: Some(old),
            }),
            Type::Tensor(TensorType { elem: e, shape }),
        ) if *elem == e => match shape {
            None => Type::tensor(e, old.iter().cloned()),
            Some(new) if new.len() == old.len() => Type::tensor(
                e,
                old.iter()
                    .zip(new)
                    .map(|(o, n)| refine_dim(o, n))
                    .collect::<Vec<_>>(),
            ),
            Some(new) => Type::tensor(e, new),
        },
        (Type::Sequence(o), Type::Sequence(n)) => Type::Sequence(Box::new(refine(o, *n))),
        (Type::Optional(o), Type::Optional(n)) => Type::Optional(Box::new(refine(o, *n))),
        (_, new) => new,
    }
}

fn refine_dim(old: &Dim, new: Dim) -> Dim {
    let own = |d: &Dim| {
        let mut found = false;
        d.visit_symbols(&mut |name| found |= name.starts_with('?'));
        found
    };
    let keep = match (old.as_const(), new.as_const()) {
        (_, Some(_)) => false,
        (Some(_), None) => true,
        (None, None) => own(&new) && !own(old),
    };
    if keep { old.clone() } else { new }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Tensor, Value};
    use crate::{Attrs, Constant, ElemType, Op, eval};

    fn add(m: &mut Module, region: RegionId, a: ValueId, b: ValueId) -> ValueId {
        let op = Op::named("add").expect("add is an op");
        let id = m.add_node(
            region,
            op,
            "sum",
            vec![Some(a), Some(b)],
            Attrs::new(),
            vec![],
            vec![Type::unranked(ElemType::F32)],
        );
        m.node(id).results[0]
    }

    /// `loop 3 times: acc = acc + step; yield acc`, with `step` from outside.
    fn looped(acc: Type, step: Type) -> Module {
        let mut m = Module::new("looped");
        let acc0 = m.add_input(Module::TOP, "acc", acc);
        let step = m.add_input(Module::TOP, "step", step);
        let trips = m.add_constant(
            "",
            Constant::from_tensor(&Tensor::from_int(ElemType::I64, [], vec![3])),
        );
        let body = m.add_region();
        m.add_input(body, "i", Type::unranked(ElemType::F32));
        let cond = m.add_input(body, "cond", Type::unranked(ElemType::F32));
        let acc = m.add_input(body, "acc", Type::unranked(ElemType::F32));
        let sum = add(&mut m, body, acc, step);
        m.region_mut(body).outputs = vec![cond, sum, sum];
        let op = Op::named("loop").expect("loop is an op");
        let id = m.add_node(
            Module::TOP,
            op,
            "loop",
            vec![Some(trips), None, Some(acc0)],
            Attrs::new(),
            vec![body],
            vec![Type::unranked(ElemType::F32); 2],
        );
        m.region_mut(Module::TOP).outputs = m.node(id).results.clone();
        m
    }

    #[test]
    fn loops_widen_carried_types() {
        let cases = [
            (
                "f32[2]",
                Type::tensor(ElemType::F32, [2i64]),
                Type::tensor(ElemType::F32, [2i64]),
                "f32[2]",
            ),
            (
                "broadcast",
                Type::tensor(ElemType::F32, [1i64]),
                Type::tensor(ElemType::F32, [2i64]),
                "f32[?",
            ),
            (
                "rank",
                Type::tensor(ElemType::F32, [0i64; 0]),
                Type::tensor(ElemType::F32, [2i64]),
                "f32[*]",
            ),
        ];
        for (name, acc, step, expected) in cases {
            let mut m = looped(acc, step);
            assert_eq!(infer_module(&mut m), vec![], "{name}");
            let ty = m.value(m.top().outputs[0]).ty.to_string();
            assert!(ty.starts_with(expected), "{name}: {ty}");
        }
    }

    #[test]
    fn loops_run() {
        let f =
            |shape: &[usize], v: Vec<f64>| Value::from(Tensor::from_f64(ElemType::F32, shape, v));
        let m = {
            let mut m = looped(
                Type::tensor(ElemType::F32, [1i64]),
                Type::tensor(ElemType::F32, [1i64]),
            );
            assert_eq!(infer_module(&mut m), vec![]);
            m
        };
        let out = eval::run(&m, vec![f(&[1], vec![1.0]), f(&[1], vec![2.0])]);
        assert_eq!(
            out,
            Ok(vec![f(&[1], vec![7.0]), f(&[3, 1], vec![3.0, 5.0, 7.0])])
        );
        let wrong = eval::run(&m, vec![f(&[2], vec![1.0; 2]), f(&[1], vec![2.0])]);
        assert!(wrong.is_err_and(|e| e.to_string().contains("`acc`")));
    }

    #[test]
    fn symbols_can_be_bound() {
        let ty = |d: &str| Type::tensor(ElemType::F32, [Dim::sym(d)]);
        let mut m = Module::new("m");
        let (a, b) = (
            m.add_input(Module::TOP, "a", ty("N")),
            m.add_input(Module::TOP, "b", ty("N")),
        );
        let c = add(&mut m, Module::TOP, a, b);
        assert_eq!(infer_module(&mut m), vec![]);
        assert_eq!(m.value(c).ty, ty("N"));
        assert_eq!(
            bind_symbols(&mut m, &BTreeMap::from([("N".into(), 4)])),
            vec![]
        );
        assert_eq!(m.value(c).ty, Type::tensor(ElemType::F32, [4i64]));
    }

    #[test]
    fn errors_are_gathered() {
        let mut m = Module::new("m");
        let a = m.add_input(Module::TOP, "a", Type::tensor(ElemType::F32, [2i64]));
        let b = m.add_input(Module::TOP, "b", Type::tensor(ElemType::F32, [3i64]));
        add(&mut m, Module::TOP, a, b);
        add(&mut m, Module::TOP, b, a);
        assert_eq!(infer_module(&mut m).len(), 2);
    }
}
