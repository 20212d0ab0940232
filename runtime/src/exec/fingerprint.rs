//! A number for bytes, at the speed of memory.

/// Numbers that are mixed beside each other.
const LANES: usize = 8;

/// A number that other bytes, or another `seed`, do not have, but for chance: not for bytes that somebody makes to that end.
pub fn fingerprint(seed: u64, bytes: &[u8]) -> u64 {
    // One to one in either, so that no single difference is lost.
    let mix = |hash: u64, word: u64| {
        let x = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^ (x >> 32)
    };
    let mut lanes: [u64; LANES] = std::array::from_fn(|i| {
        seed.wrapping_add(i as u64 + 1)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
    });
    let (blocks, rest) = bytes.as_chunks::<{ 8 * LANES }>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
    }
    let mut last = [0; 8 * LANES];
    last[..rest.len()].copy_from_slice(rest);
    let (words, _) = last.as_chunks::<8>();
    let words = words.iter().map(|w| u64::from_le_bytes(*w));
    let all = lanes.into_iter().chain(words).chain([bytes.len() as u64]);
    all.fold(seed, mix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_bit_and_every_length_counts() {
        let bytes: Vec<u8> = (0..200u8).collect();
        let mut seen = HashSet::new();
        assert!((0..=200).all(|n| seen.insert(fingerprint(1, &bytes[..n]))));
        for bit in 0..1600 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(fingerprint(1, &other)), "bit {bit}");
        }
        assert!(seen.insert(fingerprint(2, &bytes)));
        // Zeros, which multiplications keep, count too.
        assert!((1..200).all(|n| seen.insert(fingerprint(3, &vec![0; n]))));
        assert_eq!(fingerprint(7, b"lapidary"), fingerprint(7, b"lapidary"));
    }
}
