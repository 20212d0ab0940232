//! Module to text.

use super::checksum;
use super::literal::{attr, elements, string, tensor_type, value_name, word};
use crate::encodings::Encoding;
use crate::graph::{Node, Region};
use crate::{Module, RegionId, Tensor, ValueId};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;

/// Constants up to this many bytes are written literally everywhere.
const LITERAL_BYTES: usize = 256;

/// Offsets in the side file are multiples of this, so that a mapped file can be used as it is.
const ALIGN: u64 = 64;

/// How many parts of the side file back the same bytes are looked for: those of one term.
const RECENT: usize = 8;

/// Depth at which a program too strange to be read back is cut off.
const MAX_DEPTH: usize = 256;

/// What becomes of the bytes of large constants.
pub enum Blobs<'a> {
    /// They are in the text.
    Inline,
    /// They are left out.
    Elide,
    /// They go to the side file.
    Side(&'a mut Vec<(u64, Bytes)>),
    /// Bytes are not mentioned at all, large or small.
    Omit,
}

/// Prints a module.
pub fn module(module: &Module, blobs: &mut Blobs) -> String {
    let mut p = Printer {
        module,
        out: String::new(),
        names: HashMap::new(),
        taken: HashSet::new(),
        uses: HashMap::new(),
        unnamed: 0,
    };
    p.function(blobs);
    p.out
}

/// The text of a term without its bytes.
pub fn term(e: &Encoding) -> String {
    write_term(e, &mut Blobs::Omit)
}

struct Printer<'m> {
    module: &'m Module,
    out: String,
    names: HashMap<ValueId, String>,
    taken: HashSet<String>,
    /// How often a source name was met.
    uses: HashMap<String, usize>,
    unnamed: usize,
}

impl Printer<'_> {
    fn function(&mut self, blobs: &mut Blobs) {
        let m = self.module;
        let inputs = self.inputs(m.top());
        let constants: Vec<ValueId> = (0..m.value_count() as u32)
            .map(ValueId)
            .filter(|v| m.as_constant(*v).is_some())
            .collect();
        let used = used_values(m);
        let mut lines = String::new();
        for v in constants.into_iter().filter(|v| used.contains(v)) {
            if let Some(c) = m.as_constant(v) {
                let _ = writeln!(
                    lines,
                    "  const {} = {}",
                    self.name(v),
                    write_term(c.encoding(), blobs)
                );
                // A checksum has read all of it.
                m.sources.release(c.stored_bytes());
            }
        }
        let mut body = self.body(m.top(), 1);
        let outputs: Vec<String> = m
            .top()
            .outputs
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let name = m.output_names.get(i).filter(|n| !n.is_empty());
                format!(
                    "{}: {}",
                    name.map_or("_".into(), |n| word(n)),
                    m.value(v).ty
                )
            })
            .collect();
        let _ = write!(body, "  return {}", self.list(&m.top().outputs));
        let _ = write!(
            self.out,
            "fn {}({inputs}) -> ({}) {{\n{lines}{}\n}}\n",
            word(&m.name),
            outputs.join(", "),
            body.trim_end(),
        );
    }

    fn inputs(&mut self, region: &Region) -> String {
        let inputs: Vec<String> = region
            .inputs
            .iter()
            .map(|&v| format!("{}: {}", self.name(v), self.module.value(v).ty))
            .collect();
        inputs.join(", ")
    }

    /// A value's name with its `%`, made at first sight.
    fn name(&mut self, v: ValueId) -> String {
        if let Some(known) = self.names.get(&v) {
            return known.clone();
        }
        let own = self.module.value(v).name.as_str();
        let name = loop {
            let name = if own.is_empty() {
                self.unnamed += 1;
                format!("%{}", self.unnamed - 1)
            } else {
                let n = self.uses.entry(own.to_owned()).or_insert(0);
                *n += 1;
                let base = value_name(own);
                if *n == 1 {
                    format!("%{base}")
                } else {
                    format!("%{base}#{}", *n - 1)
                }
            };
            if self.taken.insert(name.clone()) {
                break name;
            }
        };
        self.names.insert(v, name.clone());
        name
    }

    fn list(&mut self, values: &[ValueId]) -> String {
        let names: Vec<String> = values.iter().map(|&v| self.name(v)).collect();
        names.join(", ")
    }

    fn body(&mut self, region: &Region, depth: usize) -> String {
        let mut out = String::new();
        for &n in &region.nodes {
            self.node(self.module.node(n), depth, &mut out);
        }
        out
    }

    fn node(&mut self, node: &Node, depth: usize, out: &mut String) {
        let pad = "  ".repeat(depth);
        let results = match node.results[..] {
            [] => "()".to_owned(),
            _ => self.list(&node.results),
        };
        let operands: Vec<String> = node
            .operands
            .iter()
            .map(|o| o.map_or("_".into(), |v| self.name(v)))
            .collect();
        let _ = write!(out, "{pad}{results} = {}({})", node.op, operands.join(", "));
        if !node.attrs.is_empty() {
            let attrs: Vec<String> = node
                .attrs
                .iter()
                .map(|(k, v)| format!("{} = {}", word(k), attr(v)))
                .collect();
            let _ = write!(out, " {{{}}}", attrs.join(", "));
        }
        if !node.results.is_empty() {
            let types: Vec<String> = node
                .results
                .iter()
                .map(|&v| self.module.value(v).ty.to_string())
                .collect();
            let _ = write!(out, " : {}", types.join(", "));
        }
        if !node.name.is_empty() {
            let _ = write!(out, " {}", string(&node.name));
        }
        if !node.regions.is_empty() {
            out.push_str(" {\n");
            for (i, &r) in node.regions.iter().enumerate() {
                let label = node.op.regions.get(i).copied().unwrap_or("_");
                self.region(r, label, depth + 1, out);
            }
            let _ = write!(out, "{pad}}}");
        }
        out.push('\n');
    }

    fn region(&mut self, id: RegionId, label: &str, depth: usize, out: &mut String) {
        let pad = "  ".repeat(depth);
        if depth > MAX_DEPTH {
            let _ = writeln!(out, "{pad}; nested too deeply to be printed");
            return;
        }
        let region = self.module.region(id);
        let inputs = self.inputs(region);
        let parentheses = if inputs.is_empty() {
            String::new()
        } else {
            format!("({inputs})")
        };
        let _ = writeln!(out, "{pad}{label}{parentheses} {{");
        let body = self.body(region, depth + 1);
        let outputs = self.list(&region.outputs);
        let yields = format!("{pad}  yield {outputs}");
        let _ = writeln!(out, "{body}{}\n{pad}}}", yields.trim_end());
    }
}

