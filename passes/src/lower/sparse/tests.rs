use crate::lower::checks::{check, check_lowered, numbers};
use crate::lower::codes::tests::{product, with_tail};
use lapidary_ir::encodings::{Encoding, dense, int, sparse};
use lapidary_ir::{Attr, Attrs, ElemType, Tensor};

/// Input, filters, strides, pads.
type Case = (
    &'static [usize],
    &'static [usize],
    &'static [i64],
    &'static [i64],
);

/// Random weights of which one in `keep` is not zero, unevenly over the rows.
fn weights(shape: &[usize], keep: usize) -> Tensor {
    let all = numbers(shape, 31).to_f64s().expect("numbers");
    let some = all.iter().enumerate().map(|(i, &v)| {
        let spread = i.wrapping_mul(2_654_435_761) >> 7;
        if spread % keep == 0 || i % 97 < 2 {
            v
        } else {
            0.0
        }
    });
    Tensor::from_f64(lapidary_ir::ElemType::F32, shape.to_vec(), some.collect())
}

#[test]
fn products_with_sparse_weights() {
    // Rows, inner extent, columns: one lane, few, many, with and without rests, more than a panel holds.
    let cases = [
        (1, 70, 45),
        (5, 40, 9),
        (16, 300, 130),
        (40, 33, 64),
        (130, 520, 70),
        (64, 96, 128),
    ];
    for (m, k, n) in cases {
        for (activation, residual, symbolic) in [
            ("", false, false),
            ("Relu", true, false),
            ("Gelu", true, false),
            ("Clip", true, true),
        ] {
            let (a, r): (&[usize], &[usize]) = (&[m, k], &[m, n]);
            let shapes: Vec<&[usize]> = if residual { vec![a, r] } else { vec![a] };
            let name = format!("{m} {k} {n} {activation}");
            let kernels = check(&name, &shapes, symbolic, |b, x| {
                let (w, bias) = (weights(&[k, n], 12), numbers(&[n], 6));
                let operands = vec![
                    Some(x[0]),
                    Some(b.constant(&w)),
                    Some(b.constant(&bias)),
                    x.get(1).copied(),
                ];
                let attrs: Attrs = [
                    ("activation".into(), Attr::Str(activation.into())),
                    ("activation_params".into(), Attr::Floats(vec![-0.5, 0.75])),
                ]
                .into();
                b.node("fused_linear", operands, attrs, 1)
                    .expect("a product")[0]
            });
            assert_eq!(kernels, 1, "{name}");
        }
    }
}

#[test]
fn convolutions_with_sparse_weights() {
    let ints = |v: &[i64]| Attr::Ints(v.to_vec());
    // Input, filters, strides, pads: products of pixels, windows, a single pixel, channels that are cut.
    let cases: &[Case] = &[
        (&[1, 24, 6, 7], &[33, 24, 1, 1], &[1, 1], &[0, 0, 0, 0]),
        (&[2, 12, 9, 10], &[40, 12, 3, 3], &[1, 1], &[1, 1, 1, 1]),
        (&[1, 200, 9, 8], &[7, 200, 3, 2], &[2, 1], &[1, 0, 0, 1]),
        (&[1, 90, 1, 1], &[50, 90, 1, 1], &[1, 1], &[0, 0, 0, 0]),
        (&[1, 30, 40], &[20, 30, 5], &[2], &[2, 1]),
    ];
    for (shape, filters, strides, pads) in cases {
        for (residual, symbolic) in [(false, false), (true, false), (false, true)] {
            let name = format!("{shape:?} {filters:?} {residual}");
            let out = |i: usize| {
                let reach = shape[2 + i] as i64 + pads[i] + pads[strides.len() + i];
                ((reach - filters[2 + i] as i64) / strides[i] + 1) as usize
            };
            let mut result = vec![shape[0], filters[0]];
            result.extend((0..strides.len()).map(out));
            let shapes: Vec<&[usize]> = match residual {
                true => vec![shape, &result],
                false => vec![shape],
            };
            check(&name, &shapes, symbolic, |b, x| {
                let (w, bias) = (weights(filters, 14), numbers(&filters[..1], 6));
                let operands = vec![
                    Some(x[0]),
                    Some(b.constant(&w)),
                    Some(b.constant(&bias)),
                    x.get(1).copied(),
                ];
                let attrs: Attrs = [
                    ("strides".into(), ints(strides)),
                    ("pads".into(), ints(pads)),
                    ("activation".into(), Attr::Str("Relu".into())),
                ]
                .into();
                b.node("fused_conv", operands, attrs, 1).expect("pixels")[0]
            });
        }
    }
}

