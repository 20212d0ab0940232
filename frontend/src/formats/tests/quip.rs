//! Codes of QuIP#, against the tables and turned sides that they stand for.

use super::*;
use lapidary_ir::encodings::rotate::hadamard_matrix;
use lapidary_ir::encodings::{hadamard, lattice};
use lapidary_ir::random::SplitMix64;

/// Numbers of a few bits that follow no rule.
fn numbers(seed: u64, count: usize) -> Vec<u64> {
    let mut random = SplitMix64::new(seed);
    (0..count).map(|_| random.next_u64() >> 40).collect()
}

/// The Hadamard matrix of a side, row-major: that of the small order beside that of a power of two.
fn hadamard(n: usize) -> Vec<f64> {
    let (order, power) = hadamard::order(n).expect("an order");
    let small = hadamard::matrix(order).unwrap_or_else(|| vec![1]);
    let rest = hadamard_matrix(power);
    let at = |i: usize| {
        let (r, c) = (i / n, i % n);
        let sign = f64::from(small[r / power * order + c / power]);
        sign * rest[r % power * power + c % power] / (order as f64).sqrt()
    };
    (0..n * n).map(at).collect()
}

/// A weight of random codes, and what it stands for.
struct Quip {
    parts: Vec<(&'static str, Stored)>,
    want: Vec<f64>,
}

/// Codes of a weight `[to, from]` of the tables with this number, whose second is so many times smaller.
fn quip(id: i64, [to, from]: [usize; 2], smaller: f64) -> Quip {
    let runs = from / 8;
    let codes = |seed| -> Vec<u16> {
        let numbers = numbers(seed, to * runs);
        numbers.iter().map(|&n| n as u16).collect()
    };
    let packed = |codes: &[u16]| lattice::pack(codes, runs).expect("whole tiles");
    let table = |term: Encoding| {
        let values = term.decode().expect("valid").to_f64s().expect("numbers");
        move |code: u16| values[8 * usize::from(code)..][..8].to_vec()
    };
    let first = codes(1);
    let e8p = table(lattice::e8p());
    let mut turned: Vec<f64> = first.iter().flat_map(|&c| e8p(c)).collect();
    let mut words: Vec<Vec<u64>> = packed(&first)
        .chunks(from / 32)
        .map(<[u64]>::to_vec)
        .collect();
    let mut add = |values: Vec<f64>, more: Vec<u64>| {
        turned
            .iter_mut()
            .zip(values)
            .for_each(|(t, v)| *t += v / smaller);
        let rows = more.chunks(more.len() / to);
        words
            .iter_mut()
            .zip(rows)
            .for_each(|(w, row)| w.extend(row));
    };
    match id {
        17 => {
            let second = codes(2);
            add(
                second.iter().flat_map(|&c| e8p(c)).collect(),
                packed(&second),
            );
        }
        18 => {
            let (second, e8) = (codes(2), table(lattice::e8()));
            let bytes: Vec<u8> = second.iter().map(|&c| c as u8).collect();
            let words = bytes
                .chunks_exact(8)
                .map(|b| b.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b)));
            add(
                bytes.iter().flat_map(|&c| e8(c.into())).collect(),
                words.collect(),
            );
        }
        _ => {}
    }
    let signs = |seed, n| -> Vec<f32> {
        let numbers = numbers(seed, n);
        numbers
            .iter()
            .map(|n| if n % 2 == 0 { 1.0 } else { -1.0 })
            .collect()
    };
    let (su, sv) = (signs(3, from), signs(4, to));
    // Rows, then columns, times their matrices.
    let (left, right) = (hadamard(to), hadamard(from));
    let mut half = vec![0.0; to * from];
    let mut want = half.clone();
    for (r, k, c) in
        (0..to).flat_map(|r| (0..to).flat_map(move |k| (0..from).map(move |c| (r, k, c))))
    {
        half[r * from + c] += left[r * to + k] * turned[k * from + c];
    }
    for (r, k, c) in
        (0..to).flat_map(|r| (0..from).flat_map(move |k| (0..from).map(move |c| (r, k, c))))
    {
        want[r * from + c] += half[r * from + k] * right[c * from + k];
    }
    let sign = |i: usize| f64::from(su[i % from] * sv[i / from]);
    want.iter_mut().enumerate().for_each(|(i, w)| *w *= sign(i));
    let width = words[0].len();
    let bytes: Vec<u8> = words
        .concat()
        .iter()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    let parts = vec![
        ("Qidxs", stored(ElemType::I64, &[to, width], bytes)),
        ("SU", halves(&[from], &su)),
        ("SV", halves(&[to], &sv)),
        ("Wscale", floats(&[], &[1.0])),
        ("codebook_id", stored(ElemType::I64, &[], id.to_le_bytes())),
    ];
    Quip { parts, want }
}

