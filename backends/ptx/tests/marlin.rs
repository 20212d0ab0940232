//! Batches times 4-bit weights on tensor cores in the PTX interpreter against sums of doubles, and by NVIDIA's assembler for
//! every GPU.

mod support;

use lapidary_ir::kernel::packed::{Batch, Bits, Weights};
use lapidary_ptx::GPUS;
use lapidary_ptx::packed::halves::sum;
use lapidary_ptx::packed::marlin;
use lapidary_ptx_interp::Wrong;
use lapidary_suite::Rng;
use support::entries::{f16_bits, f16_value, launch, try_launch};
use support::ptxas::{assemble, assemblers};

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
        let mut halves = |n: u32, low: i32| -> Vec<u16> {
            let one = |_| {
                let sign = (rng.below(2) as u16) << 15;
                f16_bits(rng.below(1024) as u16, rng.below(4) as i32 + low) | sign
            };
            (0..n).map(one).collect()
        };
        let scales = halves(rows * columns / 128, -8);
        let scales: Vec<f32> = scales.into_iter().map(|s| f16_value(s) as f32).collect();
        let x = halves(batch * columns, -2);
        let codes: Vec<u8> = (0..rows * columns).map(|_| rng.below(16) as u8).collect();
        let mut buffers = [
            spec.pack_codes(&codes).unwrap(),
            spec.pack_scales(&scales).unwrap(),
            x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            vec![0xFF; (4 * parts * batch * rows) as usize],
        ];
        launch(&marlin(&spec), spec.grid(batch), &mut buffers);
        let [.., c] = buffers;
        let (entry, blocks) = sum("sum", parts, batch * rows).unwrap();
        let mut buffers = [c, vec![0xFF; (4 * batch * rows) as usize]];
        launch(&entry, blocks, &mut buffers);
        let (rows, columns) = (rows as usize, columns as usize);
        for (i, got) in buffers[1].chunks_exact(4).enumerate() {
            let got = f64::from(f32::from_le_bytes(got.try_into().unwrap()));
            let (b, o) = (i / rows, i % rows);
            let terms = (0..columns).map(|k| {
                let q = f64::from(codes[o * columns + k]) - 8.0;
                let s = f64::from(scales[o * (columns / 128) + k / 128]);
                f16_value(x[b * columns + k]) * q * s
            });
            let (want, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + f64::abs(t)));
            // Codes are exact: no rounding but that of sums of single precision.
            assert!(
                (got - want).abs() <= 2e-6 * size,
                "{batch} x {rows} x {columns} in {parts}, element {i}: {got}, expected {want}"
            );
        }
    }
}

/// The checks find what they are for.
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
    assert!(try_launch(&entry, &entry.text, blocks, &mut buffers).is_ok());
    for (of, with, wrong) in [
        ("    bar.sync 0;\n", "", Wrong::Race),
        ("wait_group 2;", "wait_group 3;", Wrong::PendingCopy),
        ("pieces[49152]", "pieces[49136]", Wrong::OutOfBounds),
    ] {
        let text = entry.text.replace(of, with);
        assert_ne!(text, entry.text);
        let fault = try_launch(&entry, &text, blocks, &mut buffers).unwrap_err();
        assert_eq!(fault.wrong, wrong, "{fault}");
    }
}

#[test]
fn batches_assemble_without_spills() {
    for ptxas in assemblers() {
        for (batch, rows, columns, parts) in [
            (Some(16), 4096, 4096, 4),
            (Some(32), 11008, 4096, 1),
            (Some(64), 4096, 4096, 4),
            (None, 4096, 11008, 1),
        ] {
            let w = weights(rows, columns);
            let entry = marlin(&Batch::new(w, parts, batch).unwrap());
            for gpu in GPUS {
                let text = lapidary_ptx::header(gpu) + &entry.text;
                let used = assemble(&ptxas, gpu, &text)["marlin"];
                println!("{} batch {batch:?}: {used} registers", gpu.name());
                assert!(used <= 128);
            }
        }
    }
}
