//! numpy's `.npy`: a magic, a Python dictionary as text, then the elements.
//!
//! Element types that numpy lacks are written as numpy with `ml_dtypes` does, by width only (`V1`, `V2`), and are
//! read as what the model expects. Text is UTF-32 of fixed length (`U`).
//! Source: numpy, "A simple file format for NumPy arrays", versions 1 to 3.

use super::bad;
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, View, count};
use lapidary_abi::ElemType;

/// Reads an array; `expected` says what raw (`V`) elements are.
pub fn read(file: &[u8], expected: Option<ElemType>) -> Result<Tensor, RunError> {
    let (header, data) = split_header(file)?;
    let descr = quoted(entry(header, "descr")?)?;
    let fortran = entry(header, "fortran_order")?.starts_with("True");
    let mut dims = shape(entry(header, "shape")?)?;
    let n = count(&dims)?;
    let (order, kind) = match descr.split_at_checked(1) {
        Some((o @ ("<" | ">" | "|" | "="), kind)) => (o, kind),
        _ => ("=", descr),
    };
    if fortran {
        dims.reverse();
    }
    let tensor = match kind.split_at_checked(1) {
        Some(("U", len)) => {
            let len: usize = len
                .parse()
                .or_else(|_| bad(format!("array type `{descr}`")))?;
            Tensor::from_strings(dims, utf32(data, n, len, order == ">")?)?
        }
        Some(("S", len)) => {
            let len: usize = len
                .parse()
                .or_else(|_| bad(format!("array type `{descr}`")))?;
            let data = exactly(data, n, len)?;
            let text = |i: usize| {
                let bytes = &data[i * len..(i + 1) * len];
                String::from_utf8_lossy(bytes)
                    .trim_end_matches('\0')
                    .to_owned()
            };
            Tensor::from_strings(dims, (0..n).map(text).collect())?
        }
        _ => {
            let elem = elem_of(kind, expected)?;
            let mut bytes = Bytes::copy_of(exactly(data, n, elem.size_bytes())?)?;
            if order == ">" {
                let part = if matches!(elem, ElemType::C64 | ElemType::C128) {
                    2
                } else {
                    1
                };
                bytes
                    .as_mut_slice()
                    .chunks_exact_mut(elem.size_bytes() / part)
                    .for_each(<[u8]>::reverse);
            }
            Tensor::from_bytes(elem, dims, bytes)?
        }
    };
    if fortran {
        reversed_axes(&tensor.view())
    } else {
        Ok(tensor)
    }
}

fn reversed_axes(tensor: &View) -> Result<Tensor, RunError> {
    use crate::ops::moves::{Positions, linear, strides, take};
    let dims: Vec<usize> = tensor.dims().iter().rev().copied().collect();
    let steps: Vec<usize> = strides(tensor.dims()).into_iter().rev().collect();
    take(
        tensor,
        dims.clone(),
        None,
        Positions::of(&dims).map(|p| Some(linear(&p, &steps))),
    )
}

fn exactly(data: &[u8], n: usize, size: usize) -> Result<&[u8], RunError> {
    match n.checked_mul(size) {
        Some(bytes) if bytes == data.len() => Ok(data),
        _ => bad(format!(
            "an array of {n} elements of {size} bytes has {} bytes of data",
            data.len()
        )),
    }
}

fn utf32(data: &[u8], n: usize, len: usize, big: bool) -> Result<Vec<String>, RunError> {
    let size = len
        .checked_mul(4)
        .map_or_else(|| bad("texts are too long"), Ok)?;
    let data = exactly(data, n, size)?;
    let decode = |b: &[u8]| {
        let raw = [b[0], b[1], b[2], b[3]];
        char::from_u32(if big {
            u32::from_be_bytes(raw)
        } else {
            u32::from_le_bytes(raw)
        })
    };
    let text = |i: usize| {
        let chars = data[i * size..(i + 1) * size].chunks_exact(4).map(decode);
        let text: Option<String> = chars.collect();
        text.map(|t| t.trim_end_matches('\0').to_owned())
    };
    let texts: Option<Vec<String>> = (0..n).map(text).collect();
    texts.map_or_else(|| bad("a text has characters that do not exist"), Ok)
}

fn elem_of(kind: &str, expected: Option<ElemType>) -> Result<ElemType, RunError> {
    Ok(match kind {
        "f4" => ElemType::F32,
        "f8" => ElemType::F64,
        "f2" => ElemType::F16,
        "i8" => ElemType::I64,
        "i4" => ElemType::I32,
        "i2" => ElemType::I16,
        "i1" => match expected {
            Some(e @ (ElemType::I4 | ElemType::I2)) => e,
            _ => ElemType::I8,
        },
        "u8" => ElemType::U64,
        "u4" => ElemType::U32,
        "u2" => ElemType::U16,
        "u1" => match expected {
            Some(e @ (ElemType::U4 | ElemType::U2)) => e,
            _ => ElemType::U8,
        },
        "b1" => ElemType::Bool,
        "c8" => ElemType::C64,
        "c16" => ElemType::C128,
        "V1" | "V2" => match expected {
            Some(e)
                if e != ElemType::String
                    && kind.ends_with(char::from(b'0' + e.size_bytes() as u8)) =>
            {
                e
            }
            _ => return bad(format!("array type `{kind}` is not what the model expects")),
        },
        other => return bad(format!("array type `{other}` is not supported")),
    })
}

