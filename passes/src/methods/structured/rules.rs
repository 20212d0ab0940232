//! Which atoms of a node's operands are which of its results, by ops.

use super::groups::Links;
use lapidary_ir::graph::Node;
use lapidary_ir::{Attr, Module, ValueId};

/// Ops whose result has, at each place, something of its operands at that place alone.
const ELEMENTWISE: &[&str] = &[
    "abs",
    "add",
    "bias_gelu",
    "cast",
    "ceil",
    "clip",
    "cos",
    "div",
    "dropout",
    "elu",
    "erf",
    "exp",
    "fast_gelu",
    "floor",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "identity",
    "leaky_relu",
    "log",
    "max",
    "mean",
    "min",
    "mish",
    "mul",
    "neg",
    "pow",
    "prelu",
    "quick_gelu",
    "reciprocal",
    "relu",
    "round",
    "selu",
    "sigmoid",
    "sign",
    "sin",
    "softplus",
    "softsign",
    "sqrt",
    "sub",
    "sum",
    "swish",
    "tanh",
    "where",
];

/// Ops that keep images' channels apart.
const POOLS: &[&str] = &[
    "average_pool",
    "global_average_pool",
    "global_lp_pool",
    "global_max_pool",
    "lp_pool",
    "max_pool",
];

/// Ties what a node ties; `None` if it has no rule, or is used in a way that the rule is not about.
pub(super) fn rule(links: &mut Links, module: &Module, node: &Node) -> Option<()> {
    let y = *node.results.first()?;
    let operand = |i: usize| node.operand(i);
    let int = |name: &str| match node.attr(name) {
        Some(Attr::Int(v)) => Some(v),
        _ => None,
    };
    let name = node.op.name;
    match name {
        _ if ELEMENTWISE.contains(&name) => {
            for &v in node.operands.iter().flatten() {
                aligned(links, v, y)?;
            }
            Some(())
        }
        _ if POOLS.contains(&name) => {
            let x = operand(0)?;
            (0..2).for_each(|axis| links.tie((x, axis), (y, axis)));
            (2..links.rank(x)?).for_each(|axis| links.fix((x, axis)));
            Some(())
        }
        "matmul" => matmul(links, operand(0)?, operand(1)?, y),
        "gemm" => {
            let turned = |name: &str| usize::from(int(name) == Some(1));
            let (a, b, ta, tb) = (operand(0)?, operand(1)?, turned("transA"), turned("transB"));
            links.tie((a, ta), (y, 0));
            links.tie((a, 1 - ta), (b, tb));
            links.tie((b, 1 - tb), (y, 1));
            operand(2).map_or(Some(()), |c| aligned(links, c, y))
        }
        "conv" => conv(
            links,
            operand(0)?,
            operand(1)?,
            operand(2),
            y,
            int("group")?,
        ),
        "batch_normalization" if node.results.len() == 1 => {
            let x = operand(0)?;
            (0..links.rank(x)?).for_each(|axis| links.tie((x, axis), (y, axis)));
            (1..5).try_for_each(|i| {
                links.tie((operand(i)?, 0), (y, 1));
                Some(())
            })
        }
        "softmax" | "log_softmax" => along(links, operand(0)?, y, int("axis")?, 1),
        "layer_normalization" | "rms_normalization" if node.results.len() == 1 => {
            let others = node.operands[1..].iter().flatten();
            others.for_each(|&v| links.fix_all(v));
            along(links, operand(0)?, y, int("axis")?, usize::MAX)
        }
        "transpose" => {
            let Some(Attr::Ints(perm)) = node.attr("perm") else {
                return None;
            };
            let x = operand(0)?;
            for (axis, &from) in perm.iter().enumerate() {
                links.tie((x, usize::try_from(from).ok()?), (y, axis));
            }
            Some(())
        }
        "reshape" | "flatten" | "squeeze" | "unsqueeze" => {
            // The new shape is rewritten where an axis of it gets shorter, so it has to be a constant.
            if name == "reshape" {
                module.as_constant(operand(1)?)?;
            }
            if name == "flatten" {
                return None;
            }
            reshape(links, module, operand(0)?, y)
        }
        "expand" => {
            module.as_constant(operand(1)?)?;
            aligned(links, operand(0)?, y)
        }
        "concat" | "split" => pieces(links, node, int("axis")?),
        "gather" => {
            let (x, at) = (operand(0)?, operand(1)?);
            let (rank, axis) = (links.rank(x)?, resolve(int("axis")?, links.rank(x)?)?);
            let width = links.rank(at)?;
            links.fix((x, axis));
            links.fix_all(at);
            (0..width).for_each(|k| links.fix((y, axis + k)));
            for from in (0..rank).filter(|&a| a != axis) {
                let to = if from < axis { from } else { from + width - 1 };
                links.tie((x, from), (y, to));
            }
            Some(())
        }
        "rotary_embedding" => {
            let (x, heads) = (operand(0)?, int("num_heads")?);
            let heads = usize::try_from(heads).ok().filter(|&h| h > 0)?;
            node.operands[1..]
                .iter()
                .flatten()
                .for_each(|&v| links.fix_all(v));
            (0..2).for_each(|axis| links.tie((x, axis), (y, axis)));
            in_heads(links, &[(x, heads), (y, heads)], heads)
        }
        "attention" if node.results.len() == 1 && operand(4).is_none() && operand(5).is_none() => {
            let (q, k, v) = (operand(0)?, operand(1)?, operand(2)?);
            let heads = |name| usize::try_from(int(name)?).ok().filter(|&h| h > 0);
            let (of_q, of_kv) = (heads("q_num_heads")?, heads("kv_num_heads")?);
            node.operands[3..]
                .iter()
                .flatten()
                .for_each(|&v| links.fix_all(v));
            (0..2).for_each(|axis| links.tie((q, axis), (y, axis)));
            links.tie((k, 0), (v, 0));
            links.tie((k, 1), (v, 1));
            links.fix((k, 1));
            in_heads(
                links,
                &[(q, of_q), (k, of_kv), (v, of_kv), (y, of_q)],
                of_kv,
            )
        }
        _ => None,
    }
}

