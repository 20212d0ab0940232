//! `strided`: elements whose bits lie among other bytes, at places that are linear in the digits of their index.
//!
//! ```text
//! field f has the digits d0, d1, .. of f, of lengths `lens`, the last one running fastest
//! it is the `bits` bits from bit   first + d0 apart[0] + d1 apart[1] + ..   of the bytes, low bits of a byte first
//! the fields, one after the other, are the elements' bits, their low bits first
//! ```
//! Fields beyond the last element are not read; bits that the last element lacks are zero. This is placement only, never a change of value: a column of a table of
//! records, a transposed matrix, words that hold codes of other rows. With `int` over it every packing of codes that
//! interleaves them is said without moving a byte of the file: GGUF's blocks, GPTQ's columns, AWQ's order in words.
//! Source: `GPTQ` and `AWQ` checkpoints, GGUF; the permuted layouts of `Fast matrix multiplications for lookup
//! table-quantized LLMs`.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::{Attr, ElemType, Tensor};
use bytes::Bytes;
use std::sync::Arc;

/// The constructor.
pub static STRIDED: Constructor = Constructor {
    name: "strided",
    summary: "plain elements, their bits at regular places among others",
    children: &[],
    has_blob: true,
    algebraic: false,
    contents: None,
    check: |e| Places::of(e).map(|_| ()),
    decode: |e| {
        let bytes = bytes(e)?;
        Tensor::from_bytes(e.elem, e.shape.clone(), &bytes)
            .ok_or_else(|| e.error("bytes do not fit the type"))
    },
    open: |e, b| Ok(b.term(&Arc::new(e.clone()))),
    sample,
};

/// Where fields lie: how many bits each has, the first one's place, and digits with how far apart in bits they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Places {
    /// Bits of a field: 1, 2, 4, or whole bytes.
    pub bits: usize,
    /// Bit at which field 0 begins.
    pub first: i64,
    /// Length and distance of each digit of a field's index, the slowest first.
    pub digits: Vec<(usize, i64)>,
}

/// A term over `bytes`.
pub fn strided(elem: ElemType, shape: Vec<usize>, places: Places, bytes: Bytes) -> Encoding {
    let (lens, apart) = places.digits.iter().map(|&(n, s)| (n as i64, s)).unzip();
    let params = [
        ("bits", Attr::Int(places.bits as i64)),
        ("first", Attr::Int(places.first)),
        ("lens", Attr::Ints(lens)),
        ("apart", Attr::Ints(apart)),
    ];
    let mut e = Encoding::of(&STRIDED, elem, shape, params, []);
    e.blob = Some(bytes);
    e
}

impl Places {
    /// Those of a term, all of which are inside of its bytes.
    fn of(e: &Encoding) -> Result<Places, DecodeError> {
        let bits = e.size_param("bits")?;
        let whole = e.elem.bits() as usize;
        let stored = (e.elem.is_float() || e.elem.is_int()) && whole.is_multiple_of(8);
        let splits = matches!(bits, 1 | 2 | 4) || bits.is_multiple_of(8);
        if !stored || !splits || !whole.is_multiple_of(bits) {
            return Err(e.error("fields are of 1, 2, 4 or whole bytes' bits and fill elements"));
        }
        let (Some(Attr::Ints(lens)), Some(Attr::Ints(apart)), Some(first)) = (
            e.params.get("lens"),
            e.params.get("apart"),
            e.int_param("first"),
        ) else {
            return Err(e.error("needs `first`, `lens` and `apart`"));
        };
        if lens.len() != apart.len() {
            return Err(e.error("`lens` and `apart` must be as long as each other"));
        }
        let unit = bits.min(8) as i64;
        let outside = || e.error("a field lies outside of the bytes");
        let (mut low, mut high, mut fields) = (first, first, 1usize);
        let mut digits = vec![];
        for (&n, &apart) in lens.iter().zip(apart) {
            let len = usize::try_from(n).map_err(|_| e.error("`lens` must not be negative"))?;
            if apart % unit != 0 {
                return Err(e.error("fields must not cross bytes"));
            }
            let reach = (n - 1).max(0).checked_mul(apart).ok_or_else(outside)?;
            low = low.checked_add(reach.min(0)).ok_or_else(outside)?;
            high = high.checked_add(reach.max(0)).ok_or_else(outside)?;
            fields = fields.checked_mul(len).ok_or_else(outside)?;
            digits.push((len, apart));
        }
        let needed = e.len().checked_mul(whole / bits).ok_or_else(outside)?;
        let have = e.blob.as_ref().map_or(0, Bytes::len) as i64;
        let end = high.checked_add(bits as i64).ok_or_else(outside)?;
        if needed > 0 && (low < 0 || end > have.saturating_mul(8)) {
            return Err(outside());
        }
        if first % unit != 0 {
            return Err(e.error("fields must not cross bytes"));
        }
        if fields.saturating_add(whole / bits) <= needed {
            return Err(e.error(format!("has {fields} fields, {needed} are needed")));
        }
        Ok(Places {
            bits,
            first,
            digits,
        })
    }

    /// Where so many fields begin, in order.
    fn starts(&self, fields: usize) -> impl Iterator<Item = usize> + '_ {
        let (mut at, mut place) = (vec![0; self.digits.len()], self.first);
        (0..fields).map(move |_| {
            let here = place;
            for (i, &(len, apart)) in self.digits.iter().enumerate().rev() {
                at[i] += 1;
                place += apart;
                if at[i] < len {
                    break;
                }
                place -= apart * len as i64;
                at[i] = 0;
            }
            here as usize
        })
    }
}

