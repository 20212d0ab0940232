//! Where values live: one arena whose pieces are shared by values that are not live at the same time.
//!
//! Steps are numbered through all blocks. A value lives from its first mention to its last; one that is
//! defined outside a branch or loop and used inside lives until that step ends. Experts of a layer may be run in any order: what one of
//! them and a step besides it use lives as long as the layer. Large values are placed
//! first, each at the lowest gap it fits best.

use lapidary_abi::program::{
    Arg, Block, CallAttr, Expert, Mixture, Place, Program, Step, ValueIndex, ValueType,
};
use std::collections::HashMap;

/// Assigns offsets to all arena values and frees heap values after their last use. Returns the bytes that
/// the arena values would take without sharing.
pub fn plan(program: &mut Program) -> u64 {
    let roots: Vec<ValueIndex> = (0..program.values.len() as u32)
        .map(|v| root(program, v))
        .collect();
    let mut lives = Lives {
        roots: &roots,
        clock: 0,
        span: HashMap::new(),
        times: vec![],
    };
    lives.block(&program.prepare);
    lives.times.clear();
    lives.block(&program.body);
    let end = lives.clock;
    let (mut span, times) = (lives.span, lives.times);
    for mixture in &program.mixtures {
        let during = |e: &Expert| (times[e.begin as usize].0, times[e.end as usize - 1].1);
        let experts: Vec<_> = mixture.experts.iter().map(during).collect();
        let (Some(first), Some(last)) = (experts.first(), experts.last()) else {
            continue;
        };
        for s in span.values_mut() {
            let meets = s.0 <= last.1 && first.0 <= s.1;
            if meets && !experts.iter().any(|e| e.0 <= s.0 && s.1 <= e.1) {
                *s = (s.0.min(first.0), s.1.max(last.1));
            }
        }
    }
    for port in &program.outputs {
        if let Some(s) = span.get_mut(&roots[port.value as usize]) {
            s.1 = end;
        }
    }
    let mut pieces: Vec<(u64, ValueIndex, (usize, usize))> = program
        .values
        .iter()
        .enumerate()
        .filter(|(_, d)| matches!(d.place, Place::Arena { .. }))
        .map(|(v, d)| {
            let v = v as u32;
            (bytes(&d.ty), v, span.get(&v).copied().unwrap_or((0, 0)))
        })
        .collect();
    let unshared = pieces.iter().map(|p| p.0).sum();
    pieces.sort_by_key(|p| (std::cmp::Reverse(p.0), p.1));
    let mut placed: Vec<(u64, u64, (usize, usize))> = vec![];
    for (size, v, live) in pieces {
        let offset = best_fit(&placed, size, live);
        placed.push((offset, offset + size, live));
        program.values[v as usize].place = Place::Arena { offset };
        program.arena_bytes = program.arena_bytes.max(offset + size);
    }
    free_heap(program, &roots);
    unshared
}

pub(super) fn root(program: &Program, mut v: ValueIndex) -> ValueIndex {
    while let Place::Alias(of) = program.values[v as usize].place {
        v = of;
    }
    v
}

/// Bytes of a tensor of known size, rounded up to whole lines; at least one.
pub(super) fn bytes(ty: &ValueType) -> u64 {
    let ValueType::Tensor { elem, dims } = ty else {
        return 64;
    };
    let count = dims.iter().flatten().fold(1u64, |n, d| {
        n.saturating_mul(d.as_const().unwrap_or(0).max(0) as u64)
    });
    count
        .saturating_mul(elem.size_bytes() as u64)
        .max(1)
        .next_multiple_of(64)
}

/// Offset of the smallest gap between pieces that are live at the same time.
fn best_fit(placed: &[(u64, u64, (usize, usize))], size: u64, live: (usize, usize)) -> u64 {
    let mut busy: Vec<(u64, u64)> = placed
        .iter()
        .filter(|p| p.2.0 <= live.1 && live.0 <= p.2.1)
        .map(|p| (p.0, p.1))
        .collect();
    busy.sort_unstable();
    let (mut at, mut best): (u64, Option<(u64, u64)>) = (0, None);
    for (begin, end) in busy {
        if begin >= at + size && best.is_none_or(|b| begin - at < b.0) {
            best = Some((begin - at, at));
        }
        at = at.max(end);
    }
    best.map_or(at, |b| b.1)
}

/// Values that a step reads or writes itself, inner blocks aside.
pub(super) fn mentions(step: &Step) -> Vec<ValueIndex> {
    match step {
        Step::Launch { args, .. } => args
            .iter()
            .filter_map(|a| match a {
                Arg::Buffer(v) => Some(*v),
                Arg::Size(_) => None,
            })
            .collect(),
        Step::Call {
            attrs,
            operands,
            results,
            ..
        } => attrs
            .iter()
            .filter_map(|(_, a)| match a {
                CallAttr::Value(v) => Some(*v),
                _ => None,
            })
            .chain(operands.iter().flatten().copied())
            .chain(results.iter().copied())
            .collect(),
        Step::BindDim { value, .. } | Step::BindElement { value, .. } | Step::Free { value } => {
            vec![*value]
        }
        Step::Move { from, to } => vec![*from, *to],
        Step::If {
            condition, results, ..
        } => results.iter().copied().chain([*condition]).collect(),
        Step::Loop {
            trip_count,
            condition,
            carried,
            results,
            ..
        } => trip_count
            .iter()
            .chain(condition)
            .chain(carried)
            .chain(results)
            .copied()
            .collect(),
        Step::Require { .. } => vec![],
    }
}

