//! One node: operands and attributes looked up, upgraded to the newest form, checked against the op
//! table, subgraphs imported as regions, results typed.

use super::functions::bind;
use super::import::{Failure, Hints, Importer, Scope, Slot, function_key};
use super::proto::{AttributeProto, NodeProto};
use super::types::{check_declared, value_type};
use super::upgrades::{Form, Step, upgrade};
use super::{attributes, names, tensor};
use lapidary_ir::builder::{Builder, infer_node};
use lapidary_ir::ops::control::region_input_types;
use lapidary_ir::ops::{Default as AttrDefault, Op, Operand};
use lapidary_ir::{Attr, Attrs, Constant, ElemType, RegionId, Tensor, Type, ValueId};
use std::borrow::Cow;

impl Importer<'_> {
    /// Imports one node; one slot per result.
    pub(super) fn node(
        &mut self,
        node: &NodeProto,
        place: &str,
        region: RegionId,
        scope: &Scope,
        hints: &Hints,
    ) -> Result<Vec<Slot>, Failure> {
        self.spend_node()?;
        let domain = names::domain(&node.domain);
        let attributes = bind(&node.attribute, scope.frame);
        if domain == names::ONNX && node.op_type == "Constant" {
            let constant = self.constant_node(&attributes)?;
            let name = node.output.first().map_or("", String::as_str);
            return Ok(vec![Slot::Value(self.module.add_constant(name, constant))]);
        }
        let operands = operands(node, scope)?;
        let op = names::table_op(domain, &node.op_type);
        let key = function_key(domain, &node.op_type, &node.overload);
        if op.is_none()
            && let Some(function) = self.functions.get(&key).copied()
        {
            return self.call(
                function,
                &key,
                &operands,
                &attributes,
                node,
                place,
                region,
                scope.frame,
            );
        }
        let Some(version) = scope.frame.versions.get(domain).copied() else {
            return Err(Failure::Reason(
                format!("operator set `{domain}` is not among the model's imports"),
                None,
            ));
        };
        if op.is_none() && !superseded(domain, &node.op_type) {
            let remedy = "rewrite the model without it, or include it as a model-local function";
            return Err(Failure::Reason(
                format!("operator is not supported (opset {version})"),
                Some(remedy),
            ));
        }
        let operands: Vec<Option<ValueId>> = operands
            .into_iter()
            .map(|s| match s {
                Slot::Value(v) => Ok(Some(v)),
                Slot::Absent => Ok(None),
                Slot::Failed => Err(Failure::Silent),
            })
            .collect::<Result<_, _>>()?;
        let mut form = Form {
            domain: domain.to_owned(),
            op: node.op_type.clone(),
            operands,
            attrs: self.values(&attributes)?,
            n_results: node
                .output
                .iter()
                .rposition(|o| !o.is_empty())
                .map_or(0, |i| i + 1),
        };
        let mut builder = Builder::new(&mut self.module, region, place, &self.fresh);
        let results = match upgrade(&mut form, version, &mut builder).map_err(|e| e.0)? {
            Step::Done(results) => results,
            Step::Keep => self.table_node(form, version, &attributes, place, region, scope)?,
        };
        self.name_results(node, &results, hints)?;
        Ok(results.into_iter().map(Slot::Value).collect())
    }

    /// Counts a node against the limit, which is reported once.
    fn spend_node(&mut self) -> Result<(), Failure> {
        match self.nodes_left.checked_sub(1) {
            Some(left) => self.nodes_left = left,
            None if self.exhausted => return Err(Failure::Silent),
            None => {
                self.exhausted = true;
                let most = self.options.max_nodes;
                return Err(
                    format!("there are more than {most} nodes after inlining functions").into(),
                );
            }
        }
        Ok(())
    }

    /// Attributes that are not subgraphs.
    fn values(&self, attributes: &[Cow<AttributeProto>]) -> Result<Attrs, Failure> {
        let plain = attributes.iter().filter(|a| !attributes::is_graph(a));
        plain
            .map(|a| match attributes::value(a, &self.files) {
                Ok(value) => Ok((a.name.clone(), value)),
                Err(e) => Err(format!("attribute `{}` {e}", a.name).into()),
            })
            .collect()
    }

    /// Places a node of the newest form.
    fn table_node(
        &mut self,
        form: Form,
        version: i64,
        attributes: &[Cow<AttributeProto>],
        place: &str,
        region: RegionId,
        scope: &Scope,
    ) -> Result<Vec<ValueId>, Failure> {
        let op = names::table_op(&form.domain, &form.op);
        let op =
            op.ok_or_else(|| format!("operator `{}` is not supported (opset {version})", form.op))?;
        let mut operands = form.operands;
        while operands.last() == Some(&None) {
            operands.pop();
        }
        check_operands(&op, &operands)?;
        let attrs = check_attributes(&op, form.attrs, version)?;
        let subgraphs = self.subgraphs(&op, attributes, &operands, &attrs, scope)?;
        let id = self
            .module
            .make_node(op, place, operands, attrs, subgraphs, vec![]);
        let mut types = infer_node(&self.module, id, &self.fresh).map_err(|e| e.0)?;
        if types.len() < form.n_results {
            return Err(format!(
                "has {} results, but the model names {}",
                types.len(),
                form.n_results
            )
            .into());
        }
        let last = self.module.node(id).op.results.last();
        let variadic = matches!(last, Some(Operand::Variadic(_)));
        if form.n_results == 0 && !variadic {
            let remedy = "remove the node, or name what it gives";
            return Err(Failure::Reason("no result is named".into(), Some(remedy)));
        }
        types.truncate(form.n_results);
        self.module.set_result_types(id, types);
        self.module.region_mut(region).nodes.push(id);
        Ok(self.module.node(id).results.clone())
    }

    /// Imports subgraphs as regions, in the op's order.
    fn subgraphs(
        &mut self,
        op: &Op,
        attributes: &[Cow<AttributeProto>],
        operands: &[Option<ValueId>],
        attrs: &Attrs,
        scope: &Scope,
    ) -> Result<Vec<RegionId>, Failure> {
        if op.regions.is_empty() {
            return no_stray_graphs(op, attributes).map(|()| vec![]);
        }
        let given = self.body_inputs(op, operands, attrs)?;
        let mut regions = vec![];
        for (k, name) in op.regions.iter().enumerate() {
            let graph = attributes
                .iter()
                .find(|a| a.name == *name)
                .and_then(|a| a.g.as_ref());
            let graph = graph.ok_or_else(|| format!("attribute `{name}` must be a graph"))?;
            let region = self.module.add_region();
            let before = self.problems.list.len() + self.problems.more;
            let mut inner = Scope::new(Some(scope), scope.frame);
            self.graph(graph, region, &mut inner, given.get(k).map_or(&[], |t| t));
            if self.problems.list.len() + self.problems.more > before {
                return Err(Failure::Silent);
            }
            if self.module.region(region).outputs.len() < graph.output.len() {
                return Err(Failure::Silent);
            }
            regions.push(region);
        }
        no_stray_graphs(op, attributes).map(|()| regions)
    }

    /// Types of the bodies' inputs as far as the operands say, for bodies that declare none. What is
    /// carried around a loop may change its shape, so only its element type is taken.
    fn body_inputs(
        &self,
        op: &Op,
        operands: &[Option<ValueId>],
        attrs: &Attrs,
    ) -> Result<Vec<Vec<Type>>, Failure> {
        let node = lapidary_ir::graph::Node {
            op: *op,
            name: String::new(),
            operands: operands.to_vec(),
            results: vec![],
            attrs: attrs.clone(),
            regions: vec![],
        };
        let types: Vec<Option<&Type>> = operands
            .iter()
            .map(|o| o.map(|v| &self.module.value(v).ty))
            .collect();
        let mut given = region_input_types(&node, &types).map_err(|e| e.0)?;
        if op.name == "loop" {
            let unranked = |t: &mut Type| *t = t.elem().map_or(t.clone(), Type::unranked);
            given
                .iter_mut()
                .for_each(|types| types.iter_mut().skip(2).for_each(unranked));
        }
        Ok(given)
    }

    /// Keeps the model's names, and checks declared types.
    fn name_results(
        &mut self,
        node: &NodeProto,
        results: &[ValueId],
        hints: &Hints,
    ) -> Result<(), Failure> {
        for (name, &value) in node.output.iter().zip(results) {
            let info = self.module.value_mut(value);
            if info.name.is_empty() {
                info.name.clone_from(name);
            }
            let Some(proto) = hints.get(name.as_str()).and_then(|h| h.r#type.as_ref()) else {
                continue;
            };
            // A declaration that cannot be expressed is only a hint, and says nothing.
            if let Ok(declared) = value_type(proto, name, &self.options.dims) {
                info.ty = check_declared(&info.ty, &declared)
                    .map_err(|e| format!("result `{name}` is {e}"))?;
            }
        }
        Ok(())
    }

    /// The value of a `Constant` node.
    fn constant_node(&self, attributes: &[Cow<AttributeProto>]) -> Result<Constant, Failure> {
        let [a] = attributes else {
            return Err("needs exactly one attribute".into());
        };
        match (a.name.as_str(), &a.t, &a.sparse_tensor) {
            ("value", Some(t), _) => return Ok(tensor::constant(t, &self.files)?),
            ("sparse_value", _, Some(t)) => return Ok(tensor::sparse(t, &self.files)?),
            _ => {}
        }
        let tensor = match (a.name.as_str(), attributes::value(a, &self.files)?) {
            ("value_float", Attr::Float(v)) => Tensor::f32(v),
            ("value_floats", Attr::Floats(v)) => Tensor::from_f64(
                ElemType::F32,
                [v.len()],
                v.into_iter().map(f64::from).collect(),
            ),
            ("value_int", Attr::Int(v)) => Tensor::int(v),
            ("value_ints", Attr::Ints(v)) => Tensor::ints(&v),
            ("value_string", Attr::Str(v)) => strings(vec![], vec![v]),
            ("value_strings", Attr::Strs(v)) => strings(vec![v.len()], v),
            (name, _) => {
                return Err(
                    format!("attribute `{name}` is not known or has the wrong kind").into(),
                );
            }
        };
        Ok(Constant::from_tensor(&tensor))
    }
}

