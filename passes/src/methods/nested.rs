//! Nested codes: the highest bits of every code are a coarser code, so that one file serves many widths.
//!
//! Codes are stored in planes, the highest first; leaving out the last ones leaves a valid weight. What is missing is taken
//! to be the middle of what it could be: the lowest instead would move every weight by half a coarse step.
//!
//! ```text
//! affine{scales; bits{plane, plane, ..}; zeros}
//! ```
//! Source: "D²MoE: Dual Routing and Dynamic Scheduling for Efficient On-Device MoE-based LLM Serving"; Nair et al.,
//! "Matryoshka Quantization", section 3 (slices of codes).

use super::grid::{AffineParts, packed_codes};
use super::{Candidate, Layer, Method, MethodError, Settings, gptq, measured, rtn};
use lapidary_ir::ElemType;
use lapidary_ir::encodings::affine::affine;
use lapidary_ir::encodings::bits::bits;
use lapidary_ir::encodings::{DecodeError, Encoding};

/// The method: codes of gptq, or without data of rtn, in planes of one bit behind a first one of two.
pub static NESTED: Method = Method {
    name: "nested",
    summary: "gptq's codes (or without data rtn's) in planes of bits, of which the first alone are a coarser weight",
    source: "Matryoshka Quantization, section 3",
    needs_statistics: false,
    bits: 3..=8,
    propose,
};

/// The codes of parts in planes of these widths, the highest bits first; the widths make up the parts' bits.
pub fn planes(parts: &AffineParts, widths: &[u32]) -> Encoding {
    in_planes(&parts.encoding(), &parts.codes, parts.bits, widths)
}

/// `affine{scale; codes; zero}` with these codes in planes.
fn in_planes(of: &Encoding, codes: &[u8], full: u32, widths: &[u32]) -> Encoding {
    let child = |k: usize| of.children.get(k).map(|c| c.as_ref().clone());
    let mut left = full;
    let planes = widths.iter().map(|&width| {
        left -= width;
        let part = |c: &u8| (c >> left) & ((1u16 << width) - 1) as u8;
        let part: Vec<u8> = codes.iter().map(part).collect();
        (width, packed_codes(width, &of.shape, &part))
    });
    let stored = bits(ElemType::U8, full, planes.collect());
    let scale = child(0).expect("an affine term has a scale");
    affine(ElemType::F32, scale, stored, child(2))
}

/// The term with the first `count` of its planes.
pub fn prefix(nested: &Encoding, count: usize) -> Encoding {
    let mut out = nested.clone();
    let mut stored = nested.children[1].as_ref().clone();
    stored.children.truncate(count);
    if let Some(lapidary_ir::Attr::Ints(widths)) = stored.params.get_mut("widths") {
        widths.truncate(count);
    }
    out.children[1] = stored.into();
    out
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let base = match layer.statistics() {
        Some(_) => &gptq::GPTQ,
        None => &rtn::RTN,
    };
    let found = (base.propose)(layer, settings)?;
    let codes: Result<Vec<u8>, DecodeError> = found.encoding.children[1]
        .integers()
        .map(|codes| codes.iter().map(|&c| c as u8).collect());
    let widths: Vec<u32> = std::iter::once(2)
        .chain((2..settings.bits).map(|_| 1))
        .collect();
    let term = in_planes(&found.encoding, &codes?, settings.bits, &widths);
    measured(layer, term, found.assumptions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::grid::{GridSpec, Groups};
    use crate::methods::matrix::Matrix;
    use crate::methods::testing::{ReferenceLayer, decoded, near, tl1};

    fn rounded(t: &ReferenceLayer) -> AffineParts {
        let spec = GridSpec {
            bits: 8,
            symmetric: false,
            clip_exponent: None,
            scale_elem: ElemType::F16,
            scale_bits: 0,
        };
        rtn::round_to_nearest(&t.w, &spec, Groups::new(256, 64))
    }

    #[test]
    fn slices_of_the_reference_layer_have_the_known_errors() {
        let t = tl1();
        let parts = rounded(t);
        let nested = planes(&parts, &[2, 1, 1, 2, 2]);
        assert_eq!(decoded(&nested), parts.decode());
        for (count, golden) in [(1, 0.1244), (2, 0.0312), (3, 0.0083), (4, 0.0006)] {
            let rel = t.rel(&decoded(&prefix(&nested, count)));
            assert!(
                (rel - golden).abs() < 0.02 * golden + 5e-5,
                "{rel} {golden}"
            );
        }
    }

    #[test]
    fn the_lowest_value_of_a_slice_would_lose_much_more() {
        let t = tl1();
        let parts = rounded(t);
        for (missing, golden) in [(6, 0.600), (5, 0.1495), (4, 0.0345)] {
            let floor = Matrix::from_fn(128, 256, |r, c| {
                let code = parts.codes[r * 256 + c] >> missing << missing;
                let group = parts.groups.of(c);
                parts.scales[r * 4 + group] * (f64::from(code) - parts.zero(r, group))
            });
            near(t.rel(&floor), golden, 0.02);
        }
    }

    #[test]
    fn a_prefix_is_the_planes_alone() {
        let parts = rounded(tl1());
        let whole = planes(&parts, &[2, 1, 1, 2, 2]);
        let prefix = prefix(&whole, 3);
        assert!(prefix.check().is_ok());
        let missing = 128 * 256 * 4 / 8;
        assert_eq!(prefix.stored_bytes(), whole.stored_bytes() - missing);
    }
}
