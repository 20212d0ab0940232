//! Products with parts of weights that a run may leave out.
//!
//! ```text
//! refine(a, b, sum, detail){part: i}  =>  product (a, b, sum) in the place of the sum,
//!                                         on min(1, max(0, detail - i)) times its blocks
//! ```
//! A part that is not used costs a step without blocks, and its weights are never read. How many parts are used is a symbol of the
//! program, which whoever runs it binds: the input that the graph has for it is none of the program.

use super::blocked::{self, PRODUCTS};
use super::expand::Facts;
use super::linear::{self, element, product_steps};
use super::{Element, Lowerer};
use crate::lower::expr::E;
use crate::lower::index::Pos;
use lapidary_abi::program::Place;
use lapidary_ir::graph::Def;
use lapidary_ir::kernel::Binary;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, ElemType, Module, NodeId, RegionId, ValueId};
use std::collections::{HashMap, HashSet};

/// True for a node whose last operand is an input of the module; others decompose.
pub fn takes(module: &Module, n: NodeId) -> bool {
    let node = module.node(n);
    node.operand(3).is_some_and(|v| is_input(module, v))
}

fn is_input(module: &Module, v: ValueId) -> bool {
    matches!(module.value(v).def, Def::Input(Module::TOP, _))
}

/// The input of a module that says how many parts are used, if it has one that nothing else reads.
pub fn detail(module: &Module) -> Option<ValueId> {
    let mut reads = module.reachable_regions().into_iter().flat_map(|r| {
        let nodes = module.region(r).nodes.iter();
        nodes.flat_map(|&n| {
            let node = module.node(n);
            let refines = node.op.name == "refine";
            let operands = node.operands.iter().enumerate();
            operands.filter_map(move |(i, v)| Some(((*v)?, refines && i == 3)))
        })
    });
    let is_it = |(v, by_refine): &(ValueId, bool)| *by_refine && is_input(module, *v);
    let found = reads.find(is_it)?.0;
    let scalar = module
        .value(found)
        .ty
        .shape()
        .is_some_and(<[Dim]>::is_empty);
    let other = reads.any(|(v, by_refine)| v == found && !by_refine);
    (scalar && !other && !module.top().outputs.contains(&found)).then_some(found)
}

/// Most parts that a module may have.
const MAX_PARTS: i64 = 1 << 20;

/// The number of the part of the weights that a node reads, if it is not of those that are always used.
pub fn part(facts: &Facts, n: NodeId) -> Result<Option<usize>, OpError> {
    let node = facts.module.node(n);
    if node.op.name != "refine" {
        return Ok(None);
    }
    let part = node.int("part")?;
    let known = (0..MAX_PARTS).contains(&part).then_some(part as usize);
    let known = known.ok_or_else(|| OpError::new(format!("there is no part {part}")))?;
    Ok(Some(known))
}

/// Writes the steps of a node.
pub fn steps(low: &mut Lowerer, n: NodeId) -> Result<(), OpError> {
    let node = low.facts.module.node(n);
    let (out, detail) = (node.results[0], node.need(3)?);
    let part = part(&low.facts, n)?.unwrap_or(0);
    low.know_part(part);
    let contents = low.facts.contents.get(&detail).cloned();
    let Some((mut plan, contents)) = linear::plan(&low.facts, n).zip(contents) else {
        return low.elements(n, out, where_used);
    };
    match plan.residual.filter(|&sum| low.is_own_sum(sum)) {
        Some(sum) => {
            let place = low.stored(sum)?;
            low.declare(out, Place::Alias(place));
        }
        None => low.elements(n, out, sum)?,
    }
    let beyond = &contents[0] - &Dim::from(part);
    let one = Dim::from(1i64);
    plan.residual = Some(out);
    plan.gemm.residual = true;
    plan.is_used = beyond.max_dim(&Dim::default()).min_dim(&one);
    match blocked::is_chosen(low, n) {
        true => blocked::steps(low, n, plan),
        false => product_steps(low, n, plan),
    }
}

/// Sums that a product wrote for one node of the same region alone: it may write over them.
pub fn own_sums(module: &Module) -> HashSet<ValueId> {
    let (mut reads, mut homes) = (HashMap::<ValueId, usize>::new(), HashMap::new());
    let mut sums = vec![];
    for r in module.reachable_regions() {
        let region = module.region(r);
        let operands = region.nodes.iter().flat_map(|&n| &module.node(n).operands);
        for &v in operands.flatten().chain(&region.outputs) {
            *reads.entry(v).or_default() += 1;
        }
        for &n in &region.nodes {
            homes.insert(n, r);
            let node = module.node(n);
            if node.op.name == "refine" {
                sums.extend(node.operand(2).map(|sum| (sum, r)));
            }
        }
    }
    let is_own = |&(sum, home): &(ValueId, RegionId)| {
        let by = module.producer(sum);
        let product = by.is_some_and(|p| PRODUCTS.contains(&module.node(p).op.name));
        product && reads[&sum] == 1 && by.and_then(|p| homes.get(&p)) == Some(&home)
    };
    sums.into_iter()
        .filter(is_own)
        .map(|(sum, _)| sum)
        .collect()
}

/// The element of what a product is added to.
fn sum(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    match x.has(2) {
        true => x.at(2, p),
        false => Ok(x.b().float(ElemType::F32, 0.0)),
    }
}

/// The element of a result that is not computed by a kernel of products.
fn where_used(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (y, sum) = (element(x, p)?, sum(x, p)?);
    let detail = x.at(3, &Pos::At(vec![]))?;
    let part = x.int("part").unwrap_or(0);
    let part = x.b().int(ElemType::I64, part);
    let is_used = x.b().binary(Binary::Gt, detail, part);
    let refined = x.b().binary(Binary::Add, sum, y);
    Ok(x.b().select(is_used, refined, sum))
}
