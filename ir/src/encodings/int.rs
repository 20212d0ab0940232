//! `int`: unsigned (or sign-extended) codes of a few bits, packed.
//!
//! ```text
//! bits = 4, row-major, low bits first:
//! byte 0: [c1 c1 c1 c1 c0 c0 c0 c0]   byte 1: [c3 c3 c3 c3 c2 c2 c2 c2] …
//! ```
//! Codes run on over row ends; the last byte is zero-filled. Files that place codes in another order hold these bytes
//! elsewhere: the child term `bytes` then says where (`strided`), in place of bytes of its own. The element type (`u4`,
//! `i4`, `u8` …) says whether codes are sign-extended.
//! Source: ONNX, "Packed 4-bit tensors"; `bits` is 1..=8.

use super::sampling::Sampler;
use super::strided::{self, Places};
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::tensor::Data;
use crate::{Attr, Attrs, ElemType, Tensor, ValueId, tensor};
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::Arc;

/// The constructor.
pub static INT: Constructor = Constructor {
    name: "int",
    summary: "codes of 1 to 8 bits, packed low bits first",
    children: &["bytes?"],
    has_blob: true,
    algebraic: false,
    contents: None,
    check,
    decode,
    open,
    sample,
};

/// A term of packed codes.
pub fn int(elem: ElemType, bits: u32, shape: Vec<usize>, bytes: Bytes) -> Encoding {
    let params = Attrs::from([("bits".to_owned(), Attr::Int(i64::from(bits)))]);
    Encoding {
        ctor: &INT,
        elem,
        shape,
        params,
        children: vec![],
        blob: Some(bytes),
    }
}

/// A term of codes whose packed bytes, `u8` in a row, are another term.
pub fn over(elem: ElemType, bits: u32, shape: Vec<usize>, bytes: Encoding) -> Encoding {
    let mut e = int(elem, bits, shape, Bytes::new());
    e.blob = None;
    e.children.push(Arc::new(bytes));
    e
}

/// The packed bytes of a term.
///
/// # Errors
/// They are another term's, which is not valid.
pub fn packed(e: &Encoding) -> Result<Cow<'_, [u8]>, DecodeError> {
    let Some(bytes) = e.children.first() else {
        return Ok(Cow::Borrowed(e.blob.as_deref().unwrap_or(&[])));
    };
    if bytes.ctor.name == "strided" {
        return strided::bytes(bytes).map(Cow::Owned);
    }
    let codes = bytes.integers()?;
    Ok(Cow::Owned(codes.into_iter().map(|b| b as u8).collect()))
}

/// Packs codes as this constructor stores them; only the low `bits` of each are kept.
pub fn pack(codes: impl IntoIterator<Item = u8>, bits: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut acc, mut held) = (0u16, 0);
    for code in codes {
        acc |= (u16::from(code) & ((1 << bits) - 1)) << held;
        held += bits;
        while held >= 8 {
            out.push(acc as u8);
            acc >>= 8;
            held -= 8;
        }
    }
    if held > 0 {
        out.push(acc as u8);
    }
    out
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let bits = e
        .int_param("bits")
        .filter(|b| (1..=8).contains(b))
        .ok_or_else(|| e.error("`bits` must be 1..=8"))? as usize;
    if !e.elem.is_int() || (e.elem.bits() as usize) < bits {
        return Err(e.error(format!(
            "{bits}-bit codes do not fit element type {}",
            e.elem
        )));
    }
    let want = e
        .len()
        .checked_mul(bits)
        .ok_or_else(|| e.error("shape is too large"))?
        .div_ceil(8);
    let got = match e.children.first() {
        None => e.blob.as_ref().map_or(0, Bytes::len),
        Some(b) if e.blob.is_none() && b.elem == ElemType::U8 && b.shape.len() == 1 => b.len(),
        Some(_) => return Err(e.error("`bytes` are a list of u8, in place of bytes of its own")),
    };
    if want == got {
        Ok(())
    } else {
        Err(e.error(format!("needs {want} bytes, found {got}")))
    }
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let bits = e.int_param("bits").unwrap_or(8) as u32;
    let bytes = packed(e)?;
    let codes = unpack(
        &bytes,
        bits,
        e.elem.int_range().is_some_and(|(lo, _)| lo < 0),
    );
    let codes = codes
        .take(e.len())
        .map(|c| tensor::wrap(e.elem, i128::from(c)));
    Ok(Tensor::new(
        e.elem,
        e.shape.clone(),
        Data::Int(codes.collect()),
    ))
}

/// The codes of packed bytes, as [`pack`] writes them; those that fill up the last byte are among them.
pub fn unpack(bytes: &[u8], bits: u32, signed: bool) -> impl Iterator<Item = i16> + '_ {
    (0..bytes.len() * 8 / bits as usize).map(move |i| {
        let at = i * bits as usize;
        let next = bytes.get(at / 8 + 1).copied().unwrap_or(0);
        let pair = u16::from_le_bytes([bytes[at / 8], next]);
        let code = ((pair >> (at % 8)) & ((1 << bits) - 1)) as i16;
        if signed && code >> (bits - 1) == 1 {
            code - (1 << bits)
        } else {
            code
        }
    })
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let x = match e.children.is_empty() {
        true => b.bytes(e.blob.clone().unwrap_or_default()),
        false => e.child(b, 0),
    };
    let bits = e.params.get("bits").cloned().unwrap_or(Attr::Int(8));
    let attrs = [
        ("bits", bits),
        ("shape", e.lens().into()),
        ("to", e.elem.into()),
    ];
    b.op_with("unpack", &[x], attrs)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let widest = elem.is_int().then(|| elem.bits().min(8))?;
    let bits = s.below(widest as usize) as u32 + 1;
    let n = tensor::count(shape);
    let codes = s
        .integers(n)
        .into_iter()
        .map(|c| c as u8 & ((1u16 << bits) - 1) as u8);
    let bytes = Bytes::from(pack(codes, bits));
    if s.below(3) > 0 {
        return Some(int(elem, bits, shape.to_vec(), bytes));
    }
    let (n, bits_of_all) = (bytes.len(), bytes.len() as i64 * 8);
    // The same bytes, kept from the last to the first.
    let reversed: Bytes = bytes.iter().rev().copied().collect::<Vec<u8>>().into();
    let places = Places {
        bits: 8,
        first: bits_of_all - 8,
        digits: vec![(n, -8)],
    };
    let bytes = strided::strided(ElemType::U8, vec![n], places, reversed);
    Some(over(elem, bits, shape.to_vec(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back_at_every_width() {
        for bits in 1..=8u32 {
            let codes: Vec<u8> = (0..37u32).map(|i| (i * 7 % (1 << bits)) as u8).collect();
            let e = int(
                ElemType::U8,
                bits,
                vec![37],
                Bytes::from(pack(codes.clone(), bits)),
            );
            let t = e.decode().expect("valid");
            assert_eq!(
                t.integers().expect("int"),
                codes.iter().map(|&c| i128::from(c)).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn signed_codes_extend() {
        let e = int(ElemType::I4, 4, vec![2], Bytes::from(vec![0x8F]));
        assert_eq!(e.decode().expect("valid").integers(), Some(&[-1, -8][..]));
    }
}
