//! Text: string_concat, string_split, string_normalizer, regex_full_match.

use super::call::{Call, Results, fail, one};
use super::moves::{Positions, broadcast, broadcast_strides, linear};
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, View, count};
use lapidary_abi::ElemType;

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
        let pieces = most.map_or(usize::MAX, |m| m.saturating_add(1));
        return text.splitn(pieces, delimiter).collect();
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
    if !["LOWER", "UPPER", "NONE"].contains(&action) {
        return fail(format!("there is no `case_change_action` `{action}`"));
    }
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
