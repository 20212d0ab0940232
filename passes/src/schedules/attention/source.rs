//! Where attention finds panels of keys and of values.

use super::{Attention, Packed, Stored, panels};
use crate::schedules::cache::coded::{Codes, Parts};
use crate::schedules::{add, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::kernel::widen::{Widen, widen};
use lapidary_ir::kernel::{Binary, Buf, Var};

/// Keys of a run whose values are made numbers at once: 16 KiB for each panel of columns.
pub const RUN: i64 = 128;

const WIDTH: i64 = PANEL as i64;

/// The memory of keys or of values.
#[derive(Clone, Copy, Debug)]
pub enum Buffers {
    /// Panels.
    Panels(Buf),
    /// A cache of codes.
    Coded(Codes, Parts),
}

/// Panels of a head's keys and values.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// In order.
    Panels {
        keys: Place,
        values: Place,
        /// Rows of a panel of values.
        rows: Var,
        /// Where halves become `f32`, if they are halves.
        wide: Option<[Buf; 2]>,
    },
    /// In the slots of a cache of codes: the first one, or those of the ring.
    Slots {
        keys: Place,
        values: Place,
        form: Codes,
        first: bool,
    },
    /// As codes.
    Codes { keys: Coded, values: Coded },
}

/// A buffer, and where the head's part begins.
type Place = (Buf, Var);

/// Codes, and where they become numbers.
#[derive(Clone, Copy, Debug)]
pub struct Coded {
    form: Codes,
    parts: Parts,
    /// The head's groups come after so many others.
    groups: Var,
    /// Groups of a panel of columns.
    rows: Var,
    numbers: Buf,
}

impl Attention {
    /// The buffers of keys or values, as parameters.
    pub(super) fn buffers(&self, b: &mut KernelBuilder, what: Packed) -> Buffers {
        let (panels, name, side) = match what {
            Packed::Keys => ("kp", "k", 0),
            Packed::Values => ("vp", "v", 1),
        };
        match self.stored {
            Stored::Coded { keys, values } => {
                let form = [keys, values][side];
                Buffers::Coded(form, Codes::buffers(b, name, false))
            }
            Stored::Packed => Buffers::Panels(b.buffer(panels, ElemType::F32, false)),
            Stored::Cached(elem) => Buffers::Panels(b.buffer(panels, elem, false)),
        }
    }
}

impl Source {
    /// Of a head of keys and values, with how many panels of keys and how many keys there is room for; in the order of keys.
    pub(super) fn of(
        b: &mut KernelBuilder,
        a: &Attention,
        buffers: [Buffers; 2],
        (head, key_panels, keys): (Var, Var, Var),
    ) -> Vec<Source> {
        let columns = panels(a.value_size);
        match buffers {
            [Buffers::Panels(kp), Buffers::Panels(vp)] => {
                let before = mul(b, head, key_panels);
                let k_at = mul_const(b, before, a.size * WIDTH);
                let rows = mul(b, head, keys);
                let v_at = mul_const(b, rows, columns * WIDTH);
                let wide = (a.stored == Stored::Cached(ElemType::F16)).then(|| {
                    [a.size, RUN].map(|rows| b.scratch(ElemType::F32, (rows * WIDTH) as u32))
                });
                vec![Source::Panels {
                    keys: (kp, k_at),
                    values: (vp, v_at),
                    rows: keys,
                    wide,
                }]
            }
            [Buffers::Coded(form, k), Buffers::Coded(v_form, v)] => {
                let k_at = mul_const(b, head, form.slots() * a.size * WIDTH);
                let v_at = mul_const(b, head, columns * form.slots() * WIDTH * WIDTH);
                let slots = |first| Source::Slots {
                    keys: (k.recent, k_at),
                    values: (v.recent, v_at),
                    form,
                    first,
                };
                let before = mul(b, head, key_panels);
                let k_groups = mul_const(b, before, a.size);
                let before = mul(b, head, keys);
                let v_groups = mul_const(b, before, columns);
                let codes = Source::Codes {
                    keys: Coded {
                        form,
                        parts: k,
                        groups: k_groups,
                        rows: keys,
                        numbers: b.scratch(ElemType::F32, (a.size * WIDTH) as u32),
                    },
                    values: Coded {
                        form: v_form,
                        parts: v,
                        groups: v_groups,
                        rows: keys,
                        numbers: b.scratch(ElemType::F32, (RUN * WIDTH) as u32),
                    },
                };
                vec![slots(true), codes, slots(false)]
            }
            _ => vec![],
        }
    }

