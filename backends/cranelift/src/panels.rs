//! Sparse products, the moves that fill their panels, and functions of many numbers: what
//! [`lapidary_ir::kernel::sparse`] and [`lapidary_ir::kernel::moves`] recognise becomes a call of a micro-kernel.

use crate::function::{Fun, flags};
use crate::gemm::AtHand;
use crate::tile::Tile;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{AbiParam, InstBuilder, Signature, Value};
use lapidary_abi::kernel::{
    ACT_BLOCK_EXTRA, GemmBlocks, Import, KernelContext, MASK_ADDED, MASK_BOOL, MASK_NONE, MoveF32,
    RoundBlocks, SoftmaxF32, UnaryF32, UnpackBlocks, WidenF16,
};
use lapidary_ir::ElemType;
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::blocks::{self, BlocksTile, RoundTile, UnpackTile};
use lapidary_ir::kernel::map::{self, Map};
use lapidary_ir::kernel::moves::{self, Move};
use lapidary_ir::kernel::softmax::{self, Rest, Softmax};
use lapidary_ir::kernel::sparse::{self, Rows};
use lapidary_ir::kernel::widen::{self, Widen};
use lapidary_ir::kernel::{Binary, Buf, Op, Stmt, TileType, Var};
use std::mem::offset_of;

/// Fields of a micro-kernel's block, each with its offset.
macro_rules! fields {
    ($args:ident { $($field:ident: $value:expr,)* }) => {
        [$(($value, offset_of!($args, $field))),*]
    };
}

