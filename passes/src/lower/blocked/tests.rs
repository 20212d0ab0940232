use crate::lower::checks::{check, check_lowered_for, numbers};
use crate::lower::{Lowered, Options};
use lapidary_ir::builder::Builder;
use lapidary_ir::encodings::strided::Places;
use lapidary_ir::encodings::{Encoding, affine, affmin, bits, codebook, dense, int, strided};
use lapidary_ir::target::{Feature, Target};
use lapidary_ir::{Attr, Attrs, ElemType, Tensor, ValueId};

/// Zero points of packed weights.
#[derive(Clone, Copy, PartialEq)]
enum Zeros {
    Middle,
    Equal,
    Own,
    Floats,
}

fn bytes(b: &mut Builder, shape: &[usize], seed: usize) -> ValueId {
    let n = shape.iter().product::<usize>();
    let byte = |i: usize| ((i + seed).wrapping_mul(2_654_435_761) >> 9 & 255) as i128;
    b.constant(&Tensor::from_int(
        ElemType::U8,
        shape.to_vec(),
        (0..n).map(byte).collect(),
    ))
}

/// `matmul_nbits` of `x` with weights `[n, k]`.
fn product(
    b: &mut Builder,
    x: ValueId,
    [n, k]: [usize; 2],
    (bits, block, level): (usize, usize, i64),
    zeros: Zeros,
    bias: bool,
) -> ValueId {
    let count = k.div_ceil(block);
    let packed = bytes(b, &[n, count, block * bits / 8], 3);
    let mut scales = numbers(&[n, count], 5);
    if block >= 128 {
        // Some are numbers of `f16`: these are stored so, and tensor cores want them.
        let halves = scales.to_f64s().expect("numbers");
        let halves = halves.iter().map(|v| (v * 256.0).round() / 256.0);
        scales = Tensor::from_f64(ElemType::F32, [n, count], halves.collect());
    }
    let scales = b.constant(&scales);
    let row = (count * bits).div_ceil(8);
    let zero = match zeros {
        Zeros::Middle => None,
        Zeros::Own => Some(bytes(b, &[n, row], 11)),
        Zeros::Equal => {
            let all = (0..8 / bits).fold(0, |byte, p| byte | 1 << (p * bits));
            Some(b.constant(&Tensor::from_int(
                ElemType::U8,
                [n, row],
                vec![all; n * row],
            )))
        }
        Zeros::Floats => Some(b.constant(&numbers(&[n, count], 7))),
    };
    let bias = bias.then(|| b.constant(&numbers(&[n], 6)));
    let attrs: Attrs = [
        ("K", k as i64),
        ("N", n as i64),
        ("bits", bits as i64),
        ("block_size", block as i64),
        ("accuracy_level", level),
    ]
    .map(|(name, v)| (name.to_owned(), Attr::Int(v)))
    .into();
    let operands = vec![Some(x), Some(packed), Some(scales), zero, None, bias];
    b.node("matmul_nbits", operands, attrs, 1)
        .expect("a product")[0]
}

#[test]
fn products_of_blocks() {
    // Rows, columns, blocks of a row.
    let shapes = [
        (1, 1, 1),
        (1, 33, 3),
        (2, 16, 2),
        (5, 7, 4),
        (12, 48, 1),
        (13, 20, 3),
        (50, 17, 2),
    ];
    let formats = [
        (4, 32),
        (2, 16),
        (8, 16),
        (4, 128),
        (2, 64),
        (8, 256),
        (4, 16),
    ];
    let zeros = [Zeros::Middle, Zeros::Own, Zeros::Equal];
    for (i, &(m, n, blocks)) in shapes.iter().enumerate() {
        for (j, &(bits, block)) in formats.iter().enumerate() {
            let k = blocks * block;
            let a: &[usize] = &[m, k];
            let (zeros, bias, symbolic) = (
                zeros[(i + j) % 3],
                (i + j).is_multiple_of(2),
                (i + j).is_multiple_of(4),
            );
            let name = format!("{m} {n} {k} of {bits} bits by {block}");
            let kernels = check(&name, &[a], symbolic, |b, x| {
                product(b, x[0], [n, k], (bits, block, 4), zeros, bias)
            });
            // A bias is part of the product only after rewriting.
            assert_eq!(kernels, 2 + usize::from(bias), "{name}");
        }
    }
}

