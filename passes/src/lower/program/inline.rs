//! What is computed where it is used, and what is known of sizes before.

use super::{Lowerer, MAX_INLINE};
use crate::lower::index::is_size;
use crate::lower::{Form, Fuse, library, rule};
use lapidary_ir::graph::Def;
use lapidary_ir::{Dim, NodeId, RegionId, ValueId};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

impl Lowerer {
    /// Integer values whose contents are sizes known at the start, of a few elements.
    pub(super) fn find_contents(&mut self) {
        let module = &self.facts.module;
        let fresh = Cell::new(lapidary_ir::infer::first_fresh(module));
        for i in 0..module.value_count() {
            let v = ValueId(i as u32);
            let ty = &module.value(v).ty;
            let integer = ty.elem().is_some_and(|e| e.int_range().is_some());
            let small = ty.shape().is_some_and(|s| {
                s.iter()
                    .try_fold(1i64, |n, d| n.checked_mul(d.as_const()?))
                    .is_some_and(|n| n <= 64)
            });
            if !integer || !small || matches!(module.value(v).def, Def::Input(..)) {
                continue;
            }
            if let Some(c) = lapidary_ir::builder::contents(module, v, &fresh, 64)
                && c.iter().all(|d| self.size_is_bound(d))
            {
                self.facts.contents.insert(v, c);
            }
        }
    }

    pub(super) fn size_is_bound(&self, d: &Dim) -> bool {
        let mut yes = is_size(d);
        d.visit_symbols(&mut |s| yes &= self.bound.contains(s));
        yes
    }

    /// Decides which values their consumers compute themselves.
    pub(super) fn find_inlined(&mut self) {
        if !self.options.fuse {
            return;
        }
        let module = &self.facts.module;
        let mut users: HashMap<ValueId, HashSet<NodeId>> = HashMap::new();
        let mut home: HashMap<NodeId, RegionId> = HashMap::new();
        let mut kept: HashSet<ValueId> = HashSet::new();
        let regions = module.reachable_regions();
        for &r in &regions {
            kept.extend(&module.region(r).outputs);
            for &n in &module.region(r).nodes {
                home.insert(n, r);
                for &o in module.node(n).operands.iter().flatten() {
                    users.entry(o).or_default().insert(n);
                }
            }
        }
        let mut weight: HashMap<ValueId, usize> = HashMap::new();
        let mut inlined = HashSet::new();
        for &r in &regions {
            for &n in &module.region(r).nodes {
                let node = module.node(n);
                let own: usize = node
                    .operands
                    .iter()
                    .flatten()
                    .map(|o| weight.get(o).copied().unwrap_or(1))
                    .sum::<usize>()
                    + 1;
                let Some(from) = rule(node.op.name) else {
                    continue;
                };
                let element = matches!(from.form, Form::Elements(_));
                if !element || from.fuse == Fuse::Never || self.is_called(n) {
                    continue;
                }
                for &v in &node.results {
                    let used = users.get(&v);
                    let all_fit = used.is_some_and(|u| {
                        u.len() == 1
                            && u.iter().all(|&c| {
                                home.get(&c) == Some(&r)
                                    && !self.is_called(c)
                                    && self.fits(from.fuse, v, c)
                            })
                    });
                    if !kept.contains(&v) && all_fit && own <= MAX_INLINE {
                        inlined.insert(v);
                        weight.insert(v, own);
                    }
                }
            }
        }
        self.facts.inlined = inlined;
    }

    /// True if consumer `c` may compute `v`, which such a producer makes, element by element.
    pub(super) fn fits(&self, from: Fuse, v: ValueId, c: NodeId) -> bool {
        let module = &self.facts.module;
        let node = module.node(c);
        let Some(to) = rule(node.op.name) else {
            return false;
        };
        if node.op.name == "concat" {
            // Each part is copied by a kernel of its own, which may as well compute it.
            return from == Fuse::Pointwise;
        }
        if !matches!(to.form, Form::Elements(_)) {
            return false;
        }
        let count = |v: ValueId| {
            let shape = module.value(v).ty.shape()?;
            Some(shape.iter().fold(Dim::from(1i64), |n, d| n * d.clone()))
        };
        let same = |a: ValueId, b: ValueId| count(a).is_some() && count(a) == count(b);
        let first_only = node
            .operands
            .iter()
            .enumerate()
            .all(|(i, &o)| i == 0 || o != Some(v));
        let cheap = matches!(from, Fuse::View | Fuse::Reshape);
        match to.fuse {
            Fuse::Pointwise => cheap || same(v, node.results[0]),
            Fuse::View | Fuse::Reshape => {
                let decoded = from != Fuse::Reduce && self.is_decoded_table(v, c);
                first_only && (cheap || same(v, node.results[0]) || decoded)
            }
            Fuse::Reduce => first_only && from != Fuse::Reduce,
            Fuse::Never => false,
        }
    }

    /// True for a large table that is computed of constants, and of which a node looks up rows: a run decodes those that it needs,
    /// and memory holds the table as it is stored.
    fn is_decoded_table(&self, v: ValueId, c: NodeId) -> bool {
        const LARGE: i64 = 1 << 16;
        let module = &self.facts.module;
        let node = module.node(c);
        let elements = module.value(v).ty.shape().and_then(|s| {
            let mut each = s.iter().map(Dim::as_const);
            each.try_fold(1i64, |n, d| n.checked_mul(d?))
        });
        let rows = node.op.name == "gather" && node.int("axis") == Ok(0);
        if !rows || elements.is_none_or(|n| n < LARGE) {
            return false;
        }
        let (mut left, mut constants) = (vec![v], false);
        while let Some(v) = left.pop() {
            match module.producer(v) {
                Some(p) => left.extend(module.node(p).operands.iter().flatten()),
                None if module.as_constant(v).is_some() => constants = true,
                None => return false,
            }
        }
        constants
    }

    /// True if a node becomes a library call.
    pub(in crate::lower) fn is_called(&self, n: NodeId) -> bool {
        let node = self.facts.module.node(n);
        let op = node.op.name;
        let elem = |v: Option<&ValueId>| self.facts.module.value(*v?).ty.elem();
        let cast =
            elem(node.operands.first().and_then(Option::as_ref)).zip(elem(node.results.first()));
        library::reason(op).is_some()
            || library::OTHERWISE.contains(&op)
            || (library::DYNAMIC.contains(&op) && self.is_dynamic(n))
            || cast.is_some_and(|(from, to)| library::is_rare_cast(node, from, to))
    }

    /// True if a result's shape (or an operand's rank) is known no earlier than at run time, or a tensor is of
    /// a type that kernels do not know.
    pub(super) fn is_dynamic(&self, n: NodeId) -> bool {
        let module = &self.facts.module;
        let node = module.node(n);
        let unknown = |v: &ValueId| {
            let ty = &module.value(*v).ty;
            ty.shape().is_none() || self.facts.elem(*v).is_err()
        };
        let fresh = |v: &ValueId| {
            let shape = module.value(*v).ty.shape().unwrap_or_default();
            !shape.iter().all(|d| self.size_is_bound(d))
        };
        node.results.iter().any(|v| unknown(v) || fresh(v))
            || node.operands.iter().flatten().any(unknown)
    }
}