impl<'k> Fun<'k, '_> {
    /// A function of each element, by the micro-kernel.
    pub fn unary_call(&mut self, ty: &TileType, function: u32, x: &Tile) -> Tile {
        let slot = self.slot(ty.len() as usize * 4);
        let at = self.slot_addr(slot);
        self.spill(x, at);
        let n = self.index(i64::from(ty.len()));
        let function = self.b.ins().iconst(I32, i64::from(function));
        let fields = fields!(UnaryF32 {
            src: at,
            dst: at,
            n: n,
            function: function,
        });
        self.call_micro_kernel(Import::UnaryF32, size_of::<UnaryF32>(), &fields);
        self.reload(ty, at)
    }

    /// Translates a loop that a micro-kernel takes over; false if it is none.
    pub fn panel(&mut self, stmt: &'k Stmt) -> Result<bool, Error> {
        if !self.micro_kernels {
            return Ok(false);
        }
        if let Some(tile) = sparse::recognise(&self.facts, stmt) {
            let nothing = AtHand::nothing(self);
            self.micro_call(&tile.call(), &nothing)?;
        } else if let Some(tile) = blocks::recognise(&self.facts, stmt) {
            self.product_of_blocks(&tile)?;
        } else if let Some(tile) = blocks::recognise_round(&self.facts, stmt) {
            self.round_blocks(&tile)?;
        } else if let Some(tile) = blocks::recognise_unpack(&self.facts, stmt) {
            self.unpack_blocks(&tile)?;
        } else if let Some(m) = moves::recognise(&self.facts, stmt) {
            self.moves(&m)?;
        } else if let Some(m) = map::recognise(&self.facts, stmt, &map::CALLED.map(|a| a.0)) {
            self.map(&m)?;
        } else if let Some(x) = softmax::recognise(&self.facts, stmt) {
            self.softmax(&x)?;
        } else if let Some(w) = widen::recognise(&self.facts, stmt) {
            self.widen_halves(&w)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn product_of_blocks(&mut self, tile: &BlocksTile) -> Result<(), Error> {
        let (first, end) = (self.scalar(tile.first)?, self.scalar(tile.end)?);
        let rows = self.count_of(first, end);
        let rows = self.b.ins().ireduce(I32, rows);
        let a_stride = self.scalar(tile.a.stride)?;
        let (a, skip) = (
            self.at((tile.a.buf, tile.a.base), 1)?,
            self.b.ins().imul(first, a_stride),
        );
        let a = self.b.ins().iadd(a, skip);
        let (c, c_stride) = self.rows(tile.c)?;
        let skip = self.b.ins().imul(first, c_stride);
        let c = self.element(c, skip, 4);
        let bias = match tile.bias {
            Some(at) => self.at(at, 4)?,
            None => self.index(0),
        };
        let cols = self.present(tile.cols, i64::from(blocks::PANEL))?;
        let cols = self.b.ins().ireduce(I32, cols);
        let f = tile.format;
        let block = self.index(i64::from(f.block));
        let [bits, scale_bytes, zeros] = [f.bits, f.scale_bytes, f.zeros.number()]
            .map(|v| self.b.ins().iconst(I32, i64::from(v)));
        let lo = self.b.ins().f32const(tile.lo.unwrap_or(f32::NEG_INFINITY));
        let hi = self.b.ins().f32const(tile.hi.unwrap_or(f32::INFINITY));
        let (w, blocks) = (self.at(tile.w, 1)?, self.scalar(tile.blocks)?);
        let fields = fields!(GemmBlocks {
            a: a,
            w: w,
            c: c,
            bias: bias,
            a_stride: a_stride,
            c_stride: c_stride,
            block: block,
            blocks: blocks,
            rows: rows,
            cols: cols,
            bits: bits,
            scale_bytes: scale_bytes,
            zeros: zeros,
            lo: lo,
            hi: hi,
        });
        self.call_micro_kernel(Import::GemmBlocks, size_of::<GemmBlocks>(), &fields);
        Ok(())
    }

    fn round_blocks(&mut self, tile: &RoundTile) -> Result<(), Error> {
        let (first, end) = (self.scalar(tile.first)?, self.scalar(tile.end)?);
        let blocks = self.count_of(first, end);
        let (x, y) = (self.at(tile.x, 4)?, self.at(tile.y, 1)?);
        let length = i64::from(tile.block);
        let skip = self.b.ins().imul_imm_s(first, 4 * length);
        let x = self.b.ins().iadd(x, skip);
        let skip = self
            .b
            .ins()
            .imul_imm_s(first, length + ACT_BLOCK_EXTRA as i64);
        let y = self.b.ins().iadd(y, skip);
        let block = self.index(length);
        let factor = self.b.ins().iconst(I32, i64::from(tile.factor as u32));
        let fields = fields!(RoundBlocks {
            x: x,
            y: y,
            block: block,
            blocks: blocks,
            factor: factor,
        });
        self.call_micro_kernel(Import::RoundBlocks, size_of::<RoundBlocks>(), &fields);
        Ok(())
    }

    fn unpack_blocks(&mut self, tile: &UnpackTile) -> Result<(), Error> {
        let blocks = self.scalar(tile.blocks)?;
        let zero = self.index(0);
        let blocks = self.count_of(zero, blocks);
        let (y, y_stride) = self.rows(tile.y)?;
        let w = self.at(tile.w, 1)?;
        let f = tile.format;
        let block = self.index(i64::from(f.block));
        let words = [f.bits, f.scale_bytes, f.zeros.number(), tile.zero as u32];
        let [bits, scale_bytes, zeros, zero] =
            words.map(|v| self.b.ins().iconst(I32, i64::from(v)));
        let fields = fields!(UnpackBlocks {
            w: w,
            y: y,
            y_stride: y_stride,
            block: block,
            blocks: blocks,
            bits: bits,
            scale_bytes: scale_bytes,
            zeros: zeros,
            zero: zero,
        });
        self.call_micro_kernel(Import::UnpackBlocks, size_of::<UnpackBlocks>(), &fields);
        Ok(())
    }

    fn map(&mut self, m: &Map) -> Result<(), Error> {
        let known = map::CALLED.iter().find(|a| a.0 == m.activation);
        let (_, function) = known.ok_or_else(|| self.unsupported("an unknown activation"))?;
        let (src, dst) = (self.at(m.src, 4)?, self.at(m.dst, 4)?);
        let (zero, n) = (self.index(0), self.scalar(m.n)?);
        let n = self.count_of(zero, n);
        let function = self.b.ins().iconst(I32, i64::from(*function));
        let fields = fields!(UnaryF32 {
            src: src,
            dst: dst,
            n: n,
            function: function,
        });
        self.call_micro_kernel(Import::UnaryF32, size_of::<UnaryF32>(), &fields);
        Ok(())
    }

    fn softmax(&mut self, x: &Softmax) -> Result<(), Error> {
        let zero = self.index(0);
        let (rows, here) = (self.scalar(x.rows)?, self.scalar(x.here)?);
        let [rows, here] = [rows, here].map(|n| self.count_of(zero, n));
        let bound = |fun: &mut Self, at: Option<Var>, otherwise: Value| match at {
            Some(at) => Ok((fun.scalar(at)?, 1)),
            None => Ok::<_, Error>((otherwise, 0)),
        };
        let (first, first_step) = bound(self, x.first, zero)?;
        let (end, end_step) = bound(self, x.end, here)?;
        let (mask, mask_pitch, mask_kind) = match x.mask {
            Some(mask) => {
                let (size, kind) = match self.facts.kernel().buf_elem(mask.buf) {
                    Some(ElemType::Bool) => (1, MASK_BOOL),
                    _ => (4, MASK_ADDED),
                };
                let pitch = match mask.pitch {
                    Some(pitch) => self.scalar(pitch)?,
                    None => zero,
                };
                (self.at((mask.buf, mask.base), size)?, pitch, kind)
            }
            None => (zero, zero, MASK_NONE),
        };
        let (m, l, o, width) = match x.rest {
            Rest::Running { m, l, o, width } => {
                let [m, l, o] = [self.buffer(m)?.0, self.buffer(l)?.0, self.buffer(o)?.0];
                (m, l, o, self.scalar(width)?)
            }
            Rest::Sum(l) => (zero, self.buffer(l)?.0, zero, zero),
            Rest::Divided => (zero, zero, zero, zero),
        };
        let (s, pitch, scale) = (
            self.buffer(x.s)?.0,
            self.scalar(x.pitch)?,
            self.scalar(x.scale)?,
        );
        let [first_step, end_step, mask_kind] =
            [first_step, end_step, mask_kind].map(|v| self.b.ins().iconst(I32, i64::from(v)));
        let fields = fields!(SoftmaxF32 {
            s: s,
            mask: mask,
            m: m,
            l: l,
            o: o,
            pitch: pitch,
            mask_pitch: mask_pitch,
            o_pitch: width,
            width: width,
            rows: rows,
            here: here,
            first: first,
            end: end,
            first_step: first_step,
            end_step: end_step,
            mask_kind: mask_kind,
            scale: scale,
        });
        self.call_micro_kernel(Import::SoftmaxF32, size_of::<SoftmaxF32>(), &fields);
        Ok(())
    }

    fn widen_halves(&mut self, w: &Widen) -> Result<(), Error> {
        let (src, dst) = (self.at(w.src, 2)?, self.at(w.dst, 4)?);
        let (zero, n) = (self.index(0), self.scalar(w.n)?);
        let n = self.count_of(zero, n);
        let fields = fields!(WidenF16 {
            src: src,
            dst: dst,
            n: n,
        });
        self.call_micro_kernel(Import::WidenF16, size_of::<WidenF16>(), &fields);
        Ok(())
    }

    fn moves(&mut self, m: &Move) -> Result<(), Error> {
        let offsets = self.get(m.at)?;
        let offsets = self.scalars(&offsets);
        let mask = match m.mask.filter(|&mask| !self.says_not_negative(mask, m.at)) {
            Some(mask) => {
                let mask = self.get(mask)?;
                Some(self.scalars(&mask))
            }
            None => None,
        };
        let slot = self.slot(offsets.len() * 8);
        let at = self.slot_addr(slot);
        let nowhere = self.index(-1);
        for (j, &offset) in offsets.iter().enumerate() {
            let offset = match &mask {
                Some(mask) => self.b.ins().select(mask[j], offset, nowhere),
                None => offset,
            };
            self.b.ins().store(flags(), offset, at, 8 * j as i32);
        }
        let ((from, src, src_stride), (to, dst, dst_stride)) = (m.src, m.dst);
        let (src, dst) = (self.at((from, src), 4)?, self.at((to, dst), 4)?);
        let (src_stride, dst_stride) = (self.scalar(src_stride)?, self.scalar(dst_stride)?);
        let (zero, rows) = (self.index(0), self.scalar(m.rows)?);
        let rows = self.count_of(zero, rows);
        let cols = self.present(m.cols, offsets.len() as i64)?;
        let fields = fields!(MoveF32 {
            src: src,
            dst: dst,
            at: at,
            src_stride: src_stride,
            dst_stride: dst_stride,
            rows: rows,
            cols: cols,
        });
        self.call_micro_kernel(Import::MoveF32, size_of::<MoveF32>(), &fields);
        Ok(())
    }

    /// True if a mask is `at >= 0`: the micro-kernel reads nothing at negative offsets anyway.
    fn says_not_negative(&self, mask: Var, at: Var) -> bool {
        match self.facts.def(mask) {
            Some(Op::Binary(Binary::Ge, x, zero)) => *x == at && self.facts.int(*zero) == Some(0),
            _ => false,
        }
    }

    fn rows(&mut self, rows: Rows) -> Result<(Value, Value), Error> {
        let base = self.at((rows.buf, rows.base), 4)?;
        Ok((base, self.scalar(rows.stride)?))
    }

    /// Where an element of a buffer of elements of so many bytes is.
    fn at(&mut self, (buf, base): (Buf, Var), size: i64) -> Result<Value, Error> {
        let (address, base) = (self.buffer(buf)?.0, self.scalar(base)?);
        Ok(self.element(address, base, size))
    }

    /// Iterations of a loop by ones.
    pub fn count_of(&mut self, begin: Value, end: Value) -> Value {
        let (n, zero) = (self.b.ins().isub(end, begin), self.index(0));
        self.b.ins().smax(n, zero)
    }

    /// `valid` between 0 and `all`, or `all`.
    pub fn present(&mut self, valid: Option<Var>, all: i64) -> Result<Value, Error> {
        let all = self.index(all);
        let Some(valid) = valid else {
            return Ok(all);
        };
        let (valid, zero) = (self.scalar(valid)?, self.index(0));
        let some = self.b.ins().smax(valid, zero);
        Ok(self.b.ins().smin(some, all))
    }

    /// Calls a micro-kernel with a block of so many bytes.
    pub fn call_micro_kernel(&mut self, import: Import, bytes: usize, fields: &[(Value, usize)]) {
        let slot = self.slot(bytes);
        let block = self.slot_addr(slot);
        for &(value, offset) in fields {
            self.b.ins().store(flags(), value, block, offset as i32);
        }
        let table = offset_of!(KernelContext, imports) as i32;
        let table = self.b.ins().load(I64, flags(), self.ctx, table);
        let callee = self.b.ins().load(I64, flags(), table, import as i32 * 8);
        let mut signature = Signature::new(self.call_conv);
        signature.params.push(AbiParam::new(I64));
        let signature = self.b.import_signature(signature);
        self.b.ins().call_indirect(signature, callee, &[block]);
    }
}
