//! What is known of a launch while its kernel is written: numbers that scalars are, and what operations cost.

use crate::folding;
use crate::kernel::Fun;
use lapidary_ir::kernel::{Op, TileElem, Var};

impl Fun<'_> {
    /// Counts an operation.
    pub fn charge(&mut self, op: &Op, result: Var) {
        // A function's cost is that of its operand's type: a comparison's result is a bit.
        let elem = match op {
            Op::Binary(_, x, _) | Op::Unary(_, x) => self.kernel.ty(*x).elem,
            _ => self.kernel.ty(result).elem,
        };
        self.cost.charge(op, elem, self.copies);
        if let Op::Load { buf, .. } = op {
            self.cost.access(buf.0, self.copies as u32);
        }
    }

    /// Notes what a scalar index is, where that is known.
    pub fn know(&mut self, op: &Op, result: Var) {
        let value = match op {
            Op::Binary(f, a, b) => match (self.number(*a), self.number(*b)) {
                (Some(a), Some(b)) => folding::index(*f, a, b),
                _ => None,
            },
            _ => None,
        };
        if let Some(value) = value.filter(|_| self.kernel.ty(result).elem == TileElem::Index) {
            self.known.insert(result, value);
        }
    }

    /// A scalar's number, where it is known.
    pub fn number(&self, v: Var) -> Option<i64> {
        match self.views.get(&v) {
            Some(Op::Const(l)) => Some(l.as_int()),
            Some(Op::Size(p)) => self.blocks.sizes.get(*p as usize).copied().flatten(),
            Some(Op::Grid(axis)) => self.blocks.at.get(*axis as usize).copied(),
            _ => self.known.get(&v).copied(),
        }
    }
}
