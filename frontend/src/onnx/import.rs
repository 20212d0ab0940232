//! A decoded ONNX model to a module.
//!
//! One walk: initializers become constants, inputs region inputs, nodes are put in order, upgraded to the
//! newest form, matched with the op table and typed by its rules; subgraphs become regions and
//! model-local functions are inlined. Every problem is gathered; what depends on a failed value is
//! skipped silently, so that each cause is reported once.

use super::order::{definition_order, label};
use super::proto::{
    AttributeProto, EXTERNAL, FunctionProto, GraphProto, IR_VERSION, ModelProto, NodeProto,
    OperatorSetIdProto, decode,
};
use super::types::{check_declared, symbols, value_type};
use super::{names, tensor};
use crate::error::{ImportError, Problems, unknown_dim};
use crate::files::{Files, map_source};
use bytes::Bytes;
use lapidary_ir::infer::infer_module;
use lapidary_ir::sources::Sources;
use lapidary_ir::{Constant, Module, RegionId, Type, ValueId};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// What to do where nothing better is known.
const REMEDY: &str =
    "`onnx.checker.check_model(path, full_check=True)` tells whether the model itself is wrong";

/// What to do where a weight's file is wrong.
const EXTERNAL_REMEDY: &str =
    "put the weights' file, complete, where the model says, inside the model's folder";

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
    let mut sources = Sources::default();
    let bytes = map_source(path, &mut sources).map_err(|e| {
        one_problem(
            &file,
            "file",
            e,
            Some("is the path right, and may you read it?"),
        )
    })?;
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut module = import_bytes(bytes, &file, Some(folder), options)?;
    module.sources.extend(sources);
    Ok(module)
}

/// Imports a model from bytes; `file` names it in messages, external data is looked for in `folder`.
pub fn import_bytes(
    bytes: Bytes,
    file: &str,
    folder: Option<&Path>,
    options: &ImportOptions,
) -> Result<Module, ImportError> {
    let model: ModelProto = decode(bytes).map_err(|e| {
        let remedy = "is it an ONNX model, and is the file complete?";
        one_problem(file, "file", e, Some(remedy))
    })?;
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
            "has no graph".into(),
            Some("is this an ONNX file?"),
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
        problems: Problems::new(REMEDY),
        nodes_left: options.max_nodes,
        exhausted: false,
        depth: 0,
    };
    importer.model(model, graph);
    if importer.problems.is_empty() {
        importer.module.sources = importer.files.into_sources();
        Ok(importer.module)
    } else {
        Err(importer.problems.of(file))
    }
}

fn one_problem(file: &str, place: &str, reason: String, remedy: Option<&str>) -> ImportError {
    let mut problems = Problems::new(REMEDY);
    problems.add(place, reason, remedy);
    problems.of(file)
}

/// Most graphs and functions one inside the other; deeper ones would exhaust the stack.
const MAX_DEPTH: usize = 128;

pub(super) type FunctionKey = (String, String, String);

pub(super) fn function_key(domain: &str, name: &str, overload: &str) -> FunctionKey {
    (
        names::domain(domain).to_owned(),
        name.to_owned(),
        overload.to_owned(),
    )
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Slot {
    Value(ValueId),
    /// An optional operand of a function that its caller left out.
    Absent,
    /// Result of something that was reported.
    Failed,
}

/// Names of one graph, and of the graphs around it.
pub(super) struct Scope<'s> {
    pub(super) names: HashMap<String, Slot>,
    pub(super) outer: Option<&'s Scope<'s>>,
    pub(super) frame: &'s Frame<'s>,
}

impl<'s> Scope<'s> {
    pub(super) fn new(outer: Option<&'s Scope<'s>>, frame: &'s Frame<'s>) -> Scope<'s> {
        Scope {
            names: HashMap::new(),
            outer,
            frame,
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<Slot> {
        let mut scope = Some(self);
        while let Some(s) = scope {
            if let Some(slot) = s.names.get(name) {
                return Some(*slot);
            }
            scope = s.outer;
        }
        None
    }

    pub(super) fn set(&mut self, name: &str, slot: Slot) {
        if !name.is_empty() {
            self.names.insert(name.to_owned(), slot);
        }
    }
}

/// A call of a function, or the model itself.
pub(super) struct Frame<'f> {
    pub(super) versions: HashMap<String, i64>,
    /// Bound attributes of the function.
    pub(super) attributes: HashMap<String, AttributeProto>,
    /// Put before names, for messages.
    pub(super) path: String,
    /// Functions being inlined, outermost first.
    pub(super) calls: Vec<&'f FunctionKey>,
}