#[test]
fn other_products_are_of_numbers() {
    // No rounding, a last block that is shorter, zero points that are no codes, more leading axes.
    let cases: &[(&[usize], usize, i64, Zeros)] = &[
        (&[3, 64], 64, 0, Zeros::Middle),
        (&[1, 64], 64, 1, Zeros::Own),
        (&[3, 40], 40, 4, Zeros::Own),
        (&[3, 40], 40, 0, Zeros::Middle),
        (&[3, 64], 64, 4, Zeros::Floats),
        (&[2, 3, 64], 64, 4, Zeros::Own),
    ];
    for &(shape, k, level, zeros) in cases {
        for bias in [false, true] {
            let name = format!("{shape:?} {level}");
            let kernels = check(&name, &[shape], false, |b, x| {
                product(b, x[0], [9, k], (4, 32, level), zeros, bias)
            });
            if k == 64 && level < 4 {
                assert_eq!(kernels, 1 + usize::from(bias), "{name}");
            }
        }
    }
}

#[test]
fn numbers_meet_weights_a_few_blocks_at_a_time() {
    // More than one band of rows, chunk of blocks and panel, with rests.
    let zeros = [Zeros::Middle, Zeros::Own, Zeros::Equal];
    for (i, (m, k, n)) in [(1, 640, 33), (15, 320, 70), (113, 96, 16)]
        .into_iter()
        .enumerate()
    {
        for (j, (bits, block)) in [(4, 32), (2, 16), (8, 32)].into_iter().enumerate() {
            let (a, r): (&[usize], &[usize]) = (&[m, k], &[m, n]);
            let name = format!("{m} {k} {n} of {bits} bits by {block}");
            let kernels = check(&name, &[a, r], i == j, |b, x| {
                let zeros = zeros[(i + j) % 3];
                let y = product(b, x[0], [n, k], (bits, block, 0), zeros, false);
                let of = operands(b, y);
                let bias = b.constant(&numbers(&[n], 9));
                let operands = vec![of[0], of[1], Some(bias), Some(x[1])];
                let name = ["", "Relu", "Gelu"][j];
                let attrs: Attrs = [("activation".into(), Attr::Str(name.into()))].into();
                b.node("fused_linear", operands, attrs, 1)
                    .expect("a product")[0]
            });
            assert_eq!(kernels, 1, "{name}");
        }
    }
}

