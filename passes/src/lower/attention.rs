//! Attention: tiles of queries against packed keys and values, without a matrix of scores in memory.
//!
//! ```text
//! attention => pack k, pack v, attention (q, packed k, packed v, mask)
//! ```
//! Keys and values in caches ([`super::cache`]) are packed already. What the schedule does not know (other forms of caches, windows
//! to the right, other types) decomposes.

use super::{KernelArg, Lowerer, Rule, cache};
use crate::schedules::Num;
use crate::schedules::attention::{Attention, Heads, Mask, Packed, Stored};
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, ElemType, Module, NodeId, ValueId};

/// The family's lowerings.
pub static RULES: &[Rule] = &[Rule::steps_for("attention", steps, |module, n| {
    plan(module, n, false).is_some()
})];

/// Operations worth waking another thread for.
const THREAD_WORK: i64 = 64 << 10;

pub(super) struct Plan {
    q: ValueId,
    k: ValueId,
    v: ValueId,
    mask: Option<ValueId>,
    filled: Option<ValueId>,
    batch: Dim,
    queries: Dim,
    keys: Dim,
    schedule: Attention,
}

pub(super) fn num(d: &Dim) -> Num {
    d.as_const().map_or(Num::Sym, Num::Const)
}

/// The schedule of a node, if it has one; `cached` if its keys and values are to stay in caches.
pub(super) fn plan(module: &Module, n: NodeId, cached: bool) -> Option<Plan> {
    let node = module.node(n);
    let (q, k, v) = (node.operand(0)?, node.operand(1)?, node.operand(2)?);
    let mask = node.operand(3);
    let shape = |v: ValueId| module.value(v).ty.shape().map(<[Dim]>::to_vec);
    let f32s = [q, k, v]
        .iter()
        .all(|&v| module.value(v).ty.elem() == Some(ElemType::F32));
    let filled = node.operand(6);
    let other = (4..6).any(|i| node.operand(i).is_some())
        || filled.is_some() != cached
        || node.results.len() != 1;
    let window = node.int("right_window_size") != Ok(-1);
    let softcap = node.float("softcap").filter(|&c| c != 0.0);
    let precise = node
        .elem_attr("softmax_precision")
        .is_none_or(|e| e == ElemType::F32);
    if !f32s || other || window || softcap.is_some_and(|c| c < 0.0) || !precise {
        return None;
    }
    let dims = [q, k, v].map(shape);
    let [Some(of_q), Some(of_k), Some(of_v)] = dims else {
        return None;
    };
    // Batch, heads, positions, numbers of a head.
    let read = |s: &[Dim], heads: &str| -> Option<(Dim, i64, Dim, i64)> {
        match s {
            [b, s, hidden] => {
                let (h, hidden) = (node.int(heads).ok()?, hidden.as_const()?);
                (h > 0 && hidden % h == 0).then(|| (b.clone(), h, s.clone(), hidden / h))
            }
            [b, h, s, d] => Some((b.clone(), h.as_const()?, s.clone(), d.as_const()?)),
            _ => None,
        }
    };
    let (batch, heads, queries, size) = read(&of_q, "q_num_heads")?;
    let (b_k, kv_heads, keys, k_size) = read(&of_k, "kv_num_heads")?;
    let (b_v, v_heads, v_keys, value_size) = read(&of_v, "kv_num_heads")?;
    let ranks = of_q.len() == of_k.len() && of_q.len() == of_v.len();
    let equal =
        b_k == batch && b_v == batch && v_heads == kv_heads && v_keys == keys && k_size == size;
    let sizes = [heads, kv_heads, size, value_size].iter().all(|&n| n > 0);
    let empty = [&batch, &queries, &keys]
        .iter()
        .any(|d| d.as_const() == Some(0));
    if !ranks || !equal || !sizes || empty || heads % kv_heads.max(1) != 0 {
        return None;
    }
    let mask_form = match mask {
        None => None,
        Some(m) => {
            let own = shape(m)?;
            let one = Dim::from(1i64);
            let mut four = vec![one.clone(); 4usize.checked_sub(own.len())?];
            four.extend(own);
            let along = |i: usize, of: &Dim| match () {
                () if four[i] == one => Some(false),
                () if four[i] == *of => Some(true),
                () => None,
            };
            if four[3] != keys {
                return None;
            }
            Some(Mask {
                batch: along(0, &batch)?,
                heads: along(1, &Dim::from(heads))?,
                rows: along(2, &queries)?,
                condition: match module.value(m).ty.elem()? {
                    ElemType::Bool => true,
                    ElemType::F32 => false,
                    _ => return None,
                },
            })
        }
    };
    let scale = node.float("scale").unwrap_or(1.0 / (size as f64).sqrt());
    Some(Plan {
        q,
        k,
        v,
        mask,
        filled,
        schedule: Attention {
            batch: num(&batch),
            heads,
            kv_heads,
            queries: num(&queries),
            keys: num(&keys),
            size,
            value_size,
            layout: if of_q.len() == 3 {
                Heads::Packed
            } else {
                Heads::Apart
            },
            scale: scale as f32,
            mask: mask_form,
            causal: node.flag("is_causal"),
            left: node.int("left_window_size").ok().filter(|&l| l >= 0),
            softcap: softcap.map(|c| c as f32),
            stored: match cached {
                true => Stored::Cached(ElemType::F32),
                false => Stored::Packed,
            },
            counted: false,
        },
        batch,
        queries,
        keys,
    })
}

