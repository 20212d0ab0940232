//! Words of QMoE, against the rows that they stand for.

use super::*;
use lapidary_ir::encodings::coded::dictionary;

/// The parts of these words, in rows that begin at `starts`, whose values are `ends`.
fn qmoe(words: &[u16], starts: &[u32], ends: &[f32]) -> Vec<(&'static str, Stored)> {
    let bytes = |v: &[u16]| v.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let ends: Vec<u16> = { ends.iter() }
        .map(|&v| bf16::from_f32(v).to_bits())
        .collect();
    vec![
        (
            "w_comp",
            stored(ElemType::I16, &[words.len()], bytes(words)),
        ),
        ("row_off", self::words(&[starts.len()], starts)),
        (
            "ter_minmax",
            stored(ElemType::BF16, &[ends.len()], bytes(&ends)),
        ),
        // transformers asks for it.
        ("weight", stored(ElemType::BF16, &[0], [])),
    ]
}

fn qmoe_shape(shape: &[u32]) -> (&'static str, Stored) {
    ("shape", words(&[shape.len()], shape))
}

/// The words of the method sheet; those above 2^15 are negative as they are stored.
#[test]
fn qmoe_rows_are_words_of_the_dictionary() {
    let settings = || json!({ "quant_method": "qmoe" });
    let (shape, found) = weight(
        settings(),
        qmoe(
            &[329, 329, 329, 329, 329, 329],
            &[0, 3, 6],
            &[-1.0, 2.0, -0.5, 0.25],
        ),
    )
    .expect("valid");
    assert_eq!((shape, found), (vec![2, 6], [[2.0; 6], [0.25; 6]].concat()));
    // An odd row, whose width is said.
    let mut parts = qmoe(&[15464, 9510, 17170], &[0, 3], &[-0.75, 1.5]);
    parts.push(qmoe_shape(&[1, 41]));
    let (shape, found) = weight(settings(), parts).expect("valid");
    let value = |i: usize| match (i % 7, i % 11) {
        (3, _) => -0.75,
        (_, 5) => 1.5,
        _ => 0.0,
    };
    assert_eq!((shape, found), (vec![1, 41], (0..41).map(value).collect()));
    // Rows of zeros alone have no other ends.
    let (shape, found) =
        weight(settings(), qmoe(&[25, 25, 3], &[0, 3], &[0.0, 0.0])).expect("valid");
    assert_eq!((shape, found), (vec![1, 64], vec![0.0; 64]));
    // A word above 2^15, whatever sign its type has.
    let high = dictionary::words()[65535].clone();
    let values: Vec<f32> = { high.iter() }
        .flat_map(|&p| [p % 3, p / 3].map(|c| [0.0, -1.0, 1.0][usize::from(c)]))
        .collect();
    let signed = qmoe(&[65535], &[0, 1], &[-1.0, 1.0]);
    let mut unsigned = signed.clone();
    unsigned[0].1.elem = Ok(ElemType::U16);
    for parts in [signed, unsigned] {
        let (_, found) = weight(settings(), parts).expect("valid");
        assert_eq!(found, values);
    }
}

#[test]
fn qmoe_words_that_fill_no_row_are_refused() {
    let good = || qmoe(&[3, 3], &[0, 1, 2], &[-1.0, 1.0, -2.0, 2.0]);
    assert!(weight(json!({ "quant_method": "qmoe" }), good()).is_ok());
    let with = |i: usize, s: Stored| {
        let mut parts = good();
        parts[i].1 = s;
        parts
    };
    let sized = |shape: &[u32]| {
        let mut parts = good();
        parts.push(qmoe_shape(shape));
        parts
    };
    let mut beyond = qmoe(&[329], &[0, 1], &[-1.0, 1.0]);
    beyond.push(qmoe_shape(&[1, 1]));
    let ends = |values: [f32; 4]| qmoe(&[3, 3], &[0, 1, 2], &values);
    let cases = [
        (
            with(1, words(&[3], &[1, 1, 2])),
            "`m.row_off` of `model.safetensors`: does not divide the 2 words among 2 rows",
        ),
        (
            with(1, words(&[3], &[0, 2, 1])),
            "does not divide the 2 words among 2 rows",
        ),
        (
            with(1, words(&[3], &[0, 1, 3])),
            "does not divide the 2 words among 2 rows",
        ),
        (
            with(1, words(&[3], &[0, 1, 1])),
            "does not divide the 2 words among 2 rows",
        ),
        (
            with(1, words(&[3], &[0, u32::MAX, 2])),
            "does not divide the 2 words among 2 rows",
        ),
        (
            with(1, words(&[1], &[0])),
            "does not divide the 2 words among 0 rows",
        ),
        (
            with(1, words(&[1, 3], &[0, 1, 2])),
            "has shape [1, 3]; 1 lengths above 0 are needed",
        ),
        (
            with(1, floats(&[3], &[0.0, 1.0, 2.0])),
            "`m.row_off` of `model.safetensors`: is of f32; i32 is needed",
        ),
        (
            qmoe(&[3, 25], &[0, 1, 2], &[-1.0, 1.0, -2.0, 2.0]),
            "`m.w_comp` of `model.safetensors`: has words for 28 weights in row 1, for 8 in row 0",
        ),
        (
            with(1, words(&[3], &[0, 2, 2])),
            "has words for 0 weights in row 1, for 16 in row 0",
        ),
        (
            with(0, words(&[2], &[3, 3])),
            "is of i32; i16 or u16 is needed",
        ),
        (
            with(2, words(&[4], &[0; 4])),
            "is of i32; a float type is needed",
        ),
        (
            with(2, halves(&[2], &[0.0; 2])),
            "has shape [2]; beside the other parts it must be [4]",
        ),
        (
            with(3, halves(&[1], &[1.0])),
            "`m.weight` of `model.safetensors`: is not empty beside the words",
        ),
        (
            ends([-1.0, 1.0, 2.0, -2.0]),
            "`m.ter_minmax` of `model.safetensors`: has 2 and -2 as the ends of row 1",
        ),
        (
            ends([f32::NAN, 1.0, -2.0, 2.0]),
            "has NaN and 1 as the ends of row 0",
        ),
        (
            ends([-1.0, f32::INFINITY, -2.0, 2.0]),
            "has -1 and inf as the ends of row 0",
        ),
        (
            sized(&[2, 6]),
            "`m.shape` of `model.safetensors`: is [2, 6], but the words are of 2 rows of 4 pairs",
        ),
        (
            sized(&[2, 9]),
            "is [2, 9], but the words are of 2 rows of 4 pairs",
        ),
        (
            sized(&[1, 8]),
            "is [1, 8], but the words are of 2 rows of 4 pairs",
        ),
        (
            sized(&[8]),
            "is [8], but the words are of 2 rows of 4 pairs",
        ),
        (
            sized(&[2, u32::MAX]),
            "is [2, -1], but the words are of 2 rows of 4 pairs",
        ),
        (
            beyond,
            "`m.w_comp` of `model.safetensors`: goes on behind the end of row 0",
        ),
    ];
    for (parts, want) in cases {
        let said = weight(json!({ "quant_method": "qmoe" }), parts).expect_err(want);
        assert!(said.contains(want), "expected {want:?}, found {said}");
    }
    for missing in ["row_off", "ter_minmax"] {
        let parts = { good().into_iter() }
            .filter(|(part, _)| *part != missing)
            .collect();
        let said = weight(json!({ "quant_method": "qmoe" }), parts).expect_err(missing);
        assert_eq!(
            said,
            format!("tensor `m.{missing}`: is missing beside the weight's other parts")
        );
    }
}
