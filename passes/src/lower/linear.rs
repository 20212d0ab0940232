//! Matrix products: panels of 32 columns where operands are `f32` or codes, else element by element.
//!
//! ```text
//! matmul, fused_linear => [pack b unless it is constant]  gemm (a, packed b, bias, residual)
//! quantized_linear     => gemm (a, packed b, zero, column sums of b, scale, bias)
//! refine               => gemm (a, packed b, residual) in place of the sum, on no blocks where its part is not used
//! ```
//! A constant right side is packed when the weights are written. Leading axes of the left side are rows if there is
//! one right matrix for all of them.

use super::activation::{Fused, activated};
use super::codes::{self, TailValues};
use super::expand::{Facts, Sums};
use super::expr::E;
use super::index::Pos;
use super::{Element, KernelArg, Lowerer, Rule, WeightSource};
use super::{blocked, halves, refine};
use crate::predict::{self, Operand};
use crate::schedules::codes::{column_sums, pack_quads, width};
use crate::schedules::gemm::Gemm;
use crate::schedules::{Num, pack};
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::{Binary, ReduceKind};
use lapidary_ir::ops::OpError;
use lapidary_ir::{Constant, Dim, ElemType, NodeId, ValueId};
use std::sync::Arc;

/// The family's lowerings.
pub static RULES: &[Rule] = &[
    Rule::steps("matmul", steps),
    Rule::steps("fused_linear", steps),
    Rule::steps_for("refine", refine::steps, refine::takes),
    Rule::steps_for("quantized_linear", steps, |module, n| {
        codes::takes(module, n, |shape| shape.len() == 2)
    }),
];

/// Name of the kernel that multiplies numbers.
pub const KERNEL: &str = "gemm";

/// Operations worth waking another thread for.
const THREAD_WORK: i64 = 64 << 10;

/// A product that has a schedule.
pub struct Plan {
    pub a: ValueId,
    pub w: ValueId,
    pub bias: Option<ValueId>,
    pub residual: Option<ValueId>,
    /// Extents: products, rows, columns, inner.
    pub batch: Dim,
    pub m: Dim,
    pub n: Dim,
    pub k: Dim,
    pub gemm: Gemm,
    /// What a tail adds.
    pub tail: Vec<TailValues>,
    /// 0 if a run leaves it out, else 1.
    pub is_used: Dim,
}

impl Plan {
    /// Whether something is done with the sums before they are stored.
    pub fn has_epilogue(&self) -> bool {
        let g = &self.gemm;
        g.bias || g.residual || g.lo.is_some() || g.hi.is_some() || g.activation.is_some()
    }
}

fn num(d: &Dim) -> Num {
    d.as_const().map_or(Num::Sym, Num::Const)
}

fn product(d: &[Dim]) -> Dim {
    d.iter().fold(Dim::from(1i64), |n, d| n * d.clone())
}

