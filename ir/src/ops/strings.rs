//! Text, and features counted from text.

use super::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, broadcast_dims, broadcast_shapes, elementwise};
use crate::tensor::{Data, Tensor, Value, count};
use crate::types::TensorType;
use crate::{Dim, ElemType, Type};
use std::collections::HashMap;

/// The family's ops.
pub static OPS: &[&OpDef] =
    &[&STRING_CONCAT, &STRING_SPLIT, &STRING_NORMALIZER, &REGEX_FULL_MATCH, &TF_IDF_VECTORIZER];

/// Texts put after each other.
pub static STRING_CONCAT: OpDef = OpDef {
    name: "string_concat",
    summary: "concatenates texts element by element, with broadcasting",
    source: "ONNX StringConcat-20",
    operands: &[Operand::One("x"), Operand::One("y")],
    infer: |ctx| {
        require_strings(ctx, 0)?;
        require_strings(ctx, 1)?;
        let shape = match (ctx.shape(0)?, ctx.shape(1)?) {
            (Some(a), Some(b)) => Some(broadcast_dims(a, b)?),
            _ => None,
        };
        Ok(vec![Type::Tensor(TensorType {
            elem: ElemType::String,
            shape,
        })])
    },
    eval: Eval::Direct(|ctx| {
        let (a, b) = (ctx.tensor(0)?, ctx.tensor(1)?);
        let shape = broadcast_shapes(a.shape(), b.shape())?;
        let (ia, ib) = (elementwise::broadcast_index(a.shape(), &shape), elementwise::broadcast_index(b.shape(), &shape));
        let (a, b) = (texts(ctx, 0)?, texts(ctx, 1)?);
        let n = super::checked_count(&shape)?;
        let out = (0..n).map(|i| format!("{}{}", a[ia(i)], b[ib(i)])).collect();
        Ok(vec![Tensor::new(ElemType::String, shape, Data::Str(out)).into()])
    }),
    ..OpDef::BASE
};

/// Texts cut at a delimiter.
pub static STRING_SPLIT: OpDef = OpDef {
    name: "string_split",
    summary: "cuts each text at `delimiter` (white space if left out or empty); pieces padded with empty texts, and their numbers",
    source: "ONNX StringSplit-20",
    operands: &[Operand::One("x")],
    results: &[Operand::One("y"), Operand::One("z")],
    attrs: &[
        AttrDef::new("delimiter", AttrKind::Str, Default::Absent, "where to cut"),
        AttrDef::new("maxsplit", AttrKind::Int, Default::Absent, "most cuts"),
    ],
    infer: |ctx| {
        require_strings(ctx, 0)?;
        let pieces = ctx.shape(0)?.map(|s| {
            let mut shape = s.to_vec();
            shape.push(ctx.fresh_dim());
            shape
        });
        let lengths = ctx.shape(0)?.map(<[Dim]>::to_vec);
        Ok(vec![
            Type::Tensor(TensorType { elem: ElemType::String, shape: pieces }),
            Type::Tensor(TensorType { elem: ElemType::I64, shape: lengths }),
        ])
    },
    eval: Eval::Direct(|ctx| {
        let delimiter = ctx.str("delimiter");
        let most = ctx.int_opt("maxsplit").and_then(|n| usize::try_from(n).ok());
        let rows: Vec<Vec<&str>> = texts(ctx, 0)?.iter().map(|t| split(t, &delimiter, most)).collect();
        let width = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut shape = ctx.tensor(0)?.shape().to_vec();
        let lengths = rows.iter().map(|r| r.len() as i128).collect();
        let lengths = Tensor::from_int(ElemType::I64, shape.clone(), lengths);
        shape.push(width);
        super::checked_count(&shape)?;
        let cell = |r: &Vec<&str>, k: usize| r.get(k).copied().unwrap_or_default().to_owned();
        let out = rows.iter().flat_map(|r| (0..width).map(move |k| cell(r, k))).collect();
        Ok(vec![Tensor::new(ElemType::String, shape, Data::Str(out)).into(), lengths.into()])
    }),
    ..OpDef::BASE
};

