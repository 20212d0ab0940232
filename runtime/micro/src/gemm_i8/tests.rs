use super::*;
use crate::test_support::*;
use lapidary_abi::kernel::{Import, MAX_ROWS_I8, MAX_ROWS_INIT_I8, RESULT_F32};

#[derive(Clone, Copy, Debug)]
struct Case {
    /// Columns of the panel.
    width: usize,
    /// Stages, and then a table.
    stages: usize,
    rows: usize,
    cols: usize,
    k: usize,
    taps: usize,
    result: u32,
    pitch: usize,
    extremes: bool,
    /// Sums are given.
    given: bool,
}

fn check(case: Case, address: *const core::ffi::c_void, random: &mut Random) -> Result<(), String> {
    let Case {
        width,
        stages,
        rows,
        cols,
        k,
        taps,
        result,
        pitch,
        extremes,
        given,
    } = case;
    // SAFETY: the table holds a function of this type at `Import::GemmI8`.
    let kernel: unsafe extern "C" fn(*const GemmI8) = unsafe { core::mem::transmute(address) };
    let (lines, line) = (k.div_ceil(4), width * 4);
    let init_stride = rows + 3;
    let init: Vec<i32> = (0..cols.next_multiple_of(PANEL_I8) * init_stride + rows)
        .map(|_| random.int(-99_999, 99_999) as i32)
        .collect();
    let a: Vec<u8> = (0..taps * rows * pitch + 1)
        .map(|_| {
            if extremes {
                255
            } else {
                random.int(0, 255) as u8
            }
        })
        .collect();
    let panel = Aligned::new(taps * lines * line, |i| {
        let q = i / line % lines.max(1) * 4 + i % 4;
        match () {
            _ if q >= k => 0,
            _ if extremes => [-128i8, 127][i / 4 % 2],
            _ => random.int(-128, 127) as i8,
        }
    });
    let c_stride = cols + 2;
    let size = if result == RESULT_CODE { 1 } else { 4 };
    let before: Vec<u8> = (0..rows * c_stride * size)
        .map(|_| random.next() as u8)
        .collect();
    let mut c = before.clone();
    let addresses: Vec<*const u8> = (0..taps * rows)
        .rev()
        .map(|i| a[i * pitch..].as_ptr())
        .collect();
    let sums: Vec<i32> = (0..cols).map(|_| random.int(-999, 999) as i32).collect();
    let scale: Vec<f32> = (0..cols).map(|j| 0.001 * (j + 1) as f32).collect();
    let bias: Vec<f32> = (0..cols).map(|j| j as f32 - 9.5).collect();
    let with_bias = k % 2 == 0;
    let (lo, hi) = (-120.0f32, 100.5f32);
    let row: Vec<f32> = (0..cols).map(|j| 3.5 - 0.3 * j as f32).collect();
    let residual: Vec<u8> = (0..rows * (cols + 5))
        .map(|_| random.int(0, 255) as u8)
        .collect();
    let table: Vec<u8> = (0..256).map(|i| (i * 167 + 13) as u8).collect();
    // The first adds a row only, the second a tile too.
    let stage = |i: usize| StageI8 {
        row: row.as_ptr(),
        residual: if i == 1 {
            residual.as_ptr()
        } else {
            core::ptr::null()
        },
        residual_stride: cols + 5,
        factor: [0.75, 1.5][i],
        residual_factor: 0.37,
        lo: -100.0,
        hi: [90.0, 120.0][i],
    };
    let block = GemmI8 {
        init: if given {
            init.as_ptr()
        } else {
            core::ptr::null()
        },
        init_stride,
        a: addresses.as_ptr(),
        b: panel.as_ptr(),
        c: c.as_mut_ptr().cast(),
        sums: sums.as_ptr(),
        scale: scale.as_ptr(),
        bias: if with_bias {
            bias.as_ptr()
        } else {
            core::ptr::null()
        },
        c_stride,
        k,
        taps,
        rows: rows as u32,
        cols: cols as u32,
        a_zero: taps as i32 - 1,
        zero: 3,
        lo,
        hi,
        result,
        width: width as u32,
        table: if stages > 0 {
            table.as_ptr()
        } else {
            core::ptr::null()
        },
        stage_count: stages as u32,
        stages: [stage(0), stage(1)],
    };
    // SAFETY: the block describes the buffers above.
    unsafe { kernel(&block) };
    for r in 0..rows {
        for j in 0..c_stride {
            let at = (r * c_stride + j) * size;
            let mut want = before[at..at + size].to_vec();
            if j < cols {
                let mut sum = if given { init[j * init_stride + r] } else { 0 };
                for t in 0..if given { 0 } else { taps } {
                    let row = &a[(taps * rows - 1 - (t * rows + r)) * pitch..];
                    for q in 0..k {
                        let w = panel[(t * lines + q / 4) * line + j * 4 + q % 4];
                        sum = sum.wrapping_add(row[q] as i32 * w as i32);
                    }
                }
                sum -= (taps as i32 - 1) * sums[j];
                let scaled = sum as f32 * scale[j];
                let x = if with_bias { scaled + bias[j] } else { scaled };
                let mut x = x.clamp(lo, hi);
                if result == RESULT_CODE {
                    for i in 0..stages {
                        x = x.round_ties_even() * [0.75, 1.5][i] + row[j];
                        if i == 1 {
                            x += f32::from(residual[r * (cols + 5) + j]) * 0.37;
                        }
                        x = x.clamp(-100.0, [90.0, 120.0][i]);
                    }
                }
                let code = (x.round_ties_even() as i32 + 3) as u8;
                want = match result {
                    RESULT_I32 => sum.to_le_bytes().to_vec(),
                    RESULT_CODE if stages > 0 => vec![table[usize::from(code)]],
                    RESULT_CODE => vec![code],
                    _ => x.to_le_bytes().to_vec(),
                };
            }
            if c[at..at + size] != want {
                return Err(format!(
                    "{case:?}: at {r},{j} found {:?} expected {want:?}",
                    &c[at..at + size]
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn every_shape_equals_the_reference() {
    for_each_level(Import::GemmI8 as usize, |level, address| {
        let mut random = Random(5);
        for rows in 1..=MAX_ROWS_I8 {
            for cols in [1usize, 7, 8, 9, 15, 16, 17, 31, 32, 47, 70] {
                for k in [0, 1, 2, 3, 4, 5, 16, 23, 40] {
                    for taps in [1, 2, 9] {
                        for (result, extremes, stages) in [
                            (RESULT_I32, false, 0),
                            (RESULT_F32, false, 0),
                            (RESULT_CODE, false, 0),
                            (RESULT_CODE, false, 1),
                            (RESULT_CODE, false, 2),
                            (RESULT_CODE, true, 0),
                            (RESULT_I32, true, 0),
                        ] {
                            let case = Case {
                                width: cols.next_multiple_of(32),
                                stages,
                                rows,
                                cols,
                                k,
                                taps,
                                result,
                                pitch: k + 1,
                                extremes,
                                given: false,
                            };
                            check(case, address, &mut random)
                                .unwrap_or_else(|e| panic!("{level:?}: {e}"));
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn sums_that_are_given_equal_the_reference() {
    for_each_level(Import::GemmI8 as usize, |level, address| {
        let mut random = Random(7);
        for rows in 1..=MAX_ROWS_INIT_I8 {
            for cols in [1usize, 8, 15, 32, 33, 70] {
                for (result, stages) in [
                    (RESULT_I32, 0),
                    (RESULT_F32, 0),
                    (RESULT_CODE, 0),
                    (RESULT_CODE, 2),
                ] {
                    for taps in [1, 2] {
                        let case = Case {
                            width: cols.next_multiple_of(32),
                            stages,
                            rows,
                            cols,
                            k: 4,
                            taps,
                            result,
                            pitch: 5,
                            extremes: false,
                            given: true,
                        };
                        check(case, address, &mut random)
                            .unwrap_or_else(|e| panic!("{level:?}: {e}"));
                    }
                }
            }
        }
    });
}

#[test]
fn long_and_colliding_rows_equal_the_reference() {
    for_each_level(Import::GemmI8 as usize, |level, address| {
        let mut random = Random(6);
        for (k, pitch) in [(1030, 4096), (1024, 4096), (131, 4096), (513, 513)] {
            for rows in [9, 14] {
                let case = Case {
                    width: 64,
                    stages: 0,
                    rows,
                    cols: 60,
                    k,
                    taps: 2,
                    result: RESULT_I32,
                    pitch,
                    extremes: false,
                    given: false,
                };
                check(case, address, &mut random).unwrap_or_else(|e| panic!("{level:?}: {e}"));
            }
        }
    });
}

/// A row that ends where readable memory ends: reading past `k` would fault.
#[cfg(target_os = "linux")]
#[test]
fn rows_are_not_read_past_k() {
    const PAGE: usize = 65536;
    // SAFETY: a fresh private mapping whose second half is made inaccessible.
    let base = unsafe {
        let p = libc::mmap(
            core::ptr::null_mut(),
            2 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(p, libc::MAP_FAILED);
        assert_eq!(
            libc::mprotect(p.cast::<u8>().add(PAGE).cast(), PAGE, libc::PROT_NONE),
            0
        );
        p.cast::<u8>()
    };
    for_each_level(Import::GemmI8 as usize, |level, address| {
        // SAFETY: the table holds a function of this type at `Import::GemmI8`.
        let kernel: unsafe extern "C" fn(*const GemmI8) = unsafe { core::mem::transmute(address) };
        for k in [1usize, 2, 3, 5, 7, 66, 513] {
            let panel = Aligned::new(k.div_ceil(4) * PANEL_I8 * 4, |_| 1i8);
            // SAFETY: inside the readable half.
            let row = unsafe { base.add(PAGE - k) };
            // SAFETY: `k` bytes are writable there; the block describes the buffers.
            unsafe {
                core::ptr::write_bytes(row, 3, k);
                for rows in [1usize, 14] {
                    let addresses = vec![row.cast_const(); rows];
                    let mut c = vec![0i32; 14 * 32];
                    kernel(&GemmI8 {
                        init: core::ptr::null(),
                        init_stride: 0,
                        a: addresses.as_ptr(),
                        b: panel.as_ptr(),
                        c: c.as_mut_ptr().cast(),
                        sums: core::ptr::null(),
                        scale: core::ptr::null(),
                        bias: core::ptr::null(),
                        c_stride: 32,
                        k,
                        taps: 1,
                        rows: rows as u32,
                        cols: 32,
                        a_zero: 0,
                        zero: 0,
                        lo: f32::NEG_INFINITY,
                        hi: f32::INFINITY,
                        result: RESULT_I32,
                        width: 32,
                        table: core::ptr::null(),
                        stage_count: 0,
                        stages: [StageI8::NONE; 2],
                    });
                    assert!(
                        c[..rows * 32].iter().all(|&x| x == 3 * k as i32),
                        "{level:?} k {k}"
                    );
                }
            }
        }
    });
    // SAFETY: the mapping from above, not used any more.
    unsafe { libc::munmap(base.cast(), 2 * PAGE) };
}