/// The schedule of a product, if it has one.
pub fn plan(facts: &Facts, n: NodeId) -> Option<Plan> {
    let node = facts.module.node(n);
    let quantized = node.op.name == "quantized_linear";
    let (a, w) = (
        node.operand(0)?,
        node.operand(if quantized { 2 } else { 1 })?,
    );
    let out = *node.results.first()?;
    let (bias, residual) = match node.op.name {
        "fused_linear" => (node.operand(2), node.operand(3)),
        "refine" => (None, node.operand(2)),
        "quantized_linear" => (codes::bias(&facts.module, n), None),
        _ => (None, None),
    };
    for v in [Some(a), Some(w), Some(out), bias, residual]
        .into_iter()
        .flatten()
    {
        if !quantized && facts.elem(v) != Ok(ElemType::F32) || !facts.is_row_major(v) {
            return None;
        }
    }
    let (of_a, of_w, of_out) = (
        facts.shape(a).ok()?,
        facts.shape(w).ok()?,
        facts.shape(out).ok()?,
    );
    let ([lead_a @ .., m, _], [lead_w @ .., k, columns]) = (&of_a[..], &of_w[..]) else {
        return None;
    };
    if of_out.iter().chain([k]).any(|d| d.as_const() == Some(0)) {
        return None;
    }
    let Fused { lo, hi, activation } = match node.op.name {
        "fused_linear" => Fused::of(node)?,
        "quantized_linear" => codes::clamp(node),
        _ => Fused::default(),
    };
    if bias.is_some_and(|b| facts.shape(b) != Ok(vec![columns.clone()]))
        || residual.is_some_and(|r| facts.shape(r).ok().as_ref() != Some(&of_out))
    {
        return None;
    }
    let (tail, of_tail) = codes::tail(&facts.module, n)?;
    for &v in of_tail.iter().filter_map(|v| v.residual.as_ref()) {
        if !facts.is_row_major(v) || facts.shape(v).ok().as_ref() != Some(&of_out) {
            return None;
        }
    }
    let unit = |d: &[Dim]| d.iter().all(|d| d.as_const() == Some(1));
    let (batch, m, a_batched, w_batched) = if unit(lead_w) {
        // One matrix for all: leading axes are rows.
        (Dim::from(1i64), product(lead_a) * m.clone(), false, false)
    } else if lead_a == lead_w {
        (product(lead_a), m.clone(), true, true)
    } else if unit(lead_a) {
        (product(lead_w), m.clone(), false, true)
    } else {
        return None;
    };
    let gemm = Gemm {
        a_batched,
        w_batched,
        bias: bias.is_some(),
        residual: residual.is_some(),
        lo,
        hi,
        activation,
        codes: quantized.then(|| codes::of(&facts.module, n)),
        tail,
        ..Gemm::new(num(&batch), num(&m), num(columns), num(k))
    };
    Some(Plan {
        a,
        w,
        bias,
        residual,
        batch,
        m,
        n: columns.clone(),
        k: k.clone(),
        gemm,
        tail: of_tail,
        is_used: Dim::from(1i64),
    })
}

fn steps(low: &mut Lowerer, n: NodeId) -> Result<(), OpError> {
    let out = low.facts.module.node(n).results[0];
    let Some(plan) = plan(&low.facts, n) else {
        if low.facts.module.node(n).op.name == "quantized_linear" {
            return Err(codes::no_kernel());
        }
        return low.elements(n, out, element);
    };
    if blocked::is_chosen(low, n) {
        return blocked::steps(low, n, plan);
    }
    if super::sparse::is_chosen(low, n) {
        return super::sparse::linear(low, n, plan);
    }
    if let Some((choice, chosen)) = halves::choose(low, n, &plan) {
        low.choices.insert(n, choice);
        if let Some(product) = chosen {
            return halves::steps(low, n, &plan, &product);
        }
    }
    product_steps(low, n, plan)
}

/// The steps of a product of numbers, or of codes, whose weights are all of its kernel.
pub fn product_steps(low: &mut Lowerer, n: NodeId, mut plan: Plan) -> Result<(), OpError> {
    let out = low.facts.module.node(n).results[0];
    let constant = !plan.gemm.w_batched && low.facts.module.as_constant(plan.w).is_some();
    if let [Some(n), Some(k)] = [&plan.n, &plan.k].map(Dim::as_const) {
        // Of rows that are not known there may be many.
        let m = plan.m.as_const().unwrap_or(i64::MAX);
        let possible = constant && plan.gemm.codes.is_none();
        if let Some(width) = low.width_bf16(possible, [m, n, k]) {
            (plan.gemm.bf16, plan.gemm.width) = (true, width);
        }
    }
    let (w, coded) = match plan.gemm.codes {
        None => (packed(low, &plan)?, vec![]),
        Some(c) => {
            let [k, n_columns] = [&plan.k, &plan.n].map(|d| d.as_const().unwrap_or(0) as usize);
            if low.target.micro_kernels {
                plan.gemm.width = width(n_columns as i64, k as i64);
            }
            let width = plan.gemm.width;
            let pack = move |bytes: &[u8], out: &mut Vec<u8>| {
                let at = |_, kk, j| kk * n_columns + j;
                pack_quads(bytes, [1, k, n_columns], width, at, out);
            };
            let sums = move |bytes: &[u8], out: &mut Vec<i32>| {
                column_sums(bytes, [1, k, n_columns], |_, kk, j| kk * n_columns + j, out);
            };
            let panels = n_columns.next_multiple_of(width as usize);
            let len = panels * k.next_multiple_of(4);
            let made = codes::weights(low, n, c, len, n_columns, Arc::new(pack), Arc::new(sums))?;
            (made.w, made.params)
        }
    };
    low.note_part(n, w)?;
    let mut args: Vec<KernelArg> = [plan.a, w]
        .into_iter()
        .chain(coded)
        .chain([plan.bias, plan.residual].into_iter().flatten())
        .chain(codes::tail_operands(low, n, &plan.tail))
        .chain([out])
        .map(KernelArg::Value)
        .collect();
    args.extend(sizes([&plan.batch, &plan.m, &plan.n, &plan.k]));
    let (grid, per_block) = grid(&plan);
    let flops = Dim::from(2i64) * &plan.batch * &plan.m * &plan.n * &plan.k * &plan.is_used;
    low.launch(
        plan.gemm.kernel(KERNEL),
        &args,
        &(grid * &plan.is_used),
        grain(per_block),
        &flops,
    )
}

