//! Statements and control flow. Bounds and conditions are uniform, so a block's threads go the same way.

use crate::function::{Fun, SLOTS};
use crate::tile::{Tile, register};
use crate::writer::{Ty, Val};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Op, Stmt, Var};

impl<'k> Fun<'k> {
    pub fn statements(&mut self, body: &'k [Stmt]) -> Result<(), Error> {
        for stmt in body {
            if !self.contraction(stmt)? {
                self.statement(stmt)?;
            }
        }
        Ok(())
    }

    fn statement(&mut self, stmt: &'k Stmt) -> Result<(), Error> {
        match &stmt.op {
            Op::For {
                index,
                begin,
                end,
                step,
                carried,
                body,
                yields,
            } => {
                let (begin, end) = (self.scalar(*begin)?, self.scalar(*end)?);
                let now = self.variables(&stmt.results);
                for (to, from) in now.iter().zip(carried) {
                    let from = self.get(from.1)?;
                    self.assign(to, &from);
                }
                let [top, after] = [(); 2].map(|()| self.w.label());
                let i = self.w.register(Ty::B64);
                self.w.copy(i, begin);
                if begin
                    .known()
                    .is_none_or(|b| end.known().is_none_or(|e| b >= e))
                {
                    let none = self.w.compare("ge.s64", i, end);
                    self.w.line(format_args!("@{none} bra.uni {after};"));
                }
                // What the body leaves open is open when it begins again.
                let before = self.hazards.clone();
                let (mut reads, mut writes) = (vec![], vec![]);
                self.accesses(body, &mut reads, &mut writes);
                self.hazards.open(&reads, &writes);
                self.w.place(top);
                for (c, tile) in carried.iter().zip(&now) {
                    self.set(c.0, tile.clone());
                }
                self.set_scalar(*index, i);
                self.statements(body)?;
                let next: Vec<Tile> = yields
                    .iter()
                    .map(|&y| self.get(y))
                    .collect::<Result<_, _>>()?;
                self.assign_all(&now, &next);
                self.w.to(i, "add.s64", &[i, Val::long(i64::from(*step))]);
                let more = self.w.compare("lt.s64", i, end);
                self.w.line(format_args!("@{more} bra.uni {top};"));
                self.w.place(after);
                self.hazards.join(&before);
                for (&v, tile) in stmt.results.iter().zip(now) {
                    self.set(v, tile);
                }
                Ok(())
            }
            Op::If {
                condition,
                then_body,
                then_yields,
                else_body,
                else_yields,
            } => {
                let condition = self.scalar(*condition)?;
                let condition = self.w.in_register(condition);
                let results = self.variables(&stmt.results);
                let [no, after] = [(); 2].map(|()| self.w.label());
                self.w.line(format_args!("@!{condition} bra.uni {no};"));
                let before = self.hazards.clone();
                self.branch(then_body, then_yields, &results)?;
                self.w.line(format_args!("bra.uni {after};"));
                let then_hazards = std::mem::replace(&mut self.hazards, before);
                self.w.place(no);
                self.branch(else_body, else_yields, &results)?;
                self.w.place(after);
                self.hazards.join(&then_hazards);
                for (&v, tile) in stmt.results.iter().zip(results) {
                    self.set(v, tile);
                }
                Ok(())
            }
            Op::Store { buf, base, axes, x } => self.store(*buf, *base, axes, *x),
            op => {
                let &[result] = &stmt.results[..] else {
                    return Err(self.unsupported("an operation without a result"));
                };
                let ty = self.kernel.ty(result);
                let tile = match op {
                    Op::Load { buf, base, axes } => self.load(ty, *buf, *base, axes)?,
                    Op::Grid(axis) => {
                        let at = self.grid.get(*axis as usize).copied();
                        let at = at.ok_or_else(|| self.unsupported("an unknown grid axis"))?;
                        self.repeat(ty, at)
                    }
                    Op::Size(param) => {
                        let size = self.params.get(*param as usize).copied();
                        let size = size.ok_or_else(|| self.unsupported("an unknown size"))?;
                        self.repeat(ty, size)
                    }
                    _ => self.operation(ty, op)?,
                };
                self.set(result, tile);
                Ok(())
            }
        }
    }

    fn branch(&mut self, body: &'k [Stmt], yields: &[Var], results: &[Tile]) -> Result<(), Error> {
        self.statements(body)?;
        for (to, &from) in results.iter().zip(yields) {
            let from = self.get(from)?;
            self.assign(to, &from);
        }
        Ok(())
    }

    /// Registers for vars that are written more than once.
    fn variables(&mut self, vars: &[Var]) -> Vec<Tile> {
        let mut one = |var: &Var| {
            let ty = self.kernel.ty(*var).clone();
            let parts = self.layout(ty.len()).parts();
            let register = register(ty.elem);
            Tile {
                parts: (0..parts).map(|_| self.w.register(register)).collect(),
                uniform: false,
                ty,
            }
        };
        vars.iter().map(&mut one).collect()
    }

    fn assign(&mut self, to: &Tile, from: &Tile) {
        for (&to, &from) in to.parts.iter().zip(&from.parts) {
            self.w.copy(to, from);
        }
    }

    /// Assigns at once: what one of `to` held may be what another gets.
    fn assign_all(&mut self, to: &[Tile], from: &[Tile]) {
        let pairs: Vec<(Val, Val)> = to
            .iter()
            .zip(from)
            .flat_map(|(t, f)| t.parts.iter().copied().zip(f.parts.iter().copied()))
            .filter(|(t, f)| t != f)
            .collect();
        let taken = |v: Val| pairs.iter().any(|p| p.0 == v);
        let sources: Vec<Val> = pairs
            .iter()
            .map(|&(_, f)| match taken(f) {
                true => self.w.op(f.ty, &format!("mov.{}", f.ty.name()), &[f]),
                false => f,
            })
            .collect();
        for ((to, _), from) in pairs.iter().zip(sources) {
            self.w.copy(*to, from);
        }
    }

    /// What a body may read and write: slots, and buffers by their resources.
    pub fn accesses(&self, body: &[Stmt], reads: &mut Vec<usize>, writes: &mut Vec<usize>) {
        for stmt in body {
            match &stmt.op {
                Op::Load { buf, .. } => reads.push(self.buffer_resource(*buf)),
                Op::Store { buf, .. } => writes.push(self.buffer_resource(*buf)),
                op => op.bodies().for_each(|b| self.accesses(b, reads, writes)),
            }
        }
        reads.extend((0..SLOTS).map(|s| self.slot_resource(s)));
    }
}
