use super::*;
use crate::test_support::*;
use lapidary_abi::kernel::{Import, MAX_ROWS_BLOCKS};

struct Case {
    bits: u32,
    block: usize,
    blocks: usize,
    rows: usize,
    cols: usize,
    halves: bool,
    zeros: u32,
    bias: bool,
    extremes: bool,
}

/// What a case multiplies, with the definition beside the stored bytes.
struct Operands {
    a: Vec<u8>,
    w: Vec<u8>,
    bias: Vec<f32>,
    /// Expected results and the sum of the absolute values that make them.
    want: Vec<(f64, f64)>,
}

fn operands(case: &Case, random: &mut Random) -> Operands {
    let Case {
        bits,
        block,
        blocks,
        rows,
        ..
    } = *case;
    let k = block * blocks;
    let top = (1i64 << bits) - 1;
    let codes: Vec<i64> = (0..k * PANEL_BLOCKS)
        .map(|i| {
            if case.extremes {
                top * (i as i64 % 2)
            } else {
                random.int(0, top)
            }
        })
        .collect();
    let acts: Vec<i64> = (0..k * rows)
        .map(|_| {
            if case.extremes {
                -128
            } else {
                random.int(-128, 127)
            }
        })
        .collect();
    let zeros: Vec<i64> = (0..blocks * PANEL_BLOCKS)
        .map(|_| random.int(0, top))
        .collect();
    let zero = |b: usize, j: usize| match case.zeros {
        ZEROS_CODES => zeros[b * PANEL_BLOCKS + j],
        ZEROS_MINIMUMS => 0,
        _ => 1 << (bits - 1),
    };
    let scales: Vec<f32> = (0..blocks * PANEL_BLOCKS)
        .map(|_| f16::from_f32(random.int(-400, 400) as f32 / 256.0).to_f32())
        .collect();
    let minimums: Vec<f32> = (0..blocks * PANEL_BLOCKS)
        .map(|_| match case.zeros {
            ZEROS_MINIMUMS => random.int(-300, 300) as f32 / 128.0,
            _ => 0.0,
        })
        .collect();
    let act_scales: Vec<f32> = (0..blocks * rows)
        .map(|_| random.int(1, 100) as f32 / 50.0)
        .collect();
    let bias: Vec<f32> = (0..case.cols).map(|_| random.int(-50, 50) as f32).collect();
    let mut a = vec![];
    for r in 0..rows {
        for b in 0..blocks {
            let own = &acts[r * k + b * block..][..block];
            let factor = match case.zeros {
                ZEROS_CODES => -1,
                ZEROS_MINIMUMS => 1,
                _ => -(1 << (bits - 1)),
            };
            a.extend((factor * own.iter().sum::<i64>() as i32).to_le_bytes());
            a.extend(own.iter().map(|&x| x as u8));
            a.extend(act_scales[r * blocks + b].to_le_bytes());
        }
    }
    let mut w = vec![];
    for b in 0..blocks {
        let mut numbers = |all: &[f32]| {
            for &number in &all[b * PANEL_BLOCKS..][..PANEL_BLOCKS] {
                match case.halves {
                    true => w.extend(f16::from_f32(number).to_le_bytes()),
                    false => w.extend(number.to_le_bytes()),
                }
            }
        };
        numbers(&scales);
        if case.zeros == ZEROS_MINIMUMS {
            numbers(&minimums);
        }
        if case.zeros == ZEROS_CODES {
            w.extend((0..PANEL_BLOCKS).map(|j| zero(b, j) as u8));
        }
        let unit = code_unit(bits) as usize;
        for k0 in (b * block..(b + 1) * block).step_by(unit) {
            let (low, high) = code_parts(bits);
            for (width, from) in [(low, 0), (high, low)].into_iter().filter(|p| p.0 > 0) {
                for line in (k0..k0 + unit).step_by(32 / width as usize) {
                    for (j, i) in (0..PANEL_BLOCKS).flat_map(|j| (0..4).map(move |i| (j, i))) {
                        let field = |p: u32| {
                            let at = line + 4 * p as usize + i;
                            let code = codes[at * PANEL_BLOCKS + j] as u8 >> from;
                            (code & low_bits(width as usize)) << (p * width)
                        };
                        w.push((0..8 / width).fold(0, |byte, p| byte | field(p)));
                    }
                }
            }
        }
    }
    let element = |r: usize, j: usize| {
        let (mut want, mut size) = (0f64, 0f64);
        for b in 0..blocks {
            let sum: i64 = (b * block..(b + 1) * block)
                .map(|k_at| (codes[k_at * PANEL_BLOCKS + j] - zero(b, j)) * acts[r * k + k_at])
                .sum();
            let scale = f64::from(scales[b * PANEL_BLOCKS + j]);
            let total: i64 = acts[r * k + b * block..][..block].iter().sum();
            let minimum = f64::from(minimums[b * PANEL_BLOCKS + j]);
            for term in [sum as f64 * scale, total as f64 * minimum] {
                let term = term * f64::from(act_scales[r * blocks + b]);
                want += term;
                size += term.abs();
            }
        }
        if case.bias {
            want += f64::from(bias[j]);
            size += f64::from(bias[j].abs());
        }
        (want.clamp(-3000.0, 3000.0), size)
    };
    let want = (0..rows)
        .flat_map(|r| (0..case.cols).map(move |j| (r, j)))
        .map(|(r, j)| element(r, j))
        .collect();
    Operands { a, w, bias, want }
}

