//! Attention from two products and a softmax, and its simpler forms: grouped heads, causal masks, packed heads.
//!
//! ```text
//! softmax(q k' * scale + mask) v        => attention(q, k, v, mask) {scale}
//! attention(q, repeat(k), repeat(v))    => attention(q, k, v)
//! attention(.., lower triangle)         => attention(..) {is_causal}
//! heads of [b, s, h * d], joined again  => attention of [b, s, h * d]
//! ```

use super::reading::{OTHER, fits_into, int, number, operands, permutation, rank, scaled, shape, terms};
use super::{Bound, Class, Right, Rule};
use crate::egraph::lang::{Graph, Query, Trait};
use egg::Id;
use lapidary_ir::{Attr, Attrs, Dim, ElemType, Tensor};

#[path = "attention_samples.rs"]
mod samples;

/// The family's rules. The scores are then never in memory as a whole.
pub static RULES: &[Rule] = &[
    Rule {
        name: "attention-from-softmax",
        left: &["(matmul (softmax ?s ?soft) ?v attrs0)"],
        right: Right::Build(from_softmax),
        condition: None,
        class: Class::Reassociates,
        source: "Attention Is All You Need (arXiv 1706.03762); a row that nothing may be attended from is zero, not undefined",
        samples: samples::SOFTMAX,
    },
    Rule {
        name: "attention-grouped-heads",
        left: &[
            "(attention ?q (reshape (expand ?k ?ks attrs0) ?kr ?kat) (reshape (expand ?v ?vs attrs0) ?vr ?vat) ?mask none none none ?at)",
            "(attention ?q (reshape (tile ?k ?ks attrs0) ?kr ?kat) (reshape (tile ?v ?vs attrs0) ?vr ?vat) ?mask none none none ?at)",
        ],
        right: Right::Build(grouped),
        condition: None,
        class: Class::Exact,
        source: "GQA (arXiv 2305.13245): a head of keys is read by several heads of queries instead of repeated",
        samples: samples::GROUPED,
    },
    Rule {
        name: "attention-causal-mask",
        left: &["(attention ?q ?k ?v ?mask none none none ?at)"],
        right: Right::Build(causal),
        condition: None,
        class: Class::Reassociates,
        source: "keys after a query are left out instead of computed and masked",
        samples: samples::CAUSAL,
    },
    Rule {
        name: "attention-packed-heads",
        left: &["(reshape (transpose (attention (transpose (reshape ?q ?qs ?qa) ?qp) (transpose (reshape ?k ?ks ?ka) ?kp) (transpose (reshape ?v ?vs ?va) ?vp) ?mask none none none ?at) ?out) ?os ?oa)"],
        right: Right::Build(packed),
        condition: None,
        class: Class::Exact,
        source: "heads are columns of rows that stay where they are; four transpositions less",
        samples: samples::PACKED,
    },
];

/// Scores without mask: `q`, the keys as the product's right side, the factor.
struct Scores {
    q: Id,
    keys: Id,
    scale: f64,
}

/// Reads `q k'` with its factor.
fn scores(graph: &Graph, s: Id) -> Option<Scores> {
    let (base, scale) = scaled(graph, s);
    let product = operands(graph, base, "matmul")?;
    let ((q, by_q), (keys, by_keys)) = (scaled(graph, product[0]), scaled(graph, product[1]));
    Some(Scores { q, keys, scale: scale * by_q * by_keys })
}

/// What restrains the scores.
enum Bias {
    None,
    /// Added, or a condition of type bool.
    Mask(Id),
    /// Scores are replaced by this number where the condition does not hold (or, if `negated`, where it does).
    Where { condition: Id, low: f64, negated: bool },
}

