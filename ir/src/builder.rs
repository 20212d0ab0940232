//! Writing graphs: adds typed nodes to a region, one call each.

use crate::encodings::Encoding;
use crate::graph::{Module, RegionId, ValueId};
use crate::ops::{InferCtx, Op, OpError};
use crate::{Attr, Attrs, Constant, Dim, ElemType, Tensor, Type};
use bytes::Bytes;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

/// Appends nodes to one region of a module and infers their types at once.
pub struct Builder<'m> {
    /// The module.
    pub module: &'m mut Module,
    /// Where nodes go.
    pub region: RegionId,
    /// Source name given to new nodes.
    pub name: String,
    /// Counter for fresh symbols.
    pub fresh: &'m Cell<u32>,
}

/// Constants above this many elements are not decoded for type rules.
pub const SMALL_CONSTANT: usize = 4096;

impl<'m> Builder<'m> {
    /// A builder that appends to `region`.
    pub fn new(
        module: &'m mut Module,
        region: RegionId,
        name: &str,
        fresh: &'m Cell<u32>,
    ) -> Builder<'m> {
        Builder {
            module,
            region,
            name: name.to_owned(),
            fresh,
        }
    }

    /// Adds `op` with all operands given and no attributes; the first result.
    pub fn op(&mut self, op: &str, operands: &[ValueId]) -> Result<ValueId, OpError> {
        self.op_with(op, operands, [])
    }

    /// Adds `op` with all operands given and these attributes; the first result.
    pub fn op_with(
        &mut self,
        op: &str,
        operands: &[ValueId],
        attrs: impl IntoIterator<Item = (&'static str, Attr)>,
    ) -> Result<ValueId, OpError> {
        let operands = operands.iter().map(|&v| Some(v)).collect();
        let attrs = attrs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        Ok(self.node(op, operands, attrs, 1)?[0])
    }

    /// Adds a node with `n_results` results, inferring their types.
    pub fn node(
        &mut self,
        op: &str,
        operands: Vec<Option<ValueId>>,
        attrs: Attrs,
        n_results: usize,
    ) -> Result<Vec<ValueId>, OpError> {
        let op = Op::named(op).ok_or_else(|| OpError::new(format!("there is no op `{op}`")))?;
        let name = self.name.clone();
        let id = self
            .module
            .make_node(op, &name, operands, attrs, vec![], vec![]);
        let mut types = infer_node(self.module, id, self.fresh)?;
        types.truncate(n_results);
        self.module.set_result_types(id, types);
        self.module.region_mut(self.region).nodes.push(id);
        Ok(self.module.node(id).results.clone())
    }

    /// Adds a control-flow node whose results have these types.
    pub fn control(
        &mut self,
        op: &str,
        operands: Vec<Option<ValueId>>,
        regions: Vec<RegionId>,
        types: Vec<Type>,
    ) -> Result<Vec<ValueId>, OpError> {
        let op = Op::named(op).ok_or_else(|| OpError::new(format!("there is no op `{op}`")))?;
        let name = self.name.clone();
        let id = self
            .module
            .make_node(op, &name, operands, Attrs::new(), regions, vec![]);
        self.module.set_result_types(id, types);
        self.module.region_mut(self.region).nodes.push(id);
        Ok(self.module.node(id).results.clone())
    }

    /// A builder that appends to another region.
    pub fn inside(&mut self, region: RegionId) -> Builder<'_> {
        Builder {
            module: self.module,
            region,
            name: self.name.clone(),
            fresh: self.fresh,
        }
    }

    /// A constant.
    pub fn constant(&mut self, tensor: &Tensor) -> ValueId {
        self.module.add_constant("", Constant::from_tensor(tensor))
    }

    /// A constant that is this term.
    pub fn term(&mut self, term: &Arc<Encoding>) -> ValueId {
        self.module
            .add_constant("", Constant::of_term(Arc::clone(term)))
    }

    /// A 1-D `u8` constant of these bytes.
    pub fn bytes(&mut self, bytes: Bytes) -> ValueId {
        let n = bytes.len();
        self.module
            .add_constant("", Constant::dense(ElemType::U8, vec![n], bytes))
    }

    /// A 1-D `i64` constant.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant(&Tensor::ints(values))
    }

    /// A 0-D float constant of type `elem`.
    pub fn scalar(&mut self, elem: ElemType, value: f64) -> ValueId {
        let tensor = if elem.is_float() {
            Tensor::from_f64(elem, [], vec![value])
        } else {
            Tensor::from_int(elem, [], vec![value as i128])
        };
        self.constant(&tensor)
    }

    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> &Type {
        &self.module.value(value).ty
    }

    /// Element type of a tensor value.
    pub fn elem(&self, value: ValueId) -> Result<ElemType, OpError> {
        self.ty(value)
            .elem()
            .ok_or_else(|| OpError::new("a tensor is needed"))
    }

    /// Shape of a tensor value whose rank must be known.
    pub fn shape(&self, value: ValueId) -> Result<Vec<Dim>, OpError> {
        self.ty(value)
            .shape()
            .map(<[Dim]>::to_vec)
            .ok_or_else(|| OpError::new("the rank must be known"))
    }
}

