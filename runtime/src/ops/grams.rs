//! Features counted from text: tf_idf_vectorizer.

use super::call::{Call, Results, fail, length, one};
use super::number;
use crate::error::RunError;
use crate::value::{MAX_ELEMENTS, count};
use lapidary_abi::ElemType;
use std::collections::HashMap;

/// An item of an n-gram.
#[derive(PartialEq, Eq, Hash, Clone, Copy)]
enum Word<'a> {
    Int(i128),
    Text(&'a str),
}

pub fn tf_idf_vectorizer(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let (rows, width) = match *data.dims() {
        [n] => (1, n),
        [b, n] => (b, n),
        _ => return fail(format!("rank {} is neither 1 nor 2", data.rank())),
    };
    let words: Vec<Word> = match data.elem() {
        ElemType::String => data.strings().iter().map(|t| Word::Text(t)).collect(),
        e if e.is_int() => (0..data.len())
            .map(|i| Word::Int(number::int(data, i)))
            .collect(),
        other => return fail(format!("takes integers or texts, found {other}")),
    };
    let pool: Vec<Word> = match data.elem() {
        ElemType::String => {
            let texts = call.attr_strs("pool_strings").unwrap_or_default();
            texts.iter().map(|t| Word::Text(t)).collect()
        }
        _ => {
            let ints = call.attr_ints("pool_int64s").unwrap_or_default();
            ints.iter().map(|&i| Word::Int(i.into())).collect()
        }
    };
    let columns = call
        .attr_ints("ngram_indexes")
        .unwrap_or_default()
        .iter()
        .map(|&c| length(c).map(|c| c.min(MAX_ELEMENTS)))
        .collect::<Result<Vec<_>, _>>()?;
    let grams = pool_grams(&pool, call.attr_ints("ngram_counts").unwrap_or_default())?;
    let needed = |name: &str| length(call.attr_int(name, -1));
    let (shortest, longest) = (needed("min_gram_length")?, needed("max_gram_length")?);
    if grams.len() != columns.len() || shortest == 0 || shortest > longest {
        return fail("`ngram_indexes` needs an entry for each n-gram, and lengths must be ordered");
    }
    let ids: HashMap<&[Word], usize> = grams.iter().enumerate().map(|(i, g)| (*g, i)).collect();
    let most_skips = needed("max_skip_count")?.min(width);
    let weights = call.attr_floats("weights").unwrap_or_default();
    let weight = |id: usize| weights.get(id).map_or(1.0, |&w| f64::from(w));
    let mode = call.attr_str("mode", "");
    if !["TF", "IDF", "TFIDF"].contains(&mode) {
        return fail(format!("there is no mode `{mode}`"));
    }
    let size = columns.iter().max().map_or(0, |&most| most + 1);
    let mut out = vec![0f64; count(&[rows, size])?];
    let mut gram = Vec::new();
    for row in 0..rows {
        let words = &words[row * width..(row + 1) * width];
        for len in shortest..=longest.min(width) {
            // Skips make no difference to single words.
            let skips = if len == 1 { 0 } else { most_skips };
            for step in 1..=skips + 1 {
                for start in 0..width.saturating_sub(step.saturating_mul(len - 1)) {
                    gram.clear();
                    gram.extend((0..len).map(|k| words[start + k * step]));
                    let Some(&id) = ids.get(gram.as_slice()) else {
                        continue;
                    };
                    let cell = &mut out[row * size + columns[id]];
                    match mode {
                        "TF" => *cell += 1.0,
                        "IDF" => *cell = weight(id),
                        _ => *cell += weight(id),
                    }
                }
            }
        }
    }
    let mut dims = data.dims().to_vec();
    dims.pop();
    dims.push(size);
    one(number::from_floats(ElemType::F32, dims, &out)?)
}

/// Cuts the pool into n-grams: `starts[k]` is where those of length `k + 1` begin.
fn pool_grams<'p, 'a>(
    pool: &'p [Word<'a>],
    starts: &[i64],
) -> Result<Vec<&'p [Word<'a>]>, RunError> {
    let mut grams = Vec::new();
    for (k, &start) in starts.iter().enumerate() {
        let end = starts.get(k + 1).map_or(Ok(pool.len()), |&e| length(e))?;
        match pool.get(length(start)?..end) {
            Some(part) if part.len() % (k + 1) == 0 => grams.extend(part.chunks_exact(k + 1)),
            _ => return fail("`ngram_counts` does not fit the pool"),
        }
    }
    Ok(grams)
}