fn masked(graph: &Graph, s: Id) -> Option<(Scores, Bias)> {
    let bare = scores(graph, s).map(|found| (found, Bias::None));
    bare.or_else(|| {
        terms(graph, s, "add").find_map(|(o, _)| {
            let side = |s: Id, mask: Id| Some((scores(graph, s).filter(|_| fits_into(graph, mask, s))?, Bias::Mask(mask)));
            side(o[0], o[1]).or_else(|| side(o[1], o[0]))
        })
    })
    .or_else(|| {
        terms(graph, s, "where").find_map(|(o, _)| {
            let side = |s: Id, low: Id, negated| {
                let low = number(graph, low).filter(|_| fits_into(graph, o[0], s) && fits_into(graph, low, s))?;
                Some((scores(graph, s)?, Bias::Where { condition: o[0], low, negated }))
            };
            side(o[1], o[2], false).or_else(|| side(o[2], o[1], true))
        })
    })
}

fn from_softmax(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let (s, v) = (m.get("s"), m.get("v"));
    let rank = rank(graph, s).ok_or("the rank is not known")?;
    let axis = int(graph.attrs(m.get("soft")).ok_or("no attributes")?, "axis", -1);
    if axis != -1 && axis != rank as i64 - 1 {
        return Err("the softmax is not over the keys");
    }
    let (found, bias) = masked(graph, s).ok_or("what the softmax is of is no product of queries and keys, scaled and masked")?;
    let Scores { q, keys, scale } = found;
    let elem = graph.ty(v).and_then(|t| t.elem());
    if elem != Some(ElemType::F32) || [q, keys].iter().any(|&x| graph.ty(x).and_then(|t| t.elem()) != elem) {
        return Err("only f32 is fused");
    }
    if !(2..=4).contains(&rank) || [q, keys, v].iter().any(|&x| !has_rank(graph, x, rank)) {
        return Err("operands are not of one rank between two and four");
    }
    let shapes = [q, keys, v].map(|x| shape(graph, x).unwrap_or_default());
    let lead = |i: usize| &shapes[i][..rank - 2];
    if lead(0) != lead(1) || lead(0) != lead(2) {
        return Err("queries, keys and values have different leading dimensions");
    }
    let columns = &shapes[1][rank - 1];
    let mask = match bias {
        Bias::None => None,
        Bias::Mask(mask) => Some(mask),
        Bias::Where { condition, low, negated } => {
            let triangle = !negated && graph.has_trait(condition, Trait::LowerTriangle);
            if low != f64::NEG_INFINITY && !(triangle && low <= LOW) {
                return Err("a row in which all is masked would be the mean of the values, not zero");
            }
            Some(if negated { graph.add_op("not", &[condition], []) } else { condition })
        }
    };
    let mask = match mask {
        Some(mask) => Some(mask_of_four(graph, mask, rank, columns)?),
        None => None,
    };
    // Keys are the right side of the product: the other way round they are rows, as the values are.
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 2, rank - 1);
    let k = graph.add_op("transpose", &[keys], [("perm", Attr::Ints(perm))]);
    let four = [q, k, v].map(|x| to_four(graph, x, rank));
    let mut all = four.to_vec();
    all.extend(mask);
    let y = graph.add_op("attention", &all, [("scale", Attr::Float(scale as f32))]);
    if rank == 4 {
        return Ok(y);
    }
    let axes = graph.add_constant(&Tensor::ints(&(0..4 - rank as i64).collect::<Vec<_>>()));
    Ok(graph.add_op("squeeze", &[y, axes], []))
}

fn has_rank(graph: &Graph, x: Id, wanted: usize) -> bool {
    rank(graph, x) == Some(wanted)
}

/// Leading dimensions of one, up to rank four.
fn to_four(graph: &mut Graph, x: Id, rank: usize) -> Id {
    if rank == 4 {
        return x;
    }
    let axes = graph.add_constant(&Tensor::ints(&(0..4 - rank as i64).collect::<Vec<_>>()));
    graph.add_op("unsqueeze", &[x, axes], [])
}

/// A mask that the op takes: as wide as there are keys, since a narrower one is padded with what is forbidden.
fn mask_of_four(graph: &mut Graph, mask: Id, rank: usize, columns: &Dim) -> Result<Id, &'static str> {
    let own = shape(graph, mask).ok_or("the mask's rank is not known")?;
    if own.last() != Some(columns) || own.len() < 2 || own.len() > rank {
        return Err("the mask has not a column for each key");
    }
    if !matches!(graph.ty(mask).and_then(|t| t.elem()), Some(ElemType::F32 | ElemType::Bool)) {
        return Err("the mask has another element type");
    }
    Ok(mask)
}

