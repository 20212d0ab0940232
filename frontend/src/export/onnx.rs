//! ONNX files with weights as codes that a node decodes, or that a product reads.
//!
//! ```text
//! initializer W            =>  W_codes, W_scale, W_zero;  DequantizeLinear(W_codes, W_scale, W_zero) -> W
//! MatMul(x, W)             =>  com.microsoft.MatMulNBits(x, W_codes, W_scale, W_zero)
//! ```
//! Codes of 4 bits, and blocks of weights with scales of their own, came to `DequantizeLinear` with opset 21; a model of an
//! older one has products with 4-bit blocks instead, and 8-bit rows. A model's opset is not raised: that would change what other nodes
//! mean. The file is edited as the protobuf that it is: fields that are not a replaced weight are copied byte for byte.
//! Source: ONNX, `DequantizeLinear-21`; ONNX Runtime, `ContribOperators.md`, `MatMulNBits`.

use super::grid::{Grid, transposed};
use super::wire::{fields, header, message};
use super::{Aside, File, Kind, Target, Weight, Written, misfit};
use crate::error::Problem;
use crate::files::{Files, map};
use crate::onnx::proto::{
    AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_type, decode,
    encode,
};
use bytes::Bytes;
use lapidary_ir::ElemType;
use lapidary_ir::encodings::int;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Numbers of fields.
const GRAPH: u64 = 7;
const OPSETS: u64 = 8;
const NODES: u64 = 1;
const INITIALIZERS: u64 = 5;

/// The domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// Longest message of protobuf.
const MAX_FILE: usize = i32::MAX as usize;

/// A model's file.
pub struct Model {
    bytes: Bytes,
    name: String,
    opset: i64,
    /// Float initializers of the main graph: dimensions.
    weights: BTreeMap<String, Vec<i64>>,
    /// Those of them that only products of the main graph read, as their second operand.
    products: BTreeSet<String>,
    /// Every name of a value, so that new ones are new.
    names: BTreeSet<String>,
    has_microsoft: bool,
    /// Files with external data, which are copied.
    external: Vec<(String, Bytes)>,
}

impl Model {
    /// Maps a file and notes its weights.
    pub fn read(path: &Path) -> Result<Model, Problem> {
        let wrong = |reason: String| Problem {
            place: "file".to_owned(),
            reason,
            remedy: Some("an ONNX file is written from an ONNX file".to_owned()),
        };
        if path.is_dir() {
            return Err(wrong("is a folder".to_owned()));
        }
        let bytes = map(path).map_err(wrong)?;
        let model: ModelProto = decode(bytes.clone()).map_err(wrong)?;
        let graph = model
            .graph
            .as_ref()
            .ok_or_else(|| wrong("has no graph".to_owned()))?;
        let domain =
            |o: &OperatorSetIdProto, name: &str| o.domain.as_deref().unwrap_or_default() == name;
        let opset = model
            .opset_import
            .iter()
            .find(|o| domain(o, "") || domain(o, "ai.onnx"));
        // What is an input as well may be given another value.
        let given: BTreeSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
        let float = |t: &&TensorProto| {
            t.data_type == Some(ElemType::F32.onnx()) && !given.contains(t.name.as_str())
        };
        let weights = graph
            .initializer
            .iter()
            .filter(float)
            .map(|t| (t.name.clone(), t.dims.clone()));
        let weights: BTreeMap<String, Vec<i64>> = weights.collect();
        let mut others: BTreeSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
        let mut products = BTreeSet::new();
        let mut names: BTreeSet<String> = graph.input.iter().map(|i| i.name.clone()).collect();
        names.extend(graph.initializer.iter().map(|t| t.name.clone()));
        let mut nested = BTreeSet::new();
        for node in &graph.node {
            names.extend(node.output.iter().cloned());
            for (i, input) in node.input.iter().enumerate() {
                match is_product(node) && i == 1 {
                    true => products.insert(input.clone()),
                    false => others.insert(input),
                };
            }
            node.attribute
                .iter()
                .for_each(|a| inner_names(a, &mut nested));
        }
        products.retain(|p| !others.contains(p.as_str()) && !nested.contains(p));
        names.extend(nested);
        let folder = path.parent().unwrap_or(Path::new(""));
        let files = Files::new(Some(folder));
        let external = crate::onnx::external_files(path)
            .into_iter()
            .map(|file: PathBuf| {
                let location = file
                    .strip_prefix(folder)
                    .unwrap_or(&file)
                    .to_string_lossy()
                    .into_owned();
                let bytes = files.open(&location, "external data").map_err(wrong)?;
                Ok((location, bytes))
            });
        Ok(Model {
            external: external.collect::<Result<_, Problem>>()?,
            name: path.display().to_string(),
            opset: opset.and_then(|o| o.version).unwrap_or(1),
            has_microsoft: model.opset_import.iter().any(|o| domain(o, MICROSOFT)),
            bytes,
            weights,
            products,
            names,
        })
    }