/// Terms as files of other programs give them: signed codes, codes among other bytes, zero points of a table.
#[test]
fn terms_over_files_are_products_of_blocks() {
    let (n, k) = (9, 64);
    let file: Vec<u8> = (0..n * (k + 4)).map(|i| (i * 37 % 251) as u8).collect();
    let file = bytes::Bytes::from(file);
    // Rows of codes with four other bytes before each.
    let among = |elem, bits| {
        let digits = vec![(n, (8 * (k + 4)) as i64), (8 * k / bits, bits as i64)];
        let places = Places {
            bits,
            first: 32,
            digits,
        };
        strided::strided(elem, vec![n, k], places, file.clone())
    };
    let scales = |b: &mut Builder| {
        let v = b.constant(&numbers(&[n, 2], 5));
        let scales = b.module.as_constant(v).expect("a constant").encoding();
        Encoding::clone(scales)
    };
    let zeros = |elem, values: fn(i128) -> i128| {
        let values = (0..2 * n as i128).map(values).collect();
        dense::from_tensor(&Tensor::from_int(elem, [n, 2], values))
    };
    let table = |codes| {
        let next = (0..16).map(|q| f64::from((q + 1) % 16)).collect();
        let table = Tensor::from_f64(ElemType::F32, [1, 1, 16, 1], next);
        codebook::codebook(ElemType::F32, dense::from_tensor(&table), codes)
    };
    let nibbles = || {
        let bytes = Places {
            bits: 8,
            first: 0,
            digits: vec![(n * k / 2, 8)],
        };
        let bytes = strided::strided(ElemType::U8, vec![n * k / 2], bytes, file.clone());
        int::over(ElemType::U8, 4, vec![n, k], bytes)
    };
    let cases: Vec<(&str, Encoding, Option<Encoding>)> = vec![
        ("signed", among(ElemType::I8, 8), None),
        (
            "signed, zeros",
            among(ElemType::I8, 4),
            Some(zeros(ElemType::I8, |i| i % 7 - 3)),
        ),
        (
            "unsigned",
            among(ElemType::U8, 1),
            Some(zeros(ElemType::U8, |_| 128)),
        ),
        (
            "a table",
            nibbles(),
            Some(table(zeros(ElemType::U8, |i| i % 16))),
        ),
    ];
    for (name, codes, zero) in cases {
        let kernels = check(name, &[&[3, k]], false, |b, x| {
            let term = affine::affine(ElemType::F32, scales(b), codes.clone(), zero.clone());
            let w = b.term(&std::sync::Arc::new(term));
            let w = b.transpose(w, &[1, 0]).expect("a matrix");
            b.op("matmul", &[x[0], w]).expect("fits")
        });
        assert_eq!(kernels, 1, "{name}");
    }
}

/// Codes of every width, with scales for groups of every length, and what may be beside them.
#[test]
fn terms_of_every_form_stay_packed() {
    let (n, k) = (21, 192);
    let term = |bits: u32, groups: [usize; 2], beside: usize| {
        let packed = (0..(n * k * bits as usize).div_ceil(8)).map(|i| (i * 37 % 251) as u8);
        let codes = int::int(ElemType::U8, bits, vec![n, k], packed.collect());
        let scales = dense::from_tensor(&numbers(&groups, 5));
        let of = |beside: Tensor| dense::from_tensor(&beside);
        let top = (1 << bits) - 1;
        let whole = |i: usize| (i as i128 * 7) % (top + 1);
        let zeros = (0..groups[0] * groups[1]).map(whole).collect();
        let zeros = Tensor::from_int(ElemType::U8, groups, zeros);
        let f32 = ElemType::F32;
        match beside {
            0 => affine::affine(f32, scales, codes, None),
            1 => affine::affine(f32, scales, codes, Some(of(zeros))),
            2 => affine::affine(f32, scales, codes, Some(of(numbers(&groups, 8)))),
            3 => affmin::affmin(f32, scales, codes, of(numbers(&groups, 9))),
            // One for several groups.
            _ => affmin::affmin(f32, scales, codes, of(numbers(&[groups[0], 1], 9))),
        }
    };
    let groups = [
        [n, 6],
        [n, 2],
        [n, 12],
        // Longer than a block may be, or for more than a row.
        [n, 1],
        [7, 6],
        [1, 1],
    ];
    for bits in 1..=8 {
        for (i, groups) in groups.into_iter().enumerate() {
            let beside = (bits as usize + i) % 5;
            for rounded in [false, true] {
                let name = format!("{bits} bits, {groups:?} groups, {beside}, rounded {rounded}");
                let kernels = check(&name, &[&[3, k]], false, |b, x| {
                    let w = b.term(&std::sync::Arc::new(term(bits, groups, beside)));
                    let w = b.transpose(w, &[1, 0]).expect("a matrix");
                    let block = [32, 96, 16, 192, 32, 192][i];
                    let x = match rounded {
                        true => b.op_with("round_blocks", &[x[0]], [("block_size", block.into())]),
                        false => Ok(x[0]),
                    };
                    b.op("matmul", &[x.expect("f32"), w]).expect("fits")
                });
                assert_eq!(kernels, 1 + usize::from(rounded), "{name}");
            }
        }
    }
}