/// Why a node was not imported: reported already, or a reason with a remedy.
pub(super) enum Failure {
    Silent,
    Reason(String, Option<&'static str>),
}

impl<T: Into<String>> From<T> for Failure {
    fn from(reason: T) -> Failure {
        Failure::Reason(reason.into(), None)
    }
}

pub(super) struct Importer<'a> {
    pub(super) module: Module,
    pub(super) fresh: Cell<u32>,
    pub(super) files: Files,
    pub(super) options: &'a ImportOptions,
    pub(super) functions: HashMap<FunctionKey, &'a FunctionProto>,
    pub(super) problems: Problems,
    /// Nodes that may still be imported.
    pub(super) nodes_left: usize,
    /// The limit was met and reported.
    pub(super) exhausted: bool,
    /// Graphs and functions being imported, one inside the other.
    pub(super) depth: usize,
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
        self.check_dims(graph);
        self.graph(graph, Module::TOP, &mut scope, &[]);
        self.module.output_names = graph.output.iter().map(|o| o.name.clone()).collect();
        if !self.problems.list.is_empty() {
            return;
        }
        for e in infer_module(&mut self.module) {
            self.problems
                .add(&format!("node `{}` ({})", e.node, e.op), e.reason, None);
        }
        for (i, output) in graph.output.iter().enumerate() {
            self.check_output(i, output);
        }
    }

    fn check_dims(&mut self, graph: &GraphProto) {
        let values = graph
            .input
            .iter()
            .chain(&graph.output)
            .chain(&graph.value_info);
        let known: BTreeSet<String> = values.flat_map(symbols).collect();
        for name in self.options.dims.keys() {
            if !known.contains(name) {
                self.problems.push(unknown_dim(name, &known));
            }
        }
    }

    /// Versions of operator sets by domain.
    pub(super) fn versions(
        &mut self,
        imports: &[OperatorSetIdProto],
        place: &str,
    ) -> HashMap<String, i64> {
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
        match declared.and_then(|d| check_declared(&self.module.value(value).ty, &d)) {
            Ok(ty) => self.module.value_mut(value).ty = ty,
            Err(e) => self
                .problems
                .add(&format!("output `{}`", output.name), e, None),
        }
    }

    /// Imports a graph into a region. `given` are types of inputs that the graph may leave undeclared.
    pub(super) fn graph(
        &mut self,
        graph: &GraphProto,
        region: RegionId,
        scope: &mut Scope,
        given: &[Type],
    ) {
        let path = scope.frame.path.clone();
        for t in &graph.initializer {
            let constant = tensor::constant(t, &self.files);
            let remedy = (t.data_location == Some(EXTERNAL)).then_some(EXTERNAL_REMEDY);
            self.initializer(&t.name, constant, remedy, scope);
        }
        for t in &graph.sparse_initializer {
            let name = t.values.as_ref().map_or("", |v| v.name.as_str());
            let constant = tensor::sparse(t, &self.files);
            self.initializer(name, constant, None, scope);
        }
        let free = graph
            .input
            .iter()
            .filter(|i| !scope.names.contains_key(&i.name))
            .collect::<Vec<_>>();
        self.shared_names("input", free.iter().map(|i| &i.name), &path);
        if region == Module::TOP {
            self.shared_names("output", graph.output.iter().map(|o| &o.name), &path);
        }
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
        let results = graph.node.iter().flat_map(|n| &n.output);
        for name in results.filter(|o| scope.names.contains_key(*o)) {
            self.defined_twice(&format!("value `{path}{name}`"));
        }
        self.nodes(&graph.node, region, scope, &hints);
        for output in &graph.output {
            match scope.find(&output.name) {
                Some(Slot::Value(v)) => self.module.region_mut(region).outputs.push(v),
                // What failed has been reported, unless its node has more outputs than results.
                Some(Slot::Failed) if !self.problems.list.is_empty() => {}
                _ => self.problems.add(
                    &format!("output `{path}{}`", output.name),
                    "is not defined",
                    None,
                ),
            }
        }
    }

    fn shared_names<'n>(
        &mut self,
        kind: &str,
        names: impl Iterator<Item = &'n String>,
        path: &str,
    ) {
        let mut seen = HashSet::new();
        for name in names.filter(|n| !n.is_empty()) {
            if !seen.insert(name) {
                self.defined_twice(&format!("{kind} `{path}{name}`"));
            }
        }
    }

    fn defined_twice(&mut self, place: &str) {
        let remedy = "give each value of the model its own name";
        self.problems
            .add(place, "two values have this name", Some(remedy));
    }

    fn initializer(
        &mut self,
        name: &str,
        constant: Result<Constant, String>,
        remedy: Option<&str>,
        scope: &mut Scope,
    ) {
        if scope.names.contains_key(name) {
            self.defined_twice(&format!("initializer `{}{name}`", scope.frame.path));
        }
        let slot = match constant {
            Ok(c) => Slot::Value(self.module.add_constant(name, c)),
            Err(e) => {
                self.problems.add(
                    &format!("initializer `{}{name}`", scope.frame.path),
                    e,
                    remedy,
                );
                Slot::Failed
            }
        };
        scope.set(name, slot);
    }

    pub(super) fn nodes(
        &mut self,
        nodes: &[NodeProto],
        region: RegionId,
        scope: &mut Scope,
        hints: &Hints,
    ) {
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            self.nodes_in_order(nodes, region, scope, hints);
        } else {
            let reason = format!("subgraphs and functions are nested more than {MAX_DEPTH} deep");
            self.problems
                .add(&format!("graph `{}`", scope.frame.path), reason, None);
            fail_all(nodes, scope);
        }
        self.depth -= 1;
    }

    fn nodes_in_order(
        &mut self,
        nodes: &[NodeProto],
        region: RegionId,
        scope: &mut Scope,
        hints: &Hints,
    ) {
        let order = match definition_order(nodes) {
            Ok(order) => order,
            Err(e) => {
                self.problems
                    .add(&format!("graph `{}`", scope.frame.path), e, None);
                fail_all(nodes, scope);
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
}

pub(super) type Hints<'h> = HashMap<&'h str, &'h super::proto::ValueInfoProto>;

fn fail_all(nodes: &[NodeProto], scope: &mut Scope) {
    nodes
        .iter()
        .flat_map(|n| &n.output)
        .for_each(|o| scope.set(o, Slot::Failed));
}