fn strings(shape: Vec<usize>, values: Vec<String>) -> Tensor {
    Tensor::new(
        ElemType::String,
        shape,
        lapidary_ir::tensor::Data::Str(values),
    )
}

/// Operators without an entry of their own, which an upgrade turns into another.
fn superseded(domain: &str, op_type: &str) -> bool {
    domain == names::ONNX && matches!(op_type, "Upsample" | "Scatter")
}

fn operands(node: &NodeProto, scope: &Scope) -> Result<Vec<Slot>, Failure> {
    let find = |name: &String| match name.as_str() {
        "" => Ok(Slot::Absent),
        name => scope
            .find(name)
            .ok_or_else(|| format!("operand `{name}` is not defined").into()),
    };
    node.input.iter().map(find).collect()
}

/// Every subgraph must be one that the op takes.
fn no_stray_graphs(op: &Op, attributes: &[Cow<AttributeProto>]) -> Result<(), Failure> {
    let stray = |a: &&Cow<AttributeProto>| {
        attributes::is_graph(a) && !op.regions.contains(&a.name.as_str())
    };
    match attributes.iter().find(stray) {
        Some(a) => Err(format!(
            "attribute `{}` is a graph, which `{op}` does not take",
            a.name
        )
        .into()),
        None => Ok(()),
    }
}

