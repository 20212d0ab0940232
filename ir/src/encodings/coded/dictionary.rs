//! QMoE's dictionary: 16-bit words that stand for up to 28 ternary codes, most of which are zero.
//!
//! ```text
//! bytes: words, little-endian     starts [rows + 1]: each row's first word, and their count
//! ```
//! The dictionary is not stored: it is the 2^16 most probable sequences of pairs, of at most 14 pairs, where zero has
//! probability 0.885 and the other two 0.0575 each. A row is cut greedily into the longest sequences; what an odd row
//! lacks at its end is a zero.
//! Source: `QMoE: Practical Sub-1-Bit Compression of Trillion-Parameter Models`, section 4.

use super::super::sampling::Sampler;
use super::super::{DecodeError, Encoding, dense};
use super::{CODED, Coder};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::{ElemType, Tensor, ValueId};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::OnceLock;

pub(super) const DICTIONARY: Coder = Coder {
    name: "dictionary",
    children: 1,
    check,
    contents: |e| rows(e).map(|_| ()),
    decode,
    open,
    sample,
};

/// Words.
const WORDS: usize = 1 << 16;
/// Most pairs of a word.
const PAIRS: usize = 14;
/// Probability of each code. The last bits matter: equal sequences are ordered by them.
const P: [f64; 3] = [0.885, (1.0 - 0.885) / 2.0, (1.0 - 0.885) / 2.0];

/// A sequence of pairs (a pair is `c0 + 3 c1`) on its way into the dictionary: the most probable first, then by its pairs.
struct Sequence {
    p: f64,
    pairs: Vec<u8>,
}

impl Ord for Sequence {
    fn cmp(&self, other: &Sequence) -> Ordering {
        self.p
            .total_cmp(&other.p)
            .then_with(|| other.pairs.cmp(&self.pairs))
    }
}

impl PartialOrd for Sequence {
    fn partial_cmp(&self, other: &Sequence) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Sequence {
    fn eq(&self, other: &Sequence) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Sequence {}

/// The pairs of each word.
pub fn words() -> &'static [Vec<u8>] {
    static WORDS_OF: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    WORDS_OF.get_or_init(|| {
        let pair: Vec<f64> = (0..9).map(|r| P[r % 3] * P[r / 3]).collect();
        let mut open = BinaryHeap::from([Sequence {
            p: 1.0,
            pairs: vec![],
        }]);
        let mut out = Vec::with_capacity(WORDS);
        while out.len() < WORDS {
            let Some(top) = open.pop() else { break };
            if top.pairs.len() < PAIRS {
                for (r, p) in pair.iter().enumerate() {
                    let pairs = [&top.pairs[..], &[r as u8]].concat();
                    open.push(Sequence {
                        p: top.p * p,
                        pairs,
                    });
                }
            }
            if !top.pairs.is_empty() {
                out.push(top.pairs);
            }
        }
        out
    })
}

/// Words by what they stand for.
fn index() -> &'static HashMap<&'static [u8], u16> {
    static INDEX: OnceLock<HashMap<&'static [u8], u16>> = OnceLock::new();
    INDEX.get_or_init(|| {
        words()
            .iter()
            .enumerate()
            .map(|(i, w)| (&w[..], i as u16))
            .collect()
    })
}

/// Codes 0, 1 and 2 of a matrix, row by row.
pub fn dictionary(shape: [usize; 2], codes: &[u8]) -> Encoding {
    let (mut bytes, mut starts) = (vec![], vec![0i64]);
    for row in codes.chunks(shape[1].max(1)) {
        let pairs: Vec<u8> = row
            .chunks(2)
            .map(|c| c[0] + 3 * c.get(1).copied().unwrap_or(0))
            .collect();
        let mut rest = &pairs[..];
        while !rest.is_empty() {
            // The dictionary holds every beginning of its words, so the search may stop at the first miss.
            let known = |n: &usize| index().contains_key(&rest[..*n]);
            let n = (1..=rest.len().min(PAIRS))
                .take_while(known)
                .last()
                .unwrap_or(1);
            bytes.extend(index()[&rest[..n]].to_le_bytes());
            rest = &rest[n..];
        }
        starts.push(bytes.len() as i64 / 2);
    }
    let starts = Tensor::from_int(
        ElemType::U32,
        [starts.len()],
        starts.iter().map(|&v| v.into()).collect(),
    );
    of_words(shape, bytes.into(), dense::from_tensor(&starts))
}

/// Codes of a matrix as words, low byte first, with each row's first word and their count: a term of integers `[rows + 1]`.
pub fn of_words(shape: [usize; 2], words: Bytes, starts: Encoding) -> Encoding {
    let params = [("coder", "dictionary".into())];
    let mut e = Encoding::of(&CODED, ElemType::U8, shape.to_vec(), params, [starts]);
    e.blob = Some(words);
    e
}

fn words_of(e: &Encoding) -> impl Iterator<Item = u16> + '_ {
    let bytes = e.blob.as_deref().unwrap_or(&[]);
    bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
}

