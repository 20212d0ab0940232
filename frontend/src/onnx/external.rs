//! Which files a model needs beside its own, without importing it: for build systems.

use super::files::{Files, map};
use super::proto::{
    AttributeProto, EXTERNAL, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    decode,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The files with external data of the model at `path`, in order, each once. What cannot be read, and what
/// lies outside of the model's folder, is left out: importing the model says what is wrong.
pub fn external_files(path: &Path) -> Vec<PathBuf> {
    let Some(model) = map(path).ok().and_then(|b| decode::<ModelProto>(b).ok()) else {
        return vec![];
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut locations = BTreeSet::new();
    model.graph.iter().for_each(|g| graph(g, &mut locations));
    let functions = model.functions.iter().flat_map(|f| &f.node);
    functions.for_each(|n| node(n, &mut locations));
    locations
        .into_iter()
        .filter(|l| Files::is_inside(l))
        .map(|l| folder.join(l))
        .collect()
}

/// Nesting is bounded: the decoder refuses messages that are nested deeply.
fn graph<'m>(graph: &'m GraphProto, found: &mut BTreeSet<&'m str>) {
    graph.initializer.iter().for_each(|t| tensor(t, found));
    graph
        .sparse_initializer
        .iter()
        .for_each(|t| sparse(t, found));
    graph.node.iter().for_each(|n| node(n, found));
}

fn node<'m>(node: &'m NodeProto, found: &mut BTreeSet<&'m str>) {
    node.attribute.iter().for_each(|a| attribute(a, found));
}

fn attribute<'m>(a: &'m AttributeProto, found: &mut BTreeSet<&'m str>) {
    a.t.iter().chain(&a.tensors).for_each(|t| tensor(t, found));
    let sparse_ones = a.sparse_tensor.iter().chain(&a.sparse_tensors);
    sparse_ones.for_each(|t| sparse(t, found));
    a.g.iter().chain(&a.graphs).for_each(|g| graph(g, found));
}

fn sparse<'m>(t: &'m SparseTensorProto, found: &mut BTreeSet<&'m str>) {
    t.values
        .iter()
        .chain(&t.indices)
        .for_each(|t| tensor(t, found));
}

fn tensor<'m>(t: &'m TensorProto, found: &mut BTreeSet<&'m str>) {
    if t.data_location == Some(EXTERNAL) {
        let entry = t.external_data.iter().find(|e| e.key == "location");
        found.extend(entry.map(|e| e.value.as_str()));
    }
}
