//! Values of the program: weights, temporaries, states, and their types and sizes.

use super::Lowerer;
use crate::lower::index::Pos;
use crate::lower::schedule::Spec;
use crate::lower::{WeightPiece, WeightSource};
use lapidary_abi::Size;
use lapidary_abi::program::{Place, Port, ValueDecl, ValueIndex, ValueType};
use lapidary_ir::dim::Atom;
use lapidary_ir::ops::OpError;
use lapidary_ir::tensor::{Data, Tensor};
use lapidary_ir::{Constant, Dim, ElemType, Type, ValueId};

impl Lowerer {
    /// A value that exists only in the program: packed weights, intermediate results.
    pub fn temporary(&mut self, elem: ElemType, shape: Vec<Dim>) -> ValueId {
        self.facts
            .module
            .add_input(self.scratch, "", Type::tensor(elem, shape))
    }

    /// Memory that the runtime keeps between runs.
    pub(in crate::lower) fn state(
        &mut self,
        name: &str,
        elem: ElemType,
        shape: Vec<Dim>,
    ) -> ValueId {
        let v = self.temporary(elem, shape);
        let n = self.program.states.len() as u32;
        let value = self.declare(v, Place::State(n));
        self.program.states.push(Port {
            name: name.to_owned(),
            ty: self.program.values[value as usize].ty.clone(),
            value,
        });
        v
    }

    /// A weight whose bytes are made when the blob is written.
    pub fn made_weight(
        &mut self,
        elem: ElemType,
        shape: Vec<usize>,
        source: WeightSource,
    ) -> ValueId {
        let bytes = shape.iter().product::<usize>() as u64 * elem.size_bytes() as u64;
        let v = self.temporary(elem, shape.into_iter().map(Dim::from).collect());
        let place = self.add_weight(bytes, source);
        self.declare(v, place);
        v
    }

    /// Weights that are made together: parts of these types and lengths in bytes, each a multiple of 64 bytes long.
    pub fn made_together(
        &mut self,
        parts: &[(ElemType, usize)],
        source: WeightSource,
    ) -> Vec<ValueId> {
        let bytes = parts.iter().map(|p| p.1 as u64).sum();
        let Place::Weights { mut offset, .. } = self.add_weight(bytes, source) else {
            unreachable!("weights are placed among the weights")
        };
        let mut out = vec![];
        for &(elem, bytes) in parts {
            let v = self.temporary(elem, vec![Dim::from(bytes / elem.size_bytes())]);
            let bytes = bytes as u64;
            self.declare(v, Place::Weights { offset, bytes });
            offset += bytes;
            out.push(v);
        }
        out
    }

    pub(super) fn add_weight(&mut self, bytes: u64, source: WeightSource) -> Place {
        // What several weights view, such as codes of projections that a file holds as one, is there once. Pieces keep their views, so no
        // other bytes come to lie at these addresses.
        let view = match &source {
            WeightSource::Bytes(b) if !b.is_empty() => Some((b.as_ptr() as usize, b.len())),
            _ => None,
        };
        if let Some(&offset) = view.and_then(|view| self.views.get(&view)) {
            return Place::Weights { offset, bytes };
        }
        let offset = self
            .weights
            .last()
            .map_or(0, |w| (w.offset + w.bytes).next_multiple_of(64));
        self.weights.push(WeightPiece {
            offset,
            bytes,
            source,
            files: self.facts.module.sources.clone(),
        });
        self.views.extend(view.map(|view| (view, offset)));
        Place::Weights { offset, bytes }
    }

