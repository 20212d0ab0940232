//! Which statements share a loop.
//!
//! Statements that define tiles of one shape, element by element, become one loop over their elements, up to the first
//! statement that does something else. A value that reads another one elsewhere than at its own element cannot share the loop
//! that defines that one.

use crate::kernel::Fun;
use lapidary_ir::kernel::{At, Op, Stmt, Var};
use std::collections::HashMap;

/// How often each var is read in statements.
pub type Uses = HashMap<Var, usize>;

/// Counts the reads of a body, inner ones included.
pub fn count(body: &[Stmt], uses: &mut Uses) {
    for stmt in body {
        stmt.op
            .for_each_use(&mut |v| *uses.entry(v).or_default() += 1);
        stmt.op.bodies().for_each(|inner| count(inner, uses));
    }
}

/// Statements of one loop.
#[derive(Default)]
pub struct Group<'k> {
    pub shape: Vec<u32>,
    pub stmts: Vec<&'k Stmt>,
}

impl<'k> Group<'k> {
    /// Whether a statement that defines a tile element by element can join.
    pub fn takes(&self, fun: &Fun<'k>, stmt: &'k Stmt, shape: &[u32]) -> bool {
        let elsewhere = |v: Var| self.defines(fun, v);
        let reads_elsewhere = match &stmt.op {
            Op::Unpack { x, .. } => elsewhere(*x),
            Op::Load { axes, .. } => axes.iter().any(|a| {
                let offsets = matches!(a.at, At::Offsets(o) if elsewhere(o));
                offsets || a.mask.is_some_and(elsewhere)
            }),
            _ => {
                let mut moved = false;
                stmt.op.for_each_use(&mut |v| {
                    moved |= fun.is_moved(v) && elsewhere(v);
                });
                moved
            }
        };
        self.stmts.is_empty() || (self.shape == shape && !reads_elsewhere)
    }

    /// Whether the value that `v` is a view of is defined in this loop.
    fn defines(&self, fun: &Fun<'k>, v: Var) -> bool {
        let root = fun.root(v);
        self.stmts.iter().any(|s| s.results.contains(&root))
    }

    /// The values that something outside the loop reads.
    pub fn escaping(&self, uses: &Uses) -> Vec<Var> {
        let mut inside = Uses::new();
        for stmt in &self.stmts {
            stmt.op
                .for_each_use(&mut |v| *inside.entry(v).or_default() += 1);
        }
        let results = self.stmts.iter().filter_map(|s| s.results.first());
        results
            .copied()
            .filter(|r| uses.get(r) != inside.get(r))
            .collect()
    }
}