fn steps(low: &mut Lowerer, n: NodeId) -> Result<(), OpError> {
    let caches = low.caches.of(n);
    let mut plan = plan(&low.facts.module, n, caches.is_some())
        .ok_or_else(|| OpError::new("has no schedule, and was not decomposed"))?;
    let out = low.facts.module.node(n).results[0];
    if let Some([keys, values]) = caches.map(|both| both.map(|c| c.held())) {
        plan.schedule.stored = cache::stored(keys, values).ok_or_else(|| {
            OpError::new("has caches of keys and of values that do not go together")
        })?;
    }
    // `evict` has checked that it is possible.
    plan.schedule.counted = low.options.evictable && caches.is_some();
    let a = &plan.schedule;
    let mut buffers = vec![plan.q];
    match caches {
        Some([keys, values]) => {
            buffers.extend(cache::append(low, &keys, a.kv_heads, a.size)?);
            buffers.extend(cache::append(low, &values, a.kv_heads, a.value_size)?);
        }
        None => {
            buffers.push(packed(low, &plan, Packed::Keys)?);
            buffers.push(packed(low, &plan, Packed::Values)?);
        }
    }
    buffers.extend(plan.mask.into_iter().chain(plan.filled));
    let counted = match (a.counted, caches, plan.filled) {
        (true, Some([keys, _]), Some(filled)) => {
            let attended = cache::attended(low, &keys, a.kv_heads)?;
            let rows = &plan.batch * &Dim::from(a.heads) * &plan.queries;
            let softmax = low.temporary(ElemType::F32, vec![rows, Dim::from(2i64)]);
            buffers.extend([attended, softmax]);
            Some([plan.q, buffers[1], filled, softmax, attended])
        }
        _ => None,
    };
    buffers.push(out);
    let mut args: Vec<KernelArg> = buffers.into_iter().map(KernelArg::Value).collect();
    args.extend(unknown([&plan.batch, &plan.queries, &plan.keys]));
    let rows = i64::from(a.tile_rows());
    let tiles = plan.queries.ceil_div(&Dim::from(rows));
    let grid = &plan.batch * &Dim::from(a.heads) * tiles;
    let per_key = 2 * (a.size + a.value_size);
    let pairs = &plan.batch * &Dim::from(a.heads) * &plan.queries * &plan.keys;
    let per_block = rows * per_key * plan.keys.as_const().unwrap_or(256);
    let grain = grain(per_block);
    low.launch(
        a.kernel("attention"),
        &args,
        &grid,
        grain,
        &(&pairs * &Dim::from(per_key)),
    )?;
    let Some(buffers) = counted else {
        return Ok(());
    };
    let mut args: Vec<KernelArg> = buffers.map(KernelArg::Value).into();
    args.extend(unknown([&plan.batch, &plan.queries, &plan.keys]));
    let width = Dim::from(i64::from(PANEL));
    let grid = &plan.batch * &Dim::from(a.kv_heads) * plan.keys.floor_div(&width);
    let group = a.heads / a.kv_heads;
    let grain = self::grain(2 * a.size * i64::from(PANEL) * group);
    let work = pairs * Dim::from(2 * a.size);
    low.launch(a.count_attended(), &args, &grid, grain, &work)
}

