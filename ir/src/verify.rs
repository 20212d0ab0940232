//! What must hold of a module before anything is done with it. All errors are gathered.
//!
//! First the tables (every id exists), then names, constants, and node by node: operands, attributes,
//! results and regions as the op table says, definition before use; last, if all definitions stand before
//! their uses, types against the ops' type rules. A verified module can be evaluated, rewritten and
//! lowered without a panic; each of these may still refuse it with an error.

use crate::builder::infer_node;
use crate::diagnostic::{
    ATTRIBUTE_KIND, Code, DOMINANCE, Diagnostic, ENCODING, IMPOSSIBLE_TYPE, INTERFACE_NAME,
    MISSING_ATTRIBUTE, OPERANDS, Place, REGIONS, RESULTS, SHARED_NAME, STRUCTURE, TYPE_DIFFERS,
    TYPE_RULE, UNKNOWN_ATTRIBUTE,
};
use crate::graph::{Def, Node};
use crate::infer::first_fresh;
use crate::ops::control::region_input_types;
use crate::ops::{AttrKind, Default, Operand};
use crate::{Attr, Module, NodeId, RegionId, Type, ValueId};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

/// How deeply regions may nest.
const MAX_DEPTH: usize = 128;

/// Everything that is wrong with a module, warnings included.
pub fn verify(module: &Module) -> Vec<Diagnostic> {
    let mut v = Verifier {
        module,
        out: vec![],
        visible: HashSet::new(),
        owned: HashSet::from([Module::TOP]),
        order: vec![],
        sound: HashSet::new(),
    };
    v.tables();
    if !v.out.is_empty() {
        return v.out;
    }
    v.region(Module::TOP, 0);
    v.names();
    v.constants();
    v.lengths();
    if !v
        .out
        .iter()
        .any(|d| [&DOMINANCE, &STRUCTURE, &IMPOSSIBLE_TYPE].contains(&d.code))
    {
        v.types();
    }
    v.out
}

/// The errors among what [`verify`] finds.
pub fn errors(module: &Module) -> Vec<Diagnostic> {
    verify(module)
        .into_iter()
        .filter(Diagnostic::is_error)
        .collect()
}

/// Whether a node is as its op's table entry says, types aside; `n_results` results are used.
pub fn signature(module: &Module, id: NodeId, n_results: usize) -> Vec<Diagnostic> {
    let node = module.node(id);
    let mut s = Signature {
        node,
        place: place(module, id),
        out: vec![],
    };
    s.operands();
    s.attributes();
    s.results(n_results);
    s.regions();
    s.out
}

fn place(module: &Module, id: NodeId) -> Place {
    Place::Node(id, module.node(id).name.clone())
}

fn value_place(module: &Module, id: ValueId) -> Place {
    Place::Value(id, module.value(id).name.clone())
}

struct Signature<'m> {
    node: &'m Node,
    place: Place,
    out: Vec<Diagnostic>,
}

impl Signature<'_> {
    fn error(&mut self, code: &'static Code, message: String) -> &mut Diagnostic {
        self.out
            .push(Diagnostic::new(code, self.place.clone(), message));
        let last = self.out.len() - 1;
        &mut self.out[last]
    }

    fn operands(&mut self) {
        let (op, found) = (self.node.op, self.node.operands.len());
        let (_, most) = op.arity();
        if found > most {
            self.error(
                &OPERANDS,
                format!("`{op}` takes at most {most} operands, found {found}"),
            );
        }
        for (i, operand) in op.operands.iter().enumerate() {
            if let Operand::One(name) = operand
                && self.node.operand(i).is_none()
            {
                self.error(&OPERANDS, format!("`{op}` needs its operand `{name}`"));
            }
        }
    }

    fn attributes(&mut self) {
        let op = self.node.op;
        for (name, value) in &self.node.attrs {
            let Some(def) = op.attrs.iter().find(|a| a.name == name) else {
                let known: Vec<&str> = op.attrs.iter().map(|a| a.name).collect();
                let d = self.error(
                    &UNKNOWN_ATTRIBUTE,
                    format!("`{op}` has no attribute `{name}`"),
                );
                d.help = Some(match known[..] {
                    [] => "it has none".into(),
                    _ => format!("it has {}", known.join(", ")),
                });
                continue;
            };
            let found = kind(value);
            if found != def.kind {
                let message = format!(
                    "attribute `{name}` is {found:?}, `{op}` wants {:?}",
                    def.kind
                );
                let d = self.error(&ATTRIBUTE_KIND, message);
                if matches!((found, def.kind), (AttrKind::Int, AttrKind::Float)) {
                    d.help = Some("write it with a point".into());
                }
            }
        }
        for def in op.attrs {
            if def.default == Default::Required && !self.node.attrs.contains_key(def.name) {
                self.error(
                    &MISSING_ATTRIBUTE,
                    format!("`{op}` needs its attribute `{}`", def.name),
                );
            }
        }
    }

    fn results(&mut self, found: usize) {
        let op = self.node.op;
        let variadic = matches!(op.results.last(), Some(Operand::Variadic(_)));
        if !variadic && found > op.results.len() {
            let most = op.results.len();
            self.error(
                &RESULTS,
                format!("`{op}` has {most} results, {found} are named"),
            );
        }
        if !variadic && found == 0 {
            self.error(&RESULTS, format!("no result of `{op}` is named"));
        }
    }

    fn regions(&mut self) {
        let (op, found) = (self.node.op, self.node.regions.len());
        if found != op.regions.len() {
            let d = self.error(
                &REGIONS,
                format!("`{op}` has {} regions, found {found}", op.regions.len()),
            );
            if !op.regions.is_empty() {
                d.help = Some(format!("they are {}", op.regions.join(", ")));
            }
        }
    }
}

