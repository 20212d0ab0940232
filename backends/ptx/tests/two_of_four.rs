//! Batches times 4-bit weights of which two of four are kept, in the PTX interpreter against sums of doubles, and by NVIDIA's
//! assembler for every GPU.

mod support;

use lapidary_ir::kernel::packed::{Bits, TwoOfFour, Weights};
use lapidary_ptx::GPUS;
use lapidary_ptx::packed::halves::sum;
use lapidary_ptx::packed::two_of_four;
use lapidary_ptx_interp::Wrong;
use lapidary_suite::Rng;
use support::entries::{f16_bits, f16_value, launch, try_launch};
use support::ptxas::{assemble, assemblers};

const PAIRS: [[u8; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];

fn product(rows: u32, columns: u32, parts: u32, batch: Option<u32>) -> TwoOfFour {
    let w = Weights::new("two_of_four", rows, columns, Bits::Four, 128).unwrap();
    TwoOfFour::new(w, parts, batch).unwrap()
}

#[test]
fn batches_times_what_is_kept() {
    let mut rng = Rng(5);
    for (batch, rows, columns, parts) in [
        (1, 256, 128, 1),
        (16, 288, 384, 1),
        (17, 32, 1024, 1),
        (33, 160, 256, 2),
        (64, 128, 640, 3),
        (65, 32, 256, 1),
        // The last part has none of the groups.
        (5, 32, 640, 4),
        (130, 64, 128, 1),
    ] {
        let spec = product(rows, columns, parts, Some(batch));
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
        let kept = rows * columns / 2;
        let codes: Vec<u8> = (0..kept).map(|_| rng.below(16) as u8).collect();
        let places = (0..kept / 2).flat_map(|_| PAIRS[rng.below(6) as usize]);
        let places: Vec<u8> = places.collect();
        let mut buffers = [
            spec.pack_codes(&codes).unwrap(),
            spec.pack_places(&places).unwrap(),
            spec.pack_scales(&scales).unwrap(),
            x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            vec![0xFF; (4 * parts * batch * rows) as usize],
        ];
        launch(&two_of_four(&spec), spec.grid(batch), &mut buffers);
        let [.., c] = buffers;
        let (entry, blocks) = sum("sum", parts, batch * rows).unwrap();
        let mut buffers = [c, vec![0xFF; (4 * batch * rows) as usize]];
        launch(&entry, blocks, &mut buffers);
        let (rows, columns) = (rows as usize, columns as usize);
        for (i, got) in buffers[1].chunks_exact(4).enumerate() {
            let got = f64::from(f32::from_le_bytes(got.try_into().unwrap()));
            let (b, o) = (i / rows, i % rows);
            let terms = (0..columns / 2).map(|kept| {
                let at = o * columns / 2 + kept;
                let column = kept / 2 * 4 + usize::from(places[at]);
                let q = f64::from(codes[at]) - 8.0;
                let s = f64::from(scales[o * (columns / 128) + column / 128]);
                f16_value(x[b * columns + column]) * q * s
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
fn what_is_wrong_is_found() {
    let spec = product(128, 1024, 1, Some(64));
    let (entry, blocks) = (two_of_four(&spec), spec.grid(64));
    let places = [0, 1].repeat(128 * 256);
    let buffers = || {
        [
            vec![0; 128 * 256],
            spec.pack_places(&places).unwrap(),
            vec![0; 128 * 8 * 2],
            vec![0; 2 * 64 * 1024],
            vec![0; 4 * 64 * 128],
        ]
    };
    assert!(try_launch(&entry, &entry.text, blocks, &mut buffers()).is_ok());
    for (of, with, wrong) in [
        ("    bar.sync 0;\n", "", Wrong::Race),
        ("wait_group 2;", "wait_group 3;", Wrong::PendingCopy),
        ("pieces[45056]", "pieces[45040]", Wrong::OutOfBounds),
    ] {
        let text = entry.text.replace(of, with);
        assert_ne!(text, entry.text);
        let fault = try_launch(&entry, &text, blocks, &mut buffers()).unwrap_err();
        assert_eq!(fault.wrong, wrong, "{fault}");
    }
    // Places of no sparse matrix: the first of a step beyond the first.
    let mut none = buffers();
    none[1][600] = 0;
    let fault = try_launch(&entry, &entry.text, blocks, &mut none).unwrap_err();
    assert_eq!(fault.wrong, Wrong::Metadata, "{fault}");
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
            let entry = two_of_four(&product(rows, columns, parts, batch));
            for gpu in GPUS {
                let text = lapidary_ptx::header(gpu) + &gpu.text(&entry.text);
                let used = assemble(&ptxas, gpu, &text)["two_of_four"];
                println!("{} batch {batch:?}: {used} registers", gpu.name());
                assert!(used <= 128);
            }
        }
    }
}