pub(super) fn grain(per_block: i64) -> u32 {
    (THREAD_WORK / per_block.max(1)).clamp(1, 1 << 20) as u32
}

/// Size parameters of the extents that are not known.
pub(super) fn unknown<const N: usize>(dims: [&Dim; N]) -> impl Iterator<Item = KernelArg> {
    dims.map(Dim::clone)
        .into_iter()
        .filter(|d| d.as_const().is_none())
        .map(KernelArg::Size)
}

/// Keys or values in panels.
fn packed(low: &mut Lowerer, plan: &Plan, what: Packed) -> Result<ValueId, OpError> {
    let a = &plan.schedule;
    let width = Dim::from(i64::from(PANEL));
    let key_panels = plan.keys.ceil_div(&width);
    let heads = &plan.batch * &Dim::from(a.kv_heads);
    let (from, panels, rows) = match what {
        Packed::Keys => (plan.k, key_panels, Dim::from(a.size)),
        Packed::Values => (
            plan.v,
            Dim::from(a.value_size).ceil_div(&width),
            plan.keys.clone(),
        ),
    };
    let grid = &heads * &panels;
    let to = low.temporary(ElemType::F32, vec![&grid * &rows, width.clone()]);
    let mut args = vec![KernelArg::Value(from), KernelArg::Value(to)];
    args.extend(unknown([&plan.batch, &plan.keys]));
    let per_block = rows.as_const().unwrap_or(256) * i64::from(PANEL) * 2;
    let moved = &(&grid * &rows) * &width;
    low.launch(a.pack(what), &args, &grid, grain(per_block), &moved)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use crate::lower::checks::check;
    use lapidary_ir::{Attr, Attrs};

    #[test]
    fn attention_in_both_layouts() {
        let attrs = |causal: i64| -> Attrs {
            [
                ("is_causal".to_owned(), Attr::Int(causal)),
                ("q_num_heads".to_owned(), Attr::Int(4)),
                ("kv_num_heads".to_owned(), Attr::Int(2)),
            ]
            .into()
        };
        for (causal, symbolic) in [(0, false), (1, false), (0, true)] {
            let shapes: &[&[usize]] = &[&[2, 18, 32], &[2, 18, 16], &[2, 18, 16], &[2, 1, 1, 18]];
            let kernels = check("packed", shapes, symbolic, |b, x| {
                let operands = x.iter().copied().map(Some).collect();
                b.node("attention", operands, attrs(causal), 1)
                    .expect("attention")[0]
            });
            assert_eq!(kernels, 3, "two that pack, one that attends");
        }
        let shapes: &[&[usize]] = &[&[1, 4, 18, 8], &[1, 2, 35, 8], &[1, 2, 35, 40]];
        let kernels = check("apart", shapes, false, |b, x| {
            b.op("attention", x).expect("attention")
        });
        assert_eq!(kernels, 3);
    }

    #[test]
    fn what_the_schedule_does_not_know_decomposes() {
        let shapes: &[&[usize]] = &[&[1, 2, 5, 8], &[1, 2, 5, 8], &[1, 2, 5, 8]];
        let kernels = check("ahead", shapes, false, |b, x| {
            b.op_with("attention", x, [("right_window_size", Attr::Int(2))])
                .expect("attention")
        });
        assert!(kernels > 3);
    }

    #[test]
    fn windows_and_bounds_of_scores_have_a_schedule() {
        let shapes: &[&[usize]] = &[&[1, 2, 45, 8], &[1, 2, 45, 8], &[1, 2, 45, 8]];
        let attrs = [
            ("softcap", Attr::Float(2.0)),
            ("left_window_size", Attr::Int(7)),
            ("is_causal", Attr::Int(1)),
        ];
        let kernels = check("near", shapes, false, |b, x| {
            b.op_with("attention", x, attrs).expect("attention")
        });
        assert_eq!(kernels, 3);
    }
}