#[test]
fn products_of_sparse_codes() {
    // One vector of lanes, many, with and without rests, more than a panel holds.
    for (m, k, n) in [(16, 1200, 260), (50, 512, 160), (130, 520, 100)] {
        for form in [
            (9, 0, false, None),
            (9, 100, true, None),
            (9, 77, false, Some(ElemType::I8)),
            (9, 0, true, Some(ElemType::U8)),
            (9, -1, true, None),
        ] {
            let symbolic = m == 130;
            let name = format!("{m} {k} {n} {form:?}");
            let lowered = check_lowered(&name, &[&[m, k]], symbolic, |b, x| {
                product(b, x[0], "quantized_linear", &[k, n], form, &[])
            });
            let noticed = &lowered.report.noticed;
            assert!(noticed.len() == 1 && noticed[0].sparse, "{noticed:?}");
        }
        let lowered = check_lowered("tail", &[&[m, k], &[m, n]], false, |b, x| {
            with_tail(b, x[0], x[1], "quantized_linear", &[k, n], 9, &[])
        });
        assert!(lowered.report.noticed[0].sparse, "{m} {k} {n}");
    }
}

/// Terms with a pattern of zeros are multiplied as they are: nothing is decoded when a model is loaded, or stored dense.
#[test]
fn products_of_sparse_terms() {
    for (m, k, n) in [(1, 1200, 260), (50, 512, 160)] {
        for rows in [false, true] {
            let w = weights(&[n, k], if rows { 30 } else { 9 });
            let term = term(&w, rows);
            let lowered = check_lowered("terms", &[&[m, k]], false, |b, x| {
                let w = b.term(&std::sync::Arc::new(term));
                let w = b.transpose(w, &[1, 0]).expect("a matrix");
                b.op("matmul", &[x[0], w]).expect("fits")
            });
            assert!(lowered.report.noticed[0].sparse, "{m} {rows}");
            assert!(lowered.program.prepare.steps.is_empty());
            assert!(lowered.program.weights_bytes < (n * k) as u64 * 2);
        }
    }
    // What something else reads is decoded, once for both.
    let w = weights(&[160, 512], 9);
    let shared = check_lowered("shared", &[&[50, 512]], false, |b, x| {
        let w = b.term(&std::sync::Arc::new(term(&w, false)));
        let t = b.transpose(w, &[1, 0]).expect("a matrix");
        let y = b.op("matmul", &[x[0], t]).expect("fits");
        b.op("matmul", &[y, w]).expect("fits")
    });
    assert!(shared.report.noticed.is_empty() && !shared.program.prepare.steps.is_empty());
}

/// The values of a matrix that are not zero, by rows or marked in a bitmap.
fn term(w: &Tensor, by_rows: bool) -> Encoding {
    let (n, k) = (w.shape()[0], w.shape()[1]);
    let all = w.to_f64s().expect("numbers");
    let kept: Vec<usize> = (0..n * k).filter(|&i| all[i] != 0.0).collect();
    let values = kept.iter().map(|&i| all[i]).collect();
    let values = dense::from_tensor(&Tensor::from_f64(ElemType::F32, [kept.len()], values));
    if !by_rows {
        let marks = int::pack(all.iter().map(|&v| u8::from(v != 0.0)), 1);
        return sparse::bitmap(
            vec![n, k],
            values,
            int::int(ElemType::U8, 1, vec![n, k], marks.into()),
        );
    }
    let integers = |elem, v: Vec<usize>| {
        let v: Vec<i128> = v.into_iter().map(|v| v as i128).collect();
        dense::from_tensor(&Tensor::from_int(elem, [v.len()], v))
    };
    let starts = (0..=n)
        .map(|r| kept.partition_point(|&i| i < r * k))
        .collect();
    let columns = kept.iter().map(|&i| i % k).collect();
    sparse::rows(
        [n, k],
        values,
        integers(ElemType::U32, starts),
        integers(ElemType::U16, columns),
    )
}

