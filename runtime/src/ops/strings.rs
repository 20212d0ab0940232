//! Text: string_concat, string_split, string_normalizer, regex_full_match, tf_idf_vectorizer.

use super::call::{Call, Results, fail, length, one};
use super::moves::{Positions, broadcast, broadcast_strides, linear};
use super::number;
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, View, count};
use lapidary_abi::ElemType;
use std::collections::HashMap;

fn texts<'a>(view: &View<'a>) -> Result<&'a [String], RunError> {
    match view.elem() {
        ElemType::String => Ok(view.strings()),
        other => fail(format!("text is needed, found {other}")),
    }
}

pub fn string_concat(call: &Call) -> Results {
    let (a, b) = (call.tensor(0)?, call.tensor(1)?);
    let dims = broadcast(a.dims(), b.dims())?;
    count(&dims)?;
    let (sa, sb) = (
        broadcast_strides(a.dims(), &dims),
        broadcast_strides(b.dims(), &dims),
    );
    let (ta, tb) = (texts(a)?, texts(b)?);
    let joined =
        Positions::of(&dims).map(|p| format!("{}{}", ta[linear(&p, &sa)], tb[linear(&p, &sb)]));
    one(Tensor::from_strings(dims.clone(), joined.collect())?)
}

pub fn string_split(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let delimiter = call.attr_str("delimiter", "");
    let most = call
        .attr_int_opt("maxsplit")
        .filter(|&m| m >= 0)
        .map(|m| m as usize);
    let pieces: Vec<Vec<&str>> = texts(data)?
        .iter()
        .map(|t| split_one(t, delimiter, most))
        .collect();
    let width = pieces.iter().map(Vec::len).max().unwrap_or(0);
    let mut dims = data.dims().to_vec();
    dims.push(width);
    count(&dims)?;
    let counts: Vec<i64> = pieces.iter().map(|p| p.len() as i64).collect();
    let padded = pieces
        .iter()
        .flat_map(|p| (0..width).map(|i| p.get(i).map_or(String::new(), |s| s.to_string())));
    let padded = Tensor::from_strings(dims, padded.collect())?;
    Ok(vec![
        padded.into(),
        Tensor::from_i64(data.dims().to_vec(), &counts)?.into(),
    ])
}

fn split_one<'t>(text: &'t str, delimiter: &str, most: Option<usize>) -> Vec<&'t str> {
    if !delimiter.is_empty() {
        return match (text.is_empty(), most) {
            (true, _) => Vec::new(),
            (false, Some(m)) => text.splitn(m.saturating_add(1), delimiter).collect(),
            (false, None) => text.split(delimiter).collect(),
        };
    }
    let mut pieces = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest
            .find(char::is_whitespace)
            .filter(|_| most != Some(pieces.len()));
        match end {
            Some(end) => {
                pieces.push(&rest[..end]);
                rest = rest[end..].trim_start();
            }
            None => {
                pieces.push(rest.trim_end());
                break;
            }
        }
    }
    pieces
}

pub fn string_normalizer(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let action = call.attr_str("case_change_action", "NONE");
    let exact = call.attr_int("is_case_sensitive", 0) != 0;
    let fold = |t: &str| {
        if exact {
            t.to_owned()
        } else {
            t.to_lowercase()
        }
    };
    let stop: Vec<String> = call
        .attr_strs("stopwords")
        .unwrap_or_default()
        .iter()
        .map(|w| fold(w))
        .collect();
    let mut kept = Vec::new();
    for text in texts(data)? {
        if stop.contains(&fold(text)) {
            continue;
        }
        kept.push(match action {
            "LOWER" => text.to_lowercase(),
            "UPPER" => text.to_uppercase(),
            _ => text.clone(),
        });
    }
    if kept.is_empty() {
        kept.push(String::new());
    }
    let dims = match data.dims() {
        [_] => vec![kept.len()],
        [1, _] => vec![1, kept.len()],
        other => return fail(format!("shape {other:?} is neither [C] nor [1, C]")),
    };
    one(Tensor::from_strings(dims, kept)?)
}