fn assert_near(found: &[f32], want: &[f64], what: &str) {
    assert_eq!(found.len(), want.len(), "{what}");
    let far = |(f, w): (&f32, &f64)| (f64::from(*f) - w).abs() > 1e-5 * (1.0 + w.abs());
    let first = found.iter().zip(want).position(far);
    assert_eq!(first, None, "{what}");
}

#[test]
fn quip_weights_are_turned_on_both_sides() {
    let settings = || json!({ "quant_method": "quip" });
    for (id, shape, smaller) in [
        (7, [16, 64], 1.0),
        (17, [32, 64], 3.45),
        (18, [16, 128], 2.04),
        // Sides of 12, 20 and 28 times a power of two.
        (7, [48, 192], 1.0),
        (18, [80, 448], 2.04),
    ] {
        let Quip { parts, want } = quip(id, shape, smaller);
        let (found, values) = weight(settings(), parts).expect("valid");
        assert_eq!(found, shape);
        assert_near(&values, &want, &format!("{id}, {shape:?}"));
    }
    // Scales of all rows, and what divides the inputs.
    let Quip {
        mut parts,
        mut want,
    } = quip(7, [16, 64], 1.0);
    parts[3].1 = floats(&[], &[0.25]);
    let by: Vec<f32> = (0..64).map(|i| 1.0 + i as f32 / 8.0).collect();
    parts.push(("scaleWH", floats(&[64], &by)));
    want.iter_mut()
        .enumerate()
        .for_each(|(i, w)| *w *= 0.25 / f64::from(by[i % 64]));
    let (_, values) = weight(settings(), parts).expect("valid");
    assert_near(&values, &want, "scaled");
    // Another scale between the tables.
    let Quip { parts, want } = quip(17, [16, 64], 4.0);
    let said = json!({ "quant_method": "quip", "resid_scale_override": 4.0 });
    let (_, values) = weight(said, parts).expect("valid");
    assert_near(&values, &want, "overridden");
}

/// The published files keep projections of the same input in one module, and settings under another name.
#[test]
fn quip_modules_are_split_into_projections() {
    for (module, names, rows, factors) in [
        (
            "qkv_proj",
            &["q_proj", "k_proj", "v_proj"][..],
            &[64, 16, 16][..],
            &[2.0f32, 0.5, 3.0][..],
        ),
        (
            "upgate_proj",
            &["up_proj", "gate_proj"],
            &[40, 40],
            &[0.5, 4.0],
        ),
    ] {
        let to = rows.iter().sum();
        let Quip { mut parts, want } = quip(7, [to, 64], 1.0);
        parts.push(("fuse_scales", floats(&[factors.len()], factors)));
        let named = parts
            .into_iter()
            .map(|(part, s)| (format!("layer.{module}.{part}"), s));
        let mut weights = Weights::of_stored(named);
        let Value::Object(settings) = json!({ "quip_params": { "codebook_version": 1 } }) else {
            unreachable!("an object")
        };
        let mut problems = Problems::new("");
        unpack(
            &Config::of(settings, "config.json"),
            &mut weights,
            &mut problems,
        );
        assert!(problems.list.is_empty());
        let mut first = 0;
        for ((name, rows), factor) in names.iter().zip(rows).zip(factors) {
            let (term, file) = weights
                .term(&format!("layer.{name}.weight"))
                .expect("a term");
            assert_eq!(
                (&term.shape[..], file),
                (&[*rows, 64][..], "model.safetensors")
            );
            let values = term.decode().expect("valid").to_f64s().expect("numbers");
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            let want: Vec<f64> = want[64 * first..][..64 * rows]
                .iter()
                .map(|w| w * f64::from(*factor))
                .collect();
            assert_near(&values, &want, name);
            first += rows;
        }
        assert_eq!(weights.unused().count(), 0);
    }
}

