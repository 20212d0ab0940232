//! Encoders: categories to numbers and back, columns picked and joined.

use super::super::{AttrDef, AttrKind, Default, Eval, EvalCtx, OpDef, OpError, Operand, checked_count};
use crate::tensor::{Data, Tensor, Value};
use crate::types::TensorType;
use crate::{Attr, Dim, ElemType, Type};
use std::collections::HashMap;

pub(super) static LABEL_ENCODER: OpDef = OpDef {
    name: "label_encoder",
    summary: "replaces each element by the value of its key, or by the default",
    source: "ONNX LabelEncoder-4 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("default_float", AttrKind::Float, Default::Float(-0.0), "for float values"),
        AttrDef::new("default_int64", AttrKind::Int, Default::Int(-1), "for integer values"),
        AttrDef::new("default_string", AttrKind::Str, Default::Str("_Unused"), "for texts"),
        AttrDef::new("default_tensor", AttrKind::Tensor, Default::Absent, "for `values_tensor`"),
        AttrDef::new("keys_floats", AttrKind::Floats, Default::Absent, "keys"),
        AttrDef::new("keys_int64s", AttrKind::Ints, Default::Absent, "keys"),
        AttrDef::new("keys_strings", AttrKind::Strs, Default::Absent, "keys"),
        AttrDef::new("keys_tensor", AttrKind::Tensor, Default::Absent, "keys"),
        AttrDef::new("values_floats", AttrKind::Floats, Default::Absent, "values"),
        AttrDef::new("values_int64s", AttrKind::Ints, Default::Absent, "values"),
        AttrDef::new("values_strings", AttrKind::Strs, Default::Absent, "values"),
        AttrDef::new("values_tensor", AttrKind::Tensor, Default::Absent, "values"),
    ],
    infer: |ctx| {
        let elem = match given(|n| ctx.attr(n), "values").as_ref().map(Tensor::elem) {
            Some(elem) => elem,
            None => return Err(OpError::new("needs values")),
        };
        ctx.elem(0)?;
        let shape = ctx.shape(0)?.map(<[Dim]>::to_vec);
        Ok(vec![Type::Tensor(TensorType { elem, shape })])
    },
    eval: Eval::Direct(label_encoder),
    ..OpDef::BASE
};

pub(super) static CATEGORY_MAPPER: OpDef = OpDef {
    name: "category_mapper",
    summary: "texts to the integers of their categories, or integers to texts",
    source: "ONNX CategoryMapper-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("cats_int64s", AttrKind::Ints, Default::Absent, "integers of the categories"),
        AttrDef::new("cats_strings", AttrKind::Strs, Default::Absent, "texts of the categories"),
        AttrDef::new("default_int64", AttrKind::Int, Default::Int(-1), "for unknown texts"),
        AttrDef::new("default_string", AttrKind::Str, Default::Str("_Unused"), "for unknown integers"),
    ],
    infer: |ctx| {
        let elem = match ctx.elem(0)? {
            ElemType::String => ElemType::I64,
            ElemType::I64 => ElemType::String,
            other => return Err(OpError::new(format!("takes texts or i64, found {other}"))),
        };
        let shape = ctx.shape(0)?.map(<[Dim]>::to_vec);
        Ok(vec![Type::Tensor(TensorType { elem, shape })])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let ints = Tensor::ints(&ctx.ints("cats_int64s").unwrap_or_default());
        let strs = texts(ctx.strs("cats_strings"));
        let out = match x.data() {
            Data::Str(_) => lookup(x, &strs, &ints, &Tensor::ints(&[ctx.int("default_int64")?]))?,
            _ => lookup(x, &ints, &strs, &texts(vec![ctx.str("default_string")]))?,
        };
        Ok(vec![out.into()])
    }),
    ..OpDef::BASE
};