/// Blocks of the product of numbers, and operations of one.
pub fn grid(plan: &Plan) -> (Dim, i64) {
    let (width, rows) = (i64::from(plan.gemm.width), i64::from(plan.gemm.tile_rows()));
    let panels = plan.n.ceil_div(&Dim::from(width));
    let grid = &plan.batch * &panels * plan.m.ceil_div(&Dim::from(rows));
    (grid, plan.k.as_const().unwrap_or(256) * 2 * width * rows)
}

/// Predicted nanoseconds of the product of numbers with constant weights, for `m` rows.
pub fn predicted(low: &Lowerer, plan: &Plan, m: u32) -> f64 {
    let bytes = |d: &[&Dim]| {
        let n = d.iter().map(|d| d.as_const().unwrap_or(i64::from(m)));
        4 * n.product::<i64>().unsigned_abs()
    };
    let mut operands = vec![
        Operand::made(bytes(&[&plan.m, &plan.k])),
        Operand::constant(bytes(&[&plan.n, &plan.k])),
    ];
    if plan.bias.is_some() {
        operands.push(Operand::constant(bytes(&[&plan.n])));
    }
    let out = bytes(&[&plan.m, &plan.n]);
    operands.extend(plan.residual.map(|_| Operand::made(out)));
    operands.push(Operand::made(out));
    operands.extend(
        plan.m
            .as_const()
            .is_none()
            .then_some(Operand::Size(m.into())),
    );
    let blocks = grid(plan).0.substitute(&|_| Some(Dim::from(i64::from(m))));
    let kernel = plan.gemm.kernel(KERNEL);
    predict::alone(
        &kernel,
        &operands,
        blocks.as_const().unwrap_or(1),
        &low.target,
    )
}

fn grain(per_block: i64) -> u32 {
    (THREAD_WORK / per_block.max(1)).clamp(1, 1 << 20) as u32
}

/// Size parameters of the extents that are not known.
fn sizes<const N: usize>(dims: [&Dim; N]) -> impl Iterator<Item = KernelArg> {
    dims.map(Dim::clone)
        .into_iter()
        .filter(|d| d.as_const().is_none())
        .map(KernelArg::Size)
}

