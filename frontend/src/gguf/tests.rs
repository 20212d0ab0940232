//! Types of blocks against published golden vectors, and damaged files.

use super::*;
use bytes::Bytes;
use half::f16;

/// Two blocks of bytes `7 + 37 n + n²/8`, with the numbers at these places of each block set: a scale of 0.1015625, and
/// a minimum of half of that.
fn golden(kind: &blocks::BlockType, scales: &[usize], mins: &[usize]) -> Bytes {
    let mut bytes: Vec<u8> = (0..2 * kind.bytes)
        .map(|n| (7 + 37 * n + n * n / 8) as u8)
        .collect();
    for block in bytes.chunks_mut(kind.bytes) {
        let mut set = |at: &[usize], value: f32| {
            let half = f16::from_f32(value).to_le_bytes();
            at.iter()
                .for_each(|&at| block[at..at + 2].copy_from_slice(&half));
        };
        set(scales, 0.101_562_5);
        set(mins, 0.050_781_25);
        match kind.name {
            "MXFP4" => block[0] = 0x7C,
            "NVFP4" => block[..4].copy_from_slice(&[0x38, 0x30, 0x41, 0x29]),
            "IQ1_M" => {
                let number = f16::from_f32(0.101_562_5).to_bits();
                for (k, part) in block[48..].chunks_mut(2).enumerate() {
                    part[1] = part[1] & 15 | ((number >> (4 * k) & 15) << 4) as u8;
                }
            }
            _ => {}
        }
    }
    bytes.into()
}

/// Numbers decoded by gguf-py 0.19.0: the first four, and the sum of all.
#[test]
fn blocks_mean_what_their_authors_decode() {
    let cases: &[(&str, &[usize], &[usize], [f32; 4], f64)] = &[
        (
            "Q4_0",
            &[0],
            &[],
            [-0.710938, -0.101562, 0.507812, -0.507812],
            -2.945312,
        ),
        (
            "Q4_1",
            &[0],
            &[2],
            [1.37109, 0.355469, 0.964844, 0.0507812],
            55.148438,
        ),
        (
            "Q5_0",
            &[0],
            &[],
            [0.914062, -1.625, -0.914062, -0.203125],
            3.351562,
        ),
        (
            "Q5_1",
            &[0],
            &[2],
            [2.38672, 1.47266, 2.18359, 2.99609],
            108.0625,
        ),
        (
            "Q8_0",
            &[0],
            &[],
            [8.22656, 12.0859, -10.0547, -6.19531],
            44.6875,
        ),
        (
            "Q2_K",
            &[80],
            &[82],
            [2.13281, 0.0, 0.710938, 2.13281],
            407.773438,
        ),
        (
            "Q3_K",
            &[108],
            &[],
            [7.00781, -9.34375, 2.33594, 7.00781],
            84.5,
        ),
        (
            "Q4_K",
            &[0],
            &[2],
            [17.8242, -2.79297, 23.7148, 6.04297],
            12782.046875,
        ),
        (
            "Q5_K",
            &[0],
            &[2],
            [64.9492, 20.7695, 70.8398, 76.7305],
            25690.640625,
        ),
        (
            "Q6_K",
            &[208],
            &[],
            [-133.148, 115.781, 86.8359, -133.148],
            687.375,
        ),
        (
            "IQ4_NL",
            &[0],
            &[],
            [-10.5625, -1.01562, 7.00781, -6.60156],
            -31.382812,
        ),
        (
            "IQ4_XS",
            &[0],
            &[],
            [3.04688, -27.1172, 10.6641, -21.0234],
            323.070312,
        ),
        (
            "TQ1_0",
            &[52],
            &[],
            [-0.101562, -0.101562, -0.101562, 0.0],
            1.625,
        ),
        (
            "TQ2_0",
            &[64],
            &[],
            [0.203125, -0.101562, 0.0, 0.203125],
            26.0,
        ),
        ("MXFP4", &[], &[], [-0.25, 0.0625, 0.75, -0.375], 3.25),
        (
            "IQ2_XXS",
            &[0],
            &[],
            [-1.11719, 1.11719, 1.11719, -1.11719],
            -106.297852,
        ),
        (
            "IQ2_XS",
            &[0],
            &[],
            [-0.304688, -0.304688, 1.6377, -0.304688],
            -28.678711,
        ),
        (
            "IQ3_XXS",
            &[0],
            &[],
            [-1.11719, 1.11719, 7.82031, 3.35156],
            -150.769531,
        ),
        (
            "IQ1_S",
            &[0],
            &[],
            [-0.0634766, 0.444336, -0.0634766, 0.444336],
            -3.148438,
        ),
        (
            "IQ3_S",
            &[0],
            &[],
            [-10.0547, 10.0547, -12.2891, 7.82031],
            -463.125000,
        ),
        (
            "IQ2_S",
            &[0],
            &[],
            [-1.11719, 1.11719, 1.11719, 6.00488],
            -45.081055,
        ),
        (
            "IQ1_M",
            &[],
            &[],
            [1.71387, 0.19043, 0.19043, -1.33301],
            14.117188,
        ),
        ("NVFP4", &[], &[], [-3.0, 1.5, -0.5, 0.0], 48.828125),
        // These two as their definitions say.
        (
            "Q1_0",
            &[0],
            &[],
            [0.1015625, -0.1015625, -0.1015625, -0.1015625],
            1.625,
        ),
        ("Q2_0", &[0], &[], [0.0, -0.1015625, 0.0, 0.0], 6.5),
    ];
    for &(name, scales, mins, first, sum) in cases {
        let kind = blocks::TYPES
            .iter()
            .find(|t| t.name == name)
            .expect("a type");
        let bytes = golden(kind, scales, mins);
        let term = blocks::term(kind, &[(1, 1)], 0, 2 * kind.elements, &bytes);
        term.check().unwrap_or_else(|e| panic!("{name}: {e}"));
        let decoded = term.decode().expect("valid");
        let values = decoded.floats().expect("floats");
        for (found, want) in values.iter().zip(first) {
            let near = (found - f64::from(want)).abs() <= 1e-5 * f64::from(want).abs();
            assert!(near, "{name}: {found}, not {want}");
        }
        let total: f64 = values.iter().sum();
        assert!((total - sum).abs() < 1e-6, "{name}: {total}, not {sum}");
        // Of the file's bytes, each is stored once, but for parts that all rows share.
        let own = term.stored_bytes() as usize;
        assert!(
            own >= bytes.len() || name == "TQ1_0",
            "{name}: {own} of {}",
            bytes.len()
        );
        // As the second of two rows in another order.
        let turned = blocks::term(kind, &[(2, 1)], 0, kind.elements, &bytes)
            .decode()
            .expect("valid");
        assert_eq!(turned.floats(), Some(values), "{name}");
        let second = blocks::term(kind, &[(1, 1)], 1, kind.elements, &bytes)
            .decode()
            .expect("valid");
        assert_eq!(
            second.floats().expect("floats"),
            &values[kind.elements..],
            "{name}"
        );
    }
    let covered = cases
        .iter()
        .map(|c| c.0)
        .chain(["F32", "F16", "BF16", "F64"]);
    let covered: std::collections::BTreeSet<&str> = covered.collect();
    assert!(blocks::TYPES.iter().all(|t| covered.contains(t.name)));
}