/// Stop words dropped, case changed.
pub static STRING_NORMALIZER: OpDef = OpDef {
    name: "string_normalizer",
    summary: "drops stop words, then changes the case of the others; an empty text if none is left",
    source: "ONNX StringNormalizer-10",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("case_change_action", AttrKind::Str, Default::Str("NONE"), "LOWER, UPPER or NONE"),
        AttrDef::new("is_case_sensitive", AttrKind::Int, Default::Int(0), "whether stop words are found by exact case"),
        AttrDef::new("locale", AttrKind::Str, Default::Absent, "accepted and not used: case follows Unicode's own mapping"),
        AttrDef::new("stopwords", AttrKind::Strs, Default::Absent, "words to drop"),
    ],
    infer: |ctx| {
        require_strings(ctx, 0)?;
        let shape = match ctx.shape(0)?.map(<[Dim]>::len) {
            None => return Ok(vec![Type::unranked(ElemType::String)]),
            Some(1) => vec![ctx.fresh_dim()],
            Some(2) => vec![Dim::from(1i64), ctx.fresh_dim()],
            Some(rank) => return Err(OpError::new(format!("takes rank 1 or 2, found {rank}"))),
        };
        Ok(vec![Type::tensor(ElemType::String, shape)])
    },
    eval: Eval::Direct(|ctx| {
        let (stop, exact) = (ctx.strs("stopwords"), ctx.flag("is_case_sensitive"));
        let same = |a: &str, b: &str| if exact { a == b } else { a.to_lowercase() == b.to_lowercase() };
        let kept = texts(ctx, 0)?.iter().filter(|t| !stop.iter().any(|s| same(s, t)));
        let mut out: Vec<String> = match ctx.str("case_change_action").as_str() {
            "LOWER" => kept.map(|t| t.to_lowercase()).collect(),
            "UPPER" => kept.map(|t| t.to_uppercase()).collect(),
            "NONE" => kept.cloned().collect(),
            other => return Err(OpError::new(format!("`case_change_action` must be LOWER, UPPER or NONE, found `{other}`"))),
        };
        if out.is_empty() {
            out.push(String::new());
        }
        let shape = match *ctx.tensor(0)?.shape() {
            [_] => vec![out.len()],
            [1, _] => vec![1, out.len()],
            _ => return Err(OpError::new("takes shape [C] or [1, C]")),
        };
        Ok(vec![Tensor::new(ElemType::String, shape, Data::Str(out)).into()])
    }),
    ..OpDef::BASE
};

/// Whether whole texts match a pattern.
pub static REGEX_FULL_MATCH: OpDef = OpDef {
    name: "regex_full_match",
    summary: "true where the whole text matches `pattern` (RE2 syntax; Unicode classes are not supported)",
    source: "ONNX RegexFullMatch-20",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("pattern", AttrKind::Str, Default::Required, "the regular expression")],
    infer: |ctx| {
        require_strings(ctx, 0)?;
        let shape = ctx.shape(0)?.map(<[Dim]>::to_vec);
        Ok(vec![Type::Tensor(TensorType { elem: ElemType::Bool, shape })])
    },
    eval: Eval::Direct(|ctx| {
        let pattern = format!("^(?:{})$", ctx.str("pattern"));
        let regex = regex_lite::RegexBuilder::new(&pattern).build().map_err(|e| OpError::new(format!("`pattern`: {e}")))?;
        let out = texts(ctx, 0)?.iter().map(|t| i128::from(regex.is_match(t))).collect();
        Ok(vec![Tensor::from_int(ElemType::Bool, ctx.tensor(0)?.shape(), out).into()])
    }),
    ..OpDef::BASE
};

/// Counts of n-grams.
pub static TF_IDF_VECTORIZER: OpDef = OpDef {
    name: "tf_idf_vectorizer",
    summary: "counts the n-grams of a pool in each row, weighted by `mode`",
    source: "ONNX TfIdfVectorizer-9",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("max_gram_length", AttrKind::Int, Default::Required, "longest n-gram"),
        AttrDef::new("max_skip_count", AttrKind::Int, Default::Required, "most items left out between two of an n-gram"),
        AttrDef::new("min_gram_length", AttrKind::Int, Default::Required, "shortest n-gram"),
        AttrDef::new("mode", AttrKind::Str, Default::Required, "TF (counts), IDF (weight if present) or TFIDF (product)"),
        AttrDef::new("ngram_counts", AttrKind::Ints, Default::Required, "where in the pool the 1-grams, 2-grams … start"),
        AttrDef::new("ngram_indexes", AttrKind::Ints, Default::Required, "output column of each n-gram"),
        AttrDef::new("pool_int64s", AttrKind::Ints, Default::Absent, "n-grams of integers, one after the other"),
        AttrDef::new("pool_strings", AttrKind::Strs, Default::Absent, "n-grams of texts, one after the other"),
        AttrDef::new("weights", AttrKind::Floats, Default::Absent, "weight of each n-gram (1)"),
    ],
    infer: |ctx| {
        let columns = columns(&ctx.ints("ngram_indexes").unwrap_or_default())?;
        let Some(shape) = ctx.shape(0)? else {
            return Ok(vec![Type::unranked(ElemType::F32)]);
        };
        if shape.is_empty() || shape.len() > 2 {
            return Err(OpError::new("takes rank 1 or 2"));
        }
        let mut out = shape[..shape.len() - 1].to_vec();
        out.push(Dim::from(columns));
        Ok(vec![Type::tensor(ElemType::F32, out)])
    },
    eval: Eval::Direct(tf_idf),
    ..OpDef::BASE
};