fn kind(value: &Attr) -> AttrKind {
    match value {
        Attr::Int(_) => AttrKind::Int,
        Attr::Ints(_) => AttrKind::Ints,
        Attr::Float(_) => AttrKind::Float,
        Attr::Floats(_) => AttrKind::Floats,
        Attr::Str(_) => AttrKind::Str,
        Attr::Strs(_) => AttrKind::Strs,
        Attr::Elem(_) => AttrKind::Elem,
        Attr::Type(_) => AttrKind::Type,
        Attr::Tensor(_) => AttrKind::Tensor,
    }
}

struct Verifier<'m> {
    module: &'m Module,
    out: Vec<Diagnostic>,
    visible: HashSet<ValueId>,
    /// Regions that a node owns already.
    owned: HashSet<RegionId>,
    /// Nodes in order of definition.
    order: Vec<NodeId>,
    /// Nodes that are as the op table says.
    sound: HashSet<NodeId>,
}

impl Verifier<'_> {
    fn error(&mut self, code: &'static Code, place: Place, message: impl Into<String>) {
        self.out.push(Diagnostic::new(code, place, message));
    }

    /// Every id that is stored anywhere exists.
    fn tables(&mut self) {
        let m = self.module;
        let mut bad = vec![];
        let value = |v: ValueId| v.index() < m.value_count();
        for i in 0..m.region_count() as u32 {
            let r = m.region(RegionId(i));
            if !r.inputs.iter().chain(&r.outputs).all(|&v| value(v))
                || !r.nodes.iter().all(|n| n.index() < m.node_count())
            {
                bad.push(format!("region r{i} refers to what does not exist"));
            }
        }
        for i in 0..m.node_count() as u32 {
            let n = m.node(NodeId(i));
            if !n
                .operands
                .iter()
                .flatten()
                .chain(&n.results)
                .all(|&v| value(v))
                || !n.regions.iter().all(|r| r.index() < m.region_count())
            {
                bad.push(format!(
                    "node n{i} (`{}`) refers to what does not exist",
                    n.name
                ));
            }
        }
        for i in 0..m.value_count() as u32 {
            let exists = match m.value(ValueId(i)).def {
                Def::Input(r, _) => r.index() < m.region_count(),
                Def::Result(n, _) => n.index() < m.node_count(),
                Def::Constant(c) => c.index() < m.constant_count(),
            };
            if !exists {
                bad.push(format!("value v{i} refers to what does not exist"));
            }
        }
        for message in bad {
            self.error(&STRUCTURE, Place::Program, message);
        }
    }

    fn region(&mut self, id: RegionId, depth: usize) {
        let region = self.module.region(id);
        let mut defined = vec![];
        for (i, &v) in region.inputs.iter().enumerate() {
            self.define(v, Def::Input(id, i as u32), &mut defined);
        }
        for &n in &region.nodes {
            self.node(n, depth, &mut defined);
        }
        for &v in &region.outputs {
            if !self.is_visible(v) {
                let message = "is yielded by a region in which it is not defined";
                self.error(&DOMINANCE, value_place(self.module, v), message);
            }
        }
        for v in defined {
            self.visible.remove(&v);
        }
    }

    fn define(&mut self, v: ValueId, def: Def, defined: &mut Vec<ValueId>) {
        if self.module.value(v).def != def || !self.visible.insert(v) {
            let message = "is listed at another place than its definition";
            self.error(&STRUCTURE, value_place(self.module, v), message);
        }
        defined.push(v);
    }

    fn is_visible(&self, v: ValueId) -> bool {
        self.visible.contains(&v) || self.module.as_constant(v).is_some()
    }

    fn node(&mut self, id: NodeId, depth: usize, defined: &mut Vec<ValueId>) {
        let node = self.module.node(id);
        let here = || place(self.module, id);
        let wrong = signature(self.module, id, node.results.len());
        if wrong.is_empty() {
            self.sound.insert(id);
        }
        self.out.extend(wrong);
        for (i, v) in node.operands.iter().enumerate() {
            if let &Some(v) = v
                && !self.is_visible(v)
            {
                let name = &self.module.value(v).name;
                let message = format!(
                    "operand {i} of `{}`, `{name}`, is not defined before it",
                    node.op
                );
                let d = Diagnostic::new(&DOMINANCE, here(), message);
                self.out
                    .push(d.label(value_place(self.module, v), "defined here"));
            }
        }
        for &r in &node.regions {
            if depth >= MAX_DEPTH {
                self.error(&STRUCTURE, here(), "its regions nest too deeply");
            } else if !self.owned.insert(r) {
                self.error(&STRUCTURE, here(), "it shares a region with another node");
            } else {
                self.region(r, depth + 1);
            }
        }
        self.order.push(id);
        for (i, &v) in node.results.iter().enumerate() {
            self.define(v, Def::Result(id, i as u32), defined);
        }
    }

    fn names(&mut self) {
        let m = self.module;
        let mut inputs = HashMap::new();
        for &v in &m.top().inputs {
            let name = m.value(v).name.as_str();
            if let Some(first) = inputs.insert(name, v).filter(|_| !name.is_empty()) {
                let d = Diagnostic::new(
                    &INTERFACE_NAME,
                    value_place(m, v),
                    format!("two inputs are named `{name}`"),
                );
                self.out.push(d.label(value_place(m, first), "first here"));
            }
        }
        let mut outputs = HashSet::new();
        for name in m.output_names.iter().filter(|n| !n.is_empty()) {
            if !outputs.insert(name) {
                self.error(
                    &INTERFACE_NAME,
                    Place::Program,
                    format!("two outputs are named `{name}`"),
                );
            }
        }
        if m.output_names.len() > m.top().outputs.len() {
            self.error(
                &STRUCTURE,
                Place::Program,
                "there are more names of outputs than outputs",
            );
        }
        let mut seen = HashMap::new();
        for &n in &self.order {
            for &v in &m.node(n).results {
                let name = m.value(v).name.as_str();
                if name.is_empty() {
                    continue;
                }
                let first = *seen.entry(name).or_insert(v);
                if first != v {
                    let message = format!("another value is also named `{name}`");
                    let d = Diagnostic::new(&SHARED_NAME, value_place(m, v), message);
                    self.out.push(d.label(value_place(m, first), "first here"));
                }
            }
        }
    }

    fn constants(&mut self) {
        for i in 0..self.module.value_count() as u32 {
            let v = ValueId(i);
            let Some(c) = self.module.as_constant(v) else {
                continue;
            };
            if let Err(e) = c.encoding().check() {
                self.error(&ENCODING, value_place(self.module, v), e.to_string());
            }
            let (stated, own) = (&self.module.value(v).ty, c.ty());
            if *stated != own {
                let message = format!("is `{stated}`, but its constant is `{own}`");
                self.error(&TYPE_DIFFERS, value_place(self.module, v), message);
            }
        }
    }

    fn lengths(&mut self) {
        for i in 0..self.module.value_count() as u32 {
            let v = ValueId(i);
            if let Err(e) = self.module.value(v).ty.check() {
                self.error(&IMPOSSIBLE_TYPE, value_place(self.module, v), e);
            }
        }
    }

    fn types(&mut self) {
        let fresh = Cell::new(first_fresh(self.module));
        for id in std::mem::take(&mut self.order) {
            if self.sound.contains(&id) && self.region_types(id) {
                self.result_types(id, &fresh);
            }
        }
    }

    /// Whether the inputs of a node's regions are those that its operands ask for.
    fn region_types(&mut self, id: NodeId) -> bool {
        let (m, node) = (self.module, self.module.node(id));
        if node.regions.is_empty() {
            return true;
        }
        let operands: Vec<Option<&Type>> = node
            .operands
            .iter()
            .map(|o| o.map(|v| &m.value(v).ty))
            .collect();
        let wanted = match region_input_types(node, &operands) {
            Ok(wanted) => wanted,
            Err(e) => {
                self.error(&REGIONS, place(m, id), e.0);
                return false;
            }
        };
        let before = self.out.len();
        for ((&r, wanted), label) in node.regions.iter().zip(&wanted).zip(node.op.regions) {
            let inputs = &m.region(r).inputs;
            if inputs.len() != wanted.len() {
                let message = format!(
                    "`{label}` takes {} inputs, expected {}",
                    inputs.len(),
                    wanted.len()
                );
                self.error(&REGIONS, place(m, id), message);
                continue;
            }
            for (&v, wanted) in inputs.iter().zip(wanted) {
                if !compatible(&m.value(v).ty, wanted, false) {
                    let message = format!(
                        "input of `{label}` is `{}`, expected `{wanted}`",
                        m.value(v).ty
                    );
                    self.error(&REGIONS, value_place(m, v), message);
                }
            }
        }
        before == self.out.len()
    }

    fn result_types(&mut self, id: NodeId, fresh: &Cell<u32>) {
        let (m, node) = (self.module, self.module.node(id));
        let types = match infer_node(m, id, fresh) {
            Ok(types) => types,
            Err(e) => {
                return self.error(&TYPE_RULE, place(m, id), format!("`{}`: {}", node.op, e.0));
            }
        };
        if types.len() < node.results.len() {
            let message = format!(
                "`{}` has {} results, {} are named",
                node.op,
                types.len(),
                node.results.len()
            );
            return self.error(&RESULTS, place(m, id), message);
        }
        for (&v, ty) in node.results.iter().zip(&types) {
            if !compatible(&m.value(v).ty, ty, true) {
                let message = format!("is `{}`, but `{}` gives `{ty}`", m.value(v).ty, node.op);
                self.error(&TYPE_DIFFERS, value_place(m, v), message);
            }
        }
    }
}