/// Result types of a node by its op's rule, given the types of its operands in the module.
pub fn infer_node(
    module: &Module,
    id: crate::NodeId,
    fresh: &Cell<u32>,
) -> Result<Vec<Type>, OpError> {
    let node = module.node(id);
    let types = (node.op.infer)(&infer_ctx(module, node, fresh))?;
    types.iter().try_for_each(Type::check).map_err(OpError)?;
    Ok(types)
}

/// The context for a node's type rule. Contents of operands are found by walking their producers.
pub fn infer_ctx<'a>(
    module: &'a Module,
    node: &'a crate::graph::Node,
    fresh: &'a Cell<u32>,
) -> InferCtx<'a> {
    let small = |v: ValueId| {
        module
            .as_constant(v)
            .filter(|c| crate::tensor::count(c.shape()) <= SMALL_CONSTANT)?
            .decode()
            .ok()
    };
    InferCtx {
        node,
        types: node
            .operands
            .iter()
            .map(|o| o.map(|v| &module.value(v).ty))
            .collect(),
        contents: node
            .operands
            .iter()
            .map(|o| o.and_then(|v| contents(module, v, fresh, 64)))
            .collect(),
        constants: node.operands.iter().map(|o| o.and_then(small)).collect(),
        region_outputs: node
            .regions
            .iter()
            .map(|&r| {
                module
                    .region(r)
                    .outputs
                    .iter()
                    .map(|&v| module.value(v).ty.clone())
                    .collect()
            })
            .collect(),
        fresh,
    }
}

/// Known integer contents of a value: a small constant, or shape arithmetic at most `depth` nodes deep.
pub fn contents(
    module: &Module,
    value: ValueId,
    fresh: &Cell<u32>,
    depth: usize,
) -> Option<Vec<Dim>> {
    contents_seen(module, value, fresh, depth, &mut HashMap::new())
}

/// As [`contents`]; `seen` keeps shared operands from being walked once per path to them.
fn contents_seen(
    module: &Module,
    value: ValueId,
    fresh: &Cell<u32>,
    depth: usize,
    seen: &mut HashMap<ValueId, Option<Vec<Dim>>>,
) -> Option<Vec<Dim>> {
    if let Some(known) = seen.get(&value) {
        return known.clone();
    }
    let info = module.value(value);
    info.ty.elem()?.int_range()?;
    if let Some(c) = module.as_constant(value) {
        let small = crate::tensor::count(c.shape()) <= SMALL_CONSTANT;
        return small
            .then(|| c.decode().ok()?.to_i64s())?
            .map(|v| v.into_iter().map(Dim::from).collect());
    }
    let node = module.node(module.producer(value)?);
    let rule = node.op.contents?;
    if depth == 0 || node.results.first() != Some(&value) {
        return None;
    }
    let ctx = InferCtx {
        node,
        types: node
            .operands
            .iter()
            .map(|o| o.map(|v| &module.value(v).ty))
            .collect(),
        contents: node
            .operands
            .iter()
            .map(|o| o.and_then(|v| contents_seen(module, v, fresh, depth - 1, seen)))
            .collect(),
        constants: vec![],
        region_outputs: vec![],
        fresh,
    };
    let found = rule(&ctx);
    seen.insert(value, found.clone());
    found
}