#[test]
fn convolutions_of_sparse_codes() {
    let ints = |v: &[i64]| Attr::Ints(v.to_vec());
    // Products of pixels of several images, windows, channels that are cut, few pixels, every second pixel, one axis.
    let cases: &[Case] = &[
        (&[2, 320, 6, 7], &[133, 320, 1, 1], &[1, 1], &[0, 0, 0, 0]),
        (&[2, 64, 9, 10], &[80, 64, 3, 3], &[1, 1], &[1, 1, 1, 1]),
        (&[1, 240, 9, 8], &[100, 240, 3, 2], &[2, 1], &[1, 0, 0, 1]),
        (&[1, 800, 4, 4], &[150, 800, 1, 1], &[1, 1], &[0, 0, 0, 0]),
        (&[1, 576, 13, 13], &[130, 576, 1, 1], &[2, 2], &[0, 0, 0, 0]),
        (&[1, 64, 60], &[196, 64, 5], &[2], &[2, 1]),
    ];
    for &(shape, filters, strides, pads) in cases {
        let out = |i: usize| {
            let reach = shape[2 + i] as i64 + pads[i] + pads[strides.len() + i];
            ((reach - filters[2 + i] as i64) / strides[i] + 1) as usize
        };
        let mut result = vec![shape[0], filters[0]];
        result.extend((0..strides.len()).map(out));
        let attrs = [("strides", ints(strides)), ("pads", ints(pads))];
        for (form, symbolic) in [
            ((9, 0, false, None), false),
            ((9, 77, true, Some(ElemType::I8)), false),
            ((9, 100, true, Some(ElemType::U8)), true),
        ] {
            let name = format!("{shape:?} {filters:?} {form:?}");
            let lowered = check_lowered(&name, &[shape], symbolic, |b, x| {
                product(b, x[0], "quantized_conv", filters, form, &attrs)
            });
            let noticed = &lowered.report.noticed;
            assert!(
                noticed.len() == 1 && noticed[0].sparse,
                "{name} {noticed:?}"
            );
        }
        check("tail", &[shape, &result], false, |b, x| {
            with_tail(b, x[0], x[1], "quantized_conv", filters, 9, &attrs)
        });
    }
}

#[test]
fn half_of_each_four_is_no_gain_for_codes() {
    let lowered = check_lowered("2:4", &[&[64, 64]], false, |b, x| {
        let half = (0..64 * 96).map(|i| {
            if i / 96 % 4 < 2 {
                1 + i as i128 % 90
            } else {
                0
            }
        });
        let w = Tensor::from_int(ElemType::I8, [64, 96], half.collect());
        let (s, z) = (
            b.scalar(ElemType::F32, 0.01),
            b.constant(&Tensor::from_int(ElemType::U8, [], vec![9])),
        );
        let a = b.op("quantize_linear", &[x[0], s, z]).expect("codes");
        let w = b.constant(&w);
        let scale = b.constant(&Tensor::from_f64(ElemType::F32, [96], vec![1e-4; 96]));
        let operands = [Some(a), Some(z), Some(w), Some(scale)];
        b.multi("quantized_linear", &operands, &[], 1)
            .expect("a product")[0]
    });
    let noticed = &lowered.report.noticed;
    assert_eq!(
        (noticed[0].nonzeros, noticed[0].sparse),
        (64 * 96 / 2, false)
    );
}