/// The right side in panels.
fn packed(low: &mut Lowerer, plan: &Plan) -> Result<ValueId, OpError> {
    let (w, products) = match plan.gemm.w_batched {
        true => (plan.w, plan.batch.clone()),
        false => (plan.w, Dim::from(1i64)),
    };
    let numbers = [&products, &plan.n, &plan.k].map(Dim::as_const);
    if let ([Some(products), Some(n), Some(k)], Some(c)) =
        (numbers, low.facts.module.as_constant(w).cloned())
    {
        let (products, n, k) = (products as usize, n as usize, k as usize);
        let len = products * plan.gemm.packed_len(n as i64, k as i64) as usize;
        let (kind, width) = (plan.gemm.kind(), plan.gemm.width);
        let [_, of_w, _] = kind.elems();
        let made = move || {
            let bytes = dense(&c)?;
            let mut out = Vec::with_capacity(len * of_w.size_bytes());
            for matrix in bytes.chunks_exact(n * k * 4) {
                let at = |_, kk, j| kk * n + j;
                pack::pack_numbers(kind, matrix, [1, k, n], width, at, &mut out);
            }
            Ok(out)
        };
        return Ok(low.made_weight(of_w, vec![len], WeightSource::Made(Arc::new(made))));
    }
    let width = Dim::from(i64::from(PANEL));
    let panels = plan.n.ceil_div(&width);
    let shape = vec![&(&products * &panels) * &plan.k, width];
    let to = low.temporary(ElemType::F32, shape);
    let kernel = pack::kernel("pack", num(&products), num(&plan.k), num(&plan.n), false);
    let mut args = vec![KernelArg::Value(w), KernelArg::Value(to)];
    args.extend(sizes([&products, &plan.k, &plan.n]));
    let grid = &products * &panels * &plan.k;
    let moved = &grid * &Dim::from(i64::from(PANEL));
    low.launch(kernel, &args, &grid, grain(2 * i64::from(PANEL)), &moved)?;
    Ok(to)
}

/// The bytes of a constant as if it were stored densely.
pub fn dense(c: &Constant) -> Result<bytes::Bytes, String> {
    match c.dense_bytes() {
        Some(b) => Ok(b.clone()),
        None => {
            let t = c.decode().map_err(|e| e.to_string())?;
            Ok(t.to_bytes().ok_or("a weight of strings")?.into())
        }
    }
}

/// The element of a product, with what `fused_linear` adds to it.
pub fn element(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let mut y = sum(x, p)?;
    if x.n().op.name != "fused_linear" {
        return Ok(y);
    }
    for operand in [2, 3] {
        if x.has(operand) {
            let z = x.broadcast(operand, p)?;
            y = x.b().binary(Binary::Add, y, z);
        }
    }
    activated(x, y)
}

fn sum(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    if let Some(&sums) = x.x.facts.sums.get(&x.node) {
        return stored(x, p, sums);
    }
    let (a, b, out) = (x.shape(0)?, x.shape(1)?, x.out_shape()?);
    let at = p.indices(&x.x.body, &out);
    let k = a
        .last()
        .ok_or_else(|| OpError::new("a scalar has no matrix product"))?
        .clone();
    let k = x.b().loop_var(k);
    // Batch indices, then the row (unless `a` is a vector), then the column (unless `b` is one).
    let column = (b.len() > 1) as usize;
    let rows = (a.len() > 1) as usize;
    let batch = at.len() - rows - column;
    let of = |shape: &[Dim], own: &[Dim]| -> Vec<Dim> {
        let lead = shape.len() - own.len();
        let mut index: Vec<Dim> = at[batch - lead..batch]
            .iter()
            .zip(&shape[..lead])
            .zip(&out[batch - lead..])
            .map(|((i, d), o)| match d.as_const() {
                Some(1) => Dim::default(),
                _ if d == o => i.clone(),
                Some(_) => i.clone(),
                None => i.min_dim(&(d - &Dim::from(1i64))),
            })
            .collect();
        index.extend_from_slice(own);
        index
    };
    let row: Vec<Dim> = at[batch..batch + rows].to_vec();
    let col: Vec<Dim> = at[batch + rows..].to_vec();
    let in_a = of(&a, &[row, vec![k.dim()]].concat());
    let in_b = of(&b, &[vec![k.dim()], col].concat());
    let (l, r) = (x.at(0, &Pos::At(in_a))?, x.at(1, &Pos::At(in_b))?);
    let b = x.b();
    let product = b.binary(Binary::Mul, l, r);
    Ok(b.reduce(ReduceKind::Sum, &[k], product))
}

