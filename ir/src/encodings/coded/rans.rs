//! rANS: codes of any distribution near their entropy, in blocks that are read on their own.
//!
//! ```text
//! bytes: block after block     starts [blocks + 1]: where each begins     frequencies: of the codes 0, 1, ..
//! ```
//! Each block holds `block` codes in row-major order, the last one what remains; frequencies add up to 4096.
//! Source: the coder is `lapidary_abi::rans`.

use super::super::sampling::Sampler;
use super::super::{DecodeError, Encoding, dense};
use super::{CODED, Coder};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::tensor::count;
use crate::{Attr, ElemType, Tensor, ValueId};
use bytes::Bytes;
use lapidary_abi::rans::{Model, TOTAL};

pub(super) const RANS: Coder = Coder {
    name: "rans",
    children: 2,
    check: |e| e.size_param("block").map(|_| ()),
    contents: |e| codes(e).map(|_| ()),
    decode,
    open,
    sample,
};

/// Codes in blocks of so many.
pub fn rans(shape: Vec<usize>, codes: &[u8], block: usize) -> Encoding {
    let frequencies = frequencies(codes);
    let model = Model::new(&frequencies);
    let (mut bytes, mut starts) = (vec![], vec![0i128]);
    for part in codes.chunks(block.max(1)) {
        // Every code that occurs has a frequency, and they add up.
        bytes.extend(
            model
                .as_ref()
                .and_then(|m| m.write(part))
                .unwrap_or_default(),
        );
        starts.push(bytes.len() as i128);
    }
    let list = |elem, v: Vec<i128>| dense::from_tensor(&Tensor::from_int(elem, [v.len()], v));
    let children = [
        list(ElemType::U32, starts),
        list(
            ElemType::U16,
            frequencies.iter().map(|&f| f.into()).collect(),
        ),
    ];
    let params = [
        ("coder", "rans".into()),
        ("block", Attr::Int(block.max(1) as i64)),
    ];
    let mut e = Encoding::of(&CODED, ElemType::U8, shape, params, children);
    e.blob = Some(Bytes::from(bytes));
    e
}

/// Frequencies near the codes' own: at least 1 for what occurs, [`TOTAL`] together.
fn frequencies(codes: &[u8]) -> Vec<u32> {
    let mut counts = vec![0u64; codes.iter().max().map_or(1, |&m| m as usize + 1)];
    codes.iter().for_each(|&c| counts[c as usize] += 1);
    let all = codes.len().max(1) as u64;
    let share = |&n: &u64| {
        if n == 0 {
            0
        } else {
            (n * u64::from(TOTAL) / all).max(1) as u32
        }
    };
    let mut out: Vec<u32> = counts.iter().map(share).collect();
    // What rounding left over, or took too much, is the most frequent code's, which feels it least.
    loop {
        let sum: u32 = out.iter().sum();
        let Some(most) = (0..out.len()).max_by_key(|&i| out[i]) else {
            return out;
        };
        match sum.cmp(&TOTAL) {
            std::cmp::Ordering::Equal => return out,
            std::cmp::Ordering::Less => out[most] += TOTAL - sum,
            std::cmp::Ordering::Greater => out[most] -= (sum - TOTAL).min(out[most] - 1),
        }
    }
}

fn codes(e: &Encoding) -> Result<Vec<u8>, DecodeError> {
    let (starts, frequencies) = (e.codes(0)?, e.codes(1)?);
    let block = e.size_param("block")?;
    let bytes = e.blob.as_deref().unwrap_or(&[]);
    decode_blocks(bytes, &starts, &frequencies, block, e.len()).map_err(|reason| e.error(reason))
}

/// The `n` codes of blocks of `block`, of which block `i` is `bytes[starts[i]..starts[i + 1]]`.
pub fn decode_blocks(
    bytes: &[u8],
    starts: &[i64],
    frequencies: &[i64],
    block: usize,
    n: usize,
) -> Result<Vec<u8>, String> {
    let frequencies: Option<Vec<u32>> =
        frequencies.iter().map(|&f| u32::try_from(f).ok()).collect();
    let model = frequencies
        .and_then(|f| Model::new(&f))
        .ok_or("frequencies do not add up to 4096")?;
    if starts.len() != n.div_ceil(block) + 1 {
        return Err(format!(
            "{n} codes need {} blocks of {block}",
            n.div_ceil(block)
        ));
    }
    let mut out = vec![0; n];
    for (part, w) in out.chunks_mut(block).zip(starts.windows(2)) {
        let range = usize::try_from(w[0]).ok().zip(usize::try_from(w[1]).ok());
        let bytes = range
            .and_then(|(a, b)| bytes.get(a..b))
            .ok_or("a block is outside the bytes")?;
        if !model.read(bytes, part) {
            return Err("a block is damaged".into());
        }
    }
    Ok(out)
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    Ok(e.int_tensor(codes(e)?.into_iter().map(i128::from).collect()))
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let bytes = b.bytes(e.blob.clone().unwrap_or_default());
    let operands = [bytes, e.child(b, 0), e.child(b, 1)];
    let block = e.params.get("block").cloned().unwrap_or(Attr::Int(1));
    b.op_with(
        "rans_decode",
        &operands,
        [("block", block), ("shape", e.lens().into())],
    )
}

fn sample(s: &mut Sampler, shape: &[usize]) -> Option<Encoding> {
    let limit = s.limit().min(256) as usize;
    let n = count(shape);
    let codes: Vec<u8> = (0..n)
        .map(|_| (s.below(limit) * s.below(limit) / limit) as u8)
        .collect();
    let block = s.one_of(&[1, 5, 64]);
    (n > 0).then(|| rans(shape.to_vec(), &codes, block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_noticed() {
        let codes: Vec<u8> = (0..300u32).map(|i| (i * i % 7) as u8).collect();
        let e = rans(vec![3, 100], &codes, 128);
        let back: Vec<u8> = e
            .integers()
            .expect("valid")
            .iter()
            .map(|&c| c as u8)
            .collect();
        assert_eq!(back, codes);
        let mut cut = e.clone();
        cut.blob = cut.blob.map(|b| b.slice(..b.len() - 1));
        assert!(cut.check().is_err());
        let mut changed = e;
        changed.blob = changed.blob.map(|b| b.iter().map(|v| v ^ 0x55).collect());
        assert!(changed.check().is_err());
    }

    #[test]
    fn frequencies_add_up() {
        for codes in [
            vec![0u8; 10],
            (0..=255).collect(),
            (0..255).chain([7; 100_000]).collect(),
        ] {
            assert_eq!(frequencies(&codes).iter().sum::<u32>(), TOTAL);
        }
    }
}
