//! A run of scores to weights, with a running maximum and sum.

use super::{Attention, MaskAt, Scratch, panels, scalar};
use crate::schedules::{add, add_const};
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::softmax::{Mask, Rest, Softmax, softmax};
use lapidary_ir::kernel::{Binary, Literal, Var};

impl Attention {
    /// Turns rows of scores, the first of the query at this position, into weights relative to the running maxima.
    pub(super) fn weigh(
        &self,
        b: &mut KernelBuilder,
        scratch: &Scratch,
        mask: Option<&MaskAt>,
        (rows, position): (Var, Var),
        (key0, here): (Var, Var),
    ) {
        // Keys of this run up to the query's own position, and from the first one that it sees.
        let end = self.causal.then(|| {
            let next = add_const(b, position, 1);
            b.binary(Binary::Sub, next, key0)
        });
        let first = self.left.map(|left| {
            let first = add_const(b, position, -left);
            b.binary(Binary::Sub, first, key0)
        });
        let mask = mask.map(|m| Mask {
            buf: m.buf,
            base: add(b, m.base, key0),
            pitch: m.by_row,
        });
        let rest = if !self.one_run() {
            Rest::Running {
                m: scratch.m,
                l: scratch.l,
                o: scratch.o,
                width: b.index(panels(self.value_size) * i64::from(PANEL)),
            }
        } else if self.direct() {
            Rest::Divided
        } else {
            Rest::Sum(scratch.l)
        };
        let pitch = b.index(self.run());
        let scale = b.constant(scalar(), Literal::Float(f64::from(self.scale)));
        softmax(
            b,
            Softmax {
                s: scratch.s,
                pitch,
                rows,
                here,
                scale,
                softcap: self.softcap,
                first,
                end,
                mask,
                rest,
                lanes: self.lanes(),
                exact: self.exact(),
            },
        );
    }
}
