//! `AttributeProto` to attributes of the op table.

use super::proto::{AttributeProto, attribute_type as kind};
use super::{tensor, types};
use crate::files::Files;
use bytes::Bytes;
use lapidary_ir::ops::{AttrDef, AttrKind};
use lapidary_ir::{Attr, ElemType};

fn text(bytes: &Bytes) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "is text that is not UTF-8".to_owned())
}

/// Kind of an attribute, from its content where a very old writer left it out.
fn kind_of(a: &AttributeProto) -> i32 {
    if a.r#type != kind::UNDEFINED {
        return a.r#type;
    }
    let present = [
        (a.f.is_some(), kind::FLOAT),
        (a.i.is_some(), kind::INT),
        (a.s.is_some(), kind::STRING),
        (a.t.is_some(), kind::TENSOR),
        (a.g.is_some(), kind::GRAPH),
        (a.sparse_tensor.is_some(), kind::SPARSE_TENSOR),
        (a.tp.is_some(), kind::TYPE_PROTO),
        (!a.floats.is_empty(), kind::FLOATS),
        (!a.strings.is_empty(), kind::STRINGS),
    ];
    present
        .iter()
        .find(|(given, _)| *given)
        .map_or(kind::INTS, |(_, k)| *k)
}

/// The attribute's value, not yet fitted to an op; graphs are the importer's.
pub fn value(a: &AttributeProto, files: &Files) -> Result<Attr, String> {
    Ok(match kind_of(a) {
        kind::FLOAT => Attr::Float(a.f.unwrap_or_default()),
        kind::INT => Attr::Int(a.i.unwrap_or_default()),
        kind::STRING => Attr::Str(text(a.s.as_ref().unwrap_or(&Bytes::new()))?),
        kind::FLOATS => Attr::Floats(a.floats.clone()),
        kind::INTS => Attr::Ints(a.ints.clone()),
        kind::STRINGS => Attr::Strs(a.strings.iter().map(text).collect::<Result<_, _>>()?),
        kind::TENSOR => Attr::Tensor(tensor::decode(a.t.as_ref().ok_or("has no tensor")?, files)?),
        kind::SPARSE_TENSOR => {
            let sparse = a.sparse_tensor.as_ref().ok_or("has no tensor")?;
            Attr::Tensor(
                tensor::sparse(sparse, files)?
                    .decode()
                    .map_err(|e| e.reason)?,
            )
        }
        kind::TYPE_PROTO => Attr::Type(types::value_type(
            a.tp.as_ref().ok_or("has no type")?,
            &a.name,
            &Default::default(),
        )?),
        kind::TENSORS | kind::SPARSE_TENSORS | kind::TYPE_PROTOS | kind::GRAPHS => {
            return Err("is a list of tensors, types or graphs, which no operator takes".into());
        }
        kind::GRAPH => return Err("is a graph where a value is expected".into()),
        n => return Err(format!("has kind {n}, which is not known")),
    })
}

/// True if the attribute is a subgraph.
pub fn is_graph(a: &AttributeProto) -> bool {
    kind_of(a) == kind::GRAPH
}

/// Fits a value to the table's definition; `None` where the value means "left out".
pub fn fit(attr: Attr, def: &AttrDef) -> Result<Option<Attr>, String> {
    let fitted = match (def.kind, attr) {
        (AttrKind::Elem, Attr::Int(0)) => return Ok(None),
        (AttrKind::Elem, Attr::Int(n)) => {
            let elem = i32::try_from(n).ok().and_then(ElemType::from_onnx);
            Attr::Elem(elem.ok_or_else(|| format!("is element type {n}, which is not known"))?)
        }
        // An empty list carries no kind of its own.
        (AttrKind::Floats, Attr::Ints(v)) if v.is_empty() => Attr::Floats(vec![]),
        (AttrKind::Strs, Attr::Ints(v)) if v.is_empty() => Attr::Strs(vec![]),
        (_, attr) => attr,
    };
    let found = match &fitted {
        Attr::Int(_) => AttrKind::Int,
        Attr::Ints(_) => AttrKind::Ints,
        Attr::Float(_) => AttrKind::Float,
        Attr::Floats(_) => AttrKind::Floats,
        Attr::Str(_) => AttrKind::Str,
        Attr::Strs(_) => AttrKind::Strs,
        Attr::Elem(_) => AttrKind::Elem,
        Attr::Type(_) => AttrKind::Type,
        Attr::Tensor(_) => AttrKind::Tensor,
    };
    if found == def.kind {
        Ok(Some(fitted))
    } else {
        Err(format!("must be {:?}, found {found:?}", def.kind))
    }
}
