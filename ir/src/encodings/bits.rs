//! `bits`: codes whose bits are stored in planes, the highest first; the first planes alone are coarser codes.
//!
//! ```text
//! children: plane*                   (integer terms; plane i has widths[i] bits)
//! code = plane0 .. planeN, one after the other from the highest bit down
//! ```
//! `full` is the number of bits that all planes together have. Where the last ones are missing the code is the middle of
//! those that it stands for: with `r` bits missing, `code << r | 1 << (r - 1)`. (The lowest of them instead would add an
//! error of half a coarse step to each weight.)
//! Source: `D²MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving`;
//! `Matryoshka Quantization`, section 3.

use super::sampling::Sampler;
use super::{Constructor, DecodeError, Encoding};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::{Attr, ElemType, Tensor, ValueId};

/// The constructor.
pub static BITS: Constructor = Constructor {
    name: "bits",
    summary: "codes in planes of bits, the highest first",
    children: &["plane*"],
    has_blob: false,
    algebraic: false,
    contents: Some(|e| decode(e).map(|_| ())),
    check,
    decode,
    open,
    sample,
};

/// A term of `full`-bit codes of which these planes, with so many bits each, are there.
pub fn bits(elem: ElemType, full: u32, planes: Vec<(u32, Encoding)>) -> Encoding {
    let shape = planes.first().map_or(vec![], |(_, p)| p.shape.clone());
    let widths = planes.iter().map(|&(w, _)| i64::from(w)).collect();
    let params = [
        ("full", Attr::Int(i64::from(full))),
        ("widths", Attr::Ints(widths)),
    ];
    Encoding::of(
        &BITS,
        elem,
        shape,
        params,
        planes.into_iter().map(|(_, p)| p),
    )
}

/// Bits of each plane, and how many are missing behind them.
fn widths(e: &Encoding) -> Result<(Vec<u32>, u32), DecodeError> {
    let full = e.size_param("full")? as u64;
    let Some(Attr::Ints(widths)) = e.params.get("widths") else {
        return Err(e.error("needs `widths`"));
    };
    let widths: Option<Vec<u32>> = widths
        .iter()
        .map(|&w| u32::try_from(w).ok().filter(|w| (1..=16).contains(w)))
        .collect();
    let widths = widths.ok_or_else(|| e.error("planes have 1 to 16 bits"))?;
    let given: u64 = widths.iter().map(|&w| u64::from(w)).sum();
    if full < given || full > u64::from(e.elem.bits()) {
        return Err(e.error(format!("{given} bits of {full} do not fit {}", e.elem)));
    }
    Ok((widths, (full - given) as u32))
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let unsigned = |t: ElemType| t.int_range().is_some_and(|(lo, _)| lo == 0);
    if !matches!(e.elem, ElemType::U8 | ElemType::U16)
        || !e.children.iter().all(|c| unsigned(c.elem))
    {
        return Err(e.error("is of u8 or u16, its planes of unsigned integers"));
    }
    let (widths, _) = widths(e)?;
    if widths.is_empty() || widths.len() != e.children.len() {
        return Err(e.error("needs one of `widths` for each plane, and at least one"));
    }
    let fits = e
        .children
        .iter()
        .zip(&widths)
        .all(|(c, &w)| c.shape == e.shape && c.elem.bits() >= w);
    fits.then_some(())
        .ok_or_else(|| e.error("a plane has another shape, or too few bits"))
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let (widths, missing) = widths(e)?;
    let mut codes = vec![0i128; e.len()];
    for (i, &w) in widths.iter().enumerate() {
        for (code, plane) in codes.iter_mut().zip(e.codes(i)?) {
            let plane = u64::try_from(plane).ok().filter(|&p| p >> w == 0);
            let plane = plane
                .ok_or_else(|| e.error(format!("a plane of {w} bits holds a larger number")))?;
            *code = *code << w | i128::from(plane);
        }
    }
    let middle = (1i128 << missing) >> 1;
    codes.iter_mut().for_each(|c| *c = *c << missing | middle);
    Ok(e.int_tensor(codes))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let (widths, missing) = widths(e).map_err(|e| OpError::new(e.to_string()))?;
    let shifted = |b: &mut Builder, v: ValueId, by: u32| {
        let by = b.scalar(e.elem, f64::from(by));
        b.op_with("bit_shift", &[v, by], [("direction", "LEFT".into())])
    };
    let first = e.child(b, 0);
    let mut code = b.cast(first, e.elem)?;
    for (i, &w) in widths.iter().enumerate().skip(1) {
        let high = shifted(b, code, w)?;
        let plane = e.child(b, i);
        let plane = b.cast(plane, e.elem)?;
        code = b.op("bitwise_or", &[high, plane])?;
    }
    if missing > 0 {
        let high = shifted(b, code, missing)?;
        let middle = b.scalar(e.elem, f64::from(1u32 << (missing - 1)));
        code = b.op("bitwise_or", &[high, middle])?;
    }
    Ok(code)
}

fn sample(s: &mut Sampler, elem: ElemType, shape: &[usize]) -> Option<Encoding> {
    let most = s.limit().ilog2().min(elem.bits());
    if !matches!(elem, ElemType::U8 | ElemType::U16) || most < 1 {
        return None;
    }
    let full = s.below(most as usize) as u32 + 1;
    let (mut planes, mut left) = (vec![], full);
    while left > 0 && (planes.is_empty() || s.below(4) > 0) {
        let w = s.below(left as usize) as u32 + 1;
        planes.push((w, s.codes(shape, 1 << w)));
        left -= w;
    }
    Some(bits(elem, full, planes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::int;
    use bytes::Bytes;

    fn plane(bits: u32, codes: [u8; 4]) -> (u32, Encoding) {
        (
            bits,
            int::int(
                ElemType::U8,
                bits,
                vec![4],
                Bytes::from(int::pack(codes, bits)),
            ),
        )
    }

    #[test]
    fn a_prefix_is_the_middle_of_what_it_stands_for() {
        // 8-bit codes 0, 77, 128, 255: their top 3 bits, and the other 5.
        let (high, low) = (plane(3, [0, 2, 4, 7]), plane(5, [0, 13, 0, 31]));
        let all = bits(ElemType::U8, 8, vec![high.clone(), low]);
        assert_eq!(all.integers().expect("valid"), [0, 77, 128, 255]);
        let some = bits(ElemType::U8, 8, vec![high]);
        assert_eq!(some.integers().expect("valid"), [16, 80, 144, 240]);
    }
}
