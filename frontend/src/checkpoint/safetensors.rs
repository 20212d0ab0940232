//! The safetensors format: eight bytes of length, a header in JSON, then all tensors' bytes.
//!
//! ```text
//! {"NAME": {"dtype": "BF16", "shape": [4096, 256], "data_offsets": [0, 2097152]}, …, "__metadata__": {…}}
//! ```
//! Offsets count from the end of the header. Source: the format's description at huggingface/safetensors.

use crate::error::Problem;
use bytes::Bytes;
use lapidary_ir::ElemType;
use lapidary_ir::types::{MAX_DIM, MAX_RANK};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

/// Longest header, as the format has it.
const MAX_HEADER: usize = 100_000_000;

const TRUNCATED: &str = "download the file again, or save it again";

/// Names of element types, and ours.
const DTYPES: &[(&str, ElemType)] = &[
    ("F32", ElemType::F32),
    ("BF16", ElemType::BF16),
    ("F16", ElemType::F16),
    ("F64", ElemType::F64),
    ("F8_E4M3", ElemType::F8E4M3FN),
    ("F8_E5M2", ElemType::F8E5M2),
    ("F8_E8M0", ElemType::F8E8M0),
    ("I64", ElemType::I64),
    ("I32", ElemType::I32),
    ("I16", ElemType::I16),
    ("I8", ElemType::I8),
    ("U64", ElemType::U64),
    ("U32", ElemType::U32),
    ("U16", ElemType::U16),
    ("U8", ElemType::U8),
    ("BOOL", ElemType::Bool),
];

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Element type; a name that is not known is kept for the message of whoever needs the tensor.
    pub elem: Result<ElemType, String>,
    /// Lengths, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major and little-endian, a view of the file.
    pub bytes: Bytes,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The tensors of a file named `file`. Nothing is copied but their names and shapes.
pub fn read(bytes: &Bytes, file: &str) -> Result<BTreeMap<String, Stored>, Problem> {
    let wrong = |reason: String| Problem {
        place: format!("file `{file}`"),
        reason,
        remedy: Some(TRUNCATED.to_owned()),
    };
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| {
        wrong(format!(
            "has {} bytes, which is no safetensors file",
            bytes.len()
        ))
    })?;
    let length = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .filter(|&n| n <= MAX_HEADER && n <= rest.len())
        .ok_or_else(|| wrong("ends within its header, or is no safetensors file".to_owned()))?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&rest[..length])
        .map_err(|e| wrong(format!("has a header that is not valid: {e}")))?;
    let data = bytes.slice(8 + length..);
    let entries = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__");
    entries
        .map(|(name, entry)| {
            let stored = stored(entry, &data).map_err(|reason| Problem {
                place: format!("tensor `{name}` of `{file}`"),
                reason,
                remedy: Some(TRUNCATED.to_owned()),
            })?;
            Ok((name, stored))
        })
        .collect()
}

fn stored(entry: serde_json::Value, data: &Bytes) -> Result<Stored, String> {
    let entry: Entry = serde_json::from_value(entry)
        .map_err(|e| format!("has an entry that is not valid: {e}"))?;
    let [begin, end] = entry.data_offsets;
    let range = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
    let (begin, end) = range
        .filter(|&(b, e)| b <= e && e <= data.len())
        .ok_or_else(|| {
            format!(
                "is bytes {begin}..{end} of the file's data, which has {} bytes",
                data.len()
            )
        })?;
    if entry.shape.len() > MAX_RANK || entry.shape.iter().any(|&d| d > MAX_DIM as u64) {
        return Err("has an impossible shape".to_owned());
    }
    let shape: Vec<usize> = entry.shape.iter().map(|&d| d as usize).collect();
    let known = DTYPES.iter().find(|(name, _)| *name == entry.dtype);
    if let Some((_, elem)) = known {
        let count = shape
            .iter()
            .try_fold(elem.size_bytes(), |n, &d| n.checked_mul(d));
        if count != Some(end - begin) {
            return Err(format!(
                "is {elem}{shape:?}, but has {} bytes of data",
                end - begin
            ));
        }
    }
    Ok(Stored {
        elem: known.map(|(_, elem)| *elem).ok_or(entry.dtype),
        shape,
        bytes: data.slice(begin..end),
    })
}

/// A file of these tensors, in pieces: a header, then their bytes as they are.
pub(crate) fn write(tensors: &BTreeMap<String, Stored>) -> Vec<Bytes> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut at = 0;
    for (name, stored) in tensors {
        let dtype = match &stored.elem {
            Ok(elem) => DTYPES
                .iter()
                .find(|(_, e)| e == elem)
                .map_or("", |(name, _)| name),
            Err(name) => name,
        };
        let end = at + stored.bytes.len();
        let entry = json!({ "dtype": dtype, "shape": stored.shape, "data_offsets": [at, end] });
        entries.insert(name.clone(), entry);
        at = end;
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    // Data begins at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    let header = [&length[..], &header].concat();
    let data = tensors.values().map(|stored| stored.bytes.clone());
    std::iter::once(Bytes::from(header)).chain(data).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Bytes {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(data);
        out.into()
    }

    #[test]
    fn tensors_are_views_of_the_file() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"c":{"dtype":"F4","shape":[0],"data_offsets":[8,8]}}"#;
        let all = file(header, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let found = read(&all, "m").expect("a valid file");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(found["b"].elem, Ok(ElemType::BF16));
        assert_eq!(found["b"].shape, [2, 1]);
        assert_eq!(found["b"].bytes, [5u8, 6, 7, 8].as_slice());
        assert!(all.as_ptr_range().contains(&found["b"].bytes.as_ptr()));
        assert_eq!(found["c"].elem, Err("F4".to_owned()));
        let again: Bytes = write(&found).concat().into();
        let again = read(&again, "m").expect("a valid file");
        for (name, stored) in &found {
            assert_eq!(again[name].bytes, stored.bytes, "{name}");
            assert_eq!(
                (&again[name].elem, &again[name].shape),
                (&stored.elem, &stored.shape)
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            let entry = format!(
                r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#
            );
            file(&entry, &[0; 8])
        };
        let cases: Vec<(Bytes, &str)> = vec![
            (Bytes::new(), "has 0 bytes"),
            (Bytes::from_static(&[0xff; 16]), "ends within its header"),
            (file("{", &[]), "header that is not valid"),
            (file("[]", &[]), "header that is not valid"),
            (
                file(r#"{"w":3}"#, &[]),
                "tensor `w` of `m`: has an entry that is not valid",
            ),
            (
                one("F32", "[2]", "[0,12]"),
                "is bytes 0..12 of the file's data, which has 8 bytes",
            ),
            (one("F32", "[2]", "[8,0]"), "is bytes 8..0"),
            (one("F32", "[3]", "[0,8]"), "is f32[3], but has 8 bytes"),
            (
                one("F32", "[281474976710656,281474976710656]", "[0,8]"),
                "but has 8 bytes",
            ),
            (
                one("F32", "[18446744073709551615]", "[0,8]"),
                "impossible shape",
            ),
            (one("F32", "[-2]", "[0,8]"), "entry that is not valid"),
        ];
        for (bytes, want) in cases {
            let problem = read(&bytes, "m").expect_err(want);
            let said = format!("{}: {}", problem.place, problem.reason);
            assert!(said.contains(want), "{said}");
        }
    }
}