/// The blocks within a step.
pub(crate) fn blocks(step: &Step) -> Vec<&Block> {
    match step {
        Step::If {
            then_block,
            else_block,
            ..
        } => vec![then_block, else_block],
        Step::Loop { body, .. } => vec![body],
        _ => vec![],
    }
}

struct Lives<'r> {
    roots: &'r [ValueIndex],
    clock: usize,
    span: HashMap<ValueIndex, (usize, usize)>,
    /// When each step of the top block began and ended; what blocks inside it add comes before its own and is taken away.
    times: Vec<(usize, usize)>,
}

impl Lives<'_> {
    fn touch(&mut self, v: ValueIndex, from: usize, to: usize) {
        let s = self
            .span
            .entry(self.roots[v as usize])
            .or_insert((from, to));
        s.1 = s.1.max(to);
    }

    /// What a branch or loop uses and was defined before it must last until it ends.
    fn block(&mut self, block: &Block) {
        for &p in &block.params {
            self.touch(p, self.clock, self.clock);
        }
        for step in &block.steps {
            self.clock += 1;
            let now = self.clock;
            let known = self.times.len();
            for v in mentions(step) {
                self.touch(v, now, now);
            }
            for inner in blocks(step) {
                self.block(inner);
            }
            self.clock += 1;
            let end = self.clock;
            self.times.truncate(known);
            self.times.push((now, end));
            let inner_blocks = blocks(step);
            if !inner_blocks.is_empty() {
                // Everything that was live when the step began and is used inside it.
                for s in self.span.values_mut() {
                    if s.0 <= now && s.1 >= now {
                        s.1 = s.1.max(end);
                    }
                }
                for v in mentions(step) {
                    self.touch(v, now, end);
                }
            }
        }
        self.clock += 1;
        for &r in &block.results {
            self.touch(r, self.clock, self.clock);
        }
    }
}

/// Inserts a `Free` after the last use of each heap value of the top block.
fn free_heap(program: &mut Program, roots: &[ValueIndex]) {
    let mut uses: HashMap<ValueIndex, (usize, usize)> = HashMap::new();
    fn inside(
        step: &Step,
        at: usize,
        roots: &[ValueIndex],
        uses: &mut HashMap<ValueIndex, (usize, usize)>,
    ) {
        let mut note = |v: ValueIndex| uses.entry(roots[v as usize]).or_insert((at, at)).1 = at;
        mentions(step).into_iter().for_each(&mut note);
        for b in blocks(step) {
            b.results.iter().copied().for_each(&mut note);
        }
        for b in blocks(step) {
            b.steps.iter().for_each(|s| inside(s, at, roots, uses));
        }
    }
    for (at, step) in program.body.steps.iter().enumerate() {
        inside(step, at, roots, &mut uses);
    }
    let kept: Vec<ValueIndex> = program
        .outputs
        .iter()
        .chain(&program.inputs)
        .map(|p| roots[p.value as usize])
        .collect();
    // Only what the top block defines is its to free.
    let mut own = std::collections::HashSet::new();
    for step in &program.body.steps {
        own.extend(mentions(step).into_iter().map(|v| roots[v as usize]));
    }
    // By the step that they come after, and whether that step's expert is over then.
    let mut after: HashMap<(usize, bool), Vec<ValueIndex>> = HashMap::new();
    for (v, (first, last)) in uses {
        let heap = matches!(program.values[v as usize].place, Place::Heap);
        if heap && own.contains(&v) && !kept.contains(&v) {
            let at = after_use(&program.mixtures, first, last);
            after.entry(at).or_default().push(v);
        }
    }
    let steps = std::mem::take(&mut program.body.steps);
    // Where each step begins, and where it ends with what its expert frees.
    let mut places: Vec<(u32, u32)> = vec![];
    for (at, step) in steps.into_iter().enumerate() {
        let begin = program.body.steps.len() as u32;
        program.body.steps.push(step);
        let mut end = begin;
        for expert_is_over in [false, true] {
            let mut dead = after.remove(&(at, expert_is_over)).unwrap_or_default();
            dead.sort_unstable();
            let frees = dead.into_iter().map(|value| Step::Free { value });
            program.body.steps.extend(frees);
            if !expert_is_over {
                end = program.body.steps.len() as u32;
            }
        }
        places.push((begin, end));
    }
    for expert in program.mixtures.iter_mut().flat_map(|m| &mut m.experts) {
        expert.begin = places[expert.begin as usize].0;
        expert.end = places[expert.end as usize - 1].1;
    }
}

/// The step after which a value is freed that steps use from `first` to `last`: what an expert uses and others too is freed after the
/// whole layer, outside of the last expert.
fn after_use(mixtures: &[Mixture], first: usize, last: usize) -> (usize, bool) {
    let holds = |e: &Expert, at: usize| (e.begin as usize..e.end as usize).contains(&at);
    let layer = mixtures
        .iter()
        .find(|m| m.experts.iter().any(|e| holds(e, last)));
    let Some(layer) = layer else {
        return (last, true);
    };
    match layer.experts.last() {
        Some(end)
            if !layer
                .experts
                .iter()
                .any(|e| holds(e, first) && holds(e, last)) =>
        {
            (end.end as usize - 1, true)
        }
        _ => (last, false),
    }
}