fn columns(indexes: &[i64]) -> Result<usize, OpError> {
    let last = indexes.iter().copied().max().unwrap_or(-1);
    if indexes.iter().any(|&i| i < 0) || last >= super::ctx::MAX_ELEMENTS as i64 {
        return Err(OpError::new("`ngram_indexes` is out of range"));
    }
    Ok((last + 1) as usize)
}

fn tf_idf(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, pool) = (ctx.tensor(0)?, ctx.strs("pool_strings"));
    // Integers and texts alike are compared as texts.
    let items: Vec<String> = match x.data() {
        Data::Str(v) => v.clone(),
        Data::Int(v) => v.iter().map(i128::to_string).collect(),
        _ => return Err(OpError::new("takes integers or texts")),
    };
    let pool = match (x.data(), ctx.ints("pool_int64s")) {
        (Data::Int(_), Some(v)) => v.iter().map(i64::to_string).collect(),
        _ => pool,
    };
    let required = |name: &str| usize::try_from(ctx.int(name)?).map_err(|_| OpError::new(format!("`{name}` must not be negative")));
    let (least, most, skips) = (required("min_gram_length")?, required("max_gram_length")?, required("max_skip_count")?);
    let indexes = ctx.ints("ngram_indexes").unwrap_or_default();
    let width = columns(&indexes)?;
    let grams = pool_grams(&pool, &ctx.ints("ngram_counts").unwrap_or_default())?;
    if grams.len() != indexes.len() || least == 0 || least > most {
        return Err(OpError::new("`ngram_indexes` must have an entry per n-gram, and lengths must be ordered"));
    }
    let ids: HashMap<&[String], usize> = grams.iter().enumerate().map(|(i, g)| (*g, i)).collect();
    let row_len = x.shape().last().copied().unwrap_or(1);
    let rows = if x.rank() == 2 { x.shape()[0] } else { 1 };
    super::checked_count(&[rows, width])?;
    let (weights, mode) = (ctx.floats("weights"), ctx.str("mode"));
    let weight = |g: usize| weights.get(g).map_or(1.0, |&w| f64::from(w));
    let mut out = vec![0f64; rows * width];
    for r in 0..rows {
        let row = &items[r * row_len..(r + 1) * row_len];
        for n in least..=most.min(row_len) {
            // The skip distance means nothing to single items: count them once.
            for step in 1..=if n == 1 { 1 } else { skips.min(row_len) + 1 } {
                let span = step * (n - 1);
                for start in 0..row_len.saturating_sub(span) {
                    let gram: Vec<String> = (0..n).map(|k| row[start + k * step].clone()).collect();
                    if let Some(&g) = ids.get(gram.as_slice()) {
                        let cell = &mut out[r * width + indexes[g] as usize];
                        match mode.as_str() {
                            "TF" => *cell += 1.0,
                            "IDF" => *cell = weight(g),
                            "TFIDF" => *cell += weight(g),
                            other => return Err(OpError::new(format!("`mode` must be TF, IDF or TFIDF, found `{other}`"))),
                        }
                    }
                }
            }
        }
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(width);
    debug_assert_eq!(count(&shape), out.len());
    Ok(vec![Tensor::from_f64(ElemType::F32, shape, out).into()])
}

/// Cuts the pool into n-grams: `starts[k]` is where those of length `k + 1` begin.
fn pool_grams<'a>(pool: &'a [String], starts: &[i64]) -> Result<Vec<&'a [String]>, OpError> {
    let bad = || OpError::new("`ngram_counts` does not fit the pool");
    let mut grams = vec![];
    for (k, &start) in starts.iter().enumerate() {
        let end = starts.get(k + 1).copied().unwrap_or(pool.len() as i64);
        let (start, end) = (usize::try_from(start).map_err(|_| bad())?, usize::try_from(end).map_err(|_| bad())?);
        let part = pool.get(start..end).ok_or_else(bad)?;
        if part.len() % (k + 1) != 0 {
            return Err(bad());
        }
        grams.extend(part.chunks_exact(k + 1));
    }
    Ok(grams)
}

