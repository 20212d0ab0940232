//! A decoded ONNX model to a module.
//!
//! One walk: initializers become constants, inputs region inputs, nodes are put in order, upgraded to the
//! newest form, matched with the op table and typed by its rules; subgraphs become regions and
//! model-local functions are inlined. Every problem is gathered; what depends on a failed value is
//! skipped silently, so that each cause is reported once.

use super::error::{ImportError, Problems};
use super::files::{Files, map};
use super::order::{definition_order, label};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, IR_VERSION, ModelProto, NodeProto,
    OperatorSetIdProto, decode,
};
use super::types::{refine, value_type};
use super::upgrades::{Form, Step, upgrade};
use super::{attributes, names, tensor};
use bytes::Bytes;
use lapidary_ir::builder::{Builder, infer_node};
use lapidary_ir::ops::{Default as AttrDefault, Op, Operand};
use lapidary_ir::{Attr, Attrs, Constant, Module, RegionId, Tensor, Type, ValueId};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What the importer may be told.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Numbers for symbolic dimensions (`batch = 1`).
    pub dims: BTreeMap<String, i64>,
    /// Most nodes after inlining functions; protects against functions that multiply.
    pub max_nodes: usize,
}

impl Default for ImportOptions {
    fn default() -> ImportOptions {
        ImportOptions {
            dims: BTreeMap::new(),
            max_nodes: 1 << 22,
        }
    }
}

/// Imports a model file. The file stays mapped while the module holds views of its weights.
pub fn import_file(path: &Path, options: &ImportOptions) -> Result<Module, ImportError> {
    let file = path.display().to_string();
    let bytes = map(path).map_err(|e| one_problem(&file, "file", e))?;
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    import_bytes(bytes, &file, Some(folder), options)
}

/// Imports a model from bytes; `file` names it in messages, external data is looked for in `folder`.
pub fn import_bytes(
    bytes: Bytes,
    file: &str,
    folder: Option<&Path>,
    options: &ImportOptions,
) -> Result<Module, ImportError> {
    let model: ModelProto = decode(bytes).map_err(|e| one_problem(file, "file", e))?;
    import_model(&model, file, folder, options)
}

/// Imports a decoded model.
pub fn import_model(
    model: &ModelProto,
    file: &str,
    folder: Option<&Path>,
    options: &ImportOptions,
) -> Result<Module, ImportError> {
    let Some(graph) = &model.graph else {
        return Err(one_problem(
            file,
            "model",
            "has no graph; is this an ONNX file?".into(),
        ));
    };
    let mut importer = Importer {
        module: Module::new(&graph.name),
        fresh: Cell::new(0),
        files: Files::new(folder),
        options,
        functions: model
            .functions
            .iter()
            .map(|f| (function_key(&f.domain, &f.name, &f.overload), f))
            .collect(),
        problems: Problems::default(),
        nodes_left: options.max_nodes,
    };
    importer.model(model, graph);
    let Problems { list, more } = importer.problems;
    if list.is_empty() {
        Ok(importer.module)
    } else {
        Err(ImportError {
            file: file.to_owned(),
            problems: list,
            more,
        })
    }
}

fn one_problem(file: &str, place: &str, reason: String) -> ImportError {
    let mut problems = Problems::default();
    problems.add(place, reason, None);
    ImportError {
        file: file.to_owned(),
        problems: problems.list,
        more: 0,
    }
}

type FunctionKey = (String, String, String);

fn function_key(domain: &str, name: &str, overload: &str) -> FunctionKey {
    (
        names::domain(domain).to_owned(),
        name.to_owned(),
        overload.to_owned(),
    )
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    Value(ValueId),
    /// An optional operand of a function that its caller left out.
    Absent,
    /// Result of something that was reported.
    Failed,
}

/// Names of one graph, and of the graphs around it.
struct Scope<'s> {
    names: HashMap<String, Slot>,
    outer: Option<&'s Scope<'s>>,
    frame: &'s Frame<'s>,
}

impl<'s> Scope<'s> {
    fn new(outer: Option<&'s Scope<'s>>, frame: &'s Frame<'s>) -> Scope<'s> {
        Scope {
            names: HashMap::new(),
            outer,
            frame,
        }
    }

    fn find(&self, name: &str) -> Option<Slot> {
        let mut scope = Some(self);
        while let Some(s) = scope {
            if let Some(slot) = s.names.get(name) {
                return Some(*slot);
            }
            scope = s.outer;
        }
        None
    }

    fn set(&mut self, name: &str, slot: Slot) {
        if !name.is_empty() {
            self.names.insert(name.to_owned(), slot);
        }
    }
}