fn check(e: &Encoding) -> Result<(), DecodeError> {
    let whole = e.blob.as_ref().is_none_or(|b| b.len() % 2 == 0);
    let fits = matches!(e.shape[..], [rows, _] if e.children[0].shape == [rows + 1]);
    (whole && fits)
        .then_some(())
        .ok_or_else(|| e.error("is of a matrix: whole words, and where each row begins"))
}

/// The words of each row, which fill it.
fn rows(e: &Encoding) -> Result<Vec<Vec<u16>>, DecodeError> {
    let (all, starts) = (words_of(e).collect::<Vec<u16>>(), e.codes(0)?);
    if starts.first() != Some(&0)
        || starts.last() != Some(&(all.len() as i64))
        || !starts.is_sorted()
    {
        return Err(e.error("rows must begin one after the other"));
    }
    let row = |w: &[i64]| {
        let row = all[w[0] as usize..w[1] as usize].to_vec();
        let pairs: usize = row.iter().map(|&w| words()[w as usize].len()).sum();
        let full = pairs == e.shape[1].div_ceil(2);
        full.then_some(row)
            .ok_or_else(|| e.error("the words of a row do not fill it"))
    };
    starts.windows(2).map(row).collect()
}

fn decode(e: &Encoding) -> Result<Tensor, DecodeError> {
    let mut codes = Vec::with_capacity(e.len());
    for row in rows(e)? {
        let pairs = row.iter().flat_map(|&w| &words()[w as usize]);
        let two = pairs.flat_map(|&p| [i128::from(p % 3), i128::from(p / 3)]);
        codes.extend(two.take(e.shape[1]));
    }
    Ok(e.int_tensor(codes))
}

/// All words' codes, filled up with zeros, and half their numbers: what a compiled program looks them up in.
fn table() -> &'static (Bytes, Bytes) {
    static TABLE: OnceLock<(Bytes, Bytes)> = OnceLock::new();
    TABLE.get_or_init(|| {
        let pairs = |w: &Vec<u8>| {
            let mut row = w.clone();
            row.resize(PAIRS, 0);
            row
        };
        let pairs: Vec<u8> = words().iter().flat_map(pairs).collect();
        let lens: Vec<u8> = words().iter().map(|w| w.len() as u8).collect();
        (pairs.into(), lens.into())
    })
}