    /// A name that no value has.
    fn fresh(&self, name: &str) -> String {
        let mut name = name.to_owned();
        while self.names.contains(&name) {
            name.push('_');
        }
        name
    }

    /// Whether products with blocks of 4-bit codes take the place of products with this weight.
    fn in_product(&self, grid: &Grid, w: &Weight) -> bool {
        let group = grid.group();
        self.opset < 21
            && grid.bits == 4
            && w.by_columns
            && self.products.contains(w.name)
            && group >= 16
            && group.is_power_of_two()
    }
}

fn is_product(node: &NodeProto) -> bool {
    node.op_type == "MatMul"
        && matches!(node.domain.as_str(), "" | "ai.onnx")
        && node.input.len() == 2
}

/// Names that nodes of inner graphs read or give.
fn inner_names(a: &AttributeProto, names: &mut BTreeSet<String>) {
    for graph in a.g.iter().chain(&a.graphs) {
        for node in &graph.node {
            names.extend(node.input.iter().chain(&node.output).cloned());
            node.attribute.iter().for_each(|a| inner_names(a, names));
        }
        names.extend(graph.output.iter().map(|o| o.name.clone()));
    }
}

impl Target for Model {
    fn grids(&self, name: &str, [_, inputs]: [usize; 2], by_columns: bool) -> Vec<Kind> {
        let Some(dims) = self.weights.get(name) else {
            return vec![];
        };
        let kind = |bits, group, symmetric| Kind {
            bits,
            group,
            symmetric,
        };
        let mut kinds = vec![];
        if self.opset >= 13 {
            kinds.push(kind(8, 0, false));
        }
        if self.opset >= 21 {
            kinds.push(kind(4, 0, false));
        }
        let product = by_columns && self.products.contains(name);
        let blocks = dims.len() == 2 && (self.opset >= 21 || product);
        let groups = [32, 64, 128]
            .into_iter()
            .filter(|g| blocks && inputs % g == 0 && inputs > *g);
        kinds.extend(groups.flat_map(|g| [kind(4, g, false), kind(4, g, true)]));
        kinds
    }

    // A file of protobuf has less than 2 GiB; what is new of it is held.
    fn write(&self, weights: &[Weight], _: &Aside) -> Result<Written, Problem> {
        let mut edit = Edit::default();
        for w in weights {
            let dims = self.weights.get(w.name);
            let holds = match self.opset {
                21.. => "codes of 4 or 8 bits by rows, and by blocks of matrices",
                13.. => {
                    "8-bit codes by rows, and 4-bit codes by blocks of 16 or more, a power of two, of what only products read \
                         (opset 21 holds more: `onnx.version_converter` converts a model)"
                }
                _ => {
                    "4-bit codes by blocks of what only products read (opset 13 and 21 hold more: \
                      `onnx.version_converter` converts a model)"
                }
            };
            let wrong = || {
                misfit(
                    w.name,
                    w.term,
                    &format!("an ONNX file of opset {}", self.opset),
                    holds,
                )
            };
            let (grid, dims) = Grid::of(w.term).zip(dims).ok_or_else(wrong)?;
            if self.in_product(&grid, w) {
                edit.product(self, w, &grid);
            } else if !edit.decoded(self, w, &grid, dims) {
                return Err(wrong());
            }
        }
        let pieces = edit.apply(self)?;
        let main = File {
            name: String::new(),
            pieces,
        };
        let copied = self.external.iter().map(|(name, bytes)| File {
            name: name.clone(),
            pieces: vec![bytes.clone()],
        });
        Ok(Written {
            files: std::iter::once(main).chain(copied).collect(),
            ..Written::default()
        })
    }
}

