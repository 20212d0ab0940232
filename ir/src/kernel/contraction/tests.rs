use super::super::pattern::expanded;
use super::*;

struct Case {
    kind: Kind,
    scaled: bool,
    /// A wide panel, two stages and a table.
    more: bool,
    taps: u32,
    dynamic_k: bool,
    masked: bool,
    tail: fn(&mut KernelBuilder, Var, Epilogue),
    whole: bool,
}

fn build(case: &Case) -> Kernel {
    let mut b = KernelBuilder::new("k");
    let [ea, eb, sums] = case.kind.elems();
    let ec = if case.scaled { ElemType::U8 } else { sums };
    let a = b.buffer("a", ea, false);
    let w = b.buffer("b", eb, false);
    let c = b.buffer("c", ec, true);
    let bias = b.buffer("bias", ElemType::F32, false);
    let size = b.size_param("k");
    let k = if case.dynamic_k {
        b.size(size)
    } else {
        b.index(24)
    };
    let zero = b.index(0);
    let tile = GemmTile {
        kind: case.kind,
        rows: 6,
        a,
        b: w,
        b_base: zero,
        k,
        taps: case.taps,
        width: if case.more { 96 } else { PANEL },
    };
    let acc = gemm(&mut b, tile, |b, tap| {
        let base = match tap {
            Some(t) => b.binary(Binary::Mul, t, k),
            None => zero,
        };
        let mut rows = Axis::stride(100);
        if case.masked {
            let i = b.iota(6);
            let two = b.index(2);
            rows.mask = Some(b.binary(Binary::Lt, i, two));
        }
        RowsAt { base, rows }
    });
    let valid = b.index(5);
    let at = |base| RowsAt {
        base,
        rows: Axis::stride(32).valid(valid),
    };
    let f32s = case.kind.of_numbers();
    let scaled = case.scaled.then(|| {
        let (sums, scale) = (
            b.buffer("sums", ElemType::I32, false),
            b.buffer("scale", ElemType::F32, false),
        );
        let one = b.constant(TileType::of(ElemType::I32, &[]), Literal::Int(7));
        Scaled {
            zero: Some((one, sums, zero)),
            scale: (scale, zero),
        }
    });
    let numbers = f32s || case.scaled;
    let table = b.buffer("table", ElemType::U8, false);
    let codes = b.buffer("codes", ElemType::U8, false);
    let stage = |residual| Stage {
        factor: 0.5,
        row: (bias, zero),
        residual,
        lo: -3.0,
        hi: 252.0,
    };
    let stages = match case.more {
        true => vec![stage(None), stage(Some((codes, at(zero), 0.25)))],
        false => vec![],
    };
    (case.tail)(
        &mut b,
        acc,
        Epilogue {
            scaled,
            bias: numbers.then_some((bias, zero)),
            residual: f32s.then(|| (bias, at(zero))),
            lo: numbers.then_some(0.0),
            hi: numbers.then_some(6.0),
            code: case.scaled.then_some((ElemType::U8, 3)),
            stages,
            table: case.more.then_some(table),
            c,
            c_at: at(zero),
            cols: Some(valid),
        },
    );
    b.finish()
}

#[test]
fn what_is_written_is_recognised() {
    let store_twice = |b: &mut KernelBuilder, acc: Var, e: Epilogue| {
        epilogue(b, acc, e.clone());
        epilogue(b, acc, e);
    };
    let exp = |b: &mut KernelBuilder, acc: Var, e: Epilogue| {
        let x = b.unary(Unary::Exp, acc);
        epilogue(b, x, e);
    };
    let base = Case {
        kind: Kind::F32,
        scaled: false,
        more: false,
        taps: 1,
        dynamic_k: false,
        masked: false,
        tail: epilogue,
        whole: true,
    };
    let cases = [
        Case { ..base },
        Case { taps: 9, ..base },
        Case {
            taps: 9,
            dynamic_k: true,
            masked: true,
            ..base
        },
        Case {
            tail: store_twice,
            whole: false,
            ..base
        },
        Case {
            tail: exp,
            whole: false,
            ..base
        },
        Case {
            kind: Kind::Bf16,
            ..base
        },
        Case {
            kind: Kind::Bf16,
            taps: 9,
            masked: true,
            ..base
        },
        Case {
            kind: Kind::I8,
            ..base
        },
        Case {
            kind: Kind::I8,
            taps: 3,
            ..base
        },
        Case {
            kind: Kind::I8,
            scaled: true,
            ..base
        },
        Case {
            kind: Kind::I8,
            scaled: true,
            more: true,
            taps: 3,
            masked: true,
            ..base
        },
    ];
    // As it is written, and as backends get it.
    let both = |case| {
        let kernel = build(case);
        [(case, kernel.clone()), (case, expanded(kernel))]
    };
    for (i, (case, kernel)) in cases.iter().flat_map(both).enumerate() {
        let facts = Facts::new(&kernel);
        let (at, found) = kernel
            .body
            .iter()
            .enumerate()
            .find_map(|(at, s)| Some((at, recognise(&facts, s)?)))
            .unwrap_or_else(|| panic!("case {i} is not recognised"));
        assert_eq!(
            (found.kind, found.rows, found.taps),
            (case.kind, 6, case.taps),
            "case {i}"
        );
        let tail = recognise_epilogue(&facts, &kernel.body[at + 1..], found.acc);
        assert_eq!(tail.is_some(), case.whole, "case {i}");
        if let Some(tail) = tail.filter(|_| case.kind.of_numbers() || case.scaled) {
            assert_eq!((tail.lo, tail.hi), (Some(0.0), Some(6.0)));
            assert!(tail.bias.is_some());
            assert_eq!(tail.residual.is_some(), case.kind.of_numbers());
            assert_eq!(tail.scaled.is_some(), case.scaled);
            assert_eq!(tail.code.is_some(), case.scaled);
            if let Some(scaled) = tail.scaled {
                assert_eq!(tail.code, Some((ElemType::U8, 3)));
                assert!(scaled.zero.is_some());
            }
            assert_eq!(tail.stages.len(), if case.more { 2 } else { 0 });
            assert_eq!(tail.table.is_some(), case.more);
            if let [first, second] = &tail.stages[..] {
                assert_eq!((first.factor, first.lo, first.hi), (0.5, -3.0, 252.0));
                assert!(first.residual.is_none());
                assert_eq!(second.residual.as_ref().map(|r| r.3), Some(0.25));
                assert_eq!(tail.c_rows.at, At::Stride(32));
            }
        }
    }
}