/// A call of a function, or the model itself.
struct Frame<'f> {
    versions: HashMap<String, i64>,
    /// Bound attributes of the function.
    attributes: HashMap<String, AttributeProto>,
    /// Put before names, for messages.
    path: String,
    /// Functions being inlined, outermost first.
    calls: Vec<&'f FunctionKey>,
}

/// Why a node was not imported: reported already, or a reason with a remedy.
enum Failure {
    Silent,
    Reason(String, Option<&'static str>),
}

impl<T: Into<String>> From<T> for Failure {
    fn from(reason: T) -> Failure {
        Failure::Reason(reason.into(), None)
    }
}

struct Importer<'a> {
    module: Module,
    fresh: Cell<u32>,
    files: Files,
    options: &'a ImportOptions,
    functions: HashMap<FunctionKey, &'a FunctionProto>,
    problems: Problems,
    nodes_left: usize,
}

impl Importer<'_> {
    fn model(&mut self, model: &ModelProto, graph: &GraphProto) {
        let version = model.ir_version.unwrap_or(0);
        if !(1..=IR_VERSION).contains(&version) {
            let remedy = "convert the model with onnx.version_converter, or use a newer lapidary";
            self.problems.add(
                "model",
                format!("IR version {version} is not supported; 1 to {IR_VERSION} are"),
                Some(remedy),
            );
        }
        let mut versions = self.versions(&model.opset_import, "model");
        if versions.is_empty() && version < 3 {
            versions.insert(String::new(), 1);
        }
        let frame = Frame {
            versions,
            attributes: HashMap::new(),
            path: String::new(),
            calls: vec![],
        };
        let mut scope = Scope::new(None, &frame);
        self.graph(graph, Module::TOP, &mut scope, &[]);
        self.module.output_names = graph.output.iter().map(|o| o.name.clone()).collect();
        for (i, output) in graph.output.iter().enumerate() {
            self.check_output(i, output);
        }
    }

    /// Versions of operator sets by domain.
    fn versions(&mut self, imports: &[OperatorSetIdProto], place: &str) -> HashMap<String, i64> {
        let mut versions = HashMap::new();
        for import in imports {
            let domain = names::domain(import.domain.as_deref().unwrap_or(""));
            let version = import.version.unwrap_or(1);
            if let Some(newest) = names::newest(domain).filter(|n| !(1..=*n).contains(&version)) {
                let shown = if domain.is_empty() { "ai.onnx" } else { domain };
                let reason = format!(
                    "version {version} of operator set `{shown}` is not supported; 1 to {newest} are"
                );
                self.problems
                    .add(place, reason, Some("export the model for one of these"));
            }
            versions.insert(domain.to_owned(), version);
        }
        versions
    }

    /// A declared type of an output must agree with what was inferred.
    fn check_output(&mut self, i: usize, output: &super::proto::ValueInfoProto) {
        let (Some(&value), Some(proto)) = (self.module.top().outputs.get(i), &output.r#type) else {
            return;
        };
        let declared = value_type(proto, &output.name, &self.options.dims);
        match declared.and_then(|d| refine(&self.module.value(value).ty, &d)) {
            Ok(ty) => self.module.value_mut(value).ty = ty,
            Err(e) => self
                .problems
                .add(&format!("output `{}`", output.name), e, None),
        }
    }

    /// Imports a graph into a region. `given` are types of inputs that the graph may leave undeclared.
    fn graph(&mut self, graph: &GraphProto, region: RegionId, scope: &mut Scope, given: &[Type]) {
        let path = scope.frame.path.clone();
        for t in &graph.initializer {
            let constant = tensor::constant(t, &self.files);
            self.initializer(&t.name, constant, scope);
        }
        for t in &graph.sparse_initializer {
            let name = t.values.as_ref().map_or("", |v| v.name.as_str());
            let constant = tensor::sparse(t, &self.files);
            self.initializer(name, constant, scope);
        }
        let free = graph
            .input
            .iter()
            .filter(|i| !scope.names.contains_key(&i.name))
            .collect::<Vec<_>>();
        for (i, input) in free.into_iter().enumerate() {
            let declared = match (&input.r#type, given.get(i)) {
                (Some(t), _) => value_type(t, &input.name, &self.options.dims),
                (None, Some(t)) => Ok(t.clone()),
                (None, None) => Err("type is missing".into()),
            };
            let slot = match declared {
                Ok(ty) => Slot::Value(self.module.add_input(region, &input.name, ty)),
                Err(e) => {
                    self.problems
                        .add(&format!("input `{path}{}`", input.name), e, None);
                    Slot::Failed
                }
            };
            scope.set(&input.name, slot);
        }
        let hints = graph
            .value_info
            .iter()
            .map(|v| (v.name.as_str(), v))
            .collect();
        self.nodes(&graph.node, region, scope, &hints);
        for output in &graph.output {
            match scope.find(&output.name) {
                Some(Slot::Value(v)) => self.module.region_mut(region).outputs.push(v),
                Some(Slot::Failed) => {}
                _ => self.problems.add(
                    &format!("output `{path}{}`", output.name),
                    "is not defined",
                    None,
                ),
            }
        }
    }

    fn initializer(&mut self, name: &str, constant: Result<Constant, String>, scope: &mut Scope) {
        let slot = match constant {
            Ok(c) => Slot::Value(self.module.add_constant(name, c)),
            Err(e) => {
                self.problems.add(
                    &format!("initializer `{}{name}`", scope.frame.path),
                    e,
                    None,
                );
                Slot::Failed
            }
        };
        scope.set(name, slot);
    }

    fn nodes(&mut self, nodes: &[NodeProto], region: RegionId, scope: &mut Scope, hints: &Hints) {
        let order = match definition_order(nodes) {
            Ok(order) => order,
            Err(e) => {
                self.problems
                    .add(&format!("graph `{}`", scope.frame.path), e, None);
                nodes
                    .iter()
                    .flat_map(|n| &n.output)
                    .for_each(|o| scope.set(o, Slot::Failed));
                return;
            }
        };
        for i in order {
            let node = &nodes[i];
            let place = format!("{}{}", scope.frame.path, label(node));
            let slots = match self.node(node, &place, region, scope, hints) {
                Ok(slots) => slots,
                Err(failure) => {
                    if let Failure::Reason(reason, remedy) = failure {
                        let op = names::qualified(names::domain(&node.domain), &node.op_type);
                        self.problems
                            .add(&format!("node `{place}` ({op})"), reason, remedy);
                    }
                    vec![]
                }
            };
            for (i, name) in node.output.iter().enumerate() {
                scope.set(name, slots.get(i).copied().unwrap_or(Slot::Failed));
            }
        }
    }

    /// Imports one node; one slot per result.
    fn node(
        &mut self,
        node: &NodeProto,
        place: &str,
        region: RegionId,
        scope: &Scope,
        hints: &Hints,
    ) -> Result<Vec<Slot>, Failure> {
        self.nodes_left = self.nodes_left.checked_sub(1).ok_or_else(|| {
            Failure::Reason(
                format!(
                    "there are more than {} nodes after inlining functions",
                    self.options.max_nodes
                ),
                None,
            )
        })?;
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

    /// Attributes that are not subgraphs.
    fn values(&self, attributes: &[AttributeProto]) -> Result<Attrs, Failure> {
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
        attributes: &[AttributeProto],
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
        let subgraphs = self.subgraphs(&op, attributes, &operands, scope)?;
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
        types.truncate(form.n_results);
        self.module.set_result_types(id, types);
        self.module.region_mut(region).nodes.push(id);
        Ok(self.module.node(id).results.clone())
    }

    /// Imports subgraphs as regions, in the op's order.
    fn subgraphs(
        &mut self,
        op: &Op,
        attributes: &[AttributeProto],
        operands: &[Option<ValueId>],
        scope: &Scope,
    ) -> Result<Vec<RegionId>, Failure> {
        let given = self.body_inputs(op, operands);
        let mut regions = vec![];
        for name in op.regions {
            let graph = attributes
                .iter()
                .find(|a| a.name == *name)
                .and_then(|a| a.g.as_ref());
            let graph = graph.ok_or_else(|| format!("attribute `{name}` must be a graph"))?;
            let region = self.module.add_region();
            let before = self.problems.list.len() + self.problems.more;
            let mut inner = Scope::new(Some(scope), scope.frame);
            self.graph(graph, region, &mut inner, &given);
            if self.problems.list.len() + self.problems.more > before {
                return Err(Failure::Silent);
            }
            if self.module.region(region).outputs.len() < graph.output.len() {
                return Err(Failure::Silent);
            }
            regions.push(region);
        }
        let stray = attributes
            .iter()
            .find(|a| attributes::is_graph(a) && !op.regions.contains(&a.name.as_str()));
        match stray {
            Some(a) => Err(format!(
                "attribute `{}` is a graph, which `{op}` does not take",
                a.name
            )
            .into()),
            None => Ok(regions),
        }
    }

    /// Types of a body's inputs as far as the operands say, for bodies that declare none.
    fn body_inputs(&self, op: &Op, operands: &[Option<ValueId>]) -> Vec<Type> {
        let ty = |v: &Option<ValueId>| {
            v.map_or(Type::unranked(lapidary_ir::ElemType::Bool), |v| {
                self.module.value(v).ty.clone()
            })
        };
        let unranked = |t: Type| t.elem().map_or(t, Type::unranked);
        match op.name {
            "loop" => {
                let counters = [lapidary_ir::ElemType::I64, lapidary_ir::ElemType::Bool]
                    .map(|e| Type::tensor(e, [] as [i64; 0]));
                counters
                    .into_iter()
                    .chain(operands.iter().skip(2).map(|v| unranked(ty(v))))
                    .collect()
            }
            "scan" => operands.iter().map(|v| unranked(ty(v))).collect(),
            "sequence_map" => operands
                .iter()
                .map(|v| match ty(v) {
                    Type::Sequence(item) => *item,
                    other => other,
                })
                .collect(),
            _ => vec![],
        }
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
                info.ty =
                    refine(&info.ty, &declared).map_err(|e| format!("result `{name}` is {e}"))?;
            }
        }
        Ok(())
    }

    /// Inlines a model-local function.
    #[allow(clippy::too_many_arguments, reason = "a call has these parts")]
    fn call(
        &mut self,
        function: &FunctionProto,
        key: &FunctionKey,
        operands: &[Slot],
        attributes: &[AttributeProto],
        node: &NodeProto,
        place: &str,
        region: RegionId,
        caller: &Frame,
    ) -> Result<Vec<Slot>, Failure> {
        if caller.calls.contains(&key) {
            return Err(format!("function `{}` calls itself", key.1).into());
        }
        if operands.len() > function.input.len() || node.output.len() > function.output.len() {
            return Err(format!(
                "function takes {} operands and gives {} results",
                function.input.len(),
                function.output.len()
            )
            .into());
        }
        let versions = self.versions(&function.opset_import, place);
        let defaults = function
            .attribute_proto
            .iter()
            .map(|a| (a.name.clone(), a.clone()));
        let bound = defaults
            .chain(attributes.iter().map(|a| (a.name.clone(), a.clone())))
            .collect();
        let calls = caller.calls.iter().copied().chain([key]).collect();
        let frame = Frame {
            versions,
            attributes: bound,
            path: format!("{place}/"),
            calls,
        };
        let mut scope = Scope::new(None, &frame);
        for (i, name) in function.input.iter().enumerate() {
            scope.set(name, operands.get(i).copied().unwrap_or(Slot::Absent));
        }
        let hints = function
            .value_info
            .iter()
            .map(|v| (v.name.as_str(), v))
            .collect();
        self.nodes(&function.node, region, &mut scope, &hints);
        let wanted = node.output.iter().zip(&function.output);
        wanted
            .map(|(outer, name)| match scope.find(name) {
                Some(slot) => Ok(slot),
                None if outer.is_empty() => Ok(Slot::Absent),
                None => Err(format!("function does not define its result `{name}`").into()),
            })
            .collect()
    }

    /// The value of a `Constant` node.
    fn constant_node(&self, attributes: &[AttributeProto]) -> Result<Constant, Failure> {
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
                lapidary_ir::ElemType::F32,
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

type Hints<'h> = HashMap<&'h str, &'h super::proto::ValueInfoProto>;

fn strings(shape: Vec<usize>, values: Vec<String>) -> Tensor {
    Tensor::new(
        lapidary_ir::ElemType::String,
        shape,
        lapidary_ir::tensor::Data::Str(values),
    )
}

/// Operators without an entry of their own, which an upgrade turns into another.
fn superseded(domain: &str, op_type: &str) -> bool {
    domain == names::ONNX && matches!(op_type, "Upsample" | "Scatter")
}

/// Attributes with references to the function's own attributes replaced; unbound ones are left out.
fn bind(attributes: &[AttributeProto], frame: &Frame) -> Vec<AttributeProto> {
    let bound = |a: &AttributeProto| match a.ref_attr_name.as_str() {
        "" => Some(a.clone()),
        name => frame.attributes.get(name).map(|v| AttributeProto {
            name: a.name.clone(),
            ..v.clone()
        }),
    };
    attributes.iter().filter_map(bound).collect()
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
