//! The frame of a kernel's entry: parameters, the block's coordinates, statements and control flow.

use crate::Entry;
use crate::hazards::Hazards;
use crate::product;
use crate::tile::{Tile, WARP, threads};
use crate::writer::{Ty, Val, Writer};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::contraction::Facts;
use lapidary_ir::kernel::{Buf, Extent, Kernel, Param, TileType, Var};
use std::fmt::Write;

/// Bytes of shared memory that a block may declare.
const SHARED_BYTES: u64 = 48 << 10;

/// Threads that a multiprocessor holds at least: so a thread has at most 128 registers, and the assembler does not strive for fewer
/// where that costs memory.
const RESIDENT_THREADS: u32 = 512;

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
}

impl Space {
    /// As instructions name it.
    pub fn name(self) -> &'static str {
        match self {
            Space::Global => "global",
            Space::Shared => "shared",
        }
    }
}

/// An address: of 64 bits in global memory, of 32 in shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub space: Space,
    pub at: Val,
}

/// What lies in shared memory as long as it has room; the rest lies in the block's part of the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placement {
    /// What tiles are exchanged through.
    slots: Space,
    /// The kernel's scratch.
    scratch: Space,
}

const PLACEMENTS: [Placement; 3] = [
    Placement {
        slots: Space::Shared,
        scratch: Space::Shared,
    },
    Placement {
        slots: Space::Shared,
        scratch: Space::Global,
    },
    Placement {
        slots: Space::Global,
        scratch: Space::Global,
    },
];

/// Writes a legalized kernel as an entry.
pub(crate) fn write(kernel: &Kernel) -> Result<Entry, Error> {
    let mut last = None;
    for placement in PLACEMENTS {
        // How much room the slots need is known when all is written.
        let mut fun = Fun::new(kernel, placement, last.take().unwrap_or([0; SLOTS]));
        fun.function()?;
        if placement.slots == Space::Global && fun.slot_bytes != fun.slots_planned {
            let planned = fun.slot_bytes;
            fun = Fun::new(kernel, placement, planned);
            fun.function()?;
        }
        if fun.shared_bytes() <= SHARED_BYTES {
            return Ok(fun.finish());
        }
        last = Some(fun.slot_bytes);
    }
    Err(Error::Unsupported {
        kernel: kernel.name.clone(),
        what: "more shared memory than a block has".to_owned(),
    })
}

/// Areas that tiles are exchanged through, in turn.
pub(crate) const SLOTS: usize = 2;

/// A kernel being written.
pub(crate) struct Fun<'k> {
    pub w: Writer,
    pub kernel: &'k Kernel,
    pub threads: u32,
    /// This thread's number in the block.
    pub tid: Val,
    /// This thread's number in its warp.
    pub lane: Val,
    pub facts: Facts<'k>,
    /// Accesses since the last barrier.
    pub hazards: Hazards,
    placement: Placement,
    /// Bytes of each slot so far, and as they were planned where their place depends on it.
    slot_bytes: [u32; SLOTS],
    slots_planned: [u32; SLOTS],
    /// Value of each var defined so far.
    env: Vec<Option<Tile>>,
    /// Value of each parameter.
    pub params: Vec<Val>,
    /// Address of each scratch.
    scratch: Vec<Address>,
    /// Address of this block's slots in global memory.
    slots_at: Val,
    /// This block's coordinates.
    pub grid: Vec<Val>,
}

impl<'k> Fun<'k> {
    fn new(kernel: &'k Kernel, placement: Placement, slots_planned: [u32; SLOTS]) -> Fun<'k> {
        let facts = Facts::new(kernel);
        Fun {
            w: Writer::default(),
            kernel,
            threads: product::threads(&facts, &kernel.body).unwrap_or_else(|| threads(kernel)),
            facts,
            tid: Val::int(0),
            lane: Val::int(0),
            hazards: Hazards::default(),
            placement,
            slot_bytes: [0; SLOTS],
            slots_planned,
            env: vec![None; kernel.vars.len()],
            params: vec![],
            scratch: vec![],
            slots_at: Val::long(0),
            grid: vec![],
        }
    }

    /// An error that names what is not translated.
    pub fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported {
            kernel: self.kernel.name.clone(),
            what: what.into(),
        }
    }

    fn function(&mut self) -> Result<(), Error> {
        self.tid = self.special("tid.x");
        self.lane = match self.threads {
            WARP => self.tid,
            _ => {
                let mask = Val::int(i64::from(WARP - 1));
                let tid = self.tid;
                self.w.op(Ty::B32, "and.b32", &[tid, mask])
            }
        };
        for (i, param) in self.kernel.params.iter().enumerate() {
            let x = self.parameter(&i.to_string());
            let x = match param {
                Param::Buffer { .. } => self.w.op(Ty::B64, "cvta.to.global.u64", &[x]),
                Param::Size { .. } => x,
            };
            self.params.push(x);
        }
        let number = self.special("ctaid.x");
        self.places(number);
        let first = self.w.register(Ty::B32);
        self.w.line(format_args!("ld.param.u32 {first}, [first];"));
        let block = self.w.add(number, first);
        self.coordinates(block)?;
        let kernel = self.kernel;
        self.statements(&kernel.body)?;
        self.w.line(format_args!("ret;"));
        Ok(())
    }