#[test]
fn codes_in_planes_stay_packed() {
    let (n, k) = (9, 64);
    let plane = |width: u32, seed: usize| {
        let packed = (0..n * k * width as usize / 8).map(|i| ((i + seed) * 41 % 253) as u8);
        let codes = int::int(ElemType::U8, width, vec![n, k], packed.collect());
        (width, codes)
    };
    let codes = bits::bits(ElemType::U8, 6, vec![plane(2, 1), plane(4, 2)]);
    // What stands for planes that are missing is no code of its own.
    let coarse = bits::bits(ElemType::U8, 6, vec![plane(2, 1), plane(2, 2)]);
    for (codes, packed) in [(codes, true), (coarse, false)] {
        let scales = dense::from_tensor(&numbers(&[n, 4], 5));
        let term = affine::affine(ElemType::F32, scales, codes, None);
        let made = check("planes", &[&[3, k]], false, |b, x| {
            let w = b.term(&std::sync::Arc::new(term.clone()));
            let w = b.transpose(w, &[1, 0]).expect("a matrix");
            b.op("matmul", &[x[0], w]).expect("fits")
        });
        // What is decoded takes a kernel before the product.
        assert_eq!(made == 1, packed, "{made}");
    }
}

/// The operands of the product that a node decomposes into.
fn operands(b: &mut Builder, y: ValueId) -> Vec<Option<ValueId>> {
    let node = b.module.node(b.module.producer(y).expect("a node")).clone();
    let made = node.op.decompose.expect("it has one")(b, &node).expect("constant")[0];
    let product = b.module.producer(made).expect("a node");
    b.module.node(product).operands.clone()
}

#[test]
fn rounded_numbers_that_more_read() {
    // Two products share them, with other factors; they are also a result.
    let a: &[usize] = &[3, 64];
    let kernels = check("shared", &[a], false, |b, x| {
        let r = b
            .op_with("round_blocks", &[x[0]], [("block_size", 32i64.into())])
            .expect("f32");
        let p = product(b, r, [8, 64], (4, 32, 0), Zeros::Middle, false);
        let q = product(b, r, [8, 64], (4, 32, 0), Zeros::Own, false);
        let y = b.op("add", &[p, q]).expect("of one shape");
        let r = b.slice(r, 1, 0, 8).expect("columns");
        b.op("mul", &[y, r]).expect("of one shape")
    });
    assert!(kernels >= 5, "{kernels}");
}

#[test]
fn what_follows_is_part_of_the_product() {
    for (n, activation) in [
        (40, ""),
        (37, "Relu"),
        (32, "Gelu"),
        (37, "Swish"),
        (7, "Tanh"),
    ] {
        let (a, r): (&[usize], &[usize]) = (&[5, 64], &[5, n]);
        for residual in [false, true] {
            let shapes: Vec<&[usize]> = if residual { vec![a, r] } else { vec![a] };
            let kernels = check(activation, &shapes, false, |b, x| {
                let y = product(b, x[0], [n, 64], (4, 32, 4), Zeros::Own, false);
                let of = operands(b, y);
                let bias = b.constant(&numbers(&[n], 9));
                let operands = vec![of[0], of[1], Some(bias), x.get(1).copied()];
                let attrs: Attrs = [("activation".into(), Attr::Str(activation.into()))].into();
                b.node("fused_linear", operands, attrs, 1)
                    .expect("a product")[0]
            });
            assert_eq!(kernels, 2, "{activation}");
        }
    }
}