fn check_operands(op: &Op, operands: &[Option<ValueId>]) -> Result<(), Failure> {
    let (least, most) = op.arity();
    if operands.len() > most {
        return Err(format!("takes at most {most} operands, found {}", operands.len()).into());
    }
    for (i, def) in op.operands.iter().enumerate() {
        if let Operand::One(name) = def
            && operands.get(i).copied().flatten().is_none()
        {
            return Err(
                format!("operand {i} (`{name}`) is missing; at least {least} are needed").into(),
            );
        }
    }
    Ok(())
}

fn check_attributes(op: &Op, attrs: Attrs, version: i64) -> Result<Attrs, Failure> {
    let mut out = Attrs::new();
    for (name, attr) in attrs {
        let Some(def) = op.attrs.iter().find(|d| d.name == name) else {
            return Err(
                format!("attribute `{name}` is not supported by `{op}` (opset {version})").into(),
            );
        };
        if let Some(attr) =
            attributes::fit(attr, def).map_err(|e| format!("attribute `{name}` {e}"))?
        {
            out.insert(name, attr);
        }
    }
    match op
        .attrs
        .iter()
        .find(|d| d.default == AttrDefault::Required && !out.contains_key(d.name))
    {
        Some(d) => Err(format!("attribute `{}` is missing", d.name).into()),
        None => Ok(out),
    }
}