fn split_header(file: &[u8]) -> Result<(&str, &[u8]), RunError> {
    let wrong = || RunError::Input("not a .npy file, or cut short".into());
    let rest = file.strip_prefix(b"\x93NUMPY").ok_or_else(wrong)?;
    let (version, rest) = rest.split_at_checked(2).ok_or_else(wrong)?;
    let digits = if version[0] == 1 { 2 } else { 4 };
    let (len, rest) = rest.split_at_checked(digits).ok_or_else(wrong)?;
    let len = len
        .iter()
        .rev()
        .fold(0usize, |n, &b| n << 8 | usize::from(b));
    let (header, data) = rest.split_at_checked(len).ok_or_else(wrong)?;
    Ok((std::str::from_utf8(header).map_err(|_| wrong())?, data))
}

/// The text behind `'key':`.
fn entry<'a>(header: &'a str, key: &str) -> Result<&'a str, RunError> {
    let at = header
        .find(&format!("'{key}'"))
        .map(|at| at + key.len() + 2);
    let rest = at.and_then(|at| header[at..].trim_start().strip_prefix(':'));
    rest.map(str::trim_start)
        .map_or_else(|| bad(format!("the array's header lacks `{key}`")), Ok)
}

fn quoted(text: &str) -> Result<&str, RunError> {
    match text.strip_prefix('\'').and_then(|t| t.split_once('\'')) {
        Some((inner, _)) => Ok(inner),
        None => bad("arrays of records are not supported"),
    }
}

fn shape(text: &str) -> Result<Vec<usize>, RunError> {
    let Some((inner, _)) = text.strip_prefix('(').and_then(|t| t.split_once(')')) else {
        return bad("the array's header has no shape");
    };
    let parts = inner.split(',').map(str::trim).filter(|p| !p.is_empty());
    parts
        .map(|p| {
            p.trim_end_matches('L')
                .parse()
                .or_else(|_| bad(format!("`{p}` is not a length")))
        })
        .collect()
}

/// Writes an array, version 1.0 (2.0 for very long headers cannot occur).
pub fn write(tensor: &Tensor) -> Vec<u8> {
    let longest = tensor
        .strings()
        .iter()
        .map(|s| s.chars().count())
        .max()
        .unwrap_or(0)
        .max(1);
    let descr = match tensor.elem() {
        ElemType::F32 => "<f4".into(),
        ElemType::F64 => "<f8".into(),
        ElemType::F16 => "<f2".into(),
        ElemType::BF16 => "<V2".into(),
        ElemType::I64 => "<i8".into(),
        ElemType::I32 => "<i4".into(),
        ElemType::I16 => "<i2".into(),
        ElemType::I8 | ElemType::I4 | ElemType::I2 => "|i1".into(),
        ElemType::U64 => "<u8".into(),
        ElemType::U32 => "<u4".into(),
        ElemType::U16 => "<u2".into(),
        ElemType::U8 | ElemType::U4 | ElemType::U2 => "|u1".into(),
        ElemType::Bool => "|b1".into(),
        ElemType::C64 => "<c8".into(),
        ElemType::C128 => "<c16".into(),
        ElemType::String => format!("<U{longest}"),
        _ => "|V1".into(),
    };
    let dims: String = tensor.dims().iter().map(|d| format!("{d}, ")).collect();
    let mut dims = dims.trim_end().to_owned();
    if tensor.dims().len() != 1 {
        dims.truncate(dims.trim_end_matches(',').len());
    }
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    let pad = (64 - (10 + header.len() + 1) % 64) % 64;
    header.extend(std::iter::repeat_n(' ', pad));
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(tensor.bytes());
    for text in tensor.strings() {
        let chars = text
            .chars()
            .map(u32::from)
            .chain(std::iter::repeat(0))
            .take(longest);
        out.extend(chars.flat_map(u32::to_le_bytes));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_read_back() {
        for &elem in ElemType::ALL {
            for dims in [vec![], vec![6], vec![2, 3]] {
                let n: usize = dims.iter().product();
                let tensor = if elem == ElemType::String {
                    Tensor::from_strings(dims.clone(), (0..n).map(|i| "ü".repeat(i)).collect())
                } else {
                    let bytes = vec![1; n * elem.size_bytes()];
                    Tensor::from_bytes(elem, dims.clone(), Bytes::copy_of(&bytes).expect("small"))
                };
                let tensor = tensor.expect("fits");
                let back = read(&write(&tensor), Some(elem)).expect("reads");
                assert_eq!((back.elem(), back.dims()), (elem, &dims[..]));
                assert_eq!(
                    (back.bytes(), back.strings()),
                    (tensor.bytes(), tensor.strings())
                );
            }
        }
    }

    #[test]
    fn cut_files_are_refused() {
        let file = write(&Tensor::from_f32(vec![2], &[1.0, 2.0]).expect("fits"));
        assert!((0..file.len()).all(|end| read(&file[..end], None).is_err()));
    }
}
