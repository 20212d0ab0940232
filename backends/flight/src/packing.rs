//! Weights of 16 outputs: blocks of 16 outputs and 16 inputs, of which each output keeps N, and codes of 8, 4 or 3 bits.
//!
//! A block has a byte of `fsb`, its N (2, 4, 8 or 16); 16 N codes in `data`, output by output, from the lowest bit on; and, if
//! N is not 16, an index of 4 bits for every code in `meta`. Each part ends at a whole 16 bytes.
//! Source: FlightLLM's sparse format (its data slots are always 8 bits; codes of fewer bits are the paper's mixed precision).

/// Outputs, and inputs, of a block.
pub const BLOCK: usize = 16;

/// The packed weights of 16 outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Bits of a code.
    pub bits: usize,
    /// Codes.
    pub data: Vec<u8>,
    /// Which inputs they are for.
    pub meta: Vec<u8>,
    /// N of each block.
    pub fsb: Vec<u8>,
}

fn put(bytes: &mut Vec<u8>, at: &mut usize, value: u32, bits: usize) {
    for bit in 0..bits {
        if at.is_multiple_of(8) {
            bytes.push(0);
        }
        let last = bytes.len() - 1;
        bytes[last] |= ((value >> bit & 1) as u8) << (*at % 8);
        *at += 1;
    }
}

/// The `bits` bits at bit `at`, as an unsigned number; `None` beyond the end.
pub fn take(bytes: &[u8], at: usize, bits: usize) -> Option<u32> {
    let mut value = 0;
    for bit in 0..bits {
        let byte = bytes.get((at + bit) / 8)?;
        value |= u32::from(byte >> ((at + bit) % 8) & 1) << bit;
    }
    Some(value)
}

/// Packs 16 rows of codes, all of one length, a multiple of 16. Each block gets the least N that keeps all that is not 0.
///
/// # Errors
/// There are not 16 such rows, `bits` is not 8, 4 or 3, or a code does not fit.
pub fn pack(rows: &[Vec<i8>], bits: usize) -> Result<Packed, String> {
    let inputs = rows.first().map_or(0, Vec::len);
    if rows.len() != BLOCK
        || !inputs.is_multiple_of(BLOCK)
        || rows.iter().any(|row| row.len() != inputs)
    {
        return Err(format!(
            "{} rows of {inputs} weights are no blocks of 16 x 16",
            rows.len()
        ));
    }
    let limit = match bits {
        8 | 4 | 3 => 1i32 << (bits - 1),
        _ => return Err(format!("codes have 8, 4 or 3 bits, not {bits}")),
    };
    let mut packed = Packed {
        bits,
        ..Packed::default()
    };
    let (mut data_at, mut meta_at) = (0, 0);
    for block in 0..inputs / BLOCK {
        let part = |row: &'_ [i8]| -> Vec<i8> { row[block * BLOCK..][..BLOCK].to_vec() };
        let most = rows
            .iter()
            .map(|row| part(row).iter().filter(|code| **code != 0).count())
            .max();
        let kept = [2, 4, 8, 16]
            .into_iter()
            .find(|n| Some(*n) >= most)
            .unwrap_or(BLOCK);
        packed.fsb.push(kept as u8);
        for row in rows {
            let row = part(row);
            // What is not 0 first, then zeros to fill the slots; in the order of inputs.
            let mut order: Vec<usize> = (0..BLOCK).collect();
            order.sort_by_key(|at| row[*at] == 0);
            order.truncate(kept);
            order.sort_unstable();
            for at in order {
                let code = i32::from(row[at]);
                if code < -limit || code >= limit {
                    return Err(format!("code {code} does not fit {bits} bits"));
                }
                put(&mut packed.data, &mut data_at, code as u32, bits);
                if kept < BLOCK {
                    put(&mut packed.meta, &mut meta_at, at as u32, 4);
                }
            }
        }
    }
    for part in [&mut packed.data, &mut packed.meta, &mut packed.fsb] {
        part.resize(part.len().next_multiple_of(16), 0);
    }
    Ok(packed)
}

/// Calls `each(output, input, code)` for every code that is kept of `blocks` blocks.
///
/// # Errors
/// A block's N is none of 2, 4, 8 and 16, or a part ends early.
pub fn visit(
    (data, meta, fsb): (&[u8], &[u8], &[u8]),
    bits: usize,
    blocks: usize,
    mut each: impl FnMut(usize, usize, i32),
) -> Result<(), String> {
    if !matches!(bits, 3 | 4 | 8) {
        return Err(format!("codes have 8, 4 or 3 bits, not {bits}"));
    }
    let (mut data_at, mut meta_at) = (0, 0);
    for block in 0..blocks {
        let kept = *fsb
            .get(block)
            .ok_or("the numbers of kept weights end early")? as usize;
        if !matches!(kept, 2 | 4 | 8 | 16) {
            return Err(format!("block {block} keeps {kept} of 16"));
        }
        for output in 0..BLOCK {
            for slot in 0..kept {
                let code = take(data, data_at, bits).ok_or("the codes end early")?;
                data_at += bits;
                let code = (code << (32 - bits)) as i32 >> (32 - bits);
                let input = if kept == BLOCK {
                    slot
                } else {
                    meta_at += 4;
                    take(meta, meta_at - 4, 4).ok_or("the indices end early")? as usize
                };
                each(output, block * BLOCK + input, code);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let mut state = 1u32;
        let mut random = |n: u32| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) % n
        };
        for round in 0..60 {
            let bits = [8, 4, 3][round % 3];
            let blocks = 1 + round % 5;
            let keep = 1 + random(16);
            let rows: Vec<Vec<i8>> = (0..BLOCK)
                .map(|_| {
                    let code = |_| match random(16) < keep {
                        true => (random(1 << bits) as i32 - (1 << (bits - 1))) as i8,
                        false => 0,
                    };
                    (0..blocks * BLOCK).map(code).collect()
                })
                .collect();
            let packed = pack(&rows, bits).unwrap();
            let mut back = vec![vec![0i8; blocks * BLOCK]; BLOCK];
            let parts = (&packed.data[..], &packed.meta[..], &packed.fsb[..]);
            visit(parts, bits, blocks, |o, i, code| back[o][i] = code as i8).unwrap();
            assert_eq!(back, rows);
            let short = (&packed.data[..1], &packed.meta[..], &packed.fsb[..]);
            assert!(visit(short, bits, blocks, |_, _, _| {}).is_err());
        }
        assert!(
            pack(&vec![vec![8; 16]; 16], 4)
                .unwrap_err()
                .contains("does not fit")
        );
        assert!(pack(&vec![vec![0; 15]; 16], 4).is_err());
        assert!(visit((&[0; 64], &[0; 64], &[3]), 8, 1, |_, _, _| {}).is_err());
    }
}