/// A product with packed weights and what may follow it, for a GPU.
fn on_gpu(
    name: &str,
    [m, n, k]: [usize; 3],
    (bits, block): (usize, usize),
    (symbolic, halves): (bool, bool),
    activation: Option<&str>,
) -> Lowered {
    // The faster tensor cores are, the smaller a product is that gains by them.
    let target = Target::nvptx64(match halves {
        true => Feature::Sm90a,
        false => Feature::Sm80,
    });
    let options = Options {
        halves,
        ..Options::default()
    };
    // Halves have eleven bits; sums are of as many as a thousand products.
    let how = (&target, &options, if halves { 2e-2 } else { 1e-4 });
    let (a, r): (&[usize], &[usize]) = (&[m, k], &[m, n]);
    check_lowered_for(how, name, &[a, r], symbolic, |b, x| {
        let y = product(b, x[0], [n, k], (bits, block, 0), Zeros::Middle, false);
        let Some(activation) = activation else {
            return y;
        };
        let of = operands(b, y);
        let bias = b.constant(&numbers(&[n], 9));
        let operands = vec![of[0], of[1], Some(bias), Some(x[1])];
        let attrs: Attrs = [("activation".into(), Attr::Str(activation.into()))].into();
        b.node("fused_linear", operands, attrs, 1)
            .expect("a product")[0]
    })
}

#[test]
fn gpus_read_packed_weights() {
    for (bits, block) in [(4, 32), (4, 128), (8, 64)] {
        for (shape, symbolic, kernels) in [
            ([1, 40, 1024], false, 1),
            ([3, 33, 1152], false, 1),
            ([7, 24, 1024], false, 1),
            // One for a row, one for more.
            ([1, 24, 1024], true, 2),
            ([6, 24, 1024], true, 2),
        ] {
            let name = format!("{shape:?} of {bits} bits by {block}, symbolic {symbolic}");
            let lowered = on_gpu(&name, shape, (bits, block), (symbolic, false), None);
            assert_eq!(lowered.kernels.len(), kernels, "{name}");
            let [choice] = &lowered.report.choices[..] else {
                panic!("{name}: a choice");
            };
            assert!(choice.predicted_ns < choice.others_ns, "{choice}");
            let gemv = format!("gemv_int{bits}");
            assert_eq!(choice.kernels, vec![gemv; kernels], "{name}");
            println!("{choice}");
        }
        let name = format!("{bits} bits by {block} and what follows");
        let lowered = on_gpu(
            &name,
            [2, 24, 1024],
            (bits, block),
            (false, false),
            Some("Gelu"),
        );
        assert_eq!(lowered.kernels.len(), 2, "{name}");
    }
}

#[test]
fn gpus_multiply_halves_where_that_is_allowed() {
    let kernels = |lowered: &Lowered| lowered.report.choices[0].kernels.clone();
    for ([n, k], activation) in [([1024, 256], None), ([528, 256], Some("Swish"))] {
        let chosen = |m, halves| {
            let lowered = on_gpu("halves", [m, n, k], (4, 128), (false, halves), activation);
            println!("{}", lowered.report.choices[0]);
            kernels(&lowered) == ["gemm_int4_f16"]
        };
        let rows = [65, 130, 390].into_iter().find(|&m| chosen(m, true));
        assert!(rows.is_some_and(|m| !chosen(m, false)), "{rows:?}");
    }
    // Rows that are not known: one alone is exact.
    for m in [1, 5] {
        let lowered = on_gpu("rows", [m, 32, 1024], (4, 128), (true, true), Some("Gelu"));
        assert_eq!(kernels(&lowered), ["gemv_int4", "gemm_int4_f16"]);
    }
}

#[test]
fn gpus_multiply_numbers_where_packing_gains_nothing() {
    // Columns are padded to a run of 1024.
    let lowered = on_gpu("short", [1, 512, 32], (4, 32), (false, false), None);
    let [choice] = &lowered.report.choices[..] else {
        panic!("a choice");
    };
    assert!(choice.kernels == ["gemm"], "{choice}");
}