#[test]
fn quip_parts_that_do_not_fit_are_refused() {
    let with = |part: &'static str, s: Stored| {
        let mut parts = quip(7, [16, 64], 1.0).parts;
        parts.retain(|(name, _)| *name != part);
        parts.push((part, s));
        parts
    };
    let id = |id: i64| with("codebook_id", stored(ElemType::I64, &[], id.to_le_bytes()));
    let mut signs = vec![1.0; 64];
    signs[5] = f32::NAN;
    let cases = [
        (
            id(10),
            "`m.codebook_id` of `model.safetensors`: is 10; 7 (E8P12), 17",
        ),
        (
            id(17),
            "`m.Qidxs` of `model.safetensors`: has shape [16, 2]; beside the other parts it must be [16, 4]",
        ),
        (
            id(18),
            "has shape [16, 2]; beside the other parts it must be [16, 3]",
        ),
        (
            with("codebook_id", words(&[2], &[7, 7])),
            "`m.codebook_id` of `model.safetensors`: must hold one number",
        ),
        (
            with("codebook_id", floats(&[], &[7.0])),
            "is of f32; an integer type is needed",
        ),
        (
            with("Qidxs", stored(ElemType::I64, &[16, 4], vec![0; 512])),
            "has shape [16, 4]; beside",
        ),
        (
            with("Qidxs", words(&[16, 2], &[0; 32])),
            "`m.Qidxs` of `model.safetensors`: is of i32; i64 is needed",
        ),
        (
            with("SU", halves(&[32], &[1.0; 32])),
            "is of 16 by 32 weights, which tiles of 16 by 64 do not divide",
        ),
        (
            with("SV", halves(&[15], &[1.0; 15])),
            "is of 15 by 64 weights, which tiles of 16 by 64 do not divide",
        ),
        (
            with("SV", halves(&[32], &[1.0; 32])),
            "has shape [16, 2]; beside the other parts it must be [32, 2]",
        ),
        (
            with("SV", words(&[16], &[1; 16])),
            "`m.SV` of `model.safetensors`: is of i32; a float type is needed",
        ),
        (
            with("Wscale", floats(&[2], &[1.0; 2])),
            "`m.Wscale` of `model.safetensors`: must hold one number",
        ),
        (
            with("Wscale", floats(&[], &[f32::INFINITY])),
            "`m.Wscale` of `model.safetensors`: holds what is not a finite number",
        ),
        (
            with("scaleWH", floats(&[64], &[0.0; 64])),
            "`m.scaleWH` of `model.safetensors`: holds zeros",
        ),
        (
            with("scaleWH", floats(&[64], &signs)),
            "`m.scaleWH` of `model.safetensors`: holds what is not a finite number",
        ),
        (
            with("A", floats(&[1], &[1.0])),
            "`m.A` of `model.safetensors`: is a correction of low rank",
        ),
        (
            with("fuse_scales", floats(&[2], &[1.0; 2])),
            "`m.fuse_scales` of `model.safetensors`: scales parts of a module that has none",
        ),
    ];
    for (parts, want) in cases {
        let said = weight(json!({ "quant_method": "quip" }), parts).expect_err(want);
        assert!(said.contains(want), "expected {want:?}, found {said}");
    }
    let old = json!({ "quant_method": "quip", "codebook_version": 0 });
    let said = weight(old, quip(7, [16, 64], 1.0).parts).expect_err("old");
    assert_eq!(
        said,
        "`quantization_config.codebook_version` of `config.json`: is 0; 1 is read of codebook 7"
    );
    // A side of 11 times a power of two.
    let mut parts = quip(7, [16, 64], 1.0).parts;
    parts[0].1 = stored(ElemType::I64, &[16, 22], vec![0; 8 * 16 * 22]);
    parts[1].1 = halves(&[704], &[1.0; 704]);
    let said = weight(json!({ "quant_method": "quip" }), parts).expect_err("no matrix");
    assert!(
        said.contains("`m.SU` of `model.safetensors`: has 704 numbers, and no Hadamard matrix"),
        "{said}"
    );
    for missing in ["SU", "SV", "Wscale", "codebook_id"] {
        let parts = { quip(7, [16, 64], 1.0).parts.into_iter() }
            .filter(|(part, _)| *part != missing)
            .collect();
        let said = weight(json!({ "quant_method": "quip" }), parts).expect_err(missing);
        assert_eq!(
            said,
            format!("tensor `m.{missing}`: is missing beside the weight's other parts")
        );
    }
}
