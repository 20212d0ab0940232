//! Products with packed weights in the PTX interpreter against sums of doubles, and by NVIDIA's assembler for every GPU.

mod support;

use lapidary_ir::kernel::packed::{Bits, Gemv, MOST_BATCH, Weights};
use lapidary_ptx::GPUS;
use lapidary_ptx::packed::gemv;
use lapidary_suite::Rng;
use support::entries::{f16_bits, f16_value, launch};
use support::ptxas::{assemble, assemblers};

/// Random codes and scales.
struct Sample {
    codes: Vec<u8>,
    scales: Vec<f32>,
    x: Vec<f32>,
}

fn sample(rng: &mut Rng, rows: u32, columns: u32, bits: Bits, group: u32, batch: u32) -> Sample {
    let mut below = |n: u64| rng.below(n);
    Sample {
        codes: (0..rows * columns)
            .map(|_| below(1 << bits.count()) as u8)
            .collect(),
        scales: (0..rows * columns / group)
            .map(|_| f16_value(f16_bits(below(1024) as u16, below(6) as i32 - 8)) as f32)
            .collect(),
        x: (0..batch * columns)
            .map(|_| below(4001) as f32 / 1000.0 - 2.0)
            .collect(),
    }
}

/// `y[b, o]`, and the sum of the products' magnitudes.
fn expected(s: &Sample, [rows, columns]: [u32; 2], bits: Bits, group: u32) -> Vec<(f64, f64)> {
    let (columns, group) = (columns as usize, group as usize);
    let groups = columns / group;
    let mut all = vec![];
    for x in s.x.chunks_exact(columns) {
        for o in 0..rows as usize {
            let terms = x.iter().enumerate().map(|(i, &x)| {
                let q = f64::from(s.codes[o * columns + i]) - f64::from(bits.zero());
                f64::from(x) * q * f64::from(s.scales[o * groups + i / group])
            });
            let of: Vec<f64> = terms.collect();
            all.push((of.iter().sum(), of.iter().map(|t| t.abs()).sum()));
        }
    }
    all
}

/// Shapes: whole runs and ragged ones, rows that are not a multiple of a block's, warps that share columns or do not, more
/// warps than runs.
const SHAPES: &[(u32, u32, u32)] = &[
    (33, 1024, 128),
    (5, 4096, 128),
    (37, 1152, 128),
    (7, 96, 32),
    (70, 192, 64),
    (3, 2336, 32),
    (8193, 32, 32),
];

#[test]
fn a_few_rows_times_packed_weights() {
    let mut rng = Rng(7);
    for bits in [Bits::Four, Bits::Eight] {
        for &(rows, columns, group) in SHAPES {
            let most = if rows > 1000 { 1 } else { MOST_BATCH };
            for batch in 1..=most {
                let weights = Weights::new("packed", rows, columns, bits, group).unwrap();
                let s = sample(&mut rng, rows, columns, bits, group, batch);
                let spec = Gemv::new(weights.clone(), batch, Some(batch)).unwrap();
                let mut buffers = [
                    weights.pack_codes(&s.codes).unwrap(),
                    weights.pack_scales(&s.scales).unwrap(),
                    s.x.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    vec![0xFF; (4 * batch * rows) as usize],
                ];
                assert_eq!(buffers[0].len() as u64, weights.code_bytes());
                assert_eq!(buffers[1].len() as u64, weights.scale_bytes());
                launch(&gemv(&spec), spec.grid(batch), &mut buffers);
                let want = expected(&s, [rows, columns], bits, group);
                let got = buffers[3].chunks_exact(4);
                assert_eq!(got.len(), want.len());
                for (i, (got, (want, size))) in got.zip(want).enumerate() {
                    let got = f64::from(f32::from_le_bytes(got.try_into().unwrap()));
                    // No rounding but that of sums of single precision.
                    assert!(
                        (got - want).abs() <= 2e-6 * size,
                        "{bits:?} {rows} x {columns}, group {group}, batch {batch}, element {i}: {got}, expected {want}"
                    );
                }
            }
        }
    }
}

/// What every shape of entries uses at most: two blocks of 256 threads are on a multiprocessor with 128 registers.
#[test]
fn packed_products_assemble_without_spills() {
    let whole = (1..=MOST_BATCH).flat_map(|b| [(b, Some(b), false), (b, Some(b), true)]);
    let shapes: Vec<_> = whole
        .chain([(MOST_BATCH, None, false), (MOST_BATCH, None, true)])
        .collect();
    for ptxas in assemblers() {
        for bits in [Bits::Four, Bits::Eight] {
            for (rows, columns, group) in [(4096, 4096, 128), (11008, 4096, 32), (37, 1184, 32)] {
                for &(batch, m, wide) in &shapes {
                    let weights = Weights::new("packed", rows, columns, bits, group).unwrap();
                    let weights = weights.with_wide_scales(wide);
                    let entry = gemv(&Gemv::new(weights, batch, m).unwrap());
                    for gpu in GPUS {
                        let text = lapidary_ptx::header(gpu) + &entry.text;
                        let used = assemble(&ptxas, gpu, &text)["packed"];
                        println!(
                            "{} {bits:?} {rows} x {columns}, batch {batch}: {used} registers",
                            gpu.name()
                        );
                        assert!(used <= 128, "{} registers", used);
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_no_packed_matrix_is_refused() {
    for (rows, columns, group) in [
        (4, 128, 48),
        (4, 100, 32),
        (0, 128, 32),
        (4, 0, 32),
        (1 << 20, 1 << 15, 128),
    ] {
        assert!(Weights::new("w", rows, columns, Bits::Four, group).is_err());
    }
    let weights = Weights::new("w", 2, 64, Bits::Four, 32).unwrap();
    assert!(weights.pack_codes(&[0; 127]).is_err());
    assert!(weights.pack_codes(&[16; 128]).is_err());
    assert!(weights.pack_scales(&[0.0; 3]).is_err());
    assert!(weights.pack_scales(&[0.1; 4]).is_err());
    assert!(
        weights
            .with_wide_scales(true)
            .pack_scales(&[0.1; 4])
            .is_ok()
    );
}