fn open(e: &Encoding, b: &mut Builder) -> Result<ValueId, OpError> {
    let n = |v: usize| Len::N(v as i64);
    let (rows, width) = (e.shape[0], e.shape[1]);
    if e.is_empty() {
        return b.filled(ElemType::U8, 0.0, &[n(rows), n(width)]);
    }
    let words: Vec<u8> = words_of(e).flat_map(u16::to_le_bytes).collect();
    let words = b.module.add_constant(
        "",
        crate::Constant::dense(ElemType::U16, vec![words.len() / 2], words.into()),
    );
    let words = b.cast(words, ElemType::I64)?;
    let (pairs, lens) = table().clone();
    let (pairs, lens) = (b.bytes(pairs), b.bytes(lens));
    let pairs = b.reshape(pairs, &[n(WORDS), n(PAIRS)])?;
    let (pairs, lens) = (
        b.op("gather", &[pairs, words])?,
        b.op("gather", &[lens, words])?,
    );
    let lens = b.unsqueeze(lens, &[1])?;
    let place = Tensor::from_int(ElemType::U8, [PAIRS], (0..PAIRS as i128).collect());
    let place = b.constant(&place);
    let given = b.op("less", &[place, lens])?;
    let (given, pairs) = (
        b.reshape(given, &[Len::N(-1)])?,
        b.reshape(pairs, &[Len::N(-1)])?,
    );
    let pairs = b.op("compress", &[pairs, given])?;
    let pairs = b.reshape(pairs, &[n(rows), n(width.div_ceil(2)), n(1)])?;
    let u8s = |b: &mut Builder, values: &[i128]| {
        b.constant(&Tensor::from_int(
            ElemType::U8,
            [values.len()],
            values.to_vec(),
        ))
    };
    let (powers, three) = (u8s(b, &[1, 3]), u8s(b, &[3]));
    let codes = b.op("div", &[pairs, powers])?;
    let codes = b.op("mod", &[codes, three])?;
    let codes = b.reshape(codes, &[n(rows), n(width.div_ceil(2) * 2)])?;
    b.slice(codes, 1, 0, width as i64)
}