fn text(of: &str) -> Vec<u8> {
    [&(of.len() as u64).to_le_bytes()[..], of.as_bytes()].concat()
}

/// A file with one pair and one tensor of 4 bytes of data.
fn small(pair: &[u8], rank: u32, lengths: &[u64], kind: u32, offset: u64) -> Bytes {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(1u64.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    out.extend(pair);
    out.extend(text("t"));
    out.extend(rank.to_le_bytes());
    lengths.iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out.resize(out.len().next_multiple_of(32) + 4, 0);
    out.into()
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let pair = |kind: u32, value: &[u8]| [&text("k")[..], &kind.to_le_bytes(), value].concat();
    let good = pair(4, &7u32.to_le_bytes());
    let whole = small(&good, 1, &[1], 0, 0);
    let read = file::read(&whole, "m").expect("valid");
    assert_eq!(read.meta["k"], file::Meta::Int(7));
    assert_eq!(
        (&read.tensors["t"].shape[..], read.tensors["t"].kind.name),
        (&[1][..], "F32")
    );
    // Cut anywhere, it is an error.
    for end in 0..whole.len() {
        assert!(file::read(&whole.slice(..end), "m").is_err(), "{end}");
    }
    let long = [&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let cases = [
        (
            Bytes::from_static(b"GGUX"),
            "does not begin as GGUF files do",
        ),
        (Bytes::from_static(b"GGUF\x01\0\0\0"), "is of version 1"),
        (Bytes::from_static(b"GGUF\0\0\0\x03"), "big-endian"),
        (
            small(&pair(13, &[]), 1, &[1], 0, 0),
            "metadata `k` of `m`: has a value of type 13",
        ),
        (
            small(&pair(9, &long), 1, &[1], 0, 0),
            "metadata `k` of `m`: ends within its header",
        ),
        (
            small(&pair(9, &nested), 1, &[1], 0, 0),
            "has a value of type 9",
        ),
        (small(&good, 5, &[1; 5], 0, 0), "has 5 dimensions"),
        (small(&good, 1, &[0], 0, 0), "impossible shape"),
        (
            small(&good, 2, &[1 << 40, 1 << 40], 0, 0),
            "of the file's data, which has 4 bytes",
        ),
        (small(&good, 1, &[1], 0, 32), "at 32 of the file's data"),
        (small(&good, 1, &[1], 0, u64::MAX), "of the file's data"),
        (small(&good, 1, &[1], 99, 0), "is of type 99"),
        (
            small(&good, 1, &[1], 2, 0),
            "has rows of 1, which blocks of 32 do not fill",
        ),
    ];
    for (bytes, want) in cases {
        let problem = file::read(&bytes, "m").expect_err(want);
        let said = format!("{}: {}", problem.place, problem.reason);
        assert!(said.contains(want), "{said}");
    }
}
