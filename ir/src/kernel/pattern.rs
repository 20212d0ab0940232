//! Recognising what a function of this crate wrote: its statements, written once more with free variables, are laid
//! beside those of a kernel.
//!
//! So a canonical form is stated once, by the function that writes it. Statements are compared in their order, as nothing
//! between writing and code generation changes it.

use super::build::KernelBuilder;
use super::contraction::Facts;
use super::legalize::legalize_but;
use super::map::function_of;
use super::*;
use std::collections::HashMap;

/// What the free variables and buffers of a pattern are in a kernel.
#[derive(Debug, Default)]
pub struct Bindings {
    vars: HashMap<Var, Var>,
    bufs: HashMap<Buf, Buf>,
}

impl Bindings {
    /// The kernel's var for one of the pattern.
    pub fn var(&self, v: Var) -> Option<Var> {
        self.vars.get(&v).copied()
    }

    /// The kernel's buffer for one of the pattern.
    pub fn buf(&self, b: Buf) -> Option<Buf> {
        self.bufs.get(&b).copied()
    }

    fn bind(&mut self, pattern: &Kernel, kernel: &Kernel, p: Var, k: Var) -> bool {
        pattern.ty(p) == kernel.ty(k) && *self.vars.entry(p).or_insert(k) == k
    }

    fn bind_buf(&mut self, pattern: &Kernel, kernel: &Kernel, p: Buf, k: Buf) -> bool {
        pattern.buf_elem(p) == kernel.buf_elem(k) && *self.bufs.entry(p).or_insert(k) == k
    }
}

/// What a loop stores last, a tile of two axes: the tile, its columns, and which statement is the loop inside that makes it.
pub fn tile_loop(body: &[Stmt]) -> Option<(Var, &Axis, usize)> {
    let Op::Store { x, axes, .. } = &body.last()?.op else {
        return None;
    };
    let [_, columns] = &axes[..] else { return None };
    let inner = body.iter().position(|s| s.op.bodies().next().is_some())?;
    Some((*x, columns, inner))
}

/// A pattern of one loop alone: the index that it begins at is a constant of somebody else.
pub fn loop_alone(written: KernelBuilder) -> Kernel {
    let mut pattern = written.finish();
    pattern.body.remove(0);
    pattern
}

/// As backends with micro-kernels get a kernel that they look for loops in: functions are expanded but for those of vectors, and so
/// are conversions of small floats.
pub fn expanded(kernel: Kernel) -> Kernel {
    legalize_but(kernel, &|f, ty| function_of(f, ty).is_some())
}

/// What the free variables of a pattern are in statements that it writes, before or after these are [`expanded`].
pub fn written(pattern: Kernel, facts: &Facts, stmts: &[Stmt]) -> Option<Bindings> {
    unify(&pattern, facts.kernel(), stmts)
        .or_else(|| unify(&expanded(pattern), facts.kernel(), stmts))
}

/// Lays the statements of `pattern` beside `stmts` of `kernel`; what its free variables are, if they agree.
pub fn unify(pattern: &Kernel, kernel: &Kernel, stmts: &[Stmt]) -> Option<Bindings> {
    let mut found = Bindings::default();
    body(pattern, kernel, &pattern.body, stmts, &mut found).then_some(found)
}

fn body(pattern: &Kernel, kernel: &Kernel, p: &[Stmt], k: &[Stmt], found: &mut Bindings) -> bool {
    p.len() == k.len()
        && p.iter()
            .zip(k)
            .all(|(p, k)| statement(pattern, kernel, p, k, found))
}

fn statement(pattern: &Kernel, kernel: &Kernel, p: &Stmt, k: &Stmt, found: &mut Bindings) -> bool {
    let lists = |op: &Op| {
        let mut uses = vec![];
        op.for_each_use(&mut |v| uses.push(v));
        uses
    };
    match (&p.op, &k.op) {
        (
            Op::For {
                index,
                begin,
                end,
                step,
                carried,
                body: inner,
                yields,
            },
            Op::For {
                index: k_index,
                begin: k_begin,
                end: k_end,
                step: k_step,
                carried: k_carried,
                body: k_inner,
                yields: k_yields,
            },
        ) => {
            if step != k_step || carried.len() != k_carried.len() || yields.len() != k_yields.len()
            {
                return false;
            }
            let outer = [(begin, k_begin), (end, k_end), (index, k_index)];
            let states = carried.iter().zip(k_carried);
            let states = states.flat_map(|(p, k)| [(&p.1, &k.1), (&p.0, &k.0)]);
            let bound = outer
                .into_iter()
                .chain(states)
                .all(|(&p, &k)| found.bind(pattern, kernel, p, k));
            if !bound || !body(pattern, kernel, inner, k_inner, found) {
                return false;
            }
            let ends = yields.iter().zip(k_yields);
            if !ends
                .into_iter()
                .all(|(&p, &k)| found.bind(pattern, kernel, p, k))
            {
                return false;
            }
        }
        (
            Op::If {
                condition,
                then_body,
                then_yields,
                else_body,
                else_yields,
            },
            Op::If {
                condition: k_condition,
                then_body: k_then_body,
                then_yields: k_then_yields,
                else_body: k_else_body,
                else_yields: k_else_yields,
            },
        ) => {
            if !found.bind(pattern, kernel, *condition, *k_condition) {
                return false;
            }
            for (inner, k_inner, yields, k_yields) in [
                (then_body, k_then_body, then_yields, k_then_yields),
                (else_body, k_else_body, else_yields, k_else_yields),
            ] {
                let same = yields.len() == k_yields.len()
                    && body(pattern, kernel, inner, k_inner, found)
                    && yields
                        .iter()
                        .zip(k_yields)
                        .all(|(&p, &k)| found.bind(pattern, kernel, p, k));
                if !same {
                    return false;
                }
            }
        }
        (Op::If { .. }, _) | (_, Op::If { .. } | Op::For { .. }) => return false,
        (p_op, k_op) => {
            let (uses, k_uses) = (lists(p_op), lists(k_op));
            let bound = uses.len() == k_uses.len()
                && uses
                    .iter()
                    .zip(&k_uses)
                    .all(|(&p, &k)| found.bind(pattern, kernel, p, k));
            let bufs = match (p_op, k_op) {
                (Op::Load { buf: p, .. }, Op::Load { buf: k, .. })
                | (Op::Store { buf: p, .. }, Op::Store { buf: k, .. }) => {
                    found.bind_buf(pattern, kernel, *p, *k)
                }
                _ => true,
            };
            if !bound || !bufs {
                return false;
            }
            let mut renamed = p_op.clone();
            renamed.rename(&|v| found.var(v).unwrap_or(v));
            if let Op::Load { buf, .. } | Op::Store { buf, .. } = &mut renamed {
                *buf = found.buf(*buf).unwrap_or(*buf);
            }
            // A literal that is no number is still the same literal.
            let same = match (&renamed, k_op) {
                (Op::Const(Literal::Float(p)), Op::Const(Literal::Float(k))) => {
                    p.to_bits() == k.to_bits()
                }
                (p, k) => p == k,
            };
            if !same {
                return false;
            }
        }
    }
    p.results.len() == k.results.len()
        && p.results
            .iter()
            .zip(&k.results)
            .all(|(&p, &k)| found.bind(pattern, kernel, p, k))
}
