//! From "every element is this expression" to loops: which dimensions become one, which are the parallel
//! grid, which run in lanes.

use super::emit::{Emit, KernelArg, has_calls, lane_count, lane_score};
use super::expr::{Body, E, Node};
use super::index::{LoopVar, SymbolKind, atom_dim, symbol_kind};
use lapidary_ir::dim::Atom;
use lapidary_ir::kernel::{Binary, Kernel};
use lapidary_ir::target::Target;
use lapidary_ir::{Dim, ElemType, ValueId};
use std::collections::{BTreeSet, HashMap};

/// One kernel's work: for all `vars`, `out[offset] = value`.
#[derive(Debug)]
pub struct Spec {
    /// The loops over the result.
    pub vars: Vec<LoopVar>,
    /// Linear index of the element that is written.
    pub offset: Dim,
    /// Where it is written; everywhere if `None`.
    pub mask: Option<E>,
    /// The element.
    pub value: E,
    /// Loops that must run in order inside one block, because iterations depend on earlier ones.
    pub serial: Vec<LoopVar>,
}

/// A kernel and how to launch it.
#[derive(Debug)]
pub struct Scheduled {
    /// The kernel.
    pub kernel: Kernel,
    /// What its parameters are.
    pub args: Vec<KernelArg>,
    /// Number of blocks.
    pub grid: Dim,
    /// Fewest blocks worth another thread.
    pub grain: u32,
    /// Operations of the whole launch.
    pub flops: Dim,
}

/// Operations worth waking another thread for.
const THREAD_WORK: i64 = 64 << 10;
/// What an unknown extent is taken for.
const GUESS: i64 = 256;

/// Writes the kernel that computes `spec` into the value `out`.
pub fn schedule(
    name: &str,
    mut body: Body,
    mut spec: Spec,
    (out, elem): (ValueId, ElemType),
    target: &Target,
) -> Scheduled {
    collapse(&mut body, &mut spec);
    let loops = order(&body, &spec, target);
    let cost = cost(&body, spec.value);
    let count = spec
        .vars
        .iter()
        .fold(Dim::from(1i64), |n, &v| n * body.extent(v).clone());
    let flops = &cost * &count;
    let plan = plan(&body, &spec, &loops, guess(&cost), target);
    let mut grid = Dim::from(1i64);
    let mut emit = Emit::new(name, &body, out, target);
    let mut chunk_range = None;
    for (&v, &chunk) in loops.order.iter().zip(&plan.grid) {
        let extent = body.extent(v).clone();
        let block = emit.grid_axis(&extent, chunk);
        grid = grid * extent.ceil_div(&Dim::from(i64::from(chunk)));
        if chunk == 1 {
            emit.bind(v, block);
            continue;
        }
        let size = emit.int(i64::from(chunk));
        let begin = emit.binary(Binary::Mul, block, size);
        let mut end = emit.binary(Binary::Add, begin, size);
        let divides = extent.as_const().is_some_and(|n| n % i64::from(chunk) == 0);
        if !divides {
            let all = emit.index(&extent);
            end = emit.binary(Binary::Min, end, all);
        }
        chunk_range = Some((begin, end, divides.then_some(i64::from(chunk))));
    }
    let first = plan.grid.iter().take_while(|&&c| c == 1).count();
    nest(&mut emit, &spec, &loops, first, chunk_range, (out, elem));
    let (kernel, args) = emit.finish();
    let grain = (THREAD_WORK / plan.work.max(1)).clamp(1, 1 << 20) as u32;
    Scheduled {
        kernel,
        args,
        grid,
        grain,
        flops,
    }
}

