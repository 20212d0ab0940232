//! Products on tensor cores in the PTX interpreter against sums of doubles, and by NVIDIA's assembler for every GPU.

mod support;

use lapidary_ir::ElemType;
use lapidary_ir::kernel::packed::Halves;
use lapidary_ptx::packed::halves::{halves, sum};
use lapidary_ptx_interp::Wrong;
use lapidary_suite::Rng;
use support::entries::{check_faults, check_registers, check_sums, f16_bits, f16_value, launch};

fn product(elem: ElemType, [m, n, k]: [u32; 3], parts: u32) -> Halves {
    Halves {
        name: "product".to_owned(),
        elem,
        m: Some(m),
        n,
        k,
        parts,
    }
}

/// Numbers of 16 bits, and what they are.
fn numbers(rng: &mut Rng, elem: ElemType, len: u32) -> (Vec<u8>, Vec<f64>) {
    let one = |_| {
        let sign = (rng.below(2) as u16) << 15;
        match elem {
            ElemType::F16 => {
                let bits = f16_bits(rng.below(1024) as u16, rng.below(4) as i32 - 3) | sign;
                (bits, f16_value(bits))
            }
            _ => {
                let bits = (127 - rng.below(4) as u16) << 7 | rng.below(128) as u16 | sign;
                (bits, f64::from(f32::from_bits(u32::from(bits) << 16)))
            }
        }
    };
    let (bits, values): (Vec<u16>, Vec<f64>) = (0..len).map(one).unzip();
    (bits.iter().flat_map(|b| b.to_le_bytes()).collect(), values)
}

#[test]
fn halves_are_multiplied_by_tensor_cores() {
    let mut rng = Rng(11);
    for (half, [m, n, k], parts) in [
        (ElemType::F16, [128, 128, 32], 1),
        (ElemType::F16, [200, 136, 72], 1),
        (ElemType::BF16, [129, 264, 128], 1),
        (ElemType::BF16, [50, 128, 96], 1),
        (ElemType::F16, [1, 8, 8], 1),
        (ElemType::F16, [16, 128, 512], 4),
        (ElemType::BF16, [33, 136, 360], 5),
        // Nine tiles of rows: more than a band.
        (ElemType::F16, [1030, 256, 32], 1),
    ] {
        let p = product(half, [m, n, k], parts);
        let (a, a_values) = numbers(&mut rng, half, m * k);
        let (b, b_values) = numbers(&mut rng, half, n * k);
        let mut buffers = [a, b, vec![0xFF; (4 * parts * m * n) as usize]];
        let done = launch(&halves(&p), p.grid(m), &mut buffers);
        assert!(done.matrix_products > 0);
        let [.., c] = buffers;
        let (n, k) = (n as usize, k as usize);
        check_sums(&format!("{p:?}"), (c, parts, m * n as u32), |i| {
            let (left, right) = (&a_values[i / n * k..], &b_values[i % n * k..]);
            (0..k).map(|t| left[t] * right[t])
        });
    }
}

#[test]
fn without_waiting_there_are_faults() {
    let p = product(ElemType::F16, [128, 128, 160], 1);
    let (entry, blocks) = (halves(&p), p.grid(128));
    let mut buffers = [
        vec![0; 2 * 128 * 160],
        vec![0; 2 * 128 * 160],
        vec![0; 4 * 128 * 128],
    ];
    let changes = [
        ("    bar.sync 0;\n", "", Wrong::Race),
        ("wait_group 1;", "wait_group 2;", Wrong::PendingCopy),
        ("pieces[49152]", "pieces[49136]", Wrong::OutOfBounds),
    ];
    check_faults(&entry, blocks, &mut buffers, &changes);
}

#[test]
fn halves_assemble_without_spills() {
    for half in [ElemType::F16, ElemType::BF16] {
        for (shape, parts) in [
            ([8192, 8192, 8192], 1),
            ([16, 4096, 4096], 8),
            ([64, 4096, 4096], 4),
            ([200, 136, 72], 1),
        ] {
            let entry = halves(&product(half, shape, parts));
            check_registers(&format!("{half:?} {shape:?}"), &entry);
        }
    }
    check_registers("sums", &sum("sum", 8, 65536).unwrap().0);
}

#[test]
fn what_is_no_sum_is_refused() {
    assert!(sum("sum", 0, 8).is_err());
    assert!(sum("sum", 1 << 20, 1 << 20).is_err());
}
