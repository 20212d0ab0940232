//! Sparse Marlin's form of compressed-tensors (`marlin-24`): two of four codes, in the order in which tensor cores read them.
//!
//! ```text
//! weight_packed i32 [from/32, 16 to bits/32]   kept codes + 2^(bits-1): a tile of 16 kept inputs times 64 outputs after the other
//! meta i16 [from/32, 2 to]                     4 bits for each group of four inputs: places of the first and second kept
//! scale_packed f16 [groups, to]                outputs in eights in the order 0 4 1 5 2 6 3 7, if there are groups
//! ```
//! Every reordering splits indices into digits and moves these, so parts are `strided` terms over the file. Digits of an output
//! and of a kept input, with the codes that each is apart:
//!
//! ```text
//! output = 64 A + 16 a + 8 b + 4 d + j     1024 A + 256 a + 128 b + 8 j, and d
//! kept   = 16 T + 8 r + 2 c + s            16 to T + 32 c, and r and s: in the last eight codes 2 d + r + 4 s (4 bits) or
//!                                          4 d + r + 2 s (8 bits)
//! ```
//! Source: IST-DASLab/Sparse-Marlin; vllm-project/compressed-tensors 0.9, `marlin_24.py`, and CUTLASS' `reorder_meta`.

use super::{Format, Parts, codes, whole};
use crate::error::Problem;
use lapidary_ir::encodings::{Encoding, affine, dense, sparse};
use lapidary_ir::{ElemType, Tensor};

/// The format.
pub static MARLIN24: Format = Format {
    method: "compressed-tensors",
    marker: "meta",
    term: |p| term(p).map(Some),
    split: whole,
};

/// Outputs of a tile, and of a block of places.
const OUTPUTS: usize = 64;

fn term(p: &Parts) -> Result<Encoding, Problem> {
    let [bands, twice] = p.shape("meta")?;
    let (to, from) = (twice / 2, bands * 32);
    if !twice.is_multiple_of(2 * OUTPUTS) {
        let reason = format!("is for {to} outputs, no multiple of {OUTPUTS}");
        return Err(p.wrong("meta", reason));
    }
    let [_, words] = p.shape("weight_packed")?;
    let bits = words * 2 / to;
    if !matches!(bits, 4 | 8) || bits * to != words * 2 {
        let reason = format!("has lines of {words} words; {to} outputs of 4 or 8 bits need others");
        return Err(p.wrong("weight_packed", reason));
    }
    let packed = p
        .of("weight_packed", &[ElemType::I32], &[bands, words])?
        .bytes;
    let meta = p.of("meta", &[ElemType::I16], &[bands, twice])?.bytes;
    let bit = |codes: usize| (codes * bits) as i64;
    let last = match bits {
        4 => [2, 1, 4],
        _ => [4, 1, 2],
    };
    let [d, r, s] = last.map(bit);
    let outputs = [
        (to / OUTPUTS, bit(1024)),
        (4, bit(256)),
        (2, bit(128)),
        (2, d),
        (4, bit(8)),
    ];
    let kept = [(bands, bit(16 * to)), (2, r), (4, bit(32)), (2, s)];
    let pairs = [to, from / 4, 2];
    let stored = codes(bits, &pairs, 0, &[&outputs[..], &kept].concat(), &packed);
    // An output is 64 R + 8 e + 4 f + 2 g + h, a group of four inputs 8 C + 4 q + t; two bits for each place.
    let unit = 16;
    let places = [
        (to / OUTPUTS, 2 * 64 * unit),
        (8, 2 * 4 * unit),
        (2, unit),
        (2, 2 * 32 * unit),
        (2, 2 * 2 * unit),
        (bands, twice as i64 * unit),
        (2, 2 * unit),
        (4, 4),
        (2, 2),
    ];
    let places = codes(2, &pairs, 0, &places, &meta);
    let [groups, _] = p.shape("scale_packed")?;
    if !(from / 4).is_multiple_of(groups) {
        return Err(p.wrong(
            "scale_packed",
            format!("has {groups} groups for {from} inputs"),
        ));
    }
    let scales = p.floats("scale_packed", &[groups, to])?;
    // Scales of short rows are in the order of those without groups.
    let ordered = groups == 1 || from / groups >= from / 2;
    let eights = match ordered {
        true => [(to / 8, 8), (2, 4), (4, 1), (groups, to)],
        false => [(to / 8, 8), (2, 1), (4, 2), (groups, to)],
    };
    let scales = scales.strided(&[to, groups, 1], 0, &eights);
    let half = Tensor::from_int(ElemType::U8, [1, 1, 1], vec![1 << (bits - 1)]);
    let values = affine::affine(
        ElemType::F32,
        scales,
        stored,
        Some(dense::from_tensor(&half)),
    );
    Ok(sparse::nm(4, values, places))
}
