//! Batches times 4-bit weights of which two of four are kept, in the PTX interpreter against sums of doubles, and by NVIDIA's
//! assembler for every GPU.

mod support;

use lapidary_ir::kernel::packed::{Bits, TwoOfFour, Weights};
use lapidary_ptx::packed::two_of_four;
use lapidary_ptx_interp::Wrong;
use lapidary_suite::Rng;
use support::entries::{
    check_faults, check_registers, check_sums, f16_value, halves, launch, try_launch,
};

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
        let scales = halves(&mut rng, rows * columns / 128, -8);
        let scales: Vec<f32> = scales.into_iter().map(|s| f16_value(s) as f32).collect();
        let x = halves(&mut rng, batch * columns, -2);
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
        let what = format!("{batch} x {rows} x {columns} in {parts}");
        let (height, width) = (rows as usize, columns as usize);
        check_sums(&what, (c, parts, batch * rows), |i| {
            let (b, o) = (i / height, i % height);
            let (codes, places, scales, x) = (&codes, &places, &scales, &x);
            (0..width / 2).map(move |kept| {
                let at = o * width / 2 + kept;
                let column = kept / 2 * 4 + usize::from(places[at]);
                let q = f64::from(codes[at]) - 8.0;
                let s = f64::from(scales[o * (width / 128) + column / 128]);
                f16_value(x[b * width + column]) * q * s
            })
        });
    }
}

#[test]
fn what_is_wrong_is_found() {
    let spec = product(128, 1024, 1, Some(64));
    let (entry, blocks) = (two_of_four(&spec), spec.grid(64));
    let places = [0, 1].repeat(128 * 256);
    let mut buffers = [
        vec![0; 128 * 256],
        spec.pack_places(&places).unwrap(),
        vec![0; 128 * 8 * 2],
        vec![0; 2 * 64 * 1024],
        vec![0; 4 * 64 * 128],
    ];
    let changes = [
        ("    bar.sync 0;\n", "", Wrong::Race),
        ("wait_group 2;", "wait_group 3;", Wrong::PendingCopy),
        ("pieces[45056]", "pieces[45040]", Wrong::OutOfBounds),
    ];
    check_faults(&entry, blocks, &mut buffers, &changes);
    // Places of no sparse matrix: the first of a step beyond the first.
    buffers[1][600] = 0;
    let fault = try_launch(&entry, &entry.text, blocks, &mut buffers).unwrap_err();
    assert_eq!(fault.wrong, Wrong::Metadata, "{fault}");
}

#[test]
fn batches_assemble_without_spills() {
    for (batch, rows, columns, parts) in [
        (Some(16), 4096, 4096, 4),
        (Some(32), 11008, 4096, 1),
        (Some(64), 4096, 4096, 4),
        (None, 4096, 11008, 1),
    ] {
        let entry = two_of_four(&product(rows, columns, parts, batch));
        check_registers(&format!("batch {batch:?}"), &entry);
    }
}