pub(super) static ONE_HOT_ENCODER: OpDef = OpDef {
    name: "one_hot_encoder",
    summary: "each element as a row of zeros with a one at its category",
    source: "ONNX OneHotEncoder-1 (ai.onnx.ml)",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("cats_int64s", AttrKind::Ints, Default::Absent, "categories"),
        AttrDef::new("cats_strings", AttrKind::Strs, Default::Absent, "categories"),
        AttrDef::new("zeros", AttrKind::Int, Default::Int(1), "0 makes an unknown category an error"),
    ],
    infer: |ctx| {
        let cats = ctx.ints("cats_int64s").map_or(ctx.strs("cats_strings").len(), |v| v.len());
        ctx.elem(0)?;
        let shape = ctx.shape(0)?.map(|s| s.iter().cloned().chain([Dim::from(cats)]).collect());
        Ok(vec![Type::Tensor(TensorType { elem: ElemType::F32, shape })])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let cats = match ctx.ints("cats_int64s") {
            Some(v) => Tensor::ints(&v),
            None => texts(ctx.strs("cats_strings")),
        };
        // Numbers are looked up as the integers they are cut to.
        let keys = match x.data() {
            Data::Float(v) => Tensor::from_int(ElemType::I64, x.shape(), v.iter().map(|&v| v as i128).collect()),
            _ => x.clone(),
        };
        let index = Index::new(&cats);
        let n = cats.len();
        let mut shape = x.shape().to_vec();
        shape.push(n);
        let mut out = vec![0.0; checked_count(&shape)?];
        for (i, key) in keys_of(&keys).into_iter().enumerate() {
            match index.0.get(&key) {
                Some(&at) => out[i * n + at] = 1.0,
                None if ctx.flag("zeros") => {}
                None => return Err(OpError::new("an element is in no category")),
            }
        }
        Ok(vec![Tensor::from_f64(ElemType::F32, shape, out).into()])
    }),
    ..OpDef::BASE
};

pub(super) static ARRAY_FEATURE_EXTRACTOR: OpDef = OpDef {
    name: "array_feature_extractor",
    summary: "picks columns of the last axis",
    source: "ONNX ArrayFeatureExtractor-1 (ai.onnx.ml)",
    operands: &[Operand::One("x"), Operand::One("y")],
    results: &[Operand::One("z")],
    infer: |ctx| {
        let elem = ctx.elem(0)?;
        let picked = match ctx.shape(1)? {
            Some(shape) => shape.iter().fold(Dim::from(1i64), |a, d| a * d),
            None => ctx.fresh_dim(),
        };
        let shape = ctx.shape(0)?.map(|s| match s {
            [] | [_] => vec![Dim::from(1i64), picked],
            [outer @ .., _] => outer.iter().cloned().chain([picked]).collect(),
        });
        Ok(vec![Type::Tensor(TensorType { elem, shape })])
    },
    eval: Eval::Direct(|ctx| {
        let (x, picked) = (ctx.tensor(0)?, ctx.i64s(1)?);
        let Some((&n, outer)) = x.shape().split_last() else {
            return Err(OpError::new("a scalar has no columns"));
        };
        if picked.iter().any(|&p| p < 0 || p as usize >= n) {
            return Err(OpError::new(format!("a column is out of range for {n} columns")));
        }
        let mut shape = if outer.is_empty() { vec![1] } else { outer.to_vec() };
        shape.push(picked.len());
        checked_count(&shape)?;
        let out = x.gather_linear(shape, |i| i / picked.len() * n + picked[i % picked.len()] as usize);
        Ok(vec![out.into()])
    }),
    ..OpDef::BASE
};

pub(super) static FEATURE_VECTORIZER: OpDef = OpDef {
    name: "feature_vectorizer",
    summary: "joins the columns of its operands, each cut or padded with zeros to its entry of `inputdimensions`",
    source: "ONNX FeatureVectorizer-1 (ai.onnx.ml)",
    operands: &[Operand::Variadic("x")],
    attrs: &[AttrDef::new("inputdimensions", AttrKind::Ints, Default::Absent, "columns taken of each operand")],
    infer: |ctx| {
        let widths = ctx.ints("inputdimensions").unwrap_or_default();
        let rows = match ctx.shape(0)? {
            Some([n] | [n, _]) => n.clone(),
            _ => ctx.fresh_dim(),
        };
        let width = widths.iter().fold(0i64, |a, &w| a.saturating_add(w.max(0)));
        Ok(vec![Type::tensor(ElemType::F32, [rows, Dim::from(width)])])
    },
    eval: Eval::Direct(|ctx| {
        let widths = ctx.ints("inputdimensions").unwrap_or_default();
        let widths: Option<Vec<usize>> = widths.iter().map(|&w| usize::try_from(w).ok()).collect();
        let widths = widths.filter(|w| w.len() == ctx.operands.len());
        let widths = widths.ok_or_else(|| OpError::new("`inputdimensions` must have an entry per operand"))?;
        let mut columns: Vec<Vec<f64>> = vec![];
        let mut rows = None;
        for (i, &width) in widths.iter().enumerate() {
            let x = ctx.tensor(i)?;
            let (n, c) = match *x.shape() {
                [n] => (n, 1),
                [n, c] => (n, c),
                _ => return Err(OpError::new("operands must have rank 1 or 2")),
            };
            if *rows.get_or_insert(n) != n {
                return Err(OpError::new("operands differ in their number of rows"));
            }
            checked_count(&[n, width])?;
            let v = x.to_f64s().ok_or_else(|| OpError::new("takes numbers"))?;
            columns.extend((0..width).map(|k| (0..n).map(|r| if k < c { v[r * c + k] } else { 0.0 }).collect()));
        }
        let rows = rows.unwrap_or(0);
        let shape = vec![rows, columns.len()];
        checked_count(&shape)?;
        let out = (0..rows).flat_map(|r| columns.iter().map(move |c| c[r])).collect();
        Ok(vec![Tensor::from_f64(ElemType::F32, shape, out).into()])
    }),
    ..OpDef::BASE
};

