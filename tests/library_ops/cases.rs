//! What each op is given.

use super::random::Gen;
use lapidary_ir::encodings::coded::rans::rans;
use lapidary_ir::tensor::{Tensor, Value};
use lapidary_ir::{Attr, Attrs, ElemType};

/// An index operand.
pub fn i64s(values: &[i64]) -> Value {
    Tensor::ints(values).into()
}

pub fn dims_of(value: &Value) -> Vec<usize> {
    value.as_tensor().map_or(vec![], |t| t.shape().to_vec())
}

pub struct Case {
    pub operands: Vec<Option<Value>>,
    pub attrs: Attrs,
    pub results: usize,
}

pub fn case<const N: usize, const M: usize>(
    operands: [Value; N],
    attrs: [(&str, Attr); M],
) -> Case {
    Case {
        operands: operands.into_iter().map(Some).collect(),
        attrs: attrs.into_iter().map(|(n, a)| (n.to_owned(), a)).collect(),
        results: 1,
    }
}

pub fn axis(g: &mut Gen, rank: usize) -> Attr {
    Attr::Int(g.int(-(rank as i64), rank as i64 - 1))
}

pub fn seed(g: &mut Gen) -> (&'static str, Attr) {
    ("seed", Attr::Float(g.int(0, 99) as f32))
}