/// The loop nest inside a block, from loop `at` inwards.
fn nest(
    emit: &mut Emit,
    spec: &Spec,
    loops: &Order,
    at: usize,
    range: Option<(
        lapidary_ir::kernel::Var,
        lapidary_ir::kernel::Var,
        Option<i64>,
    )>,
    out: (ValueId, ElemType),
) {
    let Some(&v) = loops.order.get(at) else {
        emit.store(out.0, out.1, &spec.offset, spec.mask, spec.value);
        return;
    };
    let extent = emit.body.extent(v).clone();
    let lanes = match loops.lanes {
        Some((l, n)) if l == v => n,
        _ => 1,
    };
    let inner = |emit: &mut Emit, begin, end, lanes| {
        emit.for_loop(v, (begin, end), lanes, &[], &mut |emit, _| {
            nest(emit, spec, loops, at + 1, None, out);
            vec![]
        });
    };
    let width = Dim::from(i64::from(lanes));
    let (begin, end, middle) = match range {
        None => {
            let middle = emit.whole_lanes(&extent, lanes);
            let (zero, end) = (emit.int(0), emit.index(&extent));
            let mid = (middle != extent).then(|| emit.index(&middle));
            (zero, end, mid)
        }
        Some((begin, end, Some(chunk))) if chunk % i64::from(lanes) == 0 => (begin, end, None),
        Some((begin, end, _)) => {
            let w = emit.index(&width);
            let n = emit.binary(Binary::Sub, end, begin);
            let groups = emit.binary(Binary::FloorDiv, n, w);
            let whole = emit.binary(Binary::Mul, groups, w);
            let mid = emit.binary(Binary::Add, begin, whole);
            (begin, end, Some(mid))
        }
    };
    match middle {
        _ if lanes == 1 => inner(emit, begin, end, 1),
        None => inner(emit, begin, end, lanes),
        Some(_) if emit.target.has_wide_vectors() => {
            let mut body = |emit: &mut Emit, _: &[lapidary_ir::kernel::Var]| {
                nest(emit, spec, loops, at + 1, None, out);
                vec![]
            };
            emit.part_loop(v, (begin, end), lanes, &mut body);
        }
        Some(mid) => {
            inner(emit, begin, mid, lanes);
            inner(emit, mid, end, 1);
        }
    }
}

/// Every index that occurs in the kernel.
fn indices(body: &Body, spec: &Spec) -> Vec<Dim> {
    let mut out = vec![spec.offset.clone()];
    let mut roots = vec![spec.value];
    roots.extend(spec.mask);
    spec.offset.visit_symbols(&mut |s| {
        if let SymbolKind::Data(n) = symbol_kind(s) {
            roots.push(body.data(n));
        }
    });
    for root in roots {
        for e in body.reachable(root) {
            match body.node(e) {
                Node::Load { offset, .. } => out.push(offset.clone()),
                Node::Index(d) => out.push(d.clone()),
                _ => {}
            }
        }
    }
    out.sort();
    out.dedup();
    out
}

/// Makes one loop of two neighbours where every index runs through both as through one.
fn collapse(body: &mut Body, spec: &mut Spec) {
    let mut chains = vec![spec.vars.clone()];
    let mut roots = vec![spec.value];
    roots.extend(spec.mask);
    let mut seen = BTreeSet::new();
    for root in roots {
        for e in body.reachable(root) {
            if let Node::Reduce { vars, .. } = body.node(e)
                && seen.insert(vars.clone())
            {
                chains.push(vars.clone());
            }
        }
    }
    // A loop over one element is no loop.
    let mut merged: HashMap<LoopVar, Option<(LoopVar, Dim)>> = HashMap::new();
    let units: Vec<LoopVar> = chains
        .iter()
        .flatten()
        .copied()
        .filter(|&v| body.extent(v).as_const() == Some(1))
        .collect();
    let zero = |d: &Dim, gone: &[LoopVar]| {
        d.substitute(&|s| match symbol_kind(s) {
            SymbolKind::Loop(v) if gone.contains(&v) => Some(Dim::default()),
            _ => None,
        })
    };
    if !units.is_empty() {
        rewrite(body, spec, &|d| zero(d, &units));
    }
    let mut all: Vec<Vec<Linear>> = linear(body, spec);
    for chain in &mut chains {
        chain.retain(|v| !units.contains(v));
        let mut i = chain.len();
        while i >= 2 {
            i -= 1;
            let (u, v) = (chain[i - 1], chain[i]);
            if spec.serial.contains(&u) || spec.serial.contains(&v) {
                continue;
            }
            let n = body.extent(v).clone();
            let fits = all.iter().all(|terms| {
                let coefficient = |var: LoopVar| {
                    terms
                        .iter()
                        .filter(|t| t.var == Some(var))
                        .fold(Dim::default(), |s, t| s + t.factor.clone())
                };
                let opaque = terms
                    .iter()
                    .any(|t| t.opaque.contains(&u) || t.opaque.contains(&v));
                !opaque && coefficient(u) == &coefficient(v) * &n
            });
            if !fits {
                continue;
            }
            let extent = body.extent(u).clone() * n;
            body.set_extent(v, extent);
            body.set_extent(u, Dim::from(1i64));
            merged.insert(u, Some((v, Dim::default())));
            for terms in &mut all {
                terms.retain(|t| t.var != Some(u));
            }
            chain.remove(i - 1);
        }
    }
    if !merged.is_empty() {
        let gone: Vec<LoopVar> = merged.keys().copied().collect();
        rewrite(body, spec, &|d| zero(d, &gone));
    }
    spec.vars = chains.swap_remove(0);
}

