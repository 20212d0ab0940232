//! Base 3: five ternary digits in a byte.
//!
//! ```text
//! byte = c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4       (row-major, over row ends; missing digits are 0)
//! ```
//! Source: `The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits`; 3^5 = 243 fits a byte.

use super::super::sampling::Sampler;
use super::super::{DecodeError, Encoding};
use super::{CODED, Coder};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::tensor::count;
use crate::{ElemType, Tensor, ValueId};
use bytes::Bytes;

pub(super) const BASE3: Coder = Coder {
    name: "base3",
    children: 0,
    check,
    contents: |_| Ok(()),
    decode,
    open,
    sample,
};

const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Codes 0, 1 and 2, packed.
pub fn base3(shape: Vec<usize>, codes: &[u8]) -> Encoding {
    let byte = |c: &[u8]| c.iter().zip(POWERS).map(|(c, p)| c * p).sum();
    let bytes: Vec<u8> = codes.chunks(5).map(byte).collect();
    let mut e = Encoding::of(&CODED, ElemType::U8, shape, [("coder", "base3".into())], []);
    e.blob = Some(Bytes::from(bytes));
    e
}

fn bytes(e: &Encoding) -> &[u8] {
    e.blob.as_deref().unwrap_or(&[])
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    if bytes(e).len() != e.len().div_ceil(5) {
        return Err(e.error(format!(
            "needs {} bytes, found {}",
            e.len().div_ceil(5),
            bytes(e).len()
        )));
    }
    let legal = bytes(e).iter().all(|&b| b < 243);
    legal
        .then_some(())
        .ok_or_else(|| e.error("a byte is not five ternary digits"))
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let digits = bytes(e)
        .iter()
        .flat_map(|&b| POWERS.map(|p| i128::from(b / p % 3)));
    Ok(e.int_tensor(digits.take(e.len()).collect()))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let x = b.bytes(e.blob.clone().unwrap_or_default());
    let x = b.unsqueeze(x, &[1])?;
    let u8s = |values: &[u8]| {
        Tensor::from_int(
            ElemType::U8,
            [values.len()],
            values.iter().map(|&v| v.into()).collect(),
        )
    };
    let (powers, three) = (b.constant(&u8s(&POWERS)), b.constant(&u8s(&[3])));
    let x = b.op("div", &[x, powers])?;
    let x = b.op("mod", &[x, three])?;
    let x = b.reshape(x, &[Len::N(-1)])?;
    let x = b.slice(x, 0, 0, e.len() as i64)?;
    let lens: Vec<Len> = e.shape.iter().map(|&n| Len::N(n as i64)).collect();
    b.reshape(x, &lens)
}

fn sample(s: &mut Sampler, shape: &[usize]) -> Option<Encoding> {
    if s.limit() < 3 || count(shape) == 0 {
        return None;
    }
    let codes: Vec<u8> = (0..count(shape)).map(|_| s.below(3) as u8).collect();
    Some(base3(shape.to_vec(), &codes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_reads_back() {
        let codes: Vec<u8> = (0..243u32)
            .flat_map(|b| POWERS.map(|p| (b / u32::from(p) % 3) as u8))
            .collect();
        let e = base3(vec![243, 5], &codes);
        assert_eq!(e.stored_bytes(), 243);
        let back: Vec<u8> = e
            .integers()
            .expect("valid")
            .iter()
            .map(|&c| c as u8)
            .collect();
        assert_eq!(back, codes);
        let mut bad = e;
        bad.blob = Some(Bytes::from(vec![243; 243]));
        assert!(bad.check().is_err());
    }
}