    fn special(&mut self, name: &str) -> Val {
        let x = self.w.register(Ty::B32);
        self.w.line(format_args!("mov.u32 {x}, %{name};"));
        x
    }

    fn parameter(&mut self, name: &str) -> Val {
        let x = self.w.register(Ty::B64);
        self.w.line(format_args!("ld.param.u64 {x}, [a{name}];"));
        x
    }

    /// Addresses of scratch and slots.
    fn places(&mut self, block: Val) {
        let per_block = self.workspace_bytes();
        let mut workspace = Val::long(0);
        if per_block > 0 {
            let at = self.w.register(Ty::B64);
            self.w.line(format_args!("ld.param.u64 {at}, [workspace];"));
            let at = self.w.op(Ty::B64, "cvta.to.global.u64", &[at]);
            let skip = self.w.op(
                Ty::B64,
                "mul.wide.u32",
                &[block, Val::int(per_block as i64)],
            );
            workspace = self.w.add(at, skip);
        }
        let mut used = 0;
        for (i, scratch) in self.kernel.scratch.iter().enumerate() {
            let at = match self.placement.scratch {
                Space::Shared => self.symbol(&format!("scratch{i}")),
                Space::Global => {
                    let at = self.w.add(workspace, Val::long(used as i64));
                    used += scratch_bytes(scratch);
                    at
                }
            };
            self.scratch.push(Address {
                space: self.placement.scratch,
                at,
            });
        }
        self.slots_at = self.w.add(workspace, Val::long(used as i64));
    }

    fn symbol(&mut self, name: &str) -> Val {
        let x = self.w.register(Ty::B32);
        self.w.line(format_args!("mov.u32 {x}, {name};"));
        x
    }

    /// Bytes of global memory for each block.
    fn workspace_bytes(&self) -> u64 {
        let mut bytes = 0;
        if self.placement.scratch == Space::Global {
            bytes += self.kernel.scratch.iter().map(scratch_bytes).sum::<u64>();
        }
        if self.placement.slots == Space::Global {
            bytes += slot_room(&self.slots_planned).iter().sum::<u64>();
        }
        bytes
    }

    fn shared_bytes(&self) -> u64 {
        let mut bytes = 0;
        if self.placement.scratch == Space::Shared {
            bytes += self.kernel.scratch.iter().map(scratch_bytes).sum::<u64>();
        }
        if self.placement.slots == Space::Shared {
            bytes += slot_room(&self.slot_bytes).iter().sum::<u64>();
        }
        bytes
    }

    /// The block's coordinates from its number, row by row. Grids have less than 2^31 blocks, and none if an axis is empty.
    fn coordinates(&mut self, block: Val) -> Result<(), Error> {
        let mut at = vec![];
        let mut rest = block;
        for (axis, extent) in self.kernel.grid.iter().enumerate().rev() {
            if axis == 0 {
                at.push(rest);
                break;
            }
            let extent = match extent {
                Extent::Const(n) => Val::int(*n as i64),
                Extent::Param { param, divisor } => {
                    let size = *self
                        .params
                        .get(*param as usize)
                        .ok_or_else(|| self.unsupported("a grid axis of an unknown parameter"))?;
                    let size = self.w.narrow(size);
                    let divisor = i64::from((*divisor).max(1));
                    let up = self.w.add(size, Val::int(divisor - 1));
                    match divisor {
                        1 => up,
                        _ => self.w.op(Ty::B32, "div.u32", &[up, Val::int(divisor)]),
                    }
                }
            };
            if extent.known() == Some(1) {
                at.push(Val::int(0));
                continue;
            }
            let quotient = self.w.op(Ty::B32, "div.u32", &[rest, extent]);
            let product = self.w.mul(quotient, extent);
            at.push(self.w.sub(rest, product));
            rest = quotient;
        }
        self.grid = at
            .into_iter()
            .rev()
            .map(|x| match x.known() {
                Some(k) => Val::long(k),
                None => self.w.op(Ty::B64, "cvt.u64.u32", &[x]),
            })
            .collect();
        Ok(())
    }

    /// Address of a buffer's or scratch's first element, and its element type.
    pub fn buffer(&self, buf: Buf) -> Result<(Address, ElemType), Error> {
        let unknown =
            || self.unsupported(format!("an access to buffer {}, which there is not", buf.0));
        let i = buf.0 as usize;
        if i >= self.params.len() + self.scratch.len() {
            return Err(unknown());
        }
        let elem = self.kernel.buf_elem(buf).ok_or_else(unknown)?;
        let address = match self.kernel.params.get(i) {
            Some(Param::Buffer { .. }) => Address {
                space: Space::Global,
                at: self.params[i],
            },
            _ => self.scratch[i - self.kernel.params.len()],
        };
        Ok((address, elem))
    }

