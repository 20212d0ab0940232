//! Tables of vectors that lie on the lattice E8, for `codebook` terms: generated, so that no file holds them.
//!
//! E8P has 2^16 vectors of 8 numbers, all in `E8 + 1/4` (up to the sign of the shift), and is told by 256 absolute
//! vectors of half-integers `a`: those with `|a|² <= 10`, in lexicographic order, and 29 of `|a|² = 12`.
//!
//! ```text
//! code (16 bits):  [ absolute vector: 8 | signs: 8 ]
//! odd = parity of the 8 sign bits;  bit 0 of the signs is flipped where it is odd
//! value[i] = ± a[i] (minus where bit PLACES[i] is set; a[7] is negated once more where Σ a is odd) + (odd ? -1/4 : 1/4)
//! ```
//! Seven signs are free, the eighth follows as coordinates of E8 have an even sum; what is left says the shift.
//! Source: Tseng et al., "QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks", section 4
//! and appendix C (which 29 vectors there are).

use super::{Encoding, dense, r#gen};
use crate::{ElemType, Tensor};

/// Numbers of a vector.
pub const DIM: usize = 8;

/// Absolute vectors of E8P, and vectors of the table of [`e8`].
pub const ENTRIES: usize = 256;

/// The sign bit of each coordinate.
const PLACES: [usize; DIM] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Which coordinates of the 29 longest absolute vectors are 1/2, by bit; the other five are 3/2.
const LONGEST: [u8; 29] = [
    14, 13, 11, 7, 200, 168, 152, 104, 88, 56, 196, 164, 148, 100, 84, 52, 194, 162, 146, 98, 82,
    49, 193, 161, 145, 97, 81, 19, 140,
];

/// The absolute vectors of E8P by their code, in halves: 1, 3 or 5, the last negated where the sum of the vector is odd. With an
/// even number of further signs each is in `E8 + 1/2`.
pub fn e8p_absolutes() -> Vec<[i8; DIM]> {
    // |a|² <= 10 is at most 40 in quarters; 5 is the largest coordinate beside seven of 1.
    let squares = |a: &[i8]| a.iter().map(|&v| i32::from(v).pow(2)).sum::<i32>();
    let mut all: Vec<Vec<i8>> = vec![vec![]];
    for left in (0..DIM as i32).rev() {
        let longer = |a: Vec<i8>| [1, 3, 5].map(|v| [&a[..], &[v]].concat());
        all = all.into_iter().flat_map(longer).collect();
        all.retain(|a| squares(a) + left <= 40);
    }
    let short = all.iter().map(|a| std::array::from_fn(|i| a[i]));
    let long = LONGEST
        .iter()
        .map(|ones| std::array::from_fn(|i| if ones >> i & 1 == 1 { 1 } else { 3 }));
    let even = |mut a: [i8; DIM]| {
        if a.iter().map(|&v| i32::from(v)).sum::<i32>() / 2 % 2 == 1 {
            a[DIM - 1] = -a[DIM - 1];
        }
        a
    };
    short.chain(long).map(even).collect()
}

/// What the low byte of a code does to its absolute vector: whether each coordinate is negated, and whether 1/4 is then
/// subtracted (else it is added).
pub fn e8p_negated(byte: u8) -> ([bool; DIM], bool) {
    let odd = byte.count_ones() % 2 == 1;
    let byte = byte ^ u8::from(odd);
    (PLACES.map(|p| byte >> p & 1 == 1), odd)
}

/// The inverse of [`e8p_negated`]: the low byte of the code that negates these coordinates, of which there is an even number, and
/// shifts down or up.
pub fn e8p_signs(negated: [bool; DIM], down: bool) -> u8 {
    let bits = negated.iter().zip(PLACES);
    let byte = bits.fold(0, |byte, (&n, p)| byte | u8::from(n) << p);
    byte ^ u8::from(down)
}

/// The table E8P: a term `f32[1, 1, 65536, 8]`, generated of 4352 bytes.
pub fn e8p() -> Encoding {
    let bytes = |shape: &[usize], values: Vec<i128>| {
        dense::from_tensor(&Tensor::from_int(ElemType::I8, shape.to_vec(), values))
    };
    // In quarters, so that all of it is whole.
    let absolutes = e8p_absolutes().into_iter().flatten();
    let absolutes = absolutes.map(|v| i128::from(2 * v)).collect();
    let all = || (0..=u8::MAX).map(e8p_negated);
    let minus = |negative: bool| if negative { -1 } else { 1 };
    let factors = all().flat_map(|(negated, _)| negated.map(minus)).collect();
    let shifts = all().map(|(_, down)| minus(down)).collect();
    r#gen::generate(
        ElemType::F32,
        vec![1, 1, ENTRIES << 8, DIM],
        "fn e8p(%absolute: i8[256,1,8], %factor: i8[1,256,8], %shift: i8[1,256,1]) -> (table: f32[1,1,65536,8]) {
  const %quarter = dense f32[] [0.25]
  const %shape = dense i64[4] [1, 1, 65536, 8]
  %signed = mul(%absolute, %factor)
  %shifted = add(%signed, %shift)
  %number = cast(%shifted) {to = f32}
  %scaled = mul(%number, %quarter)
  %table = reshape(%scaled, %shape)
  return %table
}",
        vec![
            bytes(&[ENTRIES, 1, DIM], absolutes),
            bytes(&[1, 256, DIM], factors),
            bytes(&[1, 256, 1], shifts),
        ],
    )
}

