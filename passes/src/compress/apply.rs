//! Putting other values in the place of weights.

use super::cuts::remove;
use super::levels::Pick;
use super::sites::{Site, View, bytes_of, find, stored};
use super::{Chosen, CompressError, Report};
use lapidary_ir::builder::Builder;
use lapidary_ir::infer::{first_fresh, infer_module};
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{Constant, Dim, ElemType, Module, NodeId, RegionId, ValueId};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

/// Puts the terms of picks, one for each site, in the place of the weights.
pub(super) fn apply(
    module: &mut Module,
    sites: &[Site],
    picks: Vec<Pick>,
) -> Result<Report, CompressError> {
    let before = stored(module);
    let first_term = module.value_count();
    let (mut weights, mut terms, mut after) = (vec![], HashMap::new(), before);
    for (site, Pick { level, candidate }) in sites.iter().zip(picks) {
        let own = bytes_of(module, site);
        let mut chosen = Chosen {
            name: site.name.clone(),
            shape: site.shape,
            by_columns: site.view == View::Columns,
            level,
            encoding: "dense".to_owned(),
            bytes: (own, own),
            error: 0.0,
            assumptions: vec![],
            tried: vec![],
        };
        if let Some(candidate) = candidate {
            chosen.encoding = candidate.encoding.to_string();
            chosen.bytes.1 = candidate.bytes;
            chosen.error = candidate.error;
            chosen.assumptions = candidate.assumptions;
            after = after - own + candidate.bytes;
            let term = module.add_constant(&site.name, Constant::new(candidate.encoding));
            terms.insert(site.weight, (term, site));
        }
        weights.push(chosen);
    }
    substitute(module, &terms).map_err(CompressError::Graph)?;
    Ok(Report {
        cuts: vec![],
        activations: None,
        first_term,
        weights,
        bytes: (before, after),
        bound: None,
        front: vec![],
        measured: None,
        latency_ns: None,
    })
}

/// Removes from another module, of the same network in another form, what was removed from a compressed one, and puts this
/// one's terms in the place of the same weights.
///
/// # Errors
/// In that form something else depends on what was removed.
pub fn transfer(from: &Module, report: &Report, to: &mut Module) -> Result<(), CompressError> {
    for (_, removed) in &report.cuts {
        remove(to, removed)?;
    }
    let mut made: HashMap<&str, &Constant> = HashMap::new();
    for v in (report.first_term..from.value_count()).map(|i| ValueId(i as u32)) {
        if let Some(constant) = from.as_constant(v) {
            made.insert(&from.value(v).name, constant);
        }
    }
    let sites = find(to);
    let mut terms = HashMap::new();
    for site in &sites {
        if let Some(&constant) = made.get(site.name.as_str()) {
            let term = to.add_constant(&site.name, constant.clone());
            terms.insert(site.weight, (term, site));
        }
    }
    substitute(to, &terms).map_err(CompressError::Graph)
}

/// Lets everything read other values, matrices `f32[O,I]` as methods see them, instead of weights.
pub(super) fn substitute(
    module: &mut Module,
    values: &HashMap<ValueId, (ValueId, &Site)>,
) -> Result<(), OpError> {
    let fresh = Cell::new(first_fresh(module));
    let wide: HashSet<ValueId> = values
        .keys()
        .copied()
        .filter(|&v| is_widened(module, v))
        .collect();
    for r in module.reachable_regions() {
        replace(module, r, values, &wide, &fresh)?;
    }
    if !wide.is_empty() {
        infer_module(module);
        drop_idle_casts(module);
    }
    Ok(())
}

/// True for a weight of a small float type of which nothing is used but its numbers as `f32`: a term, which decodes to
/// `f32`, need not be rounded to that type.
fn is_widened(module: &Module, v: ValueId) -> bool {
    module.value(v).ty.elem() != Some(ElemType::F32)
        && module.reachable_regions().into_iter().all(|r| {
            let region = module.region(r);
            let reads = |n: &&NodeId| module.node(**n).operands.contains(&Some(v));
            !region.outputs.contains(&v)
                && region.nodes.iter().filter(reads).all(|&n| {
                    let node = module.node(n);
                    let moves = matches!(node.op.name, "transpose" | "gather")
                        && node.operand(0) == Some(v);
                    let casts =
                        node.op.name == "cast" && node.elem_attr("to") == Some(ElemType::F32);
                    casts || moves && is_widened(module, node.results[0])
                })
        })
}

/// Lets what reads a cast of `f32` to `f32` read its operand.
fn drop_idle_casts(module: &mut Module) {
    for r in module.reachable_regions() {
        for n in module.region(r).nodes.clone() {
            let node = module.node(n);
            let (result, operand) = (node.results[0], node.operand(0));
            let is_f32 = |v: ValueId| module.value(v).ty.elem() == Some(ElemType::F32);
            if let Some(x) =
                operand.filter(|&x| node.op.name == "cast" && is_f32(x) && is_f32(result))
            {
                module.replace_uses(result, x);
            }
        }
    }
    module.remove_dead_nodes();
}

/// Lets the nodes of a region read the terms, each in the weight's own shape, and type unless it is one of `wide`.
fn replace(
    module: &mut Module,
    region: RegionId,
    terms: &HashMap<ValueId, (ValueId, &Site)>,
    wide: &HashSet<ValueId>,
    fresh: &Cell<u32>,
) -> Result<(), OpError> {
    let nodes = std::mem::take(&mut module.region_mut(region).nodes);
    let mut made: HashMap<ValueId, ValueId> = HashMap::new();
    for n in nodes {
        for i in 0..module.node(n).operands.len() {
            let Some(v) = module.node(n).operands[i] else {
                continue;
            };
            let Some(&(term, site)) = terms.get(&v) else {
                continue;
            };
            let value = match made.get(&v) {
                Some(&value) => value,
                None => {
                    let info = module.value(v);
                    let own = info.ty.elem().filter(|_| !wide.contains(&v));
                    let elem = own.unwrap_or(ElemType::F32);
                    let shape = info.ty.shape().unwrap_or_default().to_vec();
                    let mut b = Builder::new(module, region, &site.name, fresh);
                    let value = as_before(&mut b, term, site, elem, &shape)?;
                    made.insert(v, value);
                    value
                }
            };
            module.node_mut(n).operands[i] = Some(value);
        }
        module.region_mut(region).nodes.push(n);
    }
    Ok(())
}

fn as_before(
    b: &mut Builder,
    term: ValueId,
    site: &Site,
    elem: ElemType,
    shape: &[Dim],
) -> Result<ValueId, OpError> {
    let value = b.cast(term, elem)?;
    match site.view {
        View::Rows => Ok(value),
        View::Columns => b.transpose(value, &[1, 0]),
        View::Filters => {
            let lens: Vec<Len> = shape
                .iter()
                .map(|d| Len::N(d.as_const().unwrap_or(-1)))
                .collect();
            b.reshape(value, &lens)
        }
    }
}