fn run(kernel: unsafe extern "C" fn(*const GemmBlocks), case: &Case, o: &Operands) -> Vec<f32> {
    let pitch = case.cols + 3;
    let mut c = vec![f32::NAN; case.rows * pitch];
    let block = GemmBlocks {
        a: o.a.as_ptr(),
        w: o.w.as_ptr(),
        c: c.as_mut_ptr(),
        bias: if case.bias {
            o.bias.as_ptr()
        } else {
            core::ptr::null()
        },
        a_stride: o.a.len() / case.rows,
        c_stride: pitch,
        block: case.block,
        blocks: case.blocks,
        rows: case.rows as u32,
        cols: case.cols as u32,
        bits: case.bits,
        scale_bytes: if case.halves { 2 } else { 4 },
        zeros: case.zeros,
        lo: -3000.0,
        hi: 3000.0,
    };
    // SAFETY: the block describes the buffers above.
    unsafe { kernel(&block) };
    for row in c.chunks(pitch) {
        assert!(
            row[case.cols..].iter().all(|x| x.is_nan()),
            "wrote past the columns"
        );
    }
    c.chunks(pitch)
        .flat_map(|row| row[..case.cols].to_vec())
        .collect()
}

#[test]
fn every_form_equals_the_definition() {
    let mut random = Random(3);
    for bits in CODE_WIDTHS {
        let unit = code_unit(bits) as usize;
        let blocks = [16, 32, 48, 64, 96, 128, 272];
        for block in blocks.into_iter().filter(|b| b % unit == 0) {
            for rows in 1..=MAX_ROWS_BLOCKS {
                let case = Case {
                    bits,
                    block,
                    blocks: 1 + (rows + block / 16) % 4,
                    rows,
                    cols: [16, 16, 1, 7, 9, 15][(rows + block / 16) % 6],
                    halves: random.int(0, 1) == 1,
                    zeros: random.int(0, 2) as u32,
                    bias: random.int(0, 1) == 1,
                    extremes: random.int(0, 3) == 0,
                };
                let o = operands(&case, &mut random);
                for_each_level(Import::GemmBlocks as usize, |level, address| {
                    // SAFETY: the table holds a function of this type at `Import::GemmBlocks`.
                    let kernel: unsafe extern "C" fn(*const GemmBlocks) =
                        unsafe { core::mem::transmute(address) };
                    for (i, (got, (want, size))) in
                        run(kernel, &case, &o).into_iter().zip(&o.want).enumerate()
                    {
                        assert!(
                            (f64::from(got) - want).abs() <= 6e-7 * size,
                            "{level:?}: {bits} bits, block {block}, {rows} rows, element {i}: {got}, not {want}"
                        );
                    }
                });
            }
        }
    }
}