/// False if no value can have both types. Unknown ranks fit all; symbols fit all sizes. `sizes` says whether
/// numbers must agree (they need not where a loop changes them).
fn compatible(a: &Type, b: &Type, sizes: bool) -> bool {
    match (a, b) {
        (Type::Tensor(a), Type::Tensor(b)) => {
            a.elem == b.elem
                && match (&a.shape, &b.shape) {
                    (Some(a), Some(b)) => {
                        a.len() == b.len()
                            && (!sizes
                                || a.iter().zip(b).all(|(x, y)| {
                                    match (x.as_const(), y.as_const()) {
                                        (Some(x), Some(y)) => x == y,
                                        _ => true,
                                    }
                                }))
                    }
                    _ => true,
                }
        }
        (Type::Sequence(a), Type::Sequence(b)) | (Type::Optional(a), Type::Optional(b)) => {
            compatible(a, b, sizes)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attrs, Constant, ElemType, Op};

    #[test]
    fn ids_out_of_range_are_reported_not_followed() {
        let mut m = Module::new("m");
        m.region_mut(Module::TOP).outputs = vec![ValueId(7)];
        assert_eq!(verify(&m)[0].code, &STRUCTURE);
    }

    #[test]
    fn a_constant_has_its_own_type() {
        let mut m = Module::new("m");
        let one = crate::Tensor::from_f64(ElemType::F32, [1], vec![1.0]);
        let c = m.add_constant("c", Constant::from_tensor(&one));
        m.region_mut(Module::TOP).outputs = vec![c];
        assert!(verify(&m).is_empty());
        m.value_mut(c).ty = Type::tensor(ElemType::F32, [2usize]);
        assert_eq!(verify(&m)[0].code, &TYPE_DIFFERS);
    }

    #[test]
    fn a_region_has_one_owner() {
        let mut m = Module::new("m");
        let c = m.add_input(Module::TOP, "c", Type::tensor(ElemType::Bool, [0usize; 0]));
        let r = m.add_region();
        let op = Op::named("if").expect("is an op");
        m.add_node(
            Module::TOP,
            op,
            "",
            vec![Some(c)],
            Attrs::new(),
            vec![r, r],
            vec![],
        );
        assert!(verify(&m).iter().any(|d| d.code == &STRUCTURE));
    }

    #[test]
    fn all_errors_are_gathered() {
        let text = "fn f(%x: f32[2]) -> (y) {
            %a = add(%x) : f32[2]
            %b = relu(%x) {axis = 1} : f32[2]
            %y = relu(%x) : f32[3]
            return %y }";
        let m = crate::text::parse(text).expect("reads");
        let codes: Vec<&str> = verify(&m).iter().map(|d| d.code.code).collect();
        assert_eq!(codes, ["LAP0101", "LAP0102", "LAP0107"]);
    }
}