/// Added to a finite score, what is at most this gives a weight of zero beside a score that is allowed.
const LOW: f64 = -1e30;

fn grouped(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let q = m.get("q");
    let heads = shape(graph, q).filter(|s| s.len() == 4).and_then(|s| s[1].as_const()).ok_or("the number of heads is not known")?;
    let k = group(graph, m.get("k"), m.get("ks"), m.get("kr"), heads).ok_or("the keys are repeated along another axis than the heads")?;
    let v = group(graph, m.get("v"), m.get("vs"), m.get("vr"), heads).ok_or("the values are repeated along another axis than the heads")?;
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    Ok(graph.add_op_attrs("attention", &[q, k, v, m.get("mask")], &attrs))
}

/// `[b, h, s, d]` if `wide` is it as `[b, h, 1, s, d]`, its one axis grows by `times`, and the heads are joined after.
fn group(graph: &Graph, wide: Id, times: Id, joined: Id, heads: i64) -> Option<Id> {
    let dims = shape(graph, wide).filter(|d| d.len() == 5)?;
    let one = Dim::from(1i64);
    if dims[2] != one {
        return None;
    }
    let narrow = [&dims[..2], &dims[3..]].concat();
    let x = ["unsqueeze", "reshape"].iter().find_map(|op| {
        terms(graph, wide, op).map(|(o, _)| o[0]).find(|&x| shape(graph, x).is_some_and(|s| s == narrow))
    })?;
    let by = graph[times].data.contents.clone().filter(|b| b.len() == 5)?;
    let n = by[2].as_const().filter(|&n| n > 0)?;
    let rest = [0, 1, 3, 4].iter().all(|&i| by[i] == dims[i] || by[i] == one);
    let to = graph[joined].data.contents.clone().filter(|t| t.len() == 4)?;
    let same = |t: &Dim, d: &Dim, zero: bool| t == d || t.as_const() == Some(-1) || zero && t.as_const() == Some(0);
    let joins = dims[1].as_const()? * n == heads && same(&to[0], &dims[0], true) && same(&to[1], &Dim::from(heads), false) && same(&to[2], &dims[3], false) && same(&to[3], &dims[4], false);
    (rest && joins).then_some(x)
}

fn causal(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let (q, k, v, mask) = (m.get("q"), m.get("k"), m.get("v"), m.get("mask"));
    if graph.ty(mask).is_none() {
        return Err(OTHER);
    }
    if rank(graph, q) != Some(4) {
        return Err(OTHER);
    }
    let (Some(own), Some(of_q), Some(of_k)) = (shape(graph, mask), shape(graph, q), shape(graph, k)) else { return Err("a rank is not known") };
    let square = of_q[2] == of_k[2] && own.len() >= 2 && own[own.len() - 2] == of_q[2] && own[own.len() - 1] == of_k[2];
    if !square {
        return Err("the mask is not a square over queries and keys");
    }
    if !lower_triangle(graph, mask) {
        return Err("the mask is not known to be the lower triangle");
    }
    let mut attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    attrs.insert("is_causal".into(), Attr::Int(1));
    Ok(graph.add_op_attrs("attention", &[q, k, v], &attrs))
}

