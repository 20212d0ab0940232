//! Tests of reading and printing.

use super::*;
use crate::encodings::{affine, dense, int};
use crate::{Attr, Attrs, Constant, Dim, ElemType, Op, Tensor, Type};

fn one_node(attrs: Attrs) -> Module {
    let mut m = Module::new("f");
    let x = m.add_input(
        Module::TOP,
        "x",
        Type::tensor(ElemType::F32, [Dim::sym("batch")]),
    );
    let op = Op::named("relu").expect("is an op");
    let ty = m.value(x).ty.clone();
    let n = m.add_node(
        Module::TOP,
        op,
        "/a/b \"c\"",
        vec![Some(x)],
        attrs,
        vec![],
        vec![ty],
    );
    m.region_mut(Module::TOP).outputs = m.node(n).results.clone();
    m
}

fn reads_back(m: &Module) {
    let text = print(m);
    let back = parse(&text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
    assert_eq!(m.first_difference(&back), None, "{text}");
    assert_eq!(print(&back), text);
}

#[test]
fn every_kind_of_attribute_reads_back() {
    let floats = vec![
        0.1,
        -0.0,
        1e-40,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(0xffc0_0001),
    ];
    let cases = [
        Attr::Int(i64::MIN),
        Attr::Ints(vec![]),
        Attr::Ints(vec![-1, i64::MAX]),
        Attr::Float(3.0),
        Attr::Floats(vec![]),
        Attr::Floats(floats),
        Attr::Str("a \"b\" \\ \n \u{1} é".into()),
        Attr::Strs(vec![]),
        Attr::Strs(vec![String::new(), "x".into()]),
        Attr::Elem(ElemType::BF16),
        Attr::Type(Type::Sequence(Box::new(Type::Optional(Box::new(
            Type::unranked(ElemType::I4),
        ))))),
        Attr::Type(Type::tensor(ElemType::F32, [2usize])),
        Attr::Tensor(Tensor::from_f64(ElemType::F64, [2, 1], vec![0.1, f64::NAN])),
        Attr::Tensor(Tensor::new(
            ElemType::String,
            [1],
            crate::tensor::Data::Str(vec!["s".into()]),
        )),
        Attr::Tensor(Tensor::new(
            ElemType::C64,
            [1],
            crate::tensor::Data::Complex(vec![[0.5, -1.0]]),
        )),
        Attr::Tensor(Tensor::zeros(ElemType::F32, [0, 3])),
    ];
    for case in cases {
        reads_back(&one_node(Attrs::from([("a b".to_owned(), case)])));
    }
}

#[test]
fn dimensions_read_back() {
    let (n, p) = (Dim::sym("N"), Dim::sym("past len"));
    let two = Dim::from(2i64);
    let cases = [
        Dim::from(0i64),
        Dim::from(-3i64),
        Dim::from(i64::MIN),
        &n * Dim::from(i64::MIN) + Dim::from(i64::MAX),
        &n * &p * &two - Dim::from(1i64),
        Dim::from(0i64) - &n,
        (&n + &p).floor_div(&two),
        (&n + Dim::from(1i64)).modulo(&p),
        n.min_dim(&(&p + &two)).max_dim(&Dim::sym("?3")) * &n,
        Dim::sym("min"),
        Dim::sym("_"),
        Dim::sym("é"),
        n.floor_div(&Dim::from(0i64)),
    ];
    for case in cases {
        let mut m = one_node(Attrs::new());
        let v = m.top().outputs[0];
        m.value_mut(v).ty = Type::tensor(ElemType::F32, [case]);
        reads_back(&m);
    }
}

#[test]
fn strange_names_read_back() {
    let names = [
        "",
        "",
        "h",
        "h",
        "7",
        "a b",
        "%",
        "h#1",
        "/layers.0/MatMul_output_0",
        "a:b",
        "é",
        "1x",
    ];
    let mut m = one_node(Attrs::new());
    let op = Op::named("relu").expect("is an op");
    for name in names {
        let v = m.top().outputs[0];
        let ty = m.value(v).ty.clone();
        let n = m.add_node(
            Module::TOP,
            op,
            "",
            vec![Some(v)],
            Attrs::new(),
            vec![],
            vec![ty],
        );
        let v = m.node(n).results[0];
        m.value_mut(v).name = name.into();
        m.region_mut(Module::TOP).outputs = vec![v, v];
    }
    for names in [
        vec![],
        vec!["a".to_owned(), "_".into()],
        vec![String::new(), "return".into()],
    ] {
        m.output_names = names;
        m.name = "a module".into();
        reads_back(&m);
    }
}

fn constants() -> Vec<crate::encodings::Encoding> {
    let codes = int::int(
        ElemType::U4,
        4,
        vec![1, 4],
        Bytes::from_static(&[0x10, 0xf2]),
    );
    let scale = |elem| dense::from_tensor(&Tensor::from_f64(elem, [1, 2], vec![1.0, 0.5]));
    let zero = dense::from_tensor(&Tensor::from_int(ElemType::U8, [1, 1], vec![8]));
    vec![
        affine::affine(
            ElemType::F32,
            scale(ElemType::F16),
            codes.clone(),
            Some(zero),
        ),
        affine::affine(ElemType::F32, scale(ElemType::F32), codes, None),
        dense::from_tensor(&Tensor::new(
            ElemType::String,
            [2],
            crate::tensor::Data::Str(vec!["a".into(), "\"".into()]),
        )),
        dense::dense(
            ElemType::F32,
            vec![1],
            Bytes::from_static(&[1, 0, 0xa0, 0x7f]),
        ),
        dense::dense(ElemType::Bool, vec![2], Bytes::from_static(&[1, 2])),
        dense::from_tensor(&Tensor::zeros(ElemType::F32, [0])),
        dense::from_tensor(&Tensor::from_f64(
            ElemType::F8E4M3FN,
            [3],
            vec![1.5, -448.0, f64::NAN],
        )),
        dense::from_tensor(&Tensor::zeros(ElemType::F32, [100])),
    ]
}

#[test]
fn terms_read_back() {
    for e in constants() {
        let mut m = Module::new("c");
        let v = m.add_constant("c", Constant::new(e));
        m.region_mut(Module::TOP).outputs = vec![v];
        reads_back(&m);
    }
}

#[test]
fn large_constants_need_their_side_file() {
    let mut m = Module::new("c");
    for i in 1..4 {
        let t = Tensor::from_f64(ElemType::F32, [70 + i], vec![i as f64; 70 + i]);
        let v = m.add_constant("c", Constant::from_tensor(&t));
        m.region_mut(Module::TOP).outputs.push(v);
    }
    let dir = std::env::temp_dir().join(format!("lapidary-text-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder for the test");
    let path = dir.join("m.lap");
    save(&m, &path).expect("writes");
    let text = std::fs::read_to_string(&path).expect("reads");
    let weights = Bytes::from(std::fs::read(path.with_extension("weights")).expect("reads"));
    std::fs::remove_dir_all(&dir).expect("cleans up");
    let back = parse_located(&text, Some(&weights))
        .expect("reads back")
        .module;
    assert_eq!(m.first_difference(&back), None);
    let code =
        |text: &str, w: Option<&Bytes>| parse_located(text, w).expect_err("fails")[0].code.code;
    assert_eq!(code(&text, None), "LAP0007");
    assert_eq!(code(&print_elided(&m), Some(&weights)), "LAP0007");
    assert_eq!(code(&text, Some(&weights.slice(..200))), "LAP0007");
    assert_eq!(
        code(&text, Some(&Bytes::from(vec![9; weights.len()]))),
        "LAP0008"
    );
}

#[test]
fn types_may_be_left_out() {
    let m = parse("fn f(%x: f32[2,N]) -> (y: f32[N,2]) { %y = transpose(%x) return %y }")
        .expect("reads");
    assert_eq!(m.value(m.top().outputs[0]).ty.to_string(), "f32[N,2]");
}

#[test]
fn nesting_is_bounded() {
    let deep = |open: &str, close: &str| {
        format!(
            "fn f(%x: {}f32[2]{}) -> () {{ return }}",
            open.repeat(9999),
            close.repeat(9999)
        )
    };
    let text = deep("sequence<", ">");
    assert_eq!(parse(&text).expect_err("fails")[0].code.code, "LAP0002");
    let text = format!(
        "fn f(%x: f32[{}1]) -> () {{ return }}",
        "min(1, ".repeat(9999)
    );
    assert_eq!(parse(&text).expect_err("fails")[0].code.code, "LAP0002");
    let text = format!(
        "fn f(%x: f32[{}1]) -> () {{ return }}",
        "floordiv(2*a + 2*b, 2)*".repeat(99)
    );
    assert_eq!(parse(&text).expect_err("fails")[0].code.code, "LAP0002");
}
