//! Packed weights, byte by byte as their formats define them, against what they stand for.

mod qmoe;
mod quip;

use super::*;
use crate::checkpoint::safetensors::Stored;
use half::{bf16, f16};
use lapidary_ir::ElemType;
use serde_json::{Value, json};

/// A tensor of a file.
fn stored(elem: ElemType, shape: &[usize], bytes: impl Into<Vec<u8>>) -> Stored {
    let bytes: Vec<u8> = bytes.into();
    assert_eq!(
        bytes.len(),
        shape.iter().product::<usize>() * elem.size_bytes()
    );
    Stored {
        elem: Ok(elem),
        shape: shape.to_vec(),
        bytes: bytes.into(),
    }
}

fn words(shape: &[usize], words: &[u32]) -> Stored {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    stored(ElemType::I32, shape, bytes)
}

fn halves(shape: &[usize], values: &[f32]) -> Stored {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|&v| f16::from_f32(v).to_le_bytes())
        .collect();
    stored(ElemType::F16, shape, bytes)
}

fn floats(shape: &[usize], values: &[f32]) -> Stored {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    stored(ElemType::F32, shape, bytes)
}

fn int(value: i32) -> Stored {
    words(&[1], &[value as u32])
}

/// Unpacks the one weight of a module `m`: its shape and numbers, or what is said to be wrong.
fn weight(settings: Value, parts: Vec<(&str, Stored)>) -> Result<(Vec<usize>, Vec<f32>), String> {
    let Value::Object(settings) = json!({ "quantization_config": settings }) else {
        unreachable!("an object")
    };
    let named = parts.into_iter().map(|(part, s)| (format!("m.{part}"), s));
    let mut weights = Weights::of_stored(named);
    let mut problems = Problems::new("");
    unpack(
        &Config::of(settings, "config.json"),
        &mut weights,
        &mut problems,
    );
    if let Some(p) = problems.list.first() {
        return Err(format!("{}: {}", p.place, p.reason));
    }
    let (term, _) = weights.term("m.weight").ok_or("no term")?;
    term.check().map_err(|e| e.to_string())?;
    let unused: Vec<&str> = weights.unused().map(|(name, _)| name).collect();
    assert!(unused.is_empty(), "{unused:?}");
    let values = term.decode().map_err(|e| e.to_string())?;
    let values = values
        .floats()
        .expect("floats")
        .iter()
        .map(|&v| v as f32)
        .collect();
    Ok((term.shape.clone(), values))
}

fn gptq(bits: u32, format: &str) -> Value {
    json!({ "quant_method": "gptq", "bits": bits, "checkpoint_format": format })
}