fn resolve(axis: i64, rank: usize) -> Option<usize> {
    usize::try_from(if axis < 0 { axis + rank as i64 } else { axis })
        .ok()
        .filter(|&a| a < rank)
}

/// Axes of an operand that is spread over the result, from the last on.
fn aligned(links: &mut Links, v: ValueId, y: ValueId) -> Option<()> {
    let (rank, of_y) = (links.rank(v)?, links.rank(y)?);
    for axis in 0..rank {
        links.tie((v, axis), (y, axis + of_y.checked_sub(rank)?));
    }
    Some(())
}

fn matmul(links: &mut Links, a: ValueId, b: ValueId, y: ValueId) -> Option<()> {
    let (ra, rb) = (links.rank(a)?, links.rank(b)?);
    if ra < 2 || rb < 2 {
        return None;
    }
    let ry = links.rank(y)?;
    links.tie((a, ra - 1), (b, rb - 2));
    links.tie((a, ra - 2), (y, ry - 2));
    links.tie((b, rb - 1), (y, ry - 1));
    for (v, rank) in [(a, ra), (b, rb)] {
        for axis in 0..rank - 2 {
            links.tie((v, axis), (y, axis + ry - rank));
        }
    }
    Some(())
}

/// Of one group, or with a filter for each channel.
fn conv(
    links: &mut Links,
    x: ValueId,
    w: ValueId,
    b: Option<ValueId>,
    y: ValueId,
    group: i64,
) -> Option<()> {
    let channels = links.len((x, 1))?;
    links.tie((x, 0), (y, 0));
    if group == 1 {
        links.tie((x, 1), (w, 1));
    } else if usize::try_from(group).ok()? == channels && links.len((w, 0)) == Some(channels) {
        links.tie((x, 1), (w, 0));
    } else {
        return None;
    }
    links.tie((w, 0), (y, 1));
    if let Some(b) = b {
        links.tie((b, 0), (y, 1));
    }
    for axis in 2..links.rank(x)? {
        for v in [x, w, y] {
            links.fix((v, axis));
        }
    }
    Some(())
}