fn split<'t>(text: &'t str, delimiter: &str, most: Option<usize>) -> Vec<&'t str> {
    if !delimiter.is_empty() {
        return text.splitn(most.map_or(usize::MAX, |n| n.saturating_add(1)), delimiter).collect();
    }
    let mut rest = text.trim();
    let mut out = vec![];
    while !rest.is_empty() {
        let cut = rest.find(char::is_whitespace).filter(|_| most.is_none_or(|n| out.len() < n));
        let (head, tail) = rest.split_at(cut.unwrap_or(rest.len()));
        out.push(head);
        rest = tail.trim_start();
    }
    out
}

fn require_strings(ctx: &InferCtx, i: usize) -> Result<(), OpError> {
    match ctx.elem(i)? {
        ElemType::String => Ok(()),
        other => Err(OpError::new(format!("operand {i} must hold texts, found {other}"))),
    }
}

fn texts<'a>(ctx: &'a EvalCtx, i: usize) -> Result<&'a [String], OpError> {
    ctx.tensor(i)?.strings().ok_or_else(|| OpError::new(format!("operand {i} must hold texts")))
}

#[cfg(test)]
mod tests {
    use crate::Attr;
    use crate::eval::testing::{f32s, gives, i64s, refuses, texts};

    #[test]
    fn split_follows_the_delimiter() {
        let cases: &[(&str, Option<&str>, Option<i64>, &[&str])] = &[
            (" a  b c ", None, None, &["a", "b", "c"]),
            ("a  b c", None, Some(1), &["a", "b c"]),
            ("a,,b", Some(","), None, &["a", "", "b"]),
            ("a,b,c", Some(","), Some(1), &["a", "b,c"]),
            ("", None, None, &[]),
        ];
        for (text, delimiter, most, pieces) in cases {
            let mut attrs = vec![];
            attrs.extend(delimiter.map(|d| ("delimiter", Attr::from(d))));
            attrs.extend(most.map(|m| ("maxsplit", Attr::Int(m))));
            let expected = [texts(&[1, pieces.len()], pieces), i64s(&[1], &[pieces.len() as i128])];
            gives("string_split", &[texts(&[1], &[text])], &attrs, &expected);
        }
    }

    #[test]
    fn texts_are_matched_and_normalized() {
        let x = texts(&[2], &["ab", "abc"]);
        let hit = crate::Tensor::from_int(crate::ElemType::Bool, [2], vec![1, 0]).into();
        gives("regex_full_match", std::slice::from_ref(&x), &[("pattern", Attr::from("a|ab"))], &[hit]);
        refuses("regex_full_match", std::slice::from_ref(&x), &[("pattern", Attr::from("("))], "pattern");
        let attrs = [("stopwords", Attr::Strs(vec!["AB".into()])), ("case_change_action", Attr::from("UPPER"))];
        gives("string_normalizer", std::slice::from_ref(&x), &attrs, &[texts(&[1], &["ABC"])]);
        gives("string_concat", &[x, texts(&[1], &["!"])], &[], &[texts(&[2], &["ab!", "abc!"])]);
    }

    #[test]
    fn n_grams_are_counted() {
        let attrs = |mode: &str| {
            [
                ("mode", Attr::from(mode)),
                ("min_gram_length", Attr::Int(1)),
                ("max_gram_length", Attr::Int(2)),
                ("max_skip_count", Attr::Int(1)),
                ("ngram_counts", Attr::Ints(vec![0, 1])),
                ("ngram_indexes", Attr::Ints(vec![1, 0])),
                ("pool_int64s", Attr::Ints(vec![7, 7, 8])),
                ("weights", Attr::Floats(vec![2.0, 3.0])),
            ]
        };
        // 7 occurs twice; (7, 8) once adjacent and once with one left out.
        let x = i64s(&[3], &[7, 7, 8]);
        for (mode, expected) in [("TF", [2.0, 2.0]), ("IDF", [3.0, 2.0]), ("TFIDF", [6.0, 4.0])] {
            gives("tf_idf_vectorizer", std::slice::from_ref(&x), &attrs(mode), &[f32s(&[2], &expected)]);
        }
    }
}