#[test]
fn gptq_packs_down_the_inputs() {
    let parts = |zeros: u32, g_idx: Option<&[u32]>| {
        let mut parts = vec![
            ("qweight", words(&[1, 8], &[0x7654_3210; 8])),
            ("qzeros", words(&[2, 1], &[zeros; 2])),
            ("scales", halves(&[2, 8], &[[1.0; 8], [2.0; 8]].concat())),
        ];
        parts.extend(g_idx.map(|g| ("g_idx", words(&[8], g))));
        parts
    };
    let row = |values: &[f32]| {
        let eight: Vec<f32> = (0..8).flat_map(|_| values.to_vec()).collect();
        (vec![8, 8], eight)
    };
    // v1 stores zero points less one.
    let found = weight(gptq(4, "gptq"), parts(0x1111_1111, None)).expect("valid");
    assert_eq!(found, row(&[-2.0, -1.0, 0.0, 1.0, 4.0, 6.0, 8.0, 10.0]));
    let found = weight(gptq(4, "gptq_v2"), parts(0x1111_1111, None)).expect("valid");
    assert_eq!(found, row(&[-1.0, 0.0, 1.0, 2.0, 6.0, 8.0, 10.0, 12.0]));
    // The largest stored code is the zero point 0.
    let found = weight(gptq(4, "gptq"), parts(0xFFFF_FFFF, None)).expect("valid");
    assert_eq!(found, row(&[0.0, 1.0, 2.0, 3.0, 8.0, 10.0, 12.0, 14.0]));
    // Inputs in groups of any order.
    let order = [1, 0, 0, 1, 0, 1, 1, 0];
    let found = weight(gptq(4, "gptq"), parts(0xFFFF_FFFF, Some(&order))).expect("valid");
    assert_eq!(found, row(&[0.0, 1.0, 2.0, 6.0, 4.0, 10.0, 12.0, 7.0]));
    let found = weight(
        gptq(4, "gptq"),
        parts(0xFFFF_FFFF, Some(&[0, 0, 0, 0, 1, 1, 1, 1])),
    );
    assert_eq!(
        found.expect("valid"),
        row(&[0.0, 1.0, 2.0, 3.0, 8.0, 10.0, 12.0, 14.0])
    );
    // A symmetric grid whose zero points are stored as they are, under the name of v1.
    let mut settings = gptq(4, "gptq");
    settings["sym"] = json!(true);
    for zeros in [0x8888_8888, 0x7777_7777] {
        let found = weight(settings.clone(), parts(zeros, None)).expect("valid");
        assert_eq!(
            found,
            row(&[-8.0, -7.0, -6.0, -5.0, -8.0, -6.0, -4.0, -2.0])
        );
    }
    // A bias of zeros that no layer asks for, and what a cache would be rounded by.
    let mut more = parts(0x1111_1111, None);
    more.push(("bias", halves(&[8], &[0.0; 8])));
    more.push(("attn.k_scale", floats(&[1], &[1.0])));
    assert!(weight(gptq(4, "gptq"), more).is_ok());
    let wrong = weight(gptq(4, "gptq"), parts(0, Some(&[0, 0, 0, 0, 2, 1, 1, 1])));
    let said =
        "tensor `m.g_idx` of `model.safetensors`: puts input 4 into group 2, but there are 2";
    assert_eq!(wrong.expect_err("outside"), said);
}

/// 32 codes of three bits are one stream over three words below each other.
#[test]
fn gptq_codes_of_three_bits_run_over_words() {
    let code = |o: u32, i: u32| (3 * o + 5 * i + ((o * i) >> 2)) & 7;
    let stream = |codes: &dyn Fn(u32) -> u32| {
        (0..32).fold(0u128, |s, i| s | u128::from(codes(i)) << (3 * i))
    };
    let mut down = vec![0u32; 3 * 32];
    for o in 0..32 {
        let bits = stream(&|i| code(o, i));
        (0..3).for_each(|w| down[w * 32 + o as usize] = (bits >> (32 * w)) as u32);
    }
    let along = stream(&|o| o % 5);
    let zeros: Vec<u32> = (0..3).map(|w| (along >> (32 * w)) as u32).collect();
    let parts = vec![
        ("qweight", words(&[3, 32], &down)),
        ("qzeros", words(&[1, 3], &zeros)),
        ("scales", halves(&[1, 32], &[0.5; 32])),
    ];
    let (shape, found) = weight(gptq(3, "gptq"), parts).expect("valid");
    assert_eq!(shape, [32, 32]);
    for (at, value) in found.into_iter().enumerate() {
        let (o, i) = (at as u32 / 32, at as u32 % 32);
        let want = 0.5 * (code(o, i) as f32 - ((o % 5 + 1) % 8) as f32);
        assert_eq!(value, want, "[{o}, {i}]");
    }
}

#[test]
fn awq_has_even_outputs_first() {
    let parts = vec![
        ("qweight", words(&[2, 1], &[0x7531_6420, 0])),
        ("qzeros", words(&[1, 1], &[0x1111_1111])),
        (
            "scales",
            halves(&[1, 8], &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]),
        ),
    ];
    let (shape, found) = weight(json!({ "quant_method": "awq", "bits": 4 }), parts).expect("valid");
    assert_eq!(shape, [8, 2]);
    let columns = |c: usize| {
        found
            .iter()
            .skip(c)
            .step_by(2)
            .copied()
            .collect::<Vec<f32>>()
    };
    assert_eq!(columns(0), [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0]);
    assert_eq!(columns(1), [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -0.5]);
}

fn tensors() -> Value {
    json!({ "quant_method": "compressed-tensors" })
}