    /// The program's value for a graph value; declares it (or computes its contents) on first use.
    pub fn stored(&mut self, v: ValueId) -> Result<ValueIndex, OpError> {
        if let Some(&i) = self.indices.get(&v) {
            return Ok(i);
        }
        let root = self.facts.root(v);
        if root != v {
            return self.stored(root);
        }
        if let Some(c) = self.facts.module.as_constant(v).cloned() {
            let place = self.constant(&c)?;
            return Ok(self.declare(v, place));
        }
        if let Some(contents) = self.facts.contents.get(&v).cloned() {
            return self.contents(v, &contents);
        }
        let ty = self.facts.module.value(v).ty.clone();
        let place = match &ty {
            Type::Tensor(t) if t.const_shape().is_some() && t.elem != ElemType::String => {
                Place::Arena { offset: u64::MAX }
            }
            _ => Place::Heap,
        };
        Ok(self.declare(v, place))
    }

    pub(super) fn constant(&mut self, c: &Constant) -> Result<Place, OpError> {
        if c.elem() == ElemType::String {
            let t = c.decode().map_err(|e| OpError::new(e.to_string()))?;
            return Ok(Place::Strings(t.strings().unwrap_or_default().to_vec()));
        }
        let bytes = lapidary_ir::tensor::count(c.shape()) as u64 * c.elem().size_bytes() as u64;
        let source = match c.dense_bytes() {
            Some(b) => WeightSource::Bytes(b.clone()),
            None => {
                let c = c.clone();
                WeightSource::Made(std::sync::Arc::new(move || {
                    let t = c.decode().map_err(|e| e.to_string())?;
                    t.to_bytes().ok_or_else(|| "a weight of strings".to_owned())
                }))
            }
        };
        Ok(self.add_weight(bytes, source))
    }

    /// Stores sizes: a weight if they are numbers, else a small kernel.
    pub(super) fn contents(&mut self, v: ValueId, contents: &[Dim]) -> Result<ValueIndex, OpError> {
        let elem = self.facts.elem(v)?;
        let shape = self.facts.shape(v)?;
        let numbers: Option<Vec<i128>> = contents
            .iter()
            .map(|d| d.as_const().map(i128::from))
            .collect();
        if let Some(numbers) = numbers {
            let t = Tensor::new(elem, [numbers.len()], Data::Int(numbers));
            let bytes = t.to_bytes().unwrap_or_default();
            let place = self.add_weight(bytes.len() as u64, WeightSource::Bytes(bytes.into()));
            return Ok(self.declare(v, place));
        }
        let index = self.declare(v, Place::Arena { offset: u64::MAX });
        self.local.push(v);
        let contents = contents.to_vec();
        self.kernel("sizes", v, |x| {
            let vars = x.body.loop_vars(&shape);
            let pos = Pos::At(vars.iter().map(|v| v.dim()).collect());
            let offset = pos.linear(&shape);
            let value = x.sizes(elem, &contents, &offset);
            Ok(Spec {
                vars,
                offset,
                mask: None,
                value,
                serial: vec![],
            })
        })?;
        Ok(index)
    }

    /// Declares a value at a place.
    pub(in crate::lower) fn declare(&mut self, v: ValueId, place: Place) -> ValueIndex {
        let ty = self.facts.module.value(v).ty.clone();
        let ty = self.value_type(&ty);
        self.program.values.push(ValueDecl { ty, place });
        let i = self.program.values.len() as u32 - 1;
        self.indices.insert(v, i);
        i
    }

    /// A heap value that is none of the module's.
    pub(in crate::lower) fn heap(&mut self, ty: ValueType) -> ValueIndex {
        let place = Place::Heap;
        self.program.values.push(ValueDecl { ty, place });
        self.program.values.len() as u32 - 1
    }

    pub(in crate::lower) fn value_type(&mut self, ty: &Type) -> ValueType {
        match ty {
            Type::Tensor(t) => ValueType::Tensor {
                elem: t.elem,
                dims: t
                    .shape
                    .as_ref()
                    .map(|s| s.iter().map(|d| self.size_expr(d)).collect()),
            },
            Type::Sequence(t) => ValueType::Sequence(Box::new(self.value_type(t))),
            Type::Optional(t) => ValueType::Optional(Box::new(self.value_type(t))),
        }
    }

