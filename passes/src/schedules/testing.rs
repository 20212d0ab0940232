//! Running a kernel in the interpreter on f32 buffers.

use lapidary_ir::kernel::{Kernel, interp, verify};

/// Deterministic values between -1 and 1.
pub fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Runs the whole grid; the last buffer is the result, of this length.
pub fn run(kernel: &Kernel, inputs: &[&[f32]], result_len: usize, sizes: &[i64]) -> Vec<f32> {
    verify::verify(kernel).expect("the schedule writes valid kernels");
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut buffers: Vec<Vec<u8>> = inputs.iter().map(|v| bytes(v)).collect();
    buffers.push(bytes(&vec![f32::NAN; result_len]));
    let blocks = interp::grid(kernel, sizes)
        .expect("sizes are given")
        .iter()
        .product();
    let mut views: Vec<&mut [u8]> = buffers.iter_mut().map(|b| b.as_mut_slice()).collect();
    interp::run(kernel, &mut views, sizes, 0, blocks).expect("in bounds");
    buffers
        .pop()
        .expect("pushed")
        .chunks_exact(4)
        .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
        .collect()
}

/// Panics unless the two are equal within rounding of a sum.
pub fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= 1e-4 * (1.0 + w.abs()),
            "element {i}: {g} instead of {w}"
        );
    }
}