/// 256 of the shortest vectors of E8, in halves: 0, the 240 of `|v|² = 2`, and 15 of the 16 with one coordinate ±2. A vector of
/// E8 has coordinates that are all integers or all halves of odd ones, and an even sum. In the published order: integers, then
/// halves, each in lexicographic order, then those of one coordinate.
pub fn e8_vectors() -> Vec<[i8; DIM]> {
    let mut whole = vec![[0; DIM]];
    for i in 0..DIM {
        for (j, signs) in (0..i).flat_map(|j| (0..4).map(move |s| (j, s))) {
            let mut v = [0; DIM];
            (v[i], v[j]) = (2 - 4 * (signs & 1), 2 - 4 * (signs >> 1));
            whole.push(v);
        }
    }
    let even = (0..=u8::MAX).filter(|s| s.count_ones() % 2 == 0);
    let mut halves: Vec<[i8; DIM]> = { even }
        .map(|s| std::array::from_fn(|i| 1 - 2 * (s >> i & 1) as i8))
        .collect();
    whole.sort_unstable();
    halves.sort_unstable();
    let axes = [4, -4]
        .into_iter()
        .flat_map(|length| (0..DIM).map(move |i| (i, length)));
    let axes = axes.map(|(i, length)| {
        let mut v = [0; DIM];
        v[i] = length;
        v
    });
    whole
        .into_iter()
        .chain(halves)
        .chain(axes)
        .take(ENTRIES)
        .collect()
}

/// The table of [`e8_vectors`]: a term `f16[1, 1, 256, 8]`.
pub fn e8() -> Encoding {
    let halves = e8_vectors().into_iter().flatten();
    let values = halves.map(|v| f64::from(v) / 2.0).collect();
    dense::from_tensor(&Tensor::from_f64(
        ElemType::F16,
        [1, 1, ENTRIES, DIM],
        values,
    ))
}

/// Rows and codes (of 8 columns each) whose words lie together in a packed file.
const TILE: [usize; 2] = [16, 8];

/// The place of word `n` among codes `[rows, runs]`: the first row and the first run of its four codes.
fn place(n: usize, runs: usize) -> (usize, usize) {
    let [rows, width] = TILE;
    let words = rows * width / 4;
    let (tile, word) = (n / words, n % words);
    let (across, pairs) = (runs / width, width / 2);
    (
        tile / across * rows + word / pairs * 2,
        tile % across * width + word % pairs * 2,
    )
}