fn rewrite(body: &mut Body, spec: &mut Spec, index: &dyn Fn(&Dim) -> Dim) {
    let mut memo = HashMap::new();
    spec.value = body.rewrite(spec.value, index, &mut memo);
    spec.mask = spec.mask.map(|m| body.rewrite(m, index, &mut memo));
    spec.offset = body.rewrite_dim(&spec.offset.clone(), index, &mut memo);
}

/// One term of an index: a size times a loop variable, or something opaque in some variables.
struct Linear {
    var: Option<LoopVar>,
    factor: Dim,
    opaque: BTreeSet<LoopVar>,
}

fn linear(body: &Body, spec: &Spec) -> Vec<Vec<Linear>> {
    let term = |atoms: &[Atom], c: i64| {
        let mut out = Linear {
            var: None,
            factor: Dim::from(c),
            opaque: BTreeSet::new(),
        };
        for a in atoms {
            match a {
                Atom::Sym(s) => match symbol_kind(s) {
                    SymbolKind::Loop(v) if out.var.is_none() => out.var = Some(v),
                    SymbolKind::Program => out.factor = out.factor.clone() * atom_dim(a),
                    _ => out.opaque.extend(body.dim_free(&atom_dim(a))),
                },
                _ => {
                    let free = body.dim_free(&atom_dim(a));
                    if free.is_empty() {
                        out.factor = out.factor.clone() * atom_dim(a);
                    } else {
                        out.opaque.extend(free);
                    }
                }
            }
        }
        if !out.opaque.is_empty() {
            out.opaque.extend(out.var.take());
        }
        out
    };
    indices(body, spec)
        .iter()
        .map(|d| d.terms().map(|(a, c)| term(a, c)).collect())
        .collect()
}

struct Order {
    /// The loops, outermost first.
    order: Vec<LoopVar>,
    /// How many of them a reduction depends on (they come first).
    dependent: usize,
    lanes: Option<(LoopVar, u32)>,
}