#[test]
fn compressed_tensors_pack_rows_and_zero_points_down() {
    // Rows of 9 codes take two words, filled up.
    let row = [0x7654_3210, 0x0000_0009];
    let mut parts = vec![
        ("weight_packed", words(&[8, 2], &row.repeat(8))),
        (
            "weight_shape",
            stored(
                ElemType::I64,
                &[2],
                [8i64, 9].map(i64::to_le_bytes).concat(),
            ),
        ),
        ("weight_scale", halves(&[8, 1], &[2.0; 8])),
    ];
    let (shape, found) = weight(tensors(), parts.clone()).expect("valid");
    assert_eq!(shape, [8, 9]);
    assert_eq!(
        found[9..18],
        [-16.0, -14.0, -12.0, -10.0, -8.0, -6.0, -4.0, -2.0, 2.0]
    );
    parts.push(("weight_zero_point", words(&[1, 1], &[0x7654_3210])));
    let (_, found) = weight(tensors(), parts).expect("valid");
    let first: Vec<f32> = found.chunks(9).map(|row| row[0]).collect();
    assert_eq!(first, [0.0, -2.0, -4.0, -6.0, -8.0, -10.0, -12.0, -14.0]);
}

#[test]
fn compressed_tensors_hold_bytes_and_masks() {
    let bytes = stored(ElemType::I8, &[2, 4], [1u8, 2, 0xFF, 4, 5, 6, 7, 0x80]);
    let parts = vec![
        ("weight", bytes),
        ("weight_scale", floats(&[2, 2], &[1.0, 2.0, 0.5, 0.25])),
    ];
    let (_, found) = weight(tensors(), parts).expect("valid");
    assert_eq!(found, [1.0, 2.0, -2.0, 8.0, 2.5, 3.0, 1.75, -32.0]);
    let parts = vec![
        ("compressed", halves(&[3], &[1.0, 2.0, 3.0])),
        (
            "bitmask",
            stored(ElemType::U8, &[2, 2], [0b0000_0010, 0b1, 0, 0b10]),
        ),
        (
            "row_offsets",
            stored(
                ElemType::I64,
                &[2],
                [0i64, 2].map(i64::to_le_bytes).concat(),
            ),
        ),
        (
            "shape",
            stored(
                ElemType::I64,
                &[2],
                [2i64, 10].map(i64::to_le_bytes).concat(),
            ),
        ),
    ];
    let (shape, found) = weight(tensors(), parts).expect("valid");
    let mut want = vec![0.0; 20];
    (want[1], want[8], want[19]) = (1.0, 2.0, 3.0);
    assert_eq!((shape, found), (vec![2, 10], want));
}

/// A file that compressed-tensors 0.9.4 packed from these codes and scales.
#[test]
fn marlin_keeps_two_of_four() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/checkpoints/packed/marlin24.safetensors"
    );
    let file = bytes::Bytes::from(std::fs::read(path).expect("the file is there"));
    let all = crate::checkpoint::safetensors::read(&file, "marlin24").expect("valid");
    const KEPT: [[usize; 2]; 6] = [[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]];
    for (name, groups, most) in [("four", 4, [7, 8]), ("eight", 1, [127, 128])] {
        let parts = ["weight_packed", "scale_packed", "meta"];
        let parts = parts.map(|part| (part, all[&format!("{name}.{part}")].clone()));
        let (shape, found) = weight(tensors(), parts.to_vec()).expect("valid");
        assert_eq!(shape, [64, 512]);
        let mut want = vec![0.0f32; 64 * 512];
        for (r, g) in (0..64).flat_map(|r| (0..128).map(move |g| (r, g))) {
            let scale = (1 + (r + 7 * (g * groups / 128)) % 9) as f32 / 8.0;
            let [first, second] = KEPT[(r + g) % 6].map(|at| 512 * r + 4 * g + at);
            want[first] = scale * (1 + (5 * r + 3 * g) % most[0]) as f32;
            want[second] = -scale * (1 + (3 * r + g) % most[1]) as f32;
        }
        assert_eq!(found, want, "{name}");
    }
}