pub fn regex_full_match(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let pattern = format!("^(?:{})$", call.attr_str("pattern", ""));
    let regex = match regex_lite::Regex::new(&pattern) {
        Ok(regex) => regex,
        Err(e) => return fail(format!("`pattern`: {e}")),
    };
    let matches: Vec<u8> = texts(data)?
        .iter()
        .map(|t| regex.is_match(t).into())
        .collect();
    one(Tensor::from_bytes(
        ElemType::Bool,
        data.dims().to_vec(),
        Bytes::copy_of(&matches)?,
    )?)
}

/// An n-gram of the pool.
#[derive(PartialEq, Eq, Hash, Clone, Copy)]
enum Word<'a> {
    Int(i128),
    Text(&'a str),
}

pub fn tf_idf_vectorizer(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let (batch, width) = match data.dims() {
        [] => (None, 1),
        [n] => (None, *n),
        [b, n] => (Some(*b), *n),
        other => return fail(format!("rank {} is neither 1 nor 2", other.len())),
    };
    let starts = call.attr_ints("ngram_counts").unwrap_or_default();
    let columns = call.attr_ints("ngram_indexes").unwrap_or_default();
    let pool: Vec<Word> = match (
        call.attr_strs("pool_strings"),
        call.attr_ints("pool_int64s"),
    ) {
        (Some(texts), _) if !texts.is_empty() => texts.iter().map(|t| Word::Text(t)).collect(),
        (_, Some(ints)) => ints.iter().map(|&i| Word::Int(i.into())).collect(),
        _ => return fail("the pool is missing"),
    };
    let grams = pool_grams(&pool, starts)?;
    if grams.len() > columns.len() {
        return fail("`ngram_indexes` has fewer entries than the pool");
    }
    let size = match columns.iter().max() {
        Some(&most) => length(most)? + 1,
        None => 0,
    };
    let (shortest, longest) = (
        call.attr_int("min_gram_length", 1),
        call.attr_int("max_gram_length", 1),
    );
    let (shortest, longest) = (length(shortest)?.max(1), length(longest)?);
    let most_skips = length(call.attr_int("max_skip_count", 0))?;
    let weights = call.attr_floats("weights");
    let mode = call.attr_str("mode", "TF");
    let rows = batch.unwrap_or(1);
    count(&[rows, size])?;
    let mut out = vec![0f64; rows * size];
    for row in 0..rows {
        let words: Vec<Word> = (0..width)
            .map(|i| match data.elem() {
                ElemType::String => Word::Text(&data.strings()[row * width + i]),
                _ => Word::Int(number::int(data, row * width + i)),
            })
            .collect();
        let mut counts = vec![0u32; grams.len()];
        for len in shortest..=longest.min(width) {
            // Skips make no difference to single words.
            let skips = if len == 1 { 0 } else { most_skips.min(width) };
            for start in 0..width {
                for step in 1..=skips + 1 {
                    if start + (len - 1) * step >= width {
                        break;
                    }
                    let gram: Vec<Word> = (0..len).map(|k| words[start + k * step]).collect();
                    if let Some(&id) = grams.get(&gram) {
                        counts[id] += 1;
                    }
                }
            }
        }
        for (id, &n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let weight = weights
                .and_then(|w| w.get(id))
                .map_or(1.0, |&w| f64::from(w));
            let column = row * size + length(columns[id])?;
            out[column] = match mode {
                "IDF" => weight,
                "TFIDF" => f64::from(n) * weight,
                _ => f64::from(n),
            };
        }
    }
    let dims = match batch {
        Some(b) => vec![b, size],
        None => vec![size],
    };
    one(number::from_floats(ElemType::F32, dims, &out)?)
}

fn pool_grams<'a>(
    pool: &[Word<'a>],
    starts: &[i64],
) -> Result<HashMap<Vec<Word<'a>>, usize>, RunError> {
    let mut grams = HashMap::new();
    let mut id = 0;
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).map_or(Ok(pool.len()), |&e| length(e))?;
        let Some(part) = pool.get(length(start)?..end) else {
            return fail("`ngram_counts` does not fit the pool");
        };
        for gram in part.chunks_exact(i + 1) {
            grams.insert(gram.to_vec(), id);
            id += 1;
        }
    }
    Ok(grams)
}