/// Every value that a reachable node or region output uses.
fn used_values(m: &Module) -> HashSet<ValueId> {
    let mut used = HashSet::new();
    for r in m.reachable_regions() {
        let region = m.region(r);
        used.extend(&region.outputs);
        for &n in &region.nodes {
            used.extend(m.node(n).operands.iter().flatten());
        }
    }
    used
}

fn write_term(e: &Encoding, blobs: &mut Blobs) -> String {
    let mut parts: Vec<String> = e
        .params
        .iter()
        .map(|(k, v)| format!("{} = {}", word(k), attr(v)))
        .collect();
    for (i, child) in e.children.iter().enumerate() {
        let name = e.ctor.children.get(i).filter(|n| !n.ends_with('*'));
        let label = name.map(|n| n.trim_end_matches('?'));
        let text = write_term(child, blobs);
        parts.push(label.map_or(text.clone(), |l| format!("{l} = {text}")));
    }
    let mut out = e.ctor.name.to_owned();
    if !parts.is_empty() {
        let _ = write!(out, "{{{}}}", parts.join(", "));
    }
    let _ = write!(out, " {}", tensor_type(e.elem, &e.shape));
    if let Some(blob) = &e.blob
        && !matches!(blobs, Blobs::Omit)
    {
        let _ = write!(out, " {}", write_blob(e, blob, blobs));
    }
    out
}

fn write_blob(e: &Encoding, blob: &Bytes, blobs: &mut Blobs) -> String {
    if blob.len() <= LITERAL_BYTES {
        return dense_elements(e, blob).unwrap_or_else(|| hex(blob));
    }
    let sum = || format!("bytes({}, 0x{:016x}", blob.len(), checksum(blob));
    match blobs {
        Blobs::Inline | Blobs::Omit => hex(blob),
        Blobs::Elide => sum() + ")",
        Blobs::Side(parts) => {
            // Parts of one format's blocks are terms over the same bytes.
            let same =
                |(_, b): &&(u64, Bytes)| b.as_ptr() == blob.as_ptr() && b.len() == blob.len();
            let at = match parts.iter().rev().take(RECENT).find(same) {
                Some((at, _)) => *at,
                None => {
                    let end = parts.last().map_or(0, |(at, b)| at + b.len() as u64);
                    let at = end.next_multiple_of(ALIGN);
                    parts.push((at, blob.clone()));
                    at
                }
            };
            format!("{}, {at})", sum())
        }
    }
}

/// The elements of a dense term, if they say the bytes exactly.
fn dense_elements(e: &Encoding, blob: &Bytes) -> Option<String> {
    if e.ctor.name != "dense" {
        return None;
    }
    let tensor = Tensor::from_bytes(e.elem, e.shape.clone(), blob)?;
    (tensor.to_bytes()? == blob[..]).then(|| elements(&tensor))
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2 + 3);
    out.push_str("x\"");
    for b in bytes {
        let _ = write!(out, "{b:02x}");
    }
    out + "\""
}
