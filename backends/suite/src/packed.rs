//! Kernels for weights that stay packed, which are canonical as a whole: backends with entries of their own for them write those.

use super::*;
use lapidary_ir::kernel::packed::{Batch, Bits, Gemv, Halves, TwoOfFour, Weights};
use lapidary_ir::{ElemType, Tensor};

fn bytes(of: ElemType, numbers: Vec<f64>) -> Vec<u8> {
    let t = Tensor::from_f64(of, [numbers.len()], numbers);
    t.to_bytes().expect("numbers")
}

/// Numbers from -2 to 2 in steps that `f16` has.
fn numbers(rng: &mut Rng, n: u32) -> Vec<f64> {
    (0..n)
        .map(|_| rng.below(4097) as f64 / 1024.0 - 2.0)
        .collect()
}

/// Codes and scales of a matrix, in rows.
fn matrix(rng: &mut Rng, w: &Weights) -> (Vec<u8>, Vec<f32>) {
    let codes = (0..w.rows() * w.columns()).map(|_| rng.below(1 << w.bits().count()) as u8);
    let codes = codes.collect();
    let scales = (0..w.rows() * (w.columns() / w.group())).map(|_| rng.below(65) as f32 / 64.0);
    (codes, scales.collect())
}

/// Checks a product with `m` rows, which its kernel knows or is given.
fn judge(backend: &Backend, kernel: &Kernel, buffers: &[Vec<u8>], (m, known): (u32, bool)) {
    let sizes: &[i64] = if known { &[] } else { &[i64::from(m)] };
    check(backend, kernel, buffers, sizes, 1e-4);
}

/// A few vectors times packed weights, by a number of vectors that is known or given.
pub fn vectors_times_packed_weights(backend: &Backend) {
    let mut rng = Rng(31);
    for (rows, columns, bits, group) in [
        (37, 1152, Bits::Four, 128),
        (5, 96, Bits::Eight, 32),
        (9, 192, Bits::Four, 64),
    ] {
        for (batch, m, known) in [(1, 1, true), (3, 5, true), (4, 6, false)] {
            for wide in [false, true] {
                let weights = Weights::new("gemv", rows, columns, bits, group).expect("a matrix");
                let weights = weights.with_wide_scales(wide);
                let (codes, scales) = matrix(&mut rng, &weights);
                let buffers = [
                    weights.pack_codes(&codes).expect("codes"),
                    weights.pack_scales(&scales).expect("scales"),
                    bytes(ElemType::F32, numbers(&mut rng, m * columns)),
                    vec![0; (4 * m * rows) as usize],
                ];
                let gemv = Gemv::new(weights, batch, known.then_some(m)).expect("a kernel");
                judge(backend, &gemv.kernel(), &buffers, (m, known));
            }
        }
    }
}

/// Batches of halves times packed weights, by parts of their columns.
pub fn batches_times_packed_weights(backend: &Backend) {
    let mut rng = Rng(32);
    for (rows, columns, parts, m, known) in [
        (144, 256, 1, 5, true),
        (16, 640, 4, 18, true),
        (32, 256, 2, 66, false),
    ] {
        let weights = Weights::new("batch", rows, columns, Bits::Four, 128).expect("a matrix");
        let (codes, scales) = matrix(&mut rng, &weights);
        let batch = Batch::new(weights, parts, known.then_some(m)).expect("a kernel");
        let buffers = [
            batch.pack_codes(&codes).expect("codes"),
            batch.pack_scales(&scales).expect("scales"),
            bytes(ElemType::F16, numbers(&mut rng, m * columns)),
            vec![0; (4 * parts * m * rows) as usize],
        ];
        judge(backend, &batch.kernel(), &buffers, (m, known));
    }
}

/// Batches of halves times packed weights of which two of four are kept, by parts of their columns.
pub fn batches_times_two_of_four(backend: &Backend) {
    let mut rng = Rng(34);
    for (rows, columns, parts, m, known) in [
        (288, 256, 1, 5, true),
        (32, 640, 4, 18, true),
        (160, 256, 2, 66, false),
    ] {
        let weights =
            Weights::new("sparse_batch", rows, columns, Bits::Four, 128).expect("a matrix");
        let product = TwoOfFour::new(weights.clone(), parts, known.then_some(m)).expect("a kernel");
        let (codes, scales) = matrix(&mut rng, &weights);
        let pairs = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
        let places = (0..rows * columns / 4).flat_map(|_| pairs[rng.below(6) as usize]);
        let places: Vec<u8> = places.collect();
        let buffers = [
            product.pack_codes(&codes[..places.len()]).expect("codes"),
            product.pack_places(&places).expect("places"),
            product.pack_scales(&scales).expect("scales"),
            bytes(ElemType::F16, numbers(&mut rng, m * columns)),
            vec![0; (4 * parts * m * rows) as usize],
        ];
        judge(backend, &product.kernel(), &buffers, (m, known));
    }
}

/// Products of halves, by parts of their columns.
pub fn products_of_halves(backend: &Backend) {
    let mut rng = Rng(33);
    for (n, k, parts, m, known, elem) in [
        (136, 72, 1, 5, true, ElemType::F16),
        (16, 96, 3, 33, true, ElemType::BF16),
        (8, 64, 2, 130, false, ElemType::F16),
    ] {
        let halves = Halves {
            name: "halves".to_owned(),
            elem,
            m: known.then_some(m),
            n,
            k,
            parts,
        };
        let [a, b] = [m, n].map(|rows| bytes(elem, numbers(&mut rng, rows * k)));
        let buffers = [a, b, vec![0; (4 * parts * m * n) as usize]];
        judge(backend, &halves.kernel(), &buffers, (m, known));
    }
}