    /// A size whose symbols all have values by now.
    pub fn size(&mut self, d: &Dim) -> Result<Size, OpError> {
        if !self.size_is_bound(d) {
            return Err(OpError::new(format!(
                "the size `{d}` is known only at run time"
            )));
        }
        Ok(self.size_expr(d))
    }

    pub(super) fn symbol(&mut self, name: &str) -> u32 {
        if let Some(&s) = self.symbols.get(name) {
            return s;
        }
        self.program.symbols.push(name.to_owned());
        let s = self.program.symbols.len() as u32 - 1;
        self.symbols.insert(name.to_owned(), s);
        s
    }

    pub(super) fn size_expr(&mut self, d: &Dim) -> Size {
        let mut sum: Option<Size> = None;
        for (atoms, c) in d.terms() {
            let mut product = (c != 1 || atoms.is_empty()).then_some(Size::Const(c));
            for a in atoms {
                let factor = match a {
                    Atom::Sym(s) => Size::Sym(self.symbol(s)),
                    Atom::FloorDiv(a, b) => {
                        Size::FloorDiv(Box::new(self.size_expr(a)), Box::new(self.size_expr(b)))
                    }
                    Atom::Mod(a, b) => {
                        Size::Mod(Box::new(self.size_expr(a)), Box::new(self.size_expr(b)))
                    }
                    Atom::Min(a, b) => {
                        Size::Min(Box::new(self.size_expr(a)), Box::new(self.size_expr(b)))
                    }
                    Atom::Max(a, b) => {
                        Size::Max(Box::new(self.size_expr(a)), Box::new(self.size_expr(b)))
                    }
                };
                product = Some(match product {
                    Some(p) => Size::Mul(Box::new(p), Box::new(factor)),
                    None => factor,
                });
            }
            let term = product.unwrap_or(Size::Const(1));
            sum = Some(match sum {
                Some(s) => Size::Add(Box::new(s), Box::new(term)),
                None => term,
            });
        }
        sum.unwrap_or(Size::Const(0))
    }
}

#[cfg(test)]
mod tests {
    use crate::lower::{Options, lower, testing};
    use lapidary_ir::builder::Builder;
    use lapidary_ir::target::Target;
    use lapidary_ir::{Constant, ElemType, Module, Tensor, Type};
    use std::cell::Cell;

    #[test]
    fn what_several_weights_view_is_stored_once() {
        let (mut m, fresh) = (Module::new("t"), Cell::new(0));
        let x = m.add_input(Module::TOP, "x", Type::tensor(ElemType::F32, [6i64, 4]));
        let y = m.add_input(Module::TOP, "y", Type::tensor(ElemType::F32, [8i64, 3]));
        let numbers = Tensor::from_f64(ElemType::F32, [24], (0..24).map(f64::from).collect());
        let bytes = bytes::Bytes::from(numbers.to_bytes().expect("numbers"));
        for (input, shape) in [(x, vec![6, 4]), (y, vec![8, 3])] {
            let weight = m.add_constant("w", Constant::dense(ElemType::F32, shape, bytes.clone()));
            let mut b = Builder::new(&mut m, Module::TOP, "n", &fresh);
            let sum = b.op("add", &[input, weight]).expect("fits");
            m.region_mut(Module::TOP).outputs.push(sum);
            m.output_names.push(format!("sum{}", m.output_names.len()));
        }
        let lowered = lower(&m, &Target::x86_64(), &Options::default()).expect("lowers");
        assert_eq!(lowered.program.weights_bytes, 128, "in whole cache lines");
        let zeros = |shape: [usize; 2]| Tensor::from_f64(ElemType::F32, shape, vec![0.0; 24]);
        let inputs = [zeros([6, 4]).into(), zeros([8, 3]).into()];
        for out in testing::run(&lowered, &inputs).expect("runs") {
            let out = out.as_tensor().expect("a tensor").to_bytes();
            assert_eq!(out.as_deref(), Some(&bytes[..]));
        }
    }
}
