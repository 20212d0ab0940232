//! Where elements are in memory, and which of them exist.

use crate::kernel::Fun;
use crate::types::{storage, value};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{At, Axis, Op, Stmt, TileElem, Var};

impl Fun<'_> {
    /// The element at a place of what a statement defines, loads included.
    pub fn value(&self, stmt: &Stmt, result: Var, place: &[String]) -> Result<String, Error> {
        let Op::Load { buf, base, axes } = &stmt.op else {
            return self.element(&stmt.op, result, place);
        };
        let elem = self.kernel.ty(result).elem;
        let ty = value(elem);
        let from = format!(
            "{}[{}]",
            self.buffer(*buf),
            self.address(*base, axes, place)
        );
        let read = match elem {
            TileElem::Elem(e) if storage(e) == ty => from,
            _ if ty == "bool" => format!("{from} != 0"),
            _ => format!("({ty}){from}"),
        };
        let guards = self.guards(axes, place);
        Ok(match guards.is_empty() {
            true => read,
            false => format!("{} ? {read} : ({ty})0", guards.join(" && ")),
        })
    }

    pub fn address(&self, base: Var, axes: &[Axis], place: &[String]) -> String {
        let mut sum = vec![self.scalar(base)];
        for (axis, i) in axes.iter().zip(place) {
            match axis.at {
                At::Stride(0) => {}
                At::Stride(1) => sum.push(i.clone()),
                At::Stride(s) => sum.push(format!("{i} * INT64_C({s})")),
                At::DynStride(s) => sum.push(format!("(int64_t){i} * {}", self.scalar(s))),
                At::Offsets(o) => sum.push(self.at(o, std::slice::from_ref(i))),
            }
        }
        if sum.len() > 1 && sum[0] == "0" {
            sum.remove(0);
        }
        sum.join(" + ")
    }

    /// What must hold for an element to exist.
    pub fn guards(&self, axes: &[Axis], place: &[String]) -> Vec<String> {
        let mut all = vec![];
        for (axis, i) in axes.iter().zip(place) {
            all.extend(axis.valid.map(|v| format!("{i} < {}", self.scalar(v))));
            all.extend(axis.mask.map(|m| self.at(m, std::slice::from_ref(i))));
        }
        all
    }
}