/// Codes of E8P as the published checkpoints pack them (`Qidxs`), a word for two rows by two runs of 8 columns:
///
/// ```text
/// codes in order (row 0, run 0), (row 1, run 0), (row 0, run 1), (row 1, run 1)
/// bits 0..32: the absolute vectors, 8 bits each      bit 32 + 4 j + i: bit j of the signs of code i
/// ```
/// Words run row by row inside tiles of 16 rows by 8 runs, and these row by row. `codes` are `[rows, runs]`, row-major; none if
/// tiles do not divide them.
pub fn pack(codes: &[u16], runs: usize) -> Option<Vec<u64>> {
    let rows = divided(codes.len(), runs)?;
    let word = |n: usize| {
        let (row, run) = place(n, runs);
        let at = [(0, 0), (1, 0), (0, 1), (1, 1)];
        let codes = at.map(|(r, c)| u64::from(codes[(row + r) * runs + run + c]));
        codes.iter().enumerate().fold(0, |word, (i, code)| {
            let signs = (0..8).fold(0, |bits, j| bits | (code >> j & 1) << (32 + 4 * j + i));
            word | (code >> 8) << (8 * i) | signs
        })
    };
    Some((0..rows * runs / 4).map(word).collect())
}

/// The inverse of [`pack`].
pub fn unpack(words: &[u64], runs: usize) -> Option<Vec<u16>> {
    let rows = divided(words.len().checked_mul(4)?, runs)?;
    let mut codes = vec![0; rows * runs];
    for (n, word) in words.iter().enumerate() {
        let (row, run) = place(n, runs);
        for (i, (r, c)) in [(0, 0), (1, 0), (0, 1), (1, 1)].into_iter().enumerate() {
            let signs = (0..8).fold(0, |bits, j| bits | (word >> (32 + 4 * j + i) & 1) << j);
            codes[(row + r) * runs + run + c] = (((word >> (8 * i)) & 0xff) << 8 | signs) as u16;
        }
    }
    Some(codes)
}