/// True if a mask forbids exactly the keys after each query: a constant, or the upper part of what is all low.
fn lower_triangle(graph: &Graph, mask: Id) -> bool {
    if graph.has_trait(mask, Trait::LowerTriangle) {
        return true;
    }
    let views = ["unsqueeze", "reshape", "expand"];
    let inner = views.iter().find_map(|op| {
        let x = operands(graph, mask, op)?[0];
        let (own, all) = (shape(graph, x)?, shape(graph, mask)?);
        let ends = own.len() >= 2 && own.len() <= all.len() && own[own.len() - 2..] == all[all.len() - 2..];
        let ones = own[..own.len() - 2].iter().chain(&all[..all.len() - 2]).all(|d| d.as_const() == Some(1));
        (ends && ones && graph.find(x) != graph.find(mask)).then_some(x)
    });
    let mask = inner.unwrap_or(mask);
    terms(graph, mask, "trilu").any(|(o, attrs)| {
        let upper = int(attrs, "upper", 1) == 1 && graph.ints(o[1]).is_some_and(|k| k == [1]);
        let filled = ["constant_of_shape", "expand"].iter().any(|op| {
            terms(graph, o[0], op).any(|(inner, attrs)| match attrs.get("value") {
                Some(Attr::Tensor(t)) => t.to_f64s().is_some_and(|v| v.iter().all(|&v| v <= LOW)),
                _ => *op == "expand" && number(graph, inner[0]).is_some_and(|v| v <= LOW),
            })
        });
        upper && filled
    })
}

/// `[b, s, h * d]` seen as `[b, s, h, d]` and then as heads, which is what the op does with operands of rank three.
fn heads_of(graph: &Graph, x: Id, shape_of: Id, perm: Id) -> Option<i64> {
    let packed = shape(graph, x).filter(|s| s.len() == 3)?;
    let to = graph[shape_of].data.contents.clone().filter(|t| t.len() == 4)?;
    let perm = permutation(graph.attrs(perm)?, 4)?;
    let hidden = packed[2].as_const()?;
    let at = |i: usize, of: &Dim, zero: bool| to[i] == *of || to[i].as_const() == Some(-1) || zero && to[i].as_const() == Some(0);
    let (h, d) = (to[2].as_const()?, to[3].as_const()?);
    let heads = if h > 0 { h } else { hidden / d.max(1) };
    let exact = heads > 0 && hidden % heads == 0 && (d == hidden / heads || d == -1);
    let minus = to.iter().filter(|t| t.as_const() == Some(-1)).count();
    (perm == [0, 2, 1, 3] && exact && minus <= 1 && at(0, &packed[0], true) && at(1, &packed[1], true)).then_some(heads)
}

fn packed(graph: &mut Graph, m: &Bound) -> Result<Id, &'static str> {
    let attrs = graph.attrs(m.get("at")).cloned().ok_or("no attributes")?;
    let heads = ["q", "k", "v"].map(|x| heads_of(graph, m.get(x), m.get(&format!("{x}s")), m.get(&format!("{x}p"))));
    let [Some(hq), Some(hk), Some(hv)] = heads else { return Err("an operand is not split into heads by its last axis") };
    let out = permutation(graph.attrs(m.get("out")).ok_or("no attributes")?, 4);
    if out.as_deref() != Some(&[0, 2, 1, 3]) || hk != hv {
        return Err("the heads are joined in another order");
    }
    let (Some(of_q), Some(of_v)) = (shape(graph, m.get("q")), shape(graph, m.get("v"))) else { return Err("a rank is not known") };
    let width = of_v[2].as_const().map(|w| w / hv * hq).ok_or("the width is not known")?;
    let to = graph[m.get("os")].data.contents.clone().filter(|t| t.len() == 3).ok_or("the joined shape is not known")?;
    let at = |i: usize, of: &Dim| to[i] == *of || to[i].as_const() == Some(-1) || i < 2 && to[i].as_const() == Some(0);
    let minus = to.iter().filter(|t| t.as_const() == Some(-1)).count();
    if minus > 1 || !at(0, &of_q[0]) || !at(1, &of_q[1]) || !at(2, &Dim::from(width)) {
        return Err("the heads are joined to another shape");
    }
    let mut attrs: Attrs = attrs;
    // Without a factor of its own it is that of the heads, which both forms have in common.
    attrs.insert("q_num_heads".into(), Attr::Int(hq));
    attrs.insert("kv_num_heads".into(), Attr::Int(hk));
    let y = graph.add_op_attrs("attention", &[m.get("q"), m.get("k"), m.get("v"), m.get("mask")], &attrs);
    Ok(y)
}
