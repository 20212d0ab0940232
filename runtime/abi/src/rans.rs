//! The entropy coder of compressed weights (range asymmetric numeral systems): one definition for who writes and who
//! reads.
//!
//! A block is a 32-bit state, little-endian, and the bytes that reading it takes in one after the other. Frequencies
//! of the symbols add up to [`TOTAL`]. A block ends in the state that writing began with, [`LOW`], and with its last byte.
//! Source: `Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of
//! arithmetic coding`, section 3.

/// Bits of a frequency.
const BITS: u32 = 12;
/// The sum of all frequencies.
pub const TOTAL: u32 = 1 << BITS;
/// The least state; every block begins to be written in it.
pub const LOW: u32 = 1 << 23;

/// Symbols with their frequencies, ready to read blocks.
#[derive(Clone, Debug)]
pub struct Model {
    /// Frequency and start of each symbol's range.
    ranges: Vec<(u32, u32)>,
    /// The symbol of each number below [`TOTAL`].
    symbols: Vec<u8>,
}

impl Model {
    /// The model of at most 256 symbols with these frequencies; none unless they add up to [`TOTAL`].
    pub fn new(frequencies: &[u32]) -> Option<Model> {
        let sum = frequencies
            .iter()
            .try_fold(0u32, |a, &f| a.checked_add(f))?;
        if frequencies.len() > 256 || sum != TOTAL {
            return None;
        }
        let (mut ranges, mut symbols) = (
            Vec::with_capacity(frequencies.len()),
            Vec::with_capacity(TOTAL as usize),
        );
        for (s, &f) in frequencies.iter().enumerate() {
            ranges.push((f, symbols.len() as u32));
            symbols.extend((0..f).map(|_| s as u8));
        }
        Some(Model { ranges, symbols })
    }

    /// Reads a block into `out`; false if it is not one of so many symbols.
    #[must_use]
    pub fn read(&self, block: &[u8], out: &mut [u8]) -> bool {
        let Some((head, mut rest)) = block.split_first_chunk::<4>() else {
            return false;
        };
        let mut state = u32::from_le_bytes(*head);
        for symbol in out {
            let low = state & (TOTAL - 1);
            *symbol = self.symbols[low as usize];
            let (f, start) = self.ranges[*symbol as usize];
            // Below 2^32: the state's high bits times at most `TOTAL`, and a rest below that.
            state = f.wrapping_mul(state >> BITS).wrapping_add(low - start);
            while state < LOW {
                let Some((&byte, after)) = rest.split_first() else {
                    return false;
                };
                state = state << 8 | u32::from(byte);
                rest = after;
            }
        }
        state == LOW && rest.is_empty()
    }

    /// Writes symbols as a block; none if the model has no place for one of them.
    pub fn write(&self, symbols: &[u8]) -> Option<Vec<u8>> {
        let (mut state, mut out) = (LOW, vec![]);
        // Reading goes forwards, so writing goes backwards.
        for &symbol in symbols.iter().rev() {
            let &(f, start) = self.ranges.get(symbol as usize).filter(|r| r.0 > 0)?;
            while state >= ((LOW >> BITS) << 8) * f {
                out.push(state as u8);
                state >>= 8;
            }
            state = (state / f) * TOTAL + state % f + start;
        }
        out.extend(state.to_be_bytes());
        out.reverse();
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_read_back_at_every_skew() {
        for first in [1, 100, 2048, 4000, 4094] {
            let model = Model::new(&[first, TOTAL - first - 1, 1]).expect("adds up");
            for n in [0, 1, 7, 1000] {
                let symbols: Vec<u8> = (0..n).map(|i| (i * i % 3) as u8).collect();
                let block = model.write(&symbols).expect("known symbols");
                let mut back = vec![9; n];
                assert!(model.read(&block, &mut back));
                assert_eq!(back, symbols);
                assert!(!model.read(&block[..block.len() - 1], &mut back) || n == 0);
            }
        }
        assert!(Model::new(&[1, 2]).is_none());
    }

    #[test]
    fn a_skewed_block_is_small() {
        let model = Model::new(&[TOTAL - 64, 64]).expect("adds up");
        let symbols: Vec<u8> = (0..4096).map(|i| u8::from(i % 64 == 0)).collect();
        // The entropy of 1/64 is 0.116 bits.
        assert!(model.write(&symbols).expect("known").len() <= 4 + 61);
    }
}