/// The elements' bytes, row-major and little-endian.
///
/// # Errors
/// The term is not valid.
pub fn bytes(e: &Encoding) -> Result<Vec<u8>, DecodeError> {
    let places = Places::of(e)?;
    let from = e.blob.as_deref().unwrap_or(&[]);
    let (bits, total) = (places.bits, e.len() * e.elem.size_bytes());
    let given: usize = places.digits.iter().map(|d| d.0).product();
    let starts = places.starts(given.min(total * 8 / bits));
    if bits >= 8 {
        let mut out = Vec::with_capacity(total);
        starts.for_each(|s| out.extend_from_slice(&from[s / 8..][..bits / 8]));
        out.resize(total, 0);
        return Ok(out);
    }
    let mut out = vec![0u8; total];
    for (i, s) in starts.enumerate() {
        let field = from[s / 8] >> (s % 8) & ((1 << bits) - 1);
        out[i * bits / 8] |= field << (i * bits % 8);
    }
    Ok(out)
}

/// The bytes of a plain tensor put in random places.
fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let whole = elem.bits() as usize;
    let n: usize = shape.iter().product();
    if !(elem.is_float() || elem.is_int()) || !whole.is_multiple_of(8) || n == 0 {
        return None;
    }
    let tensor = match elem.is_float() {
        true => Tensor::from_f64(elem, shape, s.numbers(n)),
        false => Tensor::from_int(elem, shape, s.integers(n)),
    };
    let plain = tensor.to_bytes()?;
    let bits = s.one_of(&[1, 2, 4, 8, whole]);
    let fields = n * whole / bits;
    let outer = s.divisor(fields);
    let inner = s.divisor(fields / outer);
    let lens = [outer, fields / outer / inner, inner];
    // The digits in another order, with unused bits between the slowest; one may run backwards.
    let order = s.one_of(&[[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]]);
    let mut apart = [0i64; 3];
    let mut size = bits as i64;
    for &d in order.iter().rev() {
        apart[d] = size;
        size *= lens[d] as i64;
    }
    let back = s.below(3);
    let mut first = 8 * s.below(3) as i64;
    first += apart[back] * (lens[back] as i64 - 1);
    apart[back] = -apart[back];
    let places = Places {
        bits,
        first,
        digits: lens.into_iter().zip(apart).collect(),
    };
    let mut out = vec![0u8; (size as usize).div_ceil(8) + 3];
    for (i, at) in places.starts(fields).enumerate() {
        for bit in 0..bits {
            let from = i * bits + bit;
            let set = plain[from / 8] >> (from % 8) & 1;
            out[(at + bit) / 8] |= set << ((at + bit) % 8);
        }
    }
    Some(strided(elem, shape.to_vec(), places, out.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(bits: usize, first: i64, digits: &[(usize, i64)]) -> Places {
        Places {
            bits,
            first,
            digits: digits.to_vec(),
        }
    }

    #[test]
    fn fields_come_from_where_they_lie() {
        let bytes = Bytes::from_static(&[0x10, 0x32, 0x54, 0x76]);
        // Two halves of each byte, the high one first.
        let e = strided(
            ElemType::U8,
            vec![4],
            places(4, 4, &[(4, 8), (2, -4)]),
            bytes.clone(),
        );
        assert_eq!(e.integers().expect("valid"), [0x01, 0x23, 0x45, 0x67]);
        // A matrix of u16 by columns.
        let e = strided(
            ElemType::U8,
            vec![2, 2],
            places(8, 0, &[(2, 8), (2, 16)]),
            bytes,
        );
        assert_eq!(e.integers().expect("valid"), [0x10, 0x54, 0x32, 0x76]);
        assert_eq!(e.stored_bytes(), 4);
        // Half of the last element is not there.
        let e = strided(
            ElemType::U8,
            vec![2],
            places(4, 4, &[(3, 4)]),
            Bytes::from_static(&[0x10, 0x32]),
        );
        assert_eq!(e.integers().expect("valid"), [0x21, 0x03]);
        assert!(!e.is_compressed());
    }

    #[test]
    fn places_outside_are_errors() {
        let with = |shape: &[usize], p: Places| {
            let bytes = Bytes::from_static(&[0; 4]);
            strided(ElemType::U8, shape.to_vec(), p, bytes).check()
        };
        assert!(with(&[4], places(8, 0, &[(4, 8)])).is_ok());
        for (shape, bad) in [
            (vec![4], places(8, 8, &[(4, 8)])),
            (vec![4], places(8, 0, &[(4, -8)])),
            (vec![4], places(8, 0, &[(3, 8)])),
            (vec![4], places(4, 0, &[(6, 4)])),
            (vec![4], places(8, 4, &[(2, 8)])),
            (vec![4], places(3, 0, &[(4, 8)])),
            (vec![4], places(4, 0, &[(4, 2)])),
            (
                vec![2],
                places(8, 0, &[(usize::MAX >> 1, i64::MAX / 8 * 8)]),
            ),
            (
                vec![1 << 40, 1 << 40],
                places(8, 0, &[(1 << 40, 0), (1 << 40, 0)]),
            ),
        ] {
            assert!(with(&shape, bad.clone()).is_err(), "{bad:?}");
        }
        // A few bytes may stand for much, which is then not decoded at once.
        let wide = places(8, 0, &[(1 << 40, 0)]);
        let e = strided(ElemType::U8, vec![1 << 40], wide, Bytes::from_static(&[0]));
        assert!(e.check().is_ok() && e.decode().is_err());
    }
}
