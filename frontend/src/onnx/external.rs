//! Tensors whose bytes are in other files; and which files a model needs beside its own, for build systems.

use super::proto::{
    AttributeProto, EXTERNAL, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    decode,
};
use crate::files::{Files, map};
use bytes::Bytes;
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

/// The bytes of a tensor whose data is external; `None` if they are inside the message.
pub(super) fn external_data(files: &Files, tensor: &TensorProto) -> Result<Option<Bytes>, String> {
    if tensor.data_location.unwrap_or(0) != EXTERNAL {
        return Ok(None);
    }
    let entry = |key: &str| {
        tensor
            .external_data
            .iter()
            .find(|e| e.key == key)
            .map(|e| e.value.as_str())
    };
    let number = |key: &str| match entry(key) {
        None | Some("") => Ok(None),
        Some(v) => v
            .parse::<usize>()
            .map(Some)
            .map_err(|_| format!("external data has `{key}` {v:?}, which is not a number")),
    };
    let location = entry("location").ok_or("external data has no `location`")?;
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    let file = files.open(location, "external data")?;
    let end = match length {
        Some(n) => offset
            .checked_add(n)
            .ok_or("external data has an offset and length that overflow")?,
        None => file.len(),
    };
    if offset > end || end > file.len() {
        return Err(format!(
            "external data is bytes {offset}..{end} of `{location}`, which has {} bytes",
            file.len()
        ));
    }
    Ok(Some(file.slice(offset..end)))
}

#[cfg(test)]
mod tests {
    use super::super::proto::StringStringEntryProto;
    use super::*;

    fn external(entries: &[(&str, &str)]) -> TensorProto {
        let entry = |&(k, v): &(&str, &str)| StringStringEntryProto {
            key: k.into(),
            value: v.into(),
        };
        TensorProto {
            data_location: Some(EXTERNAL),
            external_data: entries.iter().map(entry).collect(),
            ..TensorProto::default()
        }
    }

    #[test]
    fn external_data_stays_in_the_folder_and_in_range() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let outer = dir.path();
        let folder = outer.join("model");
        std::fs::create_dir(&folder).expect("create");
        std::fs::write(folder.join("w.bin"), [1, 2, 3, 4]).expect("write");
        std::fs::write(outer.join("secret"), [9]).expect("write");
        #[cfg(unix)]
        std::os::unix::fs::symlink(outer.join("secret"), folder.join("link")).expect("link");
        let files = Files::new(Some(&folder));
        let cases: &[(&[(&str, &str)], Result<&[u8], &str>)] = &[
            (&[("location", "w.bin")], Ok(&[1, 2, 3, 4])),
            (
                &[("location", "./w.bin"), ("offset", "1"), ("length", "2")],
                Ok(&[2, 3]),
            ),
            (
                &[("location", "w.bin"), ("offset", "3"), ("length", "2")],
                Err("which has 4 bytes"),
            ),
            (
                &[("location", "w.bin"), ("offset", "5")],
                Err("which has 4 bytes"),
            ),
            (
                &[
                    ("location", "w.bin"),
                    ("offset", "18446744073709551615"),
                    ("length", "2"),
                ],
                Err("overflow"),
            ),
            (
                &[("location", "w.bin"), ("offset", "-1")],
                Err("not a number"),
            ),
            (
                &[("location", "missing.bin")],
                Err("cannot read external data"),
            ),
            (&[("location", "../secret")], Err("must stay inside")),
            (&[("location", "/etc/hostname")], Err("must stay inside")),
            (&[("location", "")], Err("must stay inside")),
            (&[], Err("no `location`")),
            #[cfg(unix)]
            (&[("location", "link")], Err("leaves the model's folder")),
            (&[("location", ".")], Err("not a regular file")),
        ];
        for (entries, want) in cases {
            match (external_data(&files, &external(entries)), want) {
                (Ok(got), Ok(want)) => assert_eq!(got.as_deref(), Some(*want)),
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{entries:?}: found {got:?}, expected {want:?}"),
            }
        }
    }
}