fn sample(s: &mut Sampler, shape: &[usize]) -> Option<Encoding> {
    let &[rows, width] = shape else { return None };
    if s.limit() < 3 || rows * width == 0 {
        return None;
    }
    let codes: Vec<u8> = (0..rows * width)
        .map(|_| s.one_of(&[0, 0, 0, 0, 1, 2]))
        .collect();
    Some(dictionary([rows, width], &codes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::sha256::sha256;
    use crate::random::SplitMix64;

    /// Counts by length, and the table that `QMoE`'s kernels look words up in: two words for each, low four bits the number of
    /// pairs, then four bits a pair, seven pairs in the first and seven in the second.
    #[test]
    fn the_dictionary_is_the_published_one() {
        let mut counts = [0; PAIRS];
        words().iter().for_each(|w| counts[w.len() - 1] += 1);
        let want = [
            9, 65, 233, 577, 1161, 2049, 3305, 4993, 7177, 9921, 13289, 17345, 3843, 1569,
        ];
        assert_eq!(counts, want);
        let half = |w: &[u8], len: usize| {
            let pairs = w.iter().enumerate();
            pairs.fold(len as u32, |word, (i, &pair)| {
                word | u32::from(pair % 3 + 4 * (pair / 3)) << (4 + 4 * i)
            })
        };
        let entry = |w: &Vec<u8>| {
            let (first, second) = w.split_at(w.len().min(PAIRS / 2));
            [half(first, w.len()), half(second, w.len())].map(u32::to_le_bytes)
        };
        let table: Vec<u8> = words().iter().flat_map(entry).flatten().collect();
        assert_eq!(
            sha256(&table),
            "c09862c453fe122634070a475357ff81a679aff65829d84a56f806c02a54ed45"
        );
    }

    /// What makes the longest match the best: with a word, all its beginnings and ends are words.
    #[test]
    fn the_dictionary_is_closed() {
        assert_eq!(index().len(), WORDS);
        assert!((0..9).all(|pair| index().contains_key(&[pair][..])));
        let long = words().iter().filter(|w| w.len() > 1);
        for w in long {
            assert!(index().contains_key(&w[1..]) && index().contains_key(&w[..w.len() - 1]));
        }
    }

    fn encoded(shape: [usize; 2], codes: &[u8]) -> Vec<u16> {
        words_of(&dictionary(shape, codes)).collect()
    }

    #[test]
    fn words_of_rows_are_the_published_ones() {
        let code = |i| match (i % 7, i % 11) {
            (3, _) => 1,
            (_, 5) => 2,
            _ => 0,
        };
        let row: Vec<u8> = (0..41).map(code).collect();
        assert_eq!(encoded([1, 41], &row), [15464, 9510, 17170]);
        assert_eq!(encoded([1, 64], &[0; 64]), [25, 25, 3]);
        assert_eq!(encoded([1, 6], &[2; 6]), [329, 329, 329]);
    }

    /// Ternary codes, zero with this probability.
    fn ternary(count: usize, zeros: f64, seed: u64) -> Vec<u8> {
        let mut random = SplitMix64::new(seed);
        let mut code = || match random.unit() {
            u if u < zeros => 0,
            u if u < (1.0 + zeros) / 2.0 => 1,
            _ => 2,
        };
        (0..count).map(|_| code()).collect()
    }

    /// Rows of any width, the last word of which may go on behind the pairs that are left of them.
    #[test]
    fn rows_are_found_again() {
        for (width, zeros) in [
            (1, 0.885),
            (2, 0.0),
            (27, 0.5),
            (28, 1.0),
            (29, 0.99),
            (41, 0.885),
            (255, 0.885),
            (256, 0.8),
        ] {
            let codes = ternary(7 * width, zeros, width as u64);
            let e = dictionary([7, width], &codes);
            e.check().expect("valid");
            let back = e.integers().expect("valid");
            let codes: Vec<i64> = codes.into_iter().map(i64::from).collect();
            assert_eq!(back, codes, "{width}");
            // A word stands for at least one pair: no row has more than eight bits a weight, but for half a pair.
            let bounded = 2 * 7 * width.div_ceil(2);
            assert!(e.blob.expect("words").len() <= bounded, "{width}");
        }
        // Pairs that only stand for themselves take a word each, and a word of none is longer than 28 codes.
        assert_eq!(encoded([1, 10], &[2; 10]).len(), 5);
        assert_eq!(encoded([1, 28], &[0; 28]).len(), 1);
        assert_eq!(encoded([1, 29], &[0; 29]).len(), 2);
    }

    /// Bits of a weight by how many are zero; the entropy at 0.885 is 0.630.
    #[test]
    fn rates_are_the_known_ones() {
        for (zeros, want) in [
            (0.5, 2.93),
            (0.75, 1.395),
            (0.8, 1.118),
            (0.85, 0.875),
            (0.885, 0.735),
            (0.9, 0.688),
            (0.95, 0.590),
        ] {
            let width = 1 << 16;
            let e = dictionary([4, width], &ternary(4 * width, zeros, 1));
            let bits = 8.0 * e.blob.expect("words").len() as f64 / (4 * width) as f64;
            assert!((bits / want - 1.0).abs() < 0.015, "{zeros}: {bits}");
        }
    }

    #[test]
    fn words_that_fill_no_row_are_refused() {
        let starts = |at: &[i128]| {
            dense::from_tensor(&Tensor::from_int(ElemType::I32, [at.len()], at.to_vec()))
        };
        let words = |words: &[u16]| Bytes::from_iter(words.iter().flat_map(|w| w.to_le_bytes()));
        // Word 3 is four pairs of zeros, word 25 fourteen.
        let said = |width, given: &[u16], at: &[i128]| {
            let e = of_words([2, width], words(given), starts(at));
            e.decode().map(|_| ()).map_err(|e| e.to_string())
        };
        let pairs = |w: u16| 2 * super::words()[usize::from(w)].len();
        assert_eq!(said(pairs(3), &[3, 3], &[0, 1, 2]), Ok(()));
        assert_eq!(said(pairs(3) - 1, &[3, 3], &[0, 1, 2]), Ok(()));
        for (given, at, want) in [
            (&[3, 25][..], [0, 1, 2], "do not fill it"),
            (&[3, 3], [0, 2, 2], "do not fill it"),
            (&[3, 3], [0, 1, 3], "one after the other"),
            (&[3, 3], [0, 2, 1], "one after the other"),
            (&[3, 3], [1, 1, 2], "one after the other"),
            (&[3, 3], [0, -1, 2], "one after the other"),
        ] {
            let said = said(pairs(3), given, &at).expect_err(want);
            assert!(said.contains(want), "{said}");
        }
    }
}
