//! Decompression of deflate streams, as in archives of `np.savez_compressed`.
//!
//! Source: RFC 1951. Codes are decoded bit by bit against the counts of each length: short rather than fast.

use super::bad;
use crate::error::RunError;

const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
const LENGTH_EXTRA: [u8; 29] = [
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
];
const DISTANCE_BASE: [u16; 30] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537,
    2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
];
const CODE_ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn one(&mut self) -> Result<usize, RunError> {
        let Some(byte) = self.bytes.get(self.at / 8) else {
            return bad("the compressed data is cut short");
        };
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Ok(bit.into())
    }

    fn take(&mut self, n: u8) -> Result<usize, RunError> {
        let mut value = 0;
        for i in 0..n {
            value |= self.one()? << i;
        }
        Ok(value)
    }
}

/// A canonical prefix code.
struct Code {
    counts: [u16; 16],
    symbols: Vec<u16>,
}

impl Code {
    fn new(lengths: &[u8]) -> Code {
        let mut counts = [0; 16];
        let mut symbols = Vec::new();
        for len in 1..16u8 {
            let of_len = (0..lengths.len())
                .filter(|&s| lengths[s] == len)
                .map(|s| s as u16);
            let before = symbols.len();
            symbols.extend(of_len);
            counts[usize::from(len)] = (symbols.len() - before) as u16;
        }
        Code { counts, symbols }
    }

    fn decode(&self, bits: &mut Bits) -> Result<usize, RunError> {
        let (mut code, mut first, mut index) = (0usize, 0usize, 0usize);
        for len in 1..16 {
            code |= bits.one()?;
            let count = usize::from(self.counts[len]);
            if code < first + count && code >= first {
                return Ok(self.symbols[index + code - first].into());
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        bad("the compressed data is damaged")
    }
}

/// Decompresses a stream that holds exactly `size` bytes.
pub fn inflate(stream: &[u8], size: usize) -> Result<Vec<u8>, RunError> {
    let mut bits = Bits {
        bytes: stream,
        at: 0,
    };
    // A stream cannot hold more than 1032 bytes for each of its own.
    let mut out = Vec::with_capacity(size.min(stream.len().saturating_mul(1032)));
    loop {
        let last = bits.one()? == 1;
        match bits.take(2)? {
            0 => stored(&mut bits, &mut out)?,
            1 => {
                let mut lengths = [8u8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                block(
                    &mut bits,
                    &Code::new(&lengths),
                    &Code::new(&[5; 30]),
                    &mut out,
                    size,
                )?;
            }
            2 => {
                let (literals, distances) = codes(&mut bits)?;
                block(&mut bits, &literals, &distances, &mut out, size)?;
            }
            _ => return bad("the compressed data is damaged"),
        }
        if out.len() > size || (last && out.len() != size) {
            return bad("the compressed data has another length than stated");
        }
        if last {
            return Ok(out);
        }
    }
}

fn stored(bits: &mut Bits, out: &mut Vec<u8>) -> Result<(), RunError> {
    bits.at = bits.at.next_multiple_of(8);
    let len = bits.take(16)?;
    bits.take(16)?;
    let start = bits.at / 8;
    let Some(part) = bits.bytes.get(start..start + len) else {
        return bad("the compressed data is cut short");
    };
    out.extend_from_slice(part);
    bits.at += len * 8;
    Ok(())
}

fn codes(bits: &mut Bits) -> Result<(Code, Code), RunError> {
    let (literals, distances, n) = (bits.take(5)? + 257, bits.take(5)? + 1, bits.take(4)? + 4);
    let mut lengths = [0u8; 19];
    for &at in &CODE_ORDER[..n] {
        lengths[at] = bits.take(3)? as u8;
    }
    let code = Code::new(&lengths);
    let mut lengths = Vec::with_capacity(literals + distances);
    while lengths.len() < literals + distances {
        let (value, times) = match code.decode(bits)? {
            16 => (
                lengths
                    .last()
                    .copied()
                    .map_or_else(|| bad("the compressed data is damaged"), Ok)?,
                3 + bits.take(2)?,
            ),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            len => (len as u8, 1),
        };
        lengths.extend(std::iter::repeat_n(value, times));
    }
    if lengths.len() > literals + distances {
        return bad("the compressed data is damaged");
    }
    Ok((
        Code::new(&lengths[..literals]),
        Code::new(&lengths[literals..]),
    ))
}

fn block(
    bits: &mut Bits,
    literals: &Code,
    distances: &Code,
    out: &mut Vec<u8>,
    size: usize,
) -> Result<(), RunError> {
    loop {
        match literals.decode(bits)? {
            literal @ 0..256 => out.push(literal as u8),
            256 => return Ok(()),
            symbol => {
                let (Some(&base), Some(&extra)) = (
                    LENGTH_BASE.get(symbol - 257),
                    LENGTH_EXTRA.get(symbol - 257),
                ) else {
                    return bad("the compressed data is damaged");
                };
                let len = usize::from(base) + bits.take(extra)?;
                let symbol = distances.decode(bits)?;
                let Some(&base) = DISTANCE_BASE.get(symbol) else {
                    return bad("the compressed data is damaged");
                };
                let distance =
                    usize::from(base) + bits.take((symbol / 2).saturating_sub(1) as u8)?;
                let Some(start) = out.len().checked_sub(distance) else {
                    return bad("the compressed data is damaged");
                };
                for i in start..start + len {
                    out.push(out[i]);
                }
            }
        }
        if out.len() > size {
            return bad("the compressed data has another length than stated");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_decompress() {
        // Fixed codes with a match, as zlib writes "abcabcabcabc" and twelve times "a".
        let cases: &[(&[u8], &str)] = &[
            (&[0x4b, 0x4c, 0x4a, 0x4e, 0x44, 0x42, 0x00], "abcabcabcabc"),
            (&[0x4b, 0x4c, 0x84, 0x01, 0x00], "aaaaaaaaaaaa"),
            (&[0x01, 0x02, 0x00, 0xfd, 0xff, 0x68, 0x69], "hi"),
        ];
        for (stream, text) in cases {
            assert_eq!(inflate(stream, text.len()).expect("reads"), text.as_bytes());
            assert!(inflate(stream, text.len() + 1).is_err());
            assert!(inflate(&stream[..stream.len() - 1], text.len()).is_err());
        }
    }
}