/// What changes in a file.
#[derive(Default)]
struct Edit {
    /// Initializers that go.
    gone: BTreeSet<String>,
    initializers: Vec<TensorProto>,
    /// Nodes before all others.
    nodes: Vec<NodeProto>,
    /// What products with a weight become: other inputs, attributes.
    products: BTreeMap<String, (Vec<String>, Vec<AttributeProto>)>,
}

fn tensor(name: &str, elem: ElemType, dims: &[usize], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(elem.onnx()),
        raw_data: Some(bytes.into()),
        ..TensorProto::default()
    }
}

fn number(name: &str, value: usize) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: attribute_type::INT,
        i: Some(value as i64),
        ..AttributeProto::default()
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

impl Edit {
    fn add(
        &mut self,
        of: &Model,
        base: &str,
        what: &str,
        make: impl FnOnce(&str) -> TensorProto,
    ) -> String {
        let name = of.fresh(&format!("{base}_{what}"));
        self.initializers.push(make(&name));
        name
    }

    /// A node that decodes the weight; false if the model's operators do not hold it.
    fn decoded(&mut self, of: &Model, w: &Weight, grid: &Grid, dims: &[i64]) -> bool {
        let blocked = grid.groups > 1;
        let elem = match (grid.bits, of.opset) {
            (8, 13..) => ElemType::U8,
            (4, 21..) => ElemType::U4,
            _ => return false,
        };
        if blocked && (of.opset < 21 || dims.len() != 2) {
            return false;
        }
        let turn = |values: &[u8], columns: usize| match w.by_columns {
            true => transposed(values, columns),
            false => values.to_vec(),
        };
        let lengths: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
        if lengths.iter().product::<usize>() != grid.codes.len() {
            return false;
        }
        let parts = match (blocked, w.by_columns) {
            (false, _) => vec![grid.rows],
            (true, false) => vec![grid.rows, grid.groups],
            (true, true) => vec![grid.groups, grid.rows],
        };
        let scales = match w.by_columns {
            true => transposed(&grid.scales, grid.groups),
            false => grid.scales.clone(),
        };
        let packed = |codes: Vec<u8>| int::pack(codes, grid.bits);
        let codes = packed(turn(&grid.codes, grid.columns));
        let zeros = packed(turn(&grid.zeros, grid.groups));
        let inputs = vec![
            self.add(of, w.name, "codes", |n| tensor(n, elem, &lengths, codes)),
            self.add(of, w.name, "scale", |n| {
                tensor(n, ElemType::F32, &parts, floats(&scales))
            }),
            self.add(of, w.name, "zero", |n| tensor(n, elem, &parts, zeros)),
        ];
        // The axis along which scales differ; of blocks, the one that they cut.
        let axis = usize::from(blocked != w.by_columns);
        let mut attribute = vec![number("axis", axis)];
        if blocked {
            attribute.push(number("block_size", grid.group()));
        }
        self.nodes.push(NodeProto {
            name: of.fresh(&format!("{}_decoded", w.name)),
            op_type: "DequantizeLinear".to_owned(),
            input: inputs,
            output: vec![w.name.to_owned()],
            attribute,
            ..NodeProto::default()
        });
        self.gone.insert(w.name.to_owned());
        true
    }

