//! Whether two modules are the same program: equal but for ids and for table entries that nothing reaches.

use crate::encodings::Encoding;
use crate::graph::{Def, Node};
use crate::tensor::Data;
use crate::{Attr, Attrs, Module, RegionId, Tensor, ValueId};
use std::collections::HashMap;

impl Module {
    /// True if both are the same program, names included.
    pub fn same_program(&self, other: &Module) -> bool {
        self.first_difference(other).is_none()
    }

    /// Where two programs first differ, for messages of tests.
    pub fn first_difference(&self, other: &Module) -> Option<String> {
        let mut walk = Walk {
            a: self,
            b: other,
            values: HashMap::new(),
        };
        if self.name != other.name {
            return Some(format!("programs `{}` and `{}`", self.name, other.name));
        }
        if output_names(self) != output_names(other) {
            return Some("names of outputs".into());
        }
        walk.region(Module::TOP, Module::TOP).err()
    }
}

/// Output names, where the missing and the empty are the same.
fn output_names(m: &Module) -> Vec<&str> {
    let name = |i: usize| m.output_names.get(i).map_or("", String::as_str);
    (0..m.top().outputs.len()).map(name).collect()
}

struct Walk<'m> {
    a: &'m Module,
    b: &'m Module,
    values: HashMap<ValueId, ValueId>,
}

impl Walk<'_> {
    fn region(&mut self, a: RegionId, b: RegionId) -> Result<(), String> {
        let (ra, rb) = (self.a.region(a), self.b.region(b));
        self.define(&ra.inputs, &rb.inputs)?;
        differ(ra.nodes.len() != rb.nodes.len(), || {
            "numbers of nodes".into()
        })?;
        for (&x, &y) in ra.nodes.iter().zip(&rb.nodes) {
            self.node(self.a.node(x), self.b.node(y))?;
        }
        differ(ra.outputs.len() != rb.outputs.len(), || {
            "numbers of outputs".into()
        })?;
        ra.outputs
            .iter()
            .zip(&rb.outputs)
            .try_for_each(|(&x, &y)| self.value(x, y))
    }

    fn node(&mut self, a: &Node, b: &Node) -> Result<(), String> {
        let what = |part: &str| format!("{part} of `{}` ({})", a.name, a.op);
        differ(a.op != b.op || a.name != b.name, || what("op or name"))?;
        differ(!same_attrs(&a.attrs, &b.attrs), || what("attributes"))?;
        differ(a.operands.len() != b.operands.len(), || {
            what("number of operands")
        })?;
        for (x, y) in a.operands.iter().zip(&b.operands) {
            match (x, y) {
                (Some(x), Some(y)) => self.value(*x, *y)?,
                (x, y) => differ(x != y, || what("operands"))?,
            }
        }
        differ(a.regions.len() != b.regions.len(), || what("regions"))?;
        for (&x, &y) in a.regions.iter().zip(&b.regions) {
            self.region(x, y)?;
        }
        self.define(&a.results, &b.results)
    }

    fn define(&mut self, a: &[ValueId], b: &[ValueId]) -> Result<(), String> {
        differ(a.len() != b.len(), || "numbers of values".into())?;
        for (&x, &y) in a.iter().zip(b) {
            self.info(x, y)?;
            self.values.insert(x, y);
        }
        Ok(())
    }

    fn info(&self, a: ValueId, b: ValueId) -> Result<(), String> {
        let (x, y) = (self.a.value(a), self.b.value(b));
        differ(x.name != y.name || x.ty != y.ty, || {
            format!("values `{}: {}` and `{}: {}`", x.name, x.ty, y.name, y.ty)
        })
    }

    fn value(&mut self, a: ValueId, b: ValueId) -> Result<(), String> {
        if let Some(&known) = self.values.get(&a) {
            return differ(known != b, || format!("uses of `{}`", self.a.value(a).name));
        }
        match (self.a.as_constant(a), self.b.as_constant(b)) {
            (Some(x), Some(y)) => {
                self.info(a, b)?;
                differ(!same_term(x.encoding(), y.encoding()), || {
                    format!("constants `{}`", self.a.value(a).name)
                })?;
                self.values.insert(a, b);
                Ok(())
            }
            // Used before its definition, which no verified program does: ids tell as much as can be told.
            _ => differ(kind(self.a, a) != kind(self.b, b), || {
                "undefined values".into()
            }),
        }
    }
}

fn kind(m: &Module, v: ValueId) -> u32 {
    match m.value(v).def {
        Def::Input(_, i) => i,
        Def::Result(_, i) => 1 << 16 | i,
        Def::Constant(_) => u32::MAX,
    }
}

fn differ(unequal: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if unequal { Err(what()) } else { Ok(()) }
}

fn same_term(a: &Encoding, b: &Encoding) -> bool {
    a.ctor.name == b.ctor.name
        && a.elem == b.elem
        && a.shape == b.shape
        && same_attrs(&a.params, &b.params)
        && a.children.len() == b.children.len()
        && a.children
            .iter()
            .zip(&b.children)
            .all(|(x, y)| same_term(x, y))
        && a.blob == b.blob
}

fn same_attrs(a: &Attrs, b: &Attrs) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|((k, x), (l, y))| k == l && same_attr(x, y))
}

/// As `==`, but floats are the same if their bits are.
fn same_attr(a: &Attr, b: &Attr) -> bool {
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    match (a, b) {
        (Attr::Float(x), Attr::Float(y)) => x.to_bits() == y.to_bits(),
        (Attr::Floats(x), Attr::Floats(y)) => bits(x) == bits(y),
        (Attr::Tensor(x), Attr::Tensor(y)) => same_tensor(x, y),
        _ => a == b,
    }
}

fn same_tensor(a: &Tensor, b: &Tensor) -> bool {
    let data = match (a.data(), b.data()) {
        (Data::Float(x), Data::Float(y)) => x
            .iter()
            .map(|v| v.to_bits())
            .eq(y.iter().map(|v| v.to_bits())),
        (Data::Complex(x), Data::Complex(y)) => x
            .as_flattened()
            .iter()
            .map(|v| v.to_bits())
            .eq(y.as_flattened().iter().map(|v| v.to_bits())),
        (x, y) => x == y,
    };
    a.elem() == b.elem() && a.shape() == b.shape() && data
}