/// Loops that reductions depend on go outside, so that a reduction is done once; the lanes last of theirs.
fn order(body: &Body, spec: &Spec, target: &Target) -> Order {
    let mut on = BTreeSet::new();
    let mut reductions = vec![];
    for e in body.reachable(spec.value) {
        if let Node::Reduce {
            vars, body: inner, ..
        } = body.node(e)
        {
            on.extend(body.free(e).iter().copied());
            reductions.extend(vars.last().map(|&v| (v, *inner)));
        }
    }
    let free_loops = |v: &LoopVar| !spec.serial.contains(v);
    let ty = body.ty(spec.value);
    let calls = has_calls(body, spec.value);
    let candidate = |v: LoopVar| {
        let lanes = lane_count(body.extent(v), ty, calls, target);
        let score = lane_score(body, v, spec.value, Some(&spec.offset));
        (lanes > 1).then_some((score, v, lanes))
    };
    // Later loops win ties: they are the inner ones.
    let mut best = spec
        .vars
        .iter()
        .copied()
        .filter(free_loops)
        .filter_map(candidate)
        .max_by_key(|c| (c.0, c.1))
        .filter(|c| c.0 > 0 || reductions.is_empty());
    if let Some((_, v, _)) = best
        && on.contains(&v)
    {
        let inside: i64 = reductions
            .iter()
            .map(|&(r, e)| lane_score(body, r, e, None))
            .sum();
        let outside: i64 = reductions
            .iter()
            .map(|&(_, e)| lane_score(body, v, e, None))
            .sum();
        if inside > outside {
            best = None;
        }
    }
    let lanes = best.map(|(_, v, n)| (v, n));
    let (mut first, mut then): (Vec<LoopVar>, Vec<LoopVar>) =
        spec.vars.iter().partition(|v| on.contains(v));
    if reductions.is_empty() {
        std::mem::swap(&mut first, &mut then);
    }
    for group in [&mut first, &mut then] {
        if let Some((v, _)) = lanes
            && let Some(i) = group.iter().position(|&g| g == v)
        {
            group.remove(i);
            group.push(v);
        }
        group.sort_by_key(|v| spec.serial.contains(v));
    }
    let dependent = first.len();
    first.extend(then);
    if !spec.serial.is_empty() {
        first.sort_by_key(|v| spec.serial.contains(v));
    }
    Order {
        order: first,
        dependent,
        lanes,
    }
}

struct Grid {
    /// For the leading loops: how many iterations one block does; 1 for all but the last of them.
    grid: Vec<u32>,
    /// Operations of one block.
    work: i64,
}

/// Moves loops from the inside into the block until it has enough to do; the loop where that happens is cut.
fn plan(body: &Body, spec: &Spec, loops: &Order, cost: i64, target: &Target) -> Grid {
    let least = i64::from(target.block_work);
    let n = loops.order.len();
    // Serial loops stay whole, and so does what a reduction is shared by.
    let limit = loops
        .order
        .iter()
        .position(|v| spec.serial.contains(v))
        .unwrap_or(n)
        .min(loops.dependent);
    let mut work = cost.max(1);
    let mut at = n;
    while at > 0 {
        let v = loops.order[at - 1];
        let extent = guess(body.extent(v)).max(1);
        let lanes = loops.lanes.filter(|l| l.0 == v).map_or(1, |l| l.1);
        if at <= limit && work.saturating_mul(extent) > 2 * least {
            let chunk = (least / work).max(1).min(extent);
            let chunk = (chunk as u32).next_multiple_of(lanes);
            let mut grid = vec![1; at];
            grid[at - 1] = chunk;
            // A cut of one iteration is the grid itself.
            return Grid {
                grid,
                work: work.saturating_mul(i64::from(chunk)),
            };
        }
        work = work.saturating_mul(extent);
        at -= 1;
    }
    Grid { grid: vec![], work }
}

fn guess(d: &Dim) -> i64 {
    d.substitute(&|_| Some(Dim::from(GUESS)))
        .as_const()
        .unwrap_or(GUESS)
}

/// Operations per element, reductions multiplied out; each shared part once.
fn cost(body: &Body, root: E) -> Dim {
    fn go(body: &Body, e: E, seen: &mut BTreeSet<E>) -> Dim {
        if !seen.insert(e) {
            return Dim::default();
        }
        let below = body
            .children(e)
            .into_iter()
            .fold(Dim::default(), |s, c| s + go(body, c, seen));
        match body.node(e) {
            Node::Const(..) | Node::Index(_) => below,
            Node::Reduce { vars, .. } => vars
                .iter()
                .fold(below + Dim::from(1i64), |n, &v| n * body.extent(v).clone()),
            _ => below + Dim::from(1i64),
        }
    }
    go(body, root, &mut BTreeSet::new()) + Dim::from(1i64)
}