#[test]
fn bitsandbytes_runs_go_over_rows() {
    let settings = || json!({ "quant_method": "bitsandbytes", "load_in_4bit": true });
    let table: Vec<f32> = (0..16).map(|i| i as f32 - 8.0).collect();
    let state = |nested: &str| {
        let text = format!(r#"{{"quant_type":"nf4","blocksize":4,"shape":[2,6]{nested}}}"#);
        stored(ElemType::U8, &[text.len()], text)
    };
    let plain = |absmax: Stored, nested: &str| {
        vec![
            // The first of two codes is the high one: 0 1 2 .. 11.
            (
                "weight",
                stored(ElemType::U8, &[6, 1], [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB]),
            ),
            ("weight.quant_map", floats(&[16], &table)),
            ("weight.absmax", absmax),
            ("weight.quant_state.bitsandbytes__nf4", state(nested)),
        ]
    };
    let parts = plain(floats(&[3], &[1.0, 10.0, 100.0]), "");
    let (shape, found) = weight(settings(), parts).expect("valid");
    assert_eq!(shape, [2, 6]);
    let want = [
        -8.0, -7.0, -6.0, -5.0, -40.0, -30.0, -20.0, -10.0, 0.0, 100.0, 200.0, 300.0,
    ];
    assert_eq!(found, want);
    // Scales that are codes themselves.
    let nested = r#","nested_blocksize":2,"nested_offset":0.5"#;
    let mut parts = plain(stored(ElemType::U8, &[3], [1, 2, 3]), nested);
    let map: Vec<f32> = (0..256).map(|i| i as f32).collect();
    parts.push(("weight.nested_quant_map", floats(&[256], &map)));
    parts.push(("weight.nested_absmax", floats(&[2], &[2.0, 4.0])));
    let (_, found) = weight(settings(), parts).expect("valid");
    assert_eq!(
        (found[0], found[4], found[11]),
        (-8.0 * 2.5, -4.0 * 4.5, 3.0 * 12.5)
    );
    let parts = vec![
        ("weight", stored(ElemType::I8, &[2, 2], [127u8, 0x81, 1, 0])),
        ("SCB", floats(&[2], &[1.0, 254.0])),
    ];
    let (_, found) = weight(settings(), parts).expect("valid");
    assert!(
        found
            .iter()
            .zip([1.0, -1.0, 2.0, 0.0])
            .all(|(a, b)| (a - b).abs() < 1e-6),
        "{found:?}"
    );
}

/// `[to, from]` = [2, 10] in groups of 5 or 2.
fn hqq(
    bits: i32,
    axis: i32,
    group: i32,
    codes: Stored,
    part: [usize; 2],
) -> Result<Vec<f32>, String> {
    let n = part[0] * part[1];
    let scale: Vec<f32> = (0..n).map(|i| 1.0 + i as f32).collect();
    let parts = vec![
        ("W_q", codes),
        ("scale", halves(&part, &scale)),
        ("zero", halves(&part, &vec![0.5; n])),
        ("shape", words(&[2], &[2, 10])),
        ("nbits", int(bits)),
        ("axis", int(axis)),
        ("group_size", int(group)),
        ("packing", stored(ElemType::U8, &[2], *b"xx")),
    ];
    weight(json!({ "quant_method": "hqq" }), parts).map(|(_, found)| found)
}

#[test]
fn hqq_keeps_chunks_of_rows_in_one_byte() {
    // Rows 0 1 2 3 of five: 0 and 1 are the high halves of what 2 and 3 are the low ones of.
    let bytes: Vec<u8> = (0..10u8).map(|i| i << 4 | (15 - i)).collect();
    let found = hqq(
        4,
        1,
        5,
        stored(ElemType::U8, &[2, 5], bytes.clone()),
        [4, 1],
    )
    .expect("valid");
    let want = |r: usize, code: u8| (f32::from(code) - 0.5) * (1.0 + r as f32);
    for i in 0..10u8 {
        let at = i as usize;
        assert_eq!(found[at], want(at / 5, i));
        assert_eq!(found[10 + at], want(2 + at / 5, 15 - i));
    }
    // The same bytes said to be floats.
    let seen = stored(ElemType::F16, &[5], bytes);
    assert_eq!(hqq(4, 1, 5, seen, [4, 1]), Ok(found));
    // Along columns: two rows of ten codes, a scale for each column.
    let bytes: Vec<u8> = (0..10u8).map(|i| i << 4 | (15 - i)).collect();
    let found = hqq(4, 0, 2, stored(ElemType::U8, &[1, 10], bytes), [1, 10]).expect("valid");
    for i in 0..10u8 {
        assert_eq!(found[i as usize], want(i as usize, i));
        assert_eq!(found[10 + i as usize], want(i as usize, 15 - i));
    }
    // Ten rows of two codes of three bits in words.
    let code = |r: u32, c: u32| (r * 3 + c) & 7;
    let word = |c| (0..10).fold(0, |w, r| w | code(r, c) << (27 - 3 * r));
    let found = hqq(3, 1, 2, words(&[1, 2], &[word(0), word(1)]), [10, 1]).expect("valid");
    for (at, value) in found.into_iter().enumerate() {
        let (r, c) = (at as u32 / 2, at as u32 % 2);
        assert_eq!(value, want(r as usize, code(r, c) as u8));
    }
}

#[test]
fn aqlm_adds_vectors_of_codebooks() {
    let book = |m: f32| (0..256).flat_map(move |i| [m * i as f32, -m * i as f32]);
    let books: Vec<f32> = book(1.0).chain(book(0.5)).collect();
    let parts = vec![
        (
            "codes",
            stored(ElemType::I8, &[1, 2, 2], [1, 2, 0xFF, 0x80]),
        ),
        ("codebooks", halves(&[2, 256, 1, 2], &books)),
        ("scales", halves(&[1, 1, 1, 1], &[2.0])),
    ];
    let (shape, found) = weight(json!({ "quant_method": "aqlm" }), parts).expect("valid");
    assert_eq!((shape, found), (vec![1, 4], vec![4.0, -4.0, 638.0, -638.0]));
}

#[test]
fn bitnet_keeps_quarters_of_the_rows_in_one_byte() {
    let parts = || {
        vec![
            (
                "weight",
                stored(ElemType::U8, &[1, 2], [0b10_01_00_10, 0b00_00_00_01]),
            ),
            ("weight_scale", halves(&[1], &[4.0])),
        ]
    };
    let (shape, found) = weight(json!({ "quant_method": "bitnet" }), parts()).expect("valid");
    assert_eq!(shape, [4, 2]);
    assert_eq!(found, [0.25, 0.0, -0.25, -0.25, 0.0, -0.25, 0.25, -0.25]);
    let auto = json!({ "quant_method": "bitnet", "linear_class": "autobitlinear" });
    assert_eq!(weight(auto, parts()).expect("valid").1[0], 4.0);
    let mut bad = parts();
    bad[0].1 = stored(ElemType::U8, &[1, 2], [0b11, 0]);
    let said = weight(json!({ "quant_method": "bitnet" }), bad).expect_err("not ternary");
    assert!(said.contains("not ternary in byte 0"), "{said}");
}

/// The words of the method sheet.
#[test]
fn spqr_has_statistics_among_the_codes() {
    let second = [0.01f32, 3.0, 0.5, 4.0].map(|v| f16::from_f32(v).to_bits());
    let second = second
        .iter()
        .rev()
        .fold(0u64, |w, &h| w << 16 | u64::from(h));
    let word = |k: u64| {
        let codes = (0..16).fold(0, |w, j| w | ((j + k) % 8) << (6 + 3 * j));
        5 | 2 << 3 | codes | (second >> (8 * (k / 2)) & 0xFF) << 54
    };
    let golden = [
        (0, 0x07fe_b1a2_3eb1_a215u64),
        (1, 0x07c7_d634_47d6_3455),
        (2, 0x0848_fac6_88fa_c695),
        (15, 0x1135_8d11_f58d_11d5),
    ];
    golden
        .iter()
        .for_each(|&(k, want)| assert_eq!(word(k), want, "word {k}"));
    let parts = |outliers: &[(u16, f32)], starts: Vec<u32>| {
        let bytes: Vec<u8> = (0..16).flat_map(|k| word(k).to_le_bytes()).collect();
        let pair =
            |&(c, v): &(u16, f32)| u32::from(f16::from_f32(v).to_bits()) << 16 | u32::from(c);
        let pairs: Vec<u32> = outliers.iter().map(pair).collect();
        vec![
            ("dense_weights", stored(ElemType::I64, &[16], bytes)),
            ("row_offsets", words(&[17], &starts)),
            ("col_vals", words(&[pairs.len()], &pairs)),
        ]
    };
    let settings = || json!({ "quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16 });
    let (shape, plain) = weight(settings(), parts(&[], vec![0; 17])).expect("valid");
    assert_eq!(shape, [16, 16]);
    // Codes 0 and 1 with a scale of .045 and a zero point of -6.
    assert_eq!((plain[0], plain[1]), (0.270_019_53, 0.315_185_55));
    assert_eq!(plain[16 * 15 + 1], 0.270_019_53);
    let mut starts = vec![0; 17];
    starts[2..].fill(2);
    let (_, found) =
        weight(settings(), parts(&[(0, 1.0), (5, -2.0)], starts.clone())).expect("valid");
    let half = |v: f32| f16::from_f32(v).to_f32();
    assert_eq!(found[16], half(plain[16] + 1.0));
    assert_eq!(found[21], half(plain[21] - 2.0));
    let said = weight(settings(), parts(&[(5, 1.0), (5, 1.0)], starts)).expect_err("twice");
    assert!(said.contains("columns out of order"), "{said}");
}

#[test]
fn fp8_has_scales_of_blocks() {
    let one = 0x38;
    let parts = vec![
        (
            "weight",
            stored(ElemType::F8E4M3FN, &[130, 3], vec![one; 390]),
        ),
        ("weight_scale_inv", floats(&[2, 1], &[2.0, 3.0])),
    ];
    let settings = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    let (_, found) = weight(settings, parts).expect("valid");
    assert!(found[..384].iter().all(|&v| v == 2.0) && found[384..].iter().all(|&v| v == 3.0));
}

#[test]
fn what_does_not_fit_is_said() {
    let base = || {
        vec![
            ("qweight", words(&[1, 8], &[0; 8])),
            ("qzeros", words(&[1, 1], &[0])),
            ("scales", halves(&[1, 8], &[1.0; 8])),
        ]
    };
    let without = |i: usize| {
        let mut parts = base();
        parts.remove(i);
        parts
    };
    let with = |i: usize, s: Stored| {
        let mut parts = base();
        parts[i].1 = s;
        parts
    };
    let cases = [
        (gptq(4, "gptq"), without(1), "tensor `m.qzeros`: is missing"),
        (
            gptq(5, "gptq"),
            base(),
            "`quantization_config.bits` of `config.json`: is 5",
        ),
        (gptq(4, "marlin"), base(), "`marlin` is not read"),
        (
            gptq(4, "gptq"),
            with(1, words(&[1, 2], &[0; 2])),
            "has shape [1, 2]; beside the other parts it must be [1, 1]",
        ),
        (
            gptq(4, "gptq"),
            with(0, words(&[0, 8], &[])),
            "lengths above 0",
        ),
        (
            gptq(4, "gptq"),
            with(0, words(&[8], &[0; 8])),
            "has shape [8]",
        ),
        (
            gptq(4, "gptq"),
            with(0, floats(&[1, 8], &[0.0; 8])),
            "is of f32; i32 is needed",
        ),
        (
            gptq(4, "gptq"),
            with(2, words(&[1, 8], &[0; 8])),
            "is of i32; a float type is needed",
        ),
        (
            gptq(4, "gptq"),
            with(2, halves(&[9, 8], &[0.0; 72])),
            "has 9 groups of 8 inputs",
        ),
        (
            json!({ "quant_method": "vptq" }),
            base(),
            "`vptq` is not a known format",
        ),
        (json!({}), base(), "`` is not a known format"),
    ];
    for (settings, parts, want) in cases {
        let said = weight(settings, parts).expect_err(want);
        assert!(said.contains(want), "{said}");
    }
}