    /// A slot of at least so many bytes that nothing is read from since the last barrier, but not `held`: its number and its
    /// address.
    pub fn slot(&mut self, bytes: u32, held: Option<usize>) -> (usize, Address) {
        let free = |s: &usize| Some(*s) != held;
        let slot = (0..SLOTS)
            .filter(free)
            .find(|&s| self.hazards.is_clear(self.slot_resource(s)))
            .or_else(|| (0..SLOTS).find(free))
            .unwrap_or(0);
        self.slot_bytes[slot] = self.slot_bytes[slot].max(bytes);
        let space = self.placement.slots;
        let at = match space {
            Space::Shared => self.symbol(&format!("slot{slot}")),
            Space::Global => {
                let skip: u64 = slot_room(&self.slots_planned)[..slot].iter().sum();
                let at = self.slots_at;
                self.w.add(at, Val::long(skip as i64))
            }
        };
        (slot, Address { space, at })
    }

    /// Whether slots lie in shared memory.
    pub fn slots_are_shared(&self) -> bool {
        self.placement.slots == Space::Shared
    }

    /// What [`Hazards`] calls a slot; buffers are called by their numbers.
    pub fn slot_resource(&self, slot: usize) -> usize {
        self.kernel.params.len() + self.kernel.scratch.len() + slot
    }

    /// What [`Hazards`] calls a buffer. Buffers of the caller may be the same memory.
    pub fn buffer_resource(&self, buf: Buf) -> usize {
        (buf.0 as usize).max(self.kernel.params.len() - 1)
    }

    pub fn barrier(&mut self) {
        self.w.line(format_args!("bar.sync 0;"));
        self.hazards.clear();
    }

    /// Before something that any thread may have written is read.
    pub fn before_read(&mut self, resource: usize) {
        if self.hazards.read(resource) {
            self.barrier();
            self.hazards.read(resource);
        }
    }

    /// Before something that any thread may still read, or have written, is written.
    pub fn before_write(&mut self, resource: usize) {
        if self.hazards.write(resource) {
            self.barrier();
            self.hazards.write(resource);
        }
    }

    /// The value of a var.
    pub fn get(&self, var: Var) -> Result<Tile, Error> {
        self.env
            .get(var.0 as usize)
            .and_then(|t| t.clone())
            .ok_or_else(|| self.unsupported(format!("a use of %{} before its definition", var.0)))
    }

    /// The value of a scalar var.
    pub fn scalar(&self, var: Var) -> Result<Val, Error> {
        let tile = self.get(var)?;
        match tile.parts[..] {
            [x] if tile.ty.shape.is_empty() => Ok(x),
            _ => Err(self.unsupported(format!("%{} where a scalar is needed", var.0))),
        }
    }

    /// Defines a var.
    pub fn set(&mut self, var: Var, tile: Tile) {
        self.env[var.0 as usize] = Some(tile);
    }

    /// Defines a scalar index var.
    pub fn set_scalar(&mut self, var: Var, x: Val) {
        let tile = self.repeat(&TileType::index(), x);
        self.set(var, tile);
    }

    fn finish(self) -> Entry {
        let name = crate::entry_name(&self.kernel.name);
        let mut text = String::new();
        let workspace = self.workspace_bytes();
        let params = (0..self.params.len()).map(|i| format!("    .param .u64 a{i},\n"));
        let params: String = params.collect();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "// workspace {workspace}\n.visible .entry {name}(\n{params}    .param .u64 workspace,\n    .param .u32 first)\n.maxntid {}, 1, 1\n.minnctapersm {}\n{{\n",
            self.threads,
            RESIDENT_THREADS / self.threads
        );
        if self.placement.scratch == Space::Shared {
            for (i, scratch) in self.kernel.scratch.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "    .shared .align 16 .b8 scratch{i}[{}];",
                    scratch_bytes(scratch)
                );
            }
        }
        if self.placement.slots == Space::Shared {
            let room = slot_room(&self.slot_bytes);
            for (i, bytes) in room.iter().enumerate().filter(|(_, b)| **b > 0) {
                let _ = writeln!(text, "    .shared .align 16 .b8 slot{i}[{bytes}];");
            }
        }
        let shared = self.shared_bytes();
        text.push_str(&self.w.finish());
        text.push_str("}\n");
        Entry {
            name,
            text,
            threads: self.threads,
            shared_bytes: shared,
            workspace_bytes: workspace,
        }
    }
}

fn scratch_bytes(s: &lapidary_ir::kernel::Scratch) -> u64 {
    (u64::from(s.len) * s.elem.size_bytes() as u64).next_multiple_of(16)
}

fn slot_room(bytes: &[u32; SLOTS]) -> [u64; SLOTS] {
    bytes.map(|b| u64::from(b).next_multiple_of(16))
}
