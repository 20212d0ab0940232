//! Mutations of files whose header is lengths, offsets and numbers of types: some become others that are often handled
//! wrongly.

use super::random::Random;

const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    9,
    32,
    255,
    1 << 20,
    1 << 31,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// Bytes of the header, near enough: what comes behind it are elements.
const HEADER: usize = 4096;

/// A file like this one, with up to three changes.
pub fn mutate(data: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = data.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(out.len().min(HEADER));
        let width = [1, 4, 8][random.below(3)];
        let number = match random.pick(NUMBERS) {
            Some(&n) if random.below(3) > 0 => n,
            _ => random.next() >> random.below(64),
        };
        for (byte, new) in out
            .iter_mut()
            .skip(at)
            .zip(number.to_le_bytes().iter().take(width))
        {
            *byte = *new;
        }
    }
    out
}