/// Operands and attributes of an op; legal most of the time.
pub fn make(op: &str, g: &mut Gen) -> Option<Case> {
    use ElemType::{Bool, F16, F32, F64, I32, I64};
    let dims = g.dims(0, 4);
    let full = g.dims(1, 4);
    Some(match op {
        "identity" | "size" | "non_zero" => case([g.any(&dims)], []),
        "shape" => case(
            [g.any(&dims)],
            [
                ("start", Attr::Int(g.int(-5, 5))),
                ("end", Attr::Int(g.int(-5, 5))),
            ],
        ),
        "reshape" => {
            let n: usize = full.iter().product();
            let target = match g.int(0, 3) {
                0 => vec![-1],
                1 => vec![0, -1],
                2 => vec![1, n as i64, 1],
                _ => vec![g.int(-1, 4), g.int(-1, 4)],
            };
            case(
                [g.any(&full), i64s(&target)],
                [("allowzero", g.flag().into())],
            )
        }
        "squeeze" => {
            let dims: Vec<usize> = full.iter().map(|&d| if d < 3 { 1 } else { d }).collect();
            match dims.iter().position(|&d| d == 1) {
                Some(a) if g.flag() => {
                    case([g.any(&dims), i64s(&[a as i64 - dims.len() as i64])], [])
                }
                _ => case([g.any(&dims)], []),
            }
        }
        "unsqueeze" => case([g.any(&dims), i64s(&[0, g.int(-2, 2)])], []),
        "transpose" => {
            let mut perm: Vec<i64> = (0..full.len() as i64).collect();
            perm.rotate_left(g.int(0, 3) as usize % full.len());
            case([g.any(&full)], [("perm", Attr::Ints(perm))])
        }
        "expand" => {
            let dims: Vec<usize> = full.iter().map(|&d| if d < 3 { 1 } else { d }).collect();
            let mut to: Vec<i64> = dims
                .iter()
                .map(|&d| if d == 1 { g.int(0, 3) } else { d as i64 })
                .collect();
            to.insert(0, 2);
            case([g.any(&dims), i64s(&to)], [])
        }
        "tile" => {
            let repeats: Vec<i64> = full.iter().map(|_| g.int(0, 3)).collect();
            case([g.any(&full), i64s(&repeats)], [])
        }
        "gather" => {
            let index_dims = g.dims(0, 2);
            let elem = g.pick(&[I32, I64]);
            case(
                [g.any(&full), g.ints(elem, &index_dims, -1, 1)],
                [("axis", axis(g, full.len()))],
            )
        }
        "slice" => {
            let a = g.int(0, full.len() as i64 - 1);
            let ends = [g.int(-5, 5), i64::MIN + 1, i64::MAX];
            let end = g.pick(&ends);
            case(
                [
                    g.any(&full),
                    i64s(&[g.int(-5, 5)]),
                    i64s(&[end]),
                    i64s(&[a]),
                    i64s(&[g.pick(&[1, 2, -1, -2, 3])]),
                ],
                [],
            )
        }
        "concat" => {
            let (a, elem) = (
                g.int(0, full.len() as i64 - 1),
                g.pick(&[F32, I64, ElemType::String, ElemType::U4]),
            );
            let mut other = full.clone();
            other[a as usize] = g.int(0, 3) as usize;
            case(
                [g.of(elem, &full), g.of(elem, &other), g.of(elem, &full)],
                [("axis", Attr::Int(a))],
            )
        }
        "split" => {
            let a = g.int(0, full.len() as i64 - 1);
            let len = full[a as usize] as i64;
            let first = g.int(0, len);
            let mut case = match g.flag() {
                true => case(
                    [g.any(&full), i64s(&[first, len - first])],
                    [("axis", Attr::Int(a))],
                ),
                false => case(
                    [g.any(&full)],
                    [("axis", Attr::Int(a)), ("num_outputs", Attr::Int(2))],
                ),
            };
            case.results = 2;
            case
        }
        "pad" => {
            let elem = g.pick(&[F32, I64, ElemType::String, ElemType::U8]);
            let pads: Vec<i64> = (0..2 * full.len()).map(|_| g.int(-1, 4)).collect();
            let mode = g.pick(&["constant", "reflect", "edge", "wrap"]);
            case(
                [g.of(elem, &full), i64s(&pads), g.of(elem, &[])],
                [("mode", mode.into())],
            )
        }
        "range" => match g.pick(&[F32, F64, I32, I64]) {
            e if e.is_float() => case(
                [
                    g.plain(e, &[]),
                    g.plain(e, &[]),
                    Tensor::from_f64(e, [], vec![0.3]).into(),
                ],
                [],
            ),
            e => case(
                [
                    g.ints(e, &[], -9, 9),
                    g.ints(e, &[], -9, 9),
                    g.ints(e, &[], -3, 3),
                ],
                [],
            ),
        },
        "constant_of_shape" => {
            let target: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
            let Value::Tensor(fill) = g.any(&[1]) else {
                return None;
            };
            case([i64s(&target)], [("value", fill.into())])
        }
        "one_hot" => {
            let elem = g.pick(&[F32, I64, ElemType::String]);
            let operands = [
                g.ints(I64, &dims, -4, 4),
                g.ints(I64, &[], 0, 4),
                g.of(elem, &[2]),
            ];
            case(operands, [("axis", axis(g, dims.len() + 1))])
        }
        "cast" => {
            let x = g.any(&dims);
            let to = g.pick(ElemType::ALL);
            let mode = g.pick(&["up", "down", "nearest"]);
            case(
                [x],
                [
                    ("to", to.into()),
                    ("saturate", g.flag().into()),
                    ("round_mode", mode.into()),
                ],
            )
        }
        "resize" => {
            let dims = [1, 2, g.int(1, 5) as usize, g.int(1, 5) as usize];
            let elem = g.pick(&[F32, F16, ElemType::U8]);
            let x = if elem.is_float() {
                g.plain(elem, &dims)
            } else {
                g.ints(elem, &dims, 0, 255)
            };
            let coordinates = [
                "half_pixel",
                "pytorch_half_pixel",
                "half_pixel_symmetric",
                "asymmetric",
                "align_corners",
                "tf_crop_and_resize",
            ];
            let mut case = case(
                [x],
                [
                    (
                        "coordinate_transformation_mode",
                        g.pick(&coordinates).into(),
                    ),
                    ("mode", g.pick(&["nearest", "linear", "cubic"]).into()),
                    (
                        "nearest_mode",
                        g.pick(&["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
                            .into(),
                    ),
                    ("antialias", g.flag().into()),
                    ("exclude_outside", g.flag().into()),
                    ("extrapolation_value", Attr::Float(7.0)),
                    ("axes", Attr::Ints(vec![2, -1])),
                    (
                        "keep_aspect_ratio_policy",
                        g.pick(&["stretch", "not_larger", "not_smaller"]).into(),
                    ),
                ],
            );
            let region = Tensor::from_f64(F32, [4], vec![0.1, -0.3, 0.9, 1.1]).into();
            case.operands.push(Some(region));
            case.operands.extend(match g.flag() {
                true => [
                    Some(
                        Tensor::from_f64(
                            F32,
                            [2],
                            vec![g.int(1, 40) as f64 / 10.0, g.int(1, 40) as f64 / 10.0],
                        )
                        .into(),
                    ),
                    None,
                ],
                false => [None, Some(i64s(&[g.int(1, 7), g.int(1, 7)]))],
            });
            case
        }
        "compress" => {
            let a = g.int(0, full.len() as i64 - 1);
            let n = g.int(0, full[a as usize] as i64) as usize;
            let operands = [g.any(&full), g.ints(Bool, &[n], 0, 1)];
            if g.flag() {
                case(operands, [("axis", Attr::Int(a))])
            } else {
                case(operands, [])
            }
        }
        "dropout" => {
            let training = Tensor::bool(g.flag()).into();
            let ratio = Tensor::f32(g.int(0, 9) as f32 / 10.0).into();
            let elem = g.pick(&[F32, F16]);
            let mut case = case(
                [g.plain(elem, &dims), ratio, training],
                [("seed", Attr::Int(g.int(0, 99)))],
            );
            case.results = 2;
            case
        }
        "equal" => {
            let elem = g.pick(&[F32, I64, ElemType::String, Bool]);
            case([g.of(elem, &full), g.of(elem, &full[full.len() - 1..])], [])
        }
        "array_feature_extractor" => {
            let n = g.int(0, 3) as usize;
            case([g.any(&full), g.ints(I64, &[1, n], 0, 3)], [])
        }
        "cast_like" => {
            let to = g.pick(ElemType::ALL);
            case(
                [g.any(&dims), g.of(to, &[])],
                [("saturate", g.flag().into())],
            )
        }
        "unique" => {
            let mut case = match g.flag() {
                true => case(
                    [g.any(&full)],
                    [("sorted", g.flag().into()), ("axis", axis(g, full.len()))],
                ),
                false => case([g.any(&dims)], [("sorted", g.flag().into())]),
            };
            case.results = 4;
            case
        }
        "top_k" => {
            let elem = g.pick(&[F32, F64, F16, I64, ElemType::U8]);
            let k = g.int(0, 3);
            let attrs = [("axis", axis(g, full.len())), ("largest", g.flag().into())];
            let mut case = case([g.of(elem, &full), i64s(&[k])], attrs);
            case.results = 2;
            case
        }
        "non_max_suppression" => {
            let (batch, classes, n) = (
                g.int(1, 2) as usize,
                g.int(1, 3) as usize,
                g.int(0, 8) as usize,
            );
            let operands = [
                g.plain(F32, &[batch, n, 4]),
                g.plain(F32, &[batch, classes, n]),
                i64s(&[g.int(0, 5)]),
                Tensor::f32(g.int(0, 10) as f32 / 10.0).into(),
                Tensor::f32(g.int(-4, 4) as f32).into(),
            ];
            case(operands, [("center_point_box", g.flag().into())])
        }
        "reverse_sequence" => {
            let dims = [g.int(1, 4) as usize, g.int(1, 4) as usize, 2];
            let time = g.int(0, 1);
            let lens = g.ints(
                I64,
                &[dims[1 - time as usize]],
                0,
                dims[time as usize] as i64,
            );
            case(
                [g.any(&dims), lens],
                [
                    ("time_axis", Attr::Int(time)),
                    ("batch_axis", Attr::Int(1 - time)),
                ],
            )
        }
        "rans_decode" => {
            let n: usize = dims.iter().product();
            let codes: Vec<u8> = (0..n).map(|_| (g.int(0, 5) * g.int(0, 3)) as u8).collect();
            let block = g.int(1, 9);
            let term = rans(dims.clone(), &codes, block as usize);
            let bytes = term.blob.clone().unwrap_or_default();
            let bytes = bytes.iter().map(|&b| b.into()).collect::<Vec<i128>>();
            let part = |i: usize| Value::from(term.children[i].decode().expect("a valid term"));
            let operands = [
                Tensor::from_int(ElemType::U8, [bytes.len()], bytes).into(),
                part(0),
                part(1),
            ];
            let shape = Attr::Ints(dims.iter().map(|&d| d as i64).collect());
            case(operands, [("block", Attr::Int(block)), ("shape", shape)])
        }
        "det" => {
            let n = g.int(0, 4) as usize;
            let elem = g.pick(&[F32, F64, F16]);
            case([g.plain(elem, &[2, n, n])], [])
        }
        "random_normal" => {
            let shape = Attr::Ints(dims.iter().map(|&d| d as i64).collect());
            case(
                [],
                [
                    seed(g),
                    ("shape", shape),
                    ("mean", Attr::Float(2.0)),
                    ("scale", Attr::Float(3.0)),
                    ("dtype", g.pick(&[F32, F64, F16]).into()),
                ],
            )
        }
        "random_uniform" => {
            let shape = Attr::Ints(dims.iter().map(|&d| d as i64).collect());
            case(
                [],
                [
                    seed(g),
                    ("shape", shape),
                    ("low", Attr::Float(-2.0)),
                    ("high", Attr::Float(300.0)),
                    ("dtype", g.pick(&[F32, F64, F16, I32, ElemType::U8]).into()),
                ],
            )
        }
        "random_normal_like" => case([g.of(F32, &dims)], [seed(g)]),
        "random_uniform_like" => case([g.of(F32, &dims)], [seed(g), ("dtype", F64.into())]),
        "bernoulli" => {
            let n = dims.iter().product();
            let p = (0..n).map(|_| g.int(0, 10) as f64 / 10.0).collect();
            case(
                [Tensor::from_f64(F32, dims.clone(), p).into()],
                [seed(g), ("dtype", g.pick(&[F32, I64, Bool]).into())],
            )
        }
        "multinomial" => {
            let classes = g.int(0, 5) as usize;
            case(
                [g.plain(F32, &[2, classes])],
                [
                    seed(g),
                    ("sample_size", Attr::Int(5)),
                    ("dtype", g.pick(&[I32, I64]).into()),
                ],
            )
        }
        "string_concat" => case([g.texts(&full), g.texts(&full[full.len() - 1..])], []),
        "string_split" => {
            let delimiter = g.pick(&["", ",", "b", " "]);
            let mut case = case(
                [g.texts(&dims)],
                [
                    ("delimiter", delimiter.into()),
                    ("maxsplit", Attr::Int(g.int(-1, 2))),
                ],
            );
            case.results = 2;
            case
        }
        "string_normalizer" => {
            let n = g.int(0, 6) as usize;
            let dims = if g.flag() { vec![n] } else { vec![1, n] };
            let stop = Attr::Strs(vec!["a".into(), "äB".into()]);
            let action = g.pick(&["LOWER", "UPPER", "NONE"]);
            case(
                [g.texts(&dims)],
                [
                    ("case_change_action", action.into()),
                    ("is_case_sensitive", g.flag().into()),
                    ("stopwords", stop),
                ],
            )
        }
        "regex_full_match" => case(
            [g.texts(&dims)],
            [(
                "pattern",
                g.pick(&["a", "a|ab", "[a-z]\\d", "(.*)", "("]).into(),
            )],
        ),
        "tf_idf_vectorizer" => {
            let n = g.int(0, 9) as usize;
            let dims = if g.flag() { vec![n] } else { vec![2, n] };
            let by_text = g.flag();
            let pool = match by_text {
                true => (
                    "pool_strings",
                    Attr::Strs(["a", "b", "a", "b", "b", "a"].map(str::to_owned).to_vec()),
                ),
                false => ("pool_int64s", Attr::Ints(vec![1, 2, 1, 2, 2, 1])),
            };
            let x = if by_text {
                g.texts(&dims)
            } else {
                g.ints(I64, &dims, 0, 2)
            };
            case(
                [x],
                [
                    pool,
                    ("max_gram_length", Attr::Int(g.int(1, 3))),
                    ("min_gram_length", Attr::Int(g.int(1, 2))),
                    ("max_skip_count", Attr::Int(g.int(0, 2))),
                    ("mode", g.pick(&["TF", "IDF", "TFIDF"]).into()),
                    ("ngram_counts", Attr::Ints(vec![0, 2])),
                    ("ngram_indexes", Attr::Ints(vec![0, 2, 2, 1])),
                    ("weights", Attr::Floats(vec![1.5, 2.0, 0.5, 3.0])),
                ],
            )
        }
        "label_encoder" => {
            let (texts, ints) = (
                Attr::Strs(["a", "b", "a"].map(str::to_owned).to_vec()),
                Attr::Ints(vec![0, 1, 2]),
            );
            let floats = Attr::Floats(vec![0.0, f32::NAN, 1.0]);
            let (x, keys) = match g.int(0, 2) {
                0 => (g.texts(&dims), ("keys_strings", texts.clone())),
                1 => (g.of(I64, &dims), ("keys_int64s", ints.clone())),
                _ => (g.of(F32, &dims), ("keys_floats", floats.clone())),
            };
            match g.int(0, 3) {
                0 => case([x], [keys, ("values_strings", texts)]),
                1 => case(
                    [x],
                    [
                        keys,
                        ("values_int64s", ints),
                        ("default_int64", Attr::Int(-7)),
                    ],
                ),
                2 => case([x], [keys, ("values_floats", floats)]),
                _ => {
                    let tensor =
                        |v: &[f64]| Attr::Tensor(Tensor::from_f64(F64, [v.len()], v.to_vec()));
                    case(
                        [x],
                        [
                            keys,
                            ("values_tensor", tensor(&[1.0, 2.0, 3.0])),
                            ("default_tensor", tensor(&[9.0])),
                        ],
                    )
                }
            }
        }
        "tree_ensemble" => {
            let numbers = |elem, v: &[f64]| {
                Attr::Tensor(match elem {
                    ElemType::U8 => {
                        Tensor::from_int(elem, [v.len()], v.iter().map(|&v| v as i128).collect())
                    }
                    _ => Tensor::from_f64(elem, [v.len()], v.to_vec()),
                })
            };
            let modes: Vec<f64> = vec![g.int(0, 5) as f64, g.int(0, 6) as f64, g.int(0, 5) as f64];
            let x = g.of(F32, &[3, 2]);
            case(
                [x],
                [
                    ("aggregate_function", Attr::Int(g.int(0, 3))),
                    ("post_transform", Attr::Int(g.int(0, 4))),
                    ("n_targets", Attr::Int(2)),
                    ("tree_roots", Attr::Ints(vec![0, 2])),
                    ("nodes_modes", numbers(ElemType::U8, &modes)),
                    ("nodes_splits", numbers(F32, &[0.5, 1.0, -2.0])),
                    ("nodes_featureids", Attr::Ints(vec![0, 1, g.int(0, 1)])),
                    ("nodes_truenodeids", Attr::Ints(vec![1, 0, 2])),
                    ("nodes_trueleafs", Attr::Ints(vec![0, 1, 1])),
                    ("nodes_falsenodeids", Attr::Ints(vec![3, 1, 1])),
                    ("nodes_falseleafs", Attr::Ints(vec![1, 1, 1])),
                    ("nodes_missing_value_tracks_true", Attr::Ints(vec![0, 1, 0])),
                    ("membership_values", numbers(F32, &[1.0, 2.0, f64::NAN])),
                    ("leaf_targetids", Attr::Ints(vec![0, 1, 0, 1])),
                    ("leaf_weights", numbers(F32, &[0.25, 0.5, -1.0, 0.125])),
                ],
            )
        }
        "sequence_empty" => case([], [("dtype", F32.into())]),
        "sequence_construct" => case([g.of(F32, &dims), g.of(F32, &full)], []),
        "sequence_at" => case([g.sequence(), i64s(&[g.int(-4, 3)])], []),
        "sequence_insert" => {
            let Value::Sequence(items) = g.sequence() else {
                return None;
            };
            let item = items.first()?.clone();
            case(
                [
                    Value::Sequence(items),
                    item,
                    Tensor::int(g.int(-3, 3)).into(),
                ],
                [],
            )
        }
        "sequence_erase" => match g.flag() {
            true => case([g.sequence(), i64s(&[g.int(-4, 3)])], []),
            false => case([g.sequence()], []),
        },
        "sequence_length" | "optional_get_element" => case([g.sequence()], []),
        "split_to_sequence" => {
            let a = g.int(0, full.len() as i64 - 1);
            let len = full[a as usize] as i64;
            let attrs = [("axis", Attr::Int(a)), ("keepdims", g.flag().into())];
            match g.int(0, 2) {
                0 => case([g.any(&full)], attrs),
                1 => case([g.any(&full), Tensor::int(g.int(0, 3)).into()], attrs),
                _ => case([g.any(&full), i64s(&[1, len - 1])], attrs),
            }
        }
        "concat_from_sequence" => {
            let s = g.sequence();
            case(
                [s],
                [
                    ("axis", Attr::Int(g.int(-2, 1))),
                    ("new_axis", g.flag().into()),
                ],
            )
        }
        "optional" => case([if g.flag() { g.sequence() } else { g.any(&dims) }], []),
        "optional_has_element" => match g.int(0, 2) {
            0 => case([Value::Optional(Some(Box::new(g.any(&dims))))], []),
            1 => case([], []),
            _ => case([g.sequence()], []),
        },
        _ => return None,
    })
}
