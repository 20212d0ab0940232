//! What entries that are written for a shape have in common: their frame, and a few instructions.

use crate::Entry;
use crate::writer::{Ty, Val, Writer};

/// An entry around a body. `params` are addresses and sizes; `shared` is the name of shared memory and its bytes; `resident` blocks fit a
/// multiprocessor, which bounds the registers.
pub(super) fn entry(
    name: &str,
    params: &[&str],
    (threads, resident): (u32, u32),
    shared: Option<(&str, u32)>,
    body: Writer,
) -> Entry {
    let name = crate::entry_name(name);
    let params: String = params
        .iter()
        .map(|p| format!("    .param .u64 {p},\n"))
        .collect();
    let declared = shared.map_or(String::new(), |(name, bytes)| {
        format!("    .shared .align 128 .b8 {name}[{bytes}];\n")
    });
    let text = format!(
        "// workspace 0\n.visible .entry {name}(\n{params}    .param .u64 workspace,\n    .param .u32 first)\n\
         .maxntid {threads}, 1, 1\n.minnctapersm {resident}\n{{\n{declared}{}}}\n",
        body.finish()
    );
    Entry {
        name,
        text,
        threads,
        shared_bytes: shared.map_or(0, |s| u64::from(s.1)),
        workspace_bytes: 0,
    }
}

impl Writer {
    /// Address in global memory that a parameter is.
    pub(super) fn param(&mut self, name: &str) -> Val {
        let at = self.register(Ty::B64);
        self.line(format_args!("ld.param.u64 {at}, [{name}];"));
        self.op(Ty::B64, "cvta.to.global.u64", &[at])
    }

    /// A size that a parameter is: one that 32 bits hold.
    pub(super) fn size(&mut self, name: &str) -> Val {
        let wide = self.register(Ty::B64);
        self.line(format_args!("ld.param.u64 {wide}, [{name}];"));
        self.op(Ty::B32, "cvt.u32.u64", &[wide])
    }

    /// A special register, or the address of shared memory.
    pub(super) fn special(&mut self, name: &str) -> Val {
        let to = self.register(Ty::B32);
        self.line(format_args!("mov.u32 {to}, {name};"));
        to
    }

    /// This block's number in the grid.
    pub(super) fn block(&mut self) -> Val {
        let first = self.register(Ty::B32);
        self.line(format_args!("ld.param.u32 {first}, [first];"));
        let block = self.special("%ctaid.x");
        self.add(block, first)
    }

    /// An operation of 32-bit integers, of which the second is a number.
    pub(super) fn int(&mut self, name: &str, a: Val, b: u32) -> Val {
        self.op(Ty::B32, name, &[a, Val::int(i64::from(b))])
    }

    /// `base + index * bytes`, of a 32-bit index that is not negative.
    pub(super) fn at(&mut self, base: Val, index: Val, bytes: u32) -> Val {
        let by = Val::int(i64::from(bytes));
        let wide = self.op(Ty::B64, "mul.wide.u32", &[index, by]);
        self.add(base, wide)
    }

    /// Quotient and remainder of integers that are not negative.
    pub(super) fn divide(&mut self, a: Val, by: Val) -> [Val; 2] {
        let whole = self.op(Ty::B32, "div.u32", &[a, by]);
        let back = self.mul(whole, by);
        [whole, self.sub(a, back)]
    }

    /// A constant.
    pub(super) fn number(&mut self, x: u32) -> Val {
        self.op(Ty::B32, "mov.b32", &[Val::int(i64::from(x))])
    }
}