    /// True for codes.
    pub(super) fn is_coded(&self) -> bool {
        matches!(self, Source::Codes { .. })
    }

    /// The panel `[size][32]` of the 32 keys from this one on, which is the first of a panel.
    pub(super) fn keys(&self, b: &mut KernelBuilder, size: i64, key: Var) -> Place {
        match *self {
            Source::Panels {
                keys: (buf, at),
                wide,
                ..
            } => {
                let skip = mul_const(b, key, size);
                let first = add(b, at, skip);
                let n = b.index(size * WIDTH);
                widened(b, (buf, first), wide.map(|w| w[0]), n)
            }
            Source::Slots {
                keys: (buf, at), ..
            } => {
                let slot = self.slot(b, key);
                let skip = mul_const(b, slot, size * WIDTH);
                (buf, add(b, at, skip))
            }
            Source::Codes { keys, .. } => {
                let panel = panel_of(b, key);
                let before = mul_const(b, panel, size);
                let groups = add(b, keys.groups, before);
                let end = b.index(size);
                keys.decode(b, groups, end)
            }
        }
    }

    /// Rows of 32 columns of the values of `here` keys from `key` on; `column` is the first.
    pub(super) fn values(
        &self,
        b: &mut KernelBuilder,
        column: Var,
        (key, here): (Var, Var),
    ) -> Place {
        match *self {
            Source::Panels {
                values: (buf, at),
                rows,
                wide,
                ..
            } => {
                // A panel of 32 columns has `rows * 32` elements.
                let skip = mul_const(b, key, WIDTH);
                let first = add(b, at, skip);
                let skip = mul(b, column, rows);
                let first = add(b, first, skip);
                let n = mul_const(b, here, WIDTH);
                widened(b, (buf, first), wide.map(|w| w[1]), n)
            }
            Source::Slots {
                values: (buf, at),
                form,
                ..
            } => {
                let slot = self.slot(b, key);
                let skip = mul_const(b, slot, WIDTH * WIDTH);
                let first = add(b, at, skip);
                let skip = mul_const(b, column, form.slots() * WIDTH);
                (buf, add(b, first, skip))
            }
            Source::Codes { values, .. } => {
                let panel = panel_of(b, column);
                let before = mul(b, panel, values.rows);
                let first = add(b, before, key);
                let groups = add(b, values.groups, first);
                values.decode(b, groups, here)
            }
        }
    }

    fn slot(&self, b: &mut KernelBuilder, key: Var) -> Var {
        match *self {
            Source::Slots {
                form, first: false, ..
            } => {
                let panel = panel_of(b, key);
                form.slot(b, panel)
            }
            _ => b.index(0),
        }
    }
}

impl Coded {
    /// Makes numbers of so many groups.
    fn decode(&self, b: &mut KernelBuilder, groups: Var, count: Var) -> Place {
        let zero = b.index(0);
        b.for_loop(zero, count, 1, &[], |b, i, _| {
            let group = add(b, groups, i);
            let to = mul_const(b, i, WIDTH);
            self.form.decode(b, self.parts, group, (self.numbers, to));
            vec![]
        });
        (self.numbers, b.index(0))
    }
}

/// A panel's `n` numbers as `f32`: where they are, or made so in scratch memory.
fn widened(b: &mut KernelBuilder, src: Place, wide: Option<Buf>, n: Var) -> Place {
    let Some(numbers) = wide else { return src };
    let dst = (numbers, b.index(0));
    widen(b, Widen { src, dst, n });
    dst
}

fn panel_of(b: &mut KernelBuilder, i: Var) -> Var {
    let width = b.index(WIDTH);
    b.binary(Binary::FloorDiv, i, width)
}