/// How many rows these codes are, if tiles divide them.
fn divided(codes: usize, runs: usize) -> Option<usize> {
    let [rows, width] = TILE;
    let whole = runs > 0 && runs.is_multiple_of(width) && codes.is_multiple_of(rows * runs);
    whole.then(|| codes / runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encodings::codebook::codebook;
    use crate::encodings::sha256::sha256;
    use std::collections::BTreeSet;

    fn table(term: &Encoding) -> Vec<Vec<f64>> {
        let values = term.decode().expect("valid").to_f64s().expect("numbers");
        values.chunks(DIM).map(<[f64]>::to_vec).collect()
    }

    fn square(v: &[f64]) -> f64 {
        v.iter().map(|x| x * x).sum()
    }

    /// The published table has eight digits `2 a + 8` of four bits for each absolute vector, even coordinates first.
    #[test]
    fn absolute_vectors_are_the_published_ones() {
        let word = |a: &[i8; DIM]| {
            let digits = [0, 2, 4, 6, 1, 3, 5, 7].map(|i| (a[i] + 8) as u32);
            digits.iter().rev().fold(0, |word, d| word << 4 | d)
        };
        let bytes: Vec<u8> = e8p_absolutes()
            .iter()
            .flat_map(|a| word(a).to_le_bytes())
            .collect();
        assert_eq!(
            sha256(&bytes),
            "efc2c03c60acd955dc812ff2bade9ec6cc31259807e48473506161f3a9a230ce"
        );
    }

    #[test]
    fn vectors_are_of_the_shifted_lattice() {
        let all = table(&e8p());
        let distinct: BTreeSet<_> = all.iter().map(|v| format!("{v:?}")).collect();
        assert_eq!(distinct.len(), 1 << 16);
        let squares: Vec<f64> = all.iter().map(|v| square(v)).collect();
        assert_eq!(squares.iter().sum::<f64>() / 65536.0, 9.5703125);
        assert_eq!(squares.iter().copied().fold(0.0, f64::max), 16.5);
        assert_eq!(all[0], [0.75; DIM]);
        assert_eq!(
            all[0x0103],
            [-0.25, 0.75, -0.25, 0.75, 0.75, 0.75, 0.75, -1.25]
        );
        for (code, v) in all.iter().enumerate() {
            let odd = (code & 0xff).count_ones() % 2 == 1;
            let shift = if odd { -0.25 } else { 0.25 };
            let back: Vec<f64> = v.iter().map(|x| x - shift).collect();
            assert!(back.iter().all(|x| (x + 0.5).fract() == 0.0), "{code:x}");
            assert_eq!(back.iter().sum::<f64>() % 2.0, 0.0, "{code:x}");
        }
    }

    #[test]
    fn signs_are_found_again() {
        for byte in 0..=u8::MAX {
            let (negated, down) = e8p_negated(byte);
            assert_eq!(e8p_signs(negated, down), byte);
            assert_eq!(negated.iter().filter(|n| **n).count() % 2, 0);
        }
    }

    #[test]
    fn short_vectors_are_of_the_lattice() {
        let all = table(&e8());
        let distinct: BTreeSet<_> = all.iter().map(|v| format!("{v:?}")).collect();
        assert_eq!(distinct.len(), ENTRIES);
        let bytes: Vec<u8> = { e8_vectors().into_iter() }
            .flatten()
            .map(|v| v as u8)
            .collect();
        assert_eq!(sha256(&bytes)[..16], *"37ce1a66345c1bbc");
        let of = |length: f64| all.iter().filter(|v| square(v) == length).count();
        assert_eq!((of(0.0), of(2.0), of(4.0)), (1, 240, 15));
        for v in &all {
            let kinds: BTreeSet<_> = v.iter().map(|x| (2.0 * x).rem_euclid(2.0) as u8).collect();
            assert_eq!((kinds.len(), v.iter().sum::<f64>() % 2.0), (1, 0.0));
        }
    }

    #[test]
    fn codes_of_sixteen_bits_point_into_the_table() {
        let codes = Tensor::from_int(ElemType::U16, [1, 2], vec![0x0103, 0xffff]);
        let term = codebook(ElemType::F32, e8p(), dense::from_tensor(&codes));
        let all = table(&e8p());
        let want = [&all[0x0103][..], &all[0xffff]].concat();
        assert_eq!(term.decode().expect("valid").floats(), Some(&want[..]));
        assert_eq!(term.stored_bytes(), 4352 + 4);
    }

    #[test]
    fn packed_codes_are_the_published_ones() {
        let codes: Vec<u16> = (0..128u16).map(|n| n.wrapping_mul(40503)).collect();
        let words = pack(&codes, 8).expect("a tile");
        assert_eq!(words[..2], [0xa8e6_accc_8f9e_f100, 0x4978_9f3c_ccda_2e3c]);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(sha256(&bytes)[..16], *"29ace33c5191084a");
    }

    #[test]
    fn packed_codes_are_found_again() {
        for (rows, runs) in [(16, 8), (48, 8), (16, 24), (32, 16)] {
            let codes: Vec<u16> = (0..rows * runs).map(|n| (n * 40503) as u16).collect();
            let words = pack(&codes, runs).expect("whole tiles");
            assert_eq!(unpack(&words, runs), Some(codes));
        }
        assert_eq!(pack(&[0; 128], 4), None);
        assert_eq!(pack(&[0; 64], 8), None);
        assert_eq!(unpack(&[0; 33], 8), None);
        assert_eq!(unpack(&[0; 33], 0), None);
    }
}