/// A sum that a kernel has stored.
fn stored(x: &mut Element, p: &Pos, sums: Sums) -> Result<E, OpError> {
    let out = x.out_shape()?;
    let at = p.linear(&out);
    if sums.parts == 1 {
        return Ok(x.x.stored(sums.value, ElemType::F32, at));
    }
    let part = x.b().loop_var(Dim::from(i64::from(sums.parts)));
    let at = part.dim() * product(&out) + at;
    let of_part = x.x.stored(sums.value, ElemType::F32, at);
    Ok(x.b().reduce(ReduceKind::Sum, &[part], of_part))
}

#[cfg(test)]
mod tests {
    use crate::lower::Options;
    use crate::lower::checks::{check, check_lowered_for, numbers};
    use lapidary_ir::kernel::Param;
    use lapidary_ir::target::{Feature, Target};
    use lapidary_ir::{Attr, Attrs, ElemType, Tensor};

    #[test]
    fn products_of_every_shape() {
        // Left, right, whether the right side is constant.
        let cases: &[(&[usize], &[usize])] = &[
            (&[1, 70], &[70, 45]),
            (&[33, 8], &[8, 64]),
            (&[2, 3, 5, 9], &[9, 4]),
            (&[2, 3, 5, 9], &[2, 3, 9, 40]),
            (&[2, 3, 5, 9], &[1, 1, 9, 7]),
            (&[1, 5, 9], &[4, 9, 7]),
            (&[4, 5, 9], &[9]),
            (&[2, 1, 5, 9], &[3, 9, 7]),
            (&[9], &[9, 3]),
        ];
        for (i, &(a, w)) in cases.iter().enumerate() {
            for (constant, symbolic) in [(true, false), (false, false), (true, true)] {
                if symbolic && (a.len() < 2 || w.len() > 2) {
                    continue;
                }
                let shapes: Vec<&[usize]> = if constant { vec![a] } else { vec![a, w] };
                check(&format!("matmul{i}"), &shapes, symbolic, |b, x| {
                    let w = match x.get(1) {
                        Some(&w) => w,
                        None => b.constant(&numbers(w, 5)),
                    };
                    b.op("matmul", &[x[0], w]).expect("a product")
                });
            }
        }
    }

    #[test]
    fn constant_weights_are_of_bf16_where_that_is_allowed() {
        let bf16_of = |target: &Target, bf16, constant| {
            let options = Options {
                bf16,
                ..Options::default()
            };
            // Numbers have eight bits.
            let how = (target, &options, if bf16 { 1e-2 } else { 1e-4 });
            let shapes: &[&[usize]] = &[&[2, 3, 71], &[71, 45]];
            let lowered = check_lowered_for(how, "bf16", shapes, false, |b, x| {
                let w = b.constant(&numbers(&[71, 45], 5));
                b.op("matmul", &[x[0], if constant { w } else { x[1] }])
                    .expect("a product")
            });
            let of_bf16 =
                |p: &Param| matches!(p, Param::Buffer { elem, .. } if *elem == ElemType::BF16);
            let mut params = lowered.kernels.iter().flat_map(|k| &k.params);
            params.any(of_bf16)
        };
        let plain = Target::x86_64();
        let has = plain.clone().with_features(vec![Feature::Avx512Bf16]);
        assert!(bf16_of(&has, true, true));
        assert!(!bf16_of(&has, false, true), "nobody allowed it");
        assert!(!bf16_of(&has, true, false), "the right side is computed");
        assert!(!bf16_of(&plain, true, true), "the target has none");
    }

    #[test]
    fn products_with_what_follows() {
        for activation in [
            "",
            "Relu",
            "Tanh",
            "LeakyRelu",
            "Sigmoid",
            "Swish",
            "Gelu",
            "GeluTanh",
            "HardSwish",
        ] {
            let a: &[usize] = &[3, 6, 21];
            check(activation, &[a, &[3, 6, 37]], false, |b, x| {
                let (w, bias): (Tensor, Tensor) = (numbers(&[21, 37], 5), numbers(&[37], 6));
                let operands = vec![x[0], b.constant(&w), b.constant(&bias), x[1]];
                let attrs: Attrs = [("activation".into(), Attr::Str(activation.into()))].into();
                let operands = operands.into_iter().map(Some).collect();
                b.node("fused_linear", operands, attrs, 1)
                    .expect("a product")[0]
            });
        }
    }
}