    /// Products that read blocks of codes.
    fn product(&mut self, of: &Model, w: &Weight, grid: &Grid) {
        let (rows, groups, bytes) = (grid.rows, grid.groups, grid.group() * 4 / 8);
        let codes = int::pack(grid.codes.iter().copied(), 4);
        // The zero points of a row fill whole bytes.
        let zeros = grid
            .zeros
            .chunks(groups)
            .flat_map(|row| int::pack(row.iter().copied(), 4));
        let zeros: Vec<u8> = zeros.collect();
        let mut inputs = vec![
            self.add(of, w.name, "codes", |n| {
                tensor(n, ElemType::U8, &[rows, groups, bytes], codes)
            }),
            self.add(of, w.name, "scale", |n| {
                tensor(n, ElemType::F32, &[rows * groups], floats(&grid.scales))
            }),
        ];
        if grid.shared_zero() != Some(8) {
            let shape = [zeros.len()];
            inputs.push(self.add(of, w.name, "zero", |n| {
                tensor(n, ElemType::U8, &shape, zeros)
            }));
        }
        let attributes = [
            ("K", grid.columns),
            ("N", rows),
            ("bits", 4),
            ("block_size", grid.group()),
        ];
        let attributes = attributes.map(|(name, value)| number(name, value)).to_vec();
        self.gone.insert(w.name.to_owned());
        self.products
            .insert(w.name.to_owned(), (inputs, attributes));
    }

    /// The file with the changes, in pieces.
    fn apply(&self, of: &Model) -> Result<Vec<Bytes>, Problem> {
        let wrong = |reason: &str| Problem {
            place: format!("file `{}`", of.name),
            reason: reason.to_owned(),
            remedy: None,
        };
        let damaged = || wrong("is not a valid protobuf message");
        let mut out = vec![];
        for field in fields(&of.bytes) {
            let field = field.ok_or_else(damaged)?;
            match field.number {
                GRAPH => {
                    let graph = self.graph(&field.body).ok_or_else(damaged)?;
                    let length: usize = graph.iter().map(Bytes::len).sum();
                    out.push(header(GRAPH, length));
                    out.extend(graph);
                }
                _ => out.push(field.whole),
            }
        }
        if !self.products.is_empty() && !of.has_microsoft {
            let microsoft = OperatorSetIdProto {
                domain: Some(MICROSOFT.to_owned()),
                version: Some(1),
            };
            message(OPSETS, encode(&microsoft), &mut out);
        }
        match out.iter().map(Bytes::len).sum::<usize>() {
            0..=MAX_FILE => Ok(out),
            _ => Err(wrong(
                "would be larger than 2 GiB, which no ONNX file may be",
            )),
        }
    }

    fn graph(&self, bytes: &Bytes) -> Option<Vec<Bytes>> {
        let mut out = vec![];
        self.nodes
            .iter()
            .for_each(|n| message(NODES, encode(n), &mut out));
        for field in fields(bytes) {
            let field = field?;
            match field.number {
                INITIALIZERS => {
                    let tensor: TensorProto = decode(field.body.clone()).ok()?;
                    if !self.gone.contains(&tensor.name) {
                        out.push(field.whole);
                    }
                }
                NODES => {
                    let node: NodeProto = decode(field.body.clone()).ok()?;
                    let product = node.input.get(1).and_then(|w| self.products.get(w));
                    match product.filter(|_| is_product(&node)) {
                        None => out.push(field.whole),
                        Some((inputs, attribute)) => {
                            let node = NodeProto {
                                op_type: "MatMulNBits".to_owned(),
                                domain: MICROSOFT.to_owned(),
                                input: node.input[..1].iter().chain(inputs).cloned().collect(),
                                attribute: attribute.clone(),
                                ..node
                            };
                            message(NODES, encode(&node), &mut out);
                        }
                    }
                }
                _ => out.push(field.whole),
            }
        }
        self.initializers
            .iter()
            .for_each(|t| message(INITIALIZERS, encode(t), &mut out));
        Some(out)
    }
}