/// An op that keeps the shape and needs `count` axes from `axis` on whole.
fn along(links: &mut Links, x: ValueId, y: ValueId, axis: i64, count: usize) -> Option<()> {
    let rank = links.rank(x)?;
    let axis = resolve(axis, rank)?;
    for a in 0..rank {
        links.tie((x, a), (y, a));
        if a >= axis && a - axis < count {
            links.fix((x, a));
        }
    }
    Some(())
}

/// Pieces one after the other along an axis: operands of a concatenation, or results of a split.
fn pieces(links: &mut Links, node: &Node, axis: i64) -> Option<()> {
    let (whole, parts) = match node.op.name {
        "concat" => (
            *node.results.first()?,
            node.operands.iter().flatten().copied().collect(),
        ),
        _ => (node.operand(0)?, node.results.clone()),
    };
    let parts: Vec<ValueId> = parts;
    let rank = links.rank(whole)?;
    let axis = resolve(axis, rank)?;
    let mut start = 0;
    for &part in &parts {
        let len = links.len((part, axis))?;
        links.tie_runs((whole, axis), start, (part, axis), 0, len);
        start += len;
        for other in (0..rank).filter(|&a| a != axis) {
            links.tie((part, other), (whole, other));
        }
    }
    Some(())
}

/// Axes in heads: places of the `h`-th of `heads` equal runs are tied, within each value and across them. A value with more
/// heads than that (queries that share keys) has that many of them in a run.
fn in_heads(links: &mut Links, values: &[(ValueId, usize)], heads: usize) -> Option<()> {
    let mut runs = vec![];
    for &(v, own) in values {
        let axis = links.rank(v)?.checked_sub(1).filter(|&a| a == 2)?;
        let (first, len) = links.atoms((v, axis))?;
        if own % heads != 0 || len % own != 0 {
            return None;
        }
        runs.push((first, len / heads));
    }
    for h in 0..heads {
        let lead = runs[0].0 + h * runs[0].1;
        for &(first, len) in &runs {
            (first + h * len..first + (h + 1) * len).for_each(|atom| links.tie_atoms(lead, atom));
        }
    }
    Some(())
}

/// Ties axes of a value and of the same elements in another shape. Where one axis becomes several, its places are tied to
/// those of the first of them, which they have in common, and the others are fixed.
fn reshape(links: &mut Links, module: &Module, x: ValueId, y: ValueId) -> Option<()> {
    let dims = |v: ValueId| module.value(v).ty.shape().map(|s| s.to_vec());
    let (from, to) = (dims(x)?, dims(y)?);
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        let one = |d: Option<&lapidary_ir::Dim>| d.is_some_and(|d| d.as_const() == Some(1));
        if one(from.get(i)) && !one(to.get(j)) {
            i += 1;
            continue;
        }
        if one(to.get(j)) && !one(from.get(i)) {
            j += 1;
            continue;
        }
        let (a, b) = (from.get(i)?, to.get(j)?);
        if a == b {
            links.tie((x, i), (y, j));
            (i, j) = (i + 1, j + 1);
            continue;
        }
        let (a, b) = (a.as_const()?, b.as_const()?);
        // One axis on this side, a run of axes on that.
        let (whole, many, list, start) = if a > b {
            ((x, i), y, &to, j)
        } else {
            ((y, j), x, &from, i)
        };
        let (long, mut product, mut end) = (a.max(b), 1, start);
        while product < long {
            product *= list.get(end)?.as_const()?;
            end += 1;
        }
        if product != long {
            return None;
        }
        let outer = links.len((many, start))?;
        let inner = long as usize / outer;
        let ((first, _), (heads, _)) = (links.atoms(whole)?, links.atoms((many, start))?);
        for place in 0..long as usize {
            links.tie_atoms(first + place, heads + place / inner);
        }
        (start + 1..end).for_each(|axis| links.fix((many, axis)));
        (i, j) = if a > b { (i + 1, end) } else { (end, j + 1) };
    }
    Some(())
}
