//! Batches times 4-bit weights on tensor cores in the PTX interpreter against sums of doubles, and by NVIDIA's assembler for
//! every GPU.

mod support;

use lapidary_ir::kernel::packed::{Batch, Bits, Weights};
use lapidary_ptx::packed::marlin;
use lapidary_ptx_interp::Wrong;
use lapidary_suite::Rng;
use support::entries::{check_faults, check_registers, check_sums, f16_value, halves, launch};

fn weights(rows: u32, columns: u32) -> Weights {
    Weights::new("marlin", rows, columns, Bits::Four, 128).unwrap()
}

#[test]
fn batches_times_packed_weights() {
    let mut rng = Rng(5);
    for (batch, rows, columns, parts) in [
        (1, 128, 128, 1),
        (16, 144, 384, 1),
        (17, 32, 1024, 1),
        (33, 272, 256, 2),
        (64, 128, 640, 3),
        (65, 16, 256, 1),
        // The last part has none of the groups.
        (5, 16, 640, 4),
        (130, 128, 128, 1),
    ] {
        let w = weights(rows, columns);
        let spec = Batch::new(w, parts, Some(batch)).unwrap();
        let scales = halves(&mut rng, rows * columns / 128, -8);
        let scales: Vec<f32> = scales.into_iter().map(|s| f16_value(s) as f32).collect();
        let x = halves(&mut rng, batch * columns, -2);
        let codes: Vec<u8> = (0..rows * columns).map(|_| rng.below(16) as u8).collect();
        let mut buffers = [
            spec.pack_codes(&codes).unwrap(),
            spec.pack_scales(&scales).unwrap(),
            x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            vec![0xFF; (4 * parts * batch * rows) as usize],
        ];
        launch(&marlin(&spec), spec.grid(batch), &mut buffers);
        let [.., c] = buffers;
        let what = format!("{batch} x {rows} x {columns} in {parts}");
        let (height, width) = (rows as usize, columns as usize);
        check_sums(&what, (c, parts, batch * rows), |i| {
            let (b, o) = (i / height, i % height);
            let (codes, scales, x) = (&codes, &scales, &x);
            (0..width).map(move |k| {
                let q = f64::from(codes[o * width + k]) - 8.0;
                let s = f64::from(scales[o * (width / 128) + k / 128]);
                f16_value(x[b * width + k]) * q * s
            })
        });
    }
}

#[test]
fn without_waiting_there_are_faults() {
    let w = weights(128, 1024);
    let spec = Batch::new(w, 1, Some(64)).unwrap();
    let (entry, blocks) = (marlin(&spec), spec.grid(64));
    let mut buffers = [
        vec![0; 128 * 512],
        vec![0; 128 * 8 * 2],
        vec![0; 2 * 64 * 1024],
        vec![0; 4 * 64 * 128],
    ];
    let changes = [
        ("    bar.sync 0;\n", "", Wrong::Race),
        ("wait_group 2;", "wait_group 3;", Wrong::PendingCopy),
        ("pieces[49152]", "pieces[49136]", Wrong::OutOfBounds),
    ];
    check_faults(&entry, blocks, &mut buffers, &changes);
}

#[test]
fn batches_assemble_without_spills() {
    for (batch, rows, columns, parts) in [
        (Some(16), 4096, 4096, 4),
        (Some(32), 11008, 4096, 1),
        (Some(64), 4096, 4096, 4),
        (None, 4096, 11008, 1),
    ] {
        let entry = marlin(&Batch::new(weights(rows, columns), parts, batch).unwrap());
        check_registers(&format!("batch {batch:?}"), &entry);
    }
}