fn texts(v: Vec<String>) -> Tensor {
    Tensor::new(ElemType::String, [v.len()], Data::Str(v))
}

/// The list that is given under `kind` with one of ONNX's endings.
fn given(attr: impl Fn(&str) -> Option<Attr>, kind: &str) -> Option<Tensor> {
    ["tensor", "strings", "int64s", "floats"].iter().find_map(|ending| match attr(&format!("{kind}_{ending}"))? {
        Attr::Tensor(t) => Some(t),
        Attr::Strs(v) => Some(texts(v)),
        Attr::Ints(v) => Some(Tensor::ints(&v)),
        Attr::Floats(v) => Some(Tensor::from_f64(ElemType::F32, [v.len()], super::wide(v))),
        _ => None,
    })
}

fn label_encoder(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let missing = || OpError::new("needs keys and values of equal number");
    let keys = given(|n| ctx.attr(n), "keys").ok_or_else(missing)?;
    let values = given(|n| ctx.attr(n), "values").ok_or_else(missing)?;
    let default = match (ctx.tensor_attr("default_tensor"), values.data()) {
        (Some(t), _) if ctx.tensor_attr("values_tensor").is_some() => t.with_shape([1]),
        (_, Data::Str(_)) => texts(vec![ctx.str("default_string")]),
        (_, Data::Int(_)) => Tensor::from_int(values.elem(), [1], vec![ctx.int("default_int64")?.into()]),
        _ if values.elem().is_float() => {
            Tensor::from_f64(values.elem(), [1], vec![ctx.float("default_float").unwrap_or(-0.0).into()])
        }
        _ => return Err(OpError::new("values must be texts or numbers")),
    };
    Ok(vec![lookup(ctx.tensor(0)?, &keys, &values, &default)?.into()])
}

/// An element as a key; floats by their bits, so that NaN finds NaN.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Int(i128),
    Float(u64),
    Str(String),
}

fn keys_of(t: &Tensor) -> Vec<Key> {
    let float = |v: f64| if v.is_nan() { f64::NAN } else if v == 0.0 { 0.0 } else { v };
    match t.data() {
        Data::Int(v) => v.iter().map(|&v| Key::Int(v)).collect(),
        Data::Float(v) => v.iter().map(|&v| Key::Float(float(v).to_bits())).collect(),
        Data::Complex(v) => v.iter().map(|v| Key::Float(float(v[0]).to_bits())).collect(),
        Data::Str(v) => v.iter().cloned().map(Key::Str).collect(),
    }
}

/// Where each key is in a list; the last of equal ones wins, as in a dictionary.
struct Index(HashMap<Key, usize>);

impl Index {
    fn new(keys: &Tensor) -> Index {
        Index(keys_of(keys).into_iter().enumerate().map(|(i, k)| (k, i)).collect())
    }
}

/// The value of each element's key, or `default` (one element).
fn lookup(x: &Tensor, keys: &Tensor, values: &Tensor, default: &Tensor) -> Result<Tensor, OpError> {
    if keys.len() != values.len() || default.elem() != values.elem() || default.len() != 1 {
        return Err(OpError::new("keys, values and default do not fit together"));
    }
    let table = match (values.data(), default.data()) {
        (Data::Int(a), Data::Int(b)) => Data::Int([a.as_slice(), b].concat()),
        (Data::Float(a), Data::Float(b)) => Data::Float([a.as_slice(), b].concat()),
        (Data::Str(a), Data::Str(b)) => Data::Str([a.as_slice(), b].concat()),
        _ => return Err(OpError::new("values must be texts or numbers")),
    };
    let n = values.len();
    let table = Tensor::new(values.elem(), [n + 1], table);
    let index = Index::new(keys);
    let at: Vec<usize> = keys_of(x).iter().map(|k| index.0.get(k).copied().unwrap_or(n)).collect();
    Ok(table.gather_linear(x.shape(), |i| at[i]))
}
