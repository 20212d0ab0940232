//! Convolution over channels-last activations as an implicit matrix product.
//!
//! ```text
//! x [n][ih][iw][c]   w packed [group][panel of 32 channels][kh*kw][c / groups][32]   y [n][oh][ow][oc]
//! grid (group, panel, n, oy, tile of up to 14 ox)
//! ```
//! A tile is a run of output pixels in one row, so the rows of its window are `stride * c` apart and need no copy; pixels in
//! the padding are masked rows. The product sums over taps and then over channels.

use super::activation::Activation;
use super::codes::{self, Codes, Tail};
use super::epilogue::finish;
use super::pack::panel_at;
use super::{Num, add, add_const, even_rows, mul, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{self, Epilogue, GemmTile, Kind, MAX_ROWS, RowsAt};
use lapidary_ir::kernel::{Axis, Binary, Kernel, Op, TileElem, TileType, Var};

/// Where the channels of a pixel are: pixel `p`, channel `c` is element `p * pitch + first + c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Elements between pixels.
    pub pitch: i64,
    /// The first channel.
    pub first: i64,
}

impl Pixels {
    /// Nothing but these channels.
    pub fn dense(channels: i64) -> Pixels {
        Pixels {
            pitch: channels,
            first: 0,
        }
    }
}

/// Extents and epilogue of a 2-D convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Images.
    pub batch: Num,
    /// Input height and width.
    pub input: [i64; 2],
    /// Output height and width.
    pub output: [i64; 2],
    /// Input channels, of all groups.
    pub channels: i64,
    /// Output channels, of all groups.
    pub out_channels: i64,
    /// Groups.
    pub groups: i64,
    /// Window height and width.
    pub kernel: [i64; 2],
    /// Strides.
    pub strides: [i64; 2],
    /// Padding before the first row and column.
    pub pads: [i64; 2],
    /// Dilations.
    pub dilations: [i64; 2],
    /// Where the input's channels are.
    pub x: Pixels,
    /// Where the result's channels go.
    pub y: Pixels,
    /// Add a value per output channel.
    pub bias: bool,
    /// Add a tensor of the result's shape (channels last).
    pub residual: Option<Pixels>,
    /// Lower bound of the result.
    pub lo: Option<f32>,
    /// Upper bound of the result.
    pub hi: Option<f32>,
    /// Applied last.
    pub activation: Option<Activation>,
    /// `x` and `w` are codes; pixels in the padding are code 0.
    pub codes: Option<Codes>,
    /// `w` is of `bf16`, and so is `x` when it is multiplied; not for codes.
    pub bf16: bool,
    /// What a result's codes go through.
    pub tail: Tail,
    /// Where the channels of each stage's residual are.
    pub tail_residuals: Vec<Pixels>,
    /// Columns of a panel.
    pub width: u32,
}

impl Conv {
    /// True if some window reaches into the padding, along each axis.
    pub(super) fn padded(&self) -> [bool; 2] {
        [0, 1].map(|i| {
            let last = (self.output[i] - 1) * self.strides[i]
                + (self.kernel[i] - 1) * self.dilations[i]
                - self.pads[i];
            self.pads[i] > 0 || last >= self.input[i]
        })
    }

    /// True if it is a plain product of the pixels with the weights.
    pub fn is_product(&self) -> bool {
        self.kernel == [1, 1]
            && self.strides == [1, 1]
            && self.pads == [0, 0]
            && self.groups == 1
            && self.input == self.output
    }

    /// The same convolution as one long row of pixels, if it is a plain product of them.
    pub fn flattened(&self) -> Conv {
        if !self.is_product() {
            return self.clone();
        }
        let (pixels, batch) = match self.batch {
            Num::Const(n) => (n * self.input[0] * self.input[1], Num::Const(1)),
            Num::Sym => (self.input[0] * self.input[1], Num::Sym),
        };
        Conv {
            batch,
            input: [1, pixels],
            output: [1, pixels],
            ..self.clone()
        }
    }

    /// True if the taps of one row of the window are consecutive in memory: they count as one tap then.
    fn merges_row(&self) -> bool {
        self.kernel[1] > 1
            && !self.padded()[1]
            && self.dilations[1] == 1
            && self.groups == 1
            && self.x == Pixels::dense(self.channels)
    }

    /// Consecutive elements per tap, and the window that is left to walk.
    fn taps(&self) -> (i64, [i64; 2]) {
        let [kh, kw] = self.kernel;
        let c = self.channels / self.groups;
        if self.merges_row() {
            (kw * c, [kh, 1])
        } else {
            (c, [kh, kw])
        }
    }

    /// Blocks of the grid, for one image if their number is not known.
    pub fn blocks(&self) -> i64 {
        let rows = i64::from(even_rows(Num::Const(self.output[1]), MAX_ROWS));
        let panels = self.group_out().div_euclid(i64::from(self.width))
            + i64::from(self.group_out() % i64::from(self.width) != 0);
        let tiles = (self.output[1] as u64).div_ceil(rows as u64) as i64;
        self.groups * panels * self.batch.known().unwrap_or(1) * self.output[0] * tiles
    }

    /// Multiplications of the whole, for one image if their number is not known.
    pub fn products(&self) -> i64 {
        let pixels = self.batch.known().unwrap_or(1) * self.output[0] * self.output[1];
        pixels * self.out_channels * self.channels / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Operand types.
    pub fn kind(&self) -> Kind {
        codes::kind(self.codes, self.bf16)
    }

    /// Output channels of a group.
    pub fn group_out(&self) -> i64 {
        self.out_channels / self.groups
    }

    /// Bytes of the weights that [`Conv::pack`] makes.
    pub fn packed_bytes(&self) -> usize {
        let panels = (self.group_out() as u64).div_ceil(u64::from(self.width)) as i64 * self.groups;
        let (k, window) = self.taps();
        let [_, of_w, _] = self.kind().elems();
        let rows = window[0] * window[1] * self.kind().padded(k);
        (panels * i64::from(self.width) * rows) as usize * of_w.size_bytes()
    }

    /// Packs ONNX weights `[oc][c / groups][kh][kw]` (codes, or little-endian f32) for [`Conv::kernel`].
    pub fn pack(&self, bytes: &[u8], out: &mut Vec<u8>) {
        self.each_group(|sizes, element| match self.kind() {
            Kind::I8 => codes::pack_quads(bytes, sizes, self.width, element, out),
            kind => super::pack::pack_numbers(kind, bytes, sizes, self.width, element, out),
        });
    }

    /// The sums of the codes of each output channel.
    pub fn sums(&self, bytes: &[u8], out: &mut Vec<i32>) {
        self.each_group(|sizes, element| codes::column_sums(bytes, sizes, element, out));
    }

    /// Calls `f` for each group with the taps, elements of a tap and columns of its panels, and where a weight is.
    fn each_group(&self, mut f: impl FnMut([usize; 3], &dyn Fn(usize, usize, usize) -> usize)) {
        let (k, [kh, kw]) = self.taps();
        let [all, c, oc] = [
            self.kernel[0] * self.kernel[1],
            self.channels / self.groups,
            self.group_out(),
        ]
        .map(|v| v as usize);
        let taps = (kh * kw) as usize;
        for group in 0..self.groups as usize {
            // Taps that count as one follow each other.
            let element = |tap: usize, kk: usize, column: usize| {
                ((group * oc + column) * c + kk % c) * all + tap * (all / taps) + kk / c
            };
            f([taps, k as usize, oc], &element);
        }
    }

    /// The kernel. Parameters: `x`, `w` packed, those of [`codes::Params`], `bias`?, `residual`?, those of
    /// [`codes::TailParams`], `y`, then `batch` if it is [`Num::Sym`].
    pub fn kernel(&self, name: &str) -> Kernel {
        let mut b = KernelBuilder::new(name);
        let [of_x, of_w, _] = self.kind().elems();
        let of_y = codes::result(self.codes, &self.tail);
        let x = b.buffer("x", of_x, false);
        let w = b.buffer("w", of_w, false);
        let for_codes = self.codes.map(|c| (c, c.params(&mut b)));
        let bias = self.bias.then(|| b.buffer("bias", ElemType::F32, false));
        let residual = self
            .residual
            .map(|at| (b.buffer("residual", ElemType::F32, false), at));
        let tail = self.tail.params(&mut b);
        let y = b.buffer("y", of_y, true);
        let batch = self.batch.bind(&mut b, "batch");
        let [oh, ow] = self.output;
        let group_out = self.group_out();
        let panels = (group_out as u64).div_ceil(u64::from(self.width));
        let rows = even_rows(Num::Const(ow), MAX_ROWS);
        let constant = lapidary_ir::kernel::Extent::Const;
        let group = b.grid(constant(self.groups as u64));
        let panel = b.grid(constant(panels));
        let image = b.grid(batch.tiles(1));
        let oy = b.grid(constant(oh as u64));
        let tile = b.grid(constant((ow as u64).div_ceil(u64::from(rows))));

        let ox0 = mul_const(&mut b, tile, i64::from(rows));
        let ow_var = b.index(ow);
        let left = b.binary(Binary::Sub, ow_var, ox0);
        let valid = (ow % i64::from(rows) != 0).then_some(left);
        let (c, window) = self.taps();
        let taps = window[0] * window[1];
        let group_panels = mul_const(&mut b, group, panels as i64);
        let panel_index = add(&mut b, group_panels, panel);
        let k = b.index(c);
        let w_base = panel_at(
            &mut b,
            self.kind(),
            panel_index,
            [taps, i64::from(self.width)],
            k,
        );
        let col0 = mul_const(&mut b, panel, i64::from(self.width));
        let group_col = mul_const(&mut b, group, group_out);
        let channel = add(&mut b, group_col, col0);
        let scaled = for_codes.map(|(c, params)| c.scaled(&mut b, params, channel));
        let spec = GemmTile {
            kind: self.kind(),
            rows,
            a: x,
            b: w,
            b_base: w_base,
            k,
            taps: taps as u32,
            width: self.width,
        };
        let first = mul_const(&mut b, group, self.channels / self.groups);
        let at = Window {
            conv: self,
            first,
            image,
            oy,
            ox0,
            valid,
            rows,
            window,
            clamped: false,
        };
        let acc = contraction::gemm(&mut b, spec, |b, tap| at.rows(b, tap));

        let group_end = b.index(group_out);
        let cols = b.binary(Binary::Sub, group_end, col0);
        let image_row = mul_const(&mut b, image, oh);
        let row = add(&mut b, image_row, oy);
        let row_pixel = mul_const(&mut b, row, ow);
        let pixel = add(&mut b, row_pixel, ox0);
        let mut tile_at = |at: Pixels| {
            let pixel_at = mul_const(&mut b, pixel, at.pitch);
            let channel = if at.first == 0 {
                channel
            } else {
                add_const(&mut b, channel, at.first)
            };
            RowsAt {
                base: add(&mut b, pixel_at, channel),
                rows: Axis {
                    valid,
                    ..Axis::stride(at.pitch)
                },
            }
        };
        let y_at = tile_at(self.y);
        let residual = residual.map(|(buf, at)| (buf, tile_at(at)));
        let dense = Pixels::dense(self.out_channels);
        let stages = self.tail.stages(&tail, channel, |i| {
            tile_at(self.tail_residuals.get(i).copied().unwrap_or(dense))
        });
        let (lo, hi) = match self.codes {
            Some(c) => c.bounds(self.lo, self.hi),
            None => (self.lo, self.hi),
        };
        let epilogue = Epilogue {
            scaled,
            bias: bias.map(|buf| (buf, channel)),
            residual,
            lo,
            hi,
            code: self.tail.code().or(self.codes.and_then(Codes::code)),
            stages,
            table: self.tail.table(&tail),
            c: y,
            c_at: y_at,
            cols: (group_out % i64::from(self.width) != 0).then_some(cols),
        };
        finish(
            &mut b,
            acc,
            epilogue,
            self.activation,
            Num::Const(group_out),
        );
        b.finish()
    }
}

/// Where the rows of a tile's window are.
pub(super) struct Window<'a> {
    pub conv: &'a Conv,
    /// The first channel that is read.
    pub first: Var,
    pub image: Var,
    pub oy: Var,
    pub ox0: Var,
    pub valid: Option<Var>,
    pub rows: u32,
    /// Taps along each axis.
    pub window: [i64; 2],
    /// Taps in the padding are moved to the nearest pixel: right for a maximum. Else they are masked rows.
    pub clamped: bool,
}

impl Window<'_> {
    pub fn rows(&self, b: &mut KernelBuilder, tap: Option<Var>) -> RowsAt {
        let conv = self.conv;
        let (ky, kx) = match tap {
            Some(tap) if self.window[1] > 1 => {
                let width = b.index(self.window[1]);
                let ky = b.binary(Binary::FloorDiv, tap, width);
                let before = mul(b, ky, width);
                (ky, b.binary(Binary::Sub, tap, before))
            }
            Some(tap) => (tap, b.index(0)),
            None => (b.index(0), b.index(0)),
        };
        let mut iy = self.position(b, 0, self.oy, ky);
        let [pad_y, pad_x] = conv.padded();
        if self.clamped && pad_y {
            iy = clamp(b, iy, conv.input[0]);
        }
        let ix0 = self.position(b, 1, self.ox0, kx);
        let image_row = mul_const(b, self.image, conv.input[0]);
        let row = add(b, image_row, iy);
        let row_pixel = mul_const(b, row, conv.input[1]);
        let gathered = self.clamped && pad_x;
        let pixel = if gathered {
            row_pixel
        } else {
            add(b, row_pixel, ix0)
        };
        let pixel_at = mul_const(b, pixel, conv.x.pitch);
        let channel = if conv.x.first == 0 {
            self.first
        } else {
            add_const(b, self.first, conv.x.first)
        };
        let base = add(b, pixel_at, channel);
        if gathered {
            let iota = b.iota(self.rows);
            let steps = mul_const(b, iota, conv.strides[1]);
            let ix = add(b, steps, ix0);
            let ix = clamp(b, ix, conv.input[1]);
            let offsets = mul_const(b, ix, conv.x.pitch);
            let rows = Axis {
                valid: self.valid,
                ..Axis::offsets(offsets)
            };
            return RowsAt { base, rows };
        }
        if self.clamped {
            let rows = Axis {
                valid: self.valid,
                ..Axis::stride(conv.strides[1] * conv.x.pitch)
            };
            return RowsAt { base, rows };
        }
        let mask = self.mask(b, iy, ix0);
        RowsAt {
            base,
            rows: Axis {
                valid: self.valid,
                mask,
                ..Axis::stride(conv.strides[1] * conv.x.pitch)
            },
        }
    }

    /// `o * stride + k * dilation - pad`.
    fn position(&self, b: &mut KernelBuilder, axis: usize, o: Var, k: Var) -> Var {
        let moved = mul_const(b, o, self.conv.strides[axis]);
        let tap = mul_const(b, k, self.conv.dilations[axis]);
        let at = add(b, moved, tap);
        if self.conv.pads[axis] == 0 {
            at
        } else {
            add_const(b, at, -self.conv.pads[axis])
        }
    }

    /// Which rows of the tile are inside the image; `None` if all are.
    fn mask(&self, b: &mut KernelBuilder, iy: Var, ix0: Var) -> Option<Var> {
        let [pad_y, pad_x] = self.conv.padded();
        let inside_y = pad_y.then(|| inside(b, iy, self.conv.input[0]));
        let inside_x = pad_x.then(|| {
            let iota = b.iota(self.rows);
            let steps = mul_const(b, iota, self.conv.strides[1]);
            let ix = add(b, steps, ix0);
            inside(b, ix, self.conv.input[1])
        });
        match (inside_y, inside_x) {
            (Some(y), Some(x)) => Some(b.binary(Binary::And, x, y)),
            (Some(y), None) => {
                let ty = TileType {
                    elem: TileElem::Elem(ElemType::Bool),
                    shape: vec![self.rows],
                };
                Some(b.emit(ty, Op::Broadcast { x: y, axis: 0 }))
            }
            (None, x) => x,
        }
    }
}

/// The nearest of `0..end`, for each element.
fn clamp(b: &mut KernelBuilder, x: Var, end: i64) -> Var {
    let (zero, last) = (b.index(0), b.index(end - 1));
    let x = b.binary(Binary::Max, x, zero);
    b.binary(Binary::Min, x, last)
}

/// `0 <= x < end` for each element.
fn inside(b: &mut KernelBuilder, x: Var, end: i64) -> Var {
    let (zero, end) = (b.index(0), b.index(end));
    let low = b.binary(Binary::Ge, x, zero);
    let high = b.binary(Binary::Lt, x, end);
    b.binary(Binary::And, low, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedules::testing::{close, numbers, run};
    use lapidary_ir::kernel::contraction::PANEL;

    /// The definition, channels last.
    fn reference(conv: &Conv, n: usize, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f32> {
        let [ih, iw] = conv.input.map(|v| v as usize);
        let (c, oc) = (conv.channels as usize, conv.out_channels as usize);
        let (cg, og) = (c / conv.groups as usize, oc / conv.groups as usize);
        let [kh, kw] = conv.kernel.map(|v| v as usize);
        let mut out = vec![];
        for (b, oy, ox, o) in (0..n).flat_map(|b| {
            (0..conv.output[0]).flat_map(move |oy| {
                (0..conv.output[1]).flat_map(move |ox| (0..oc).map(move |o| (b, oy, ox, o)))
            })
        }) {
            let mut sum = bias[o];
            for (ky, kx, ci) in (0..kh)
                .flat_map(|ky| (0..kw).flat_map(move |kx| (0..cg).map(move |ci| (ky, kx, ci))))
            {
                let iy = oy * conv.strides[0] + ky as i64 * conv.dilations[0] - conv.pads[0];
                let ix = ox * conv.strides[1] + kx as i64 * conv.dilations[1] - conv.pads[1];
                if iy >= 0 && ix >= 0 && (iy as usize) < ih && (ix as usize) < iw {
                    let channel = o / og * cg + ci;
                    sum += x[((b * ih + iy as usize) * iw + ix as usize) * c + channel]
                        * w[((o * cg + ci) * kh + ky) * kw + kx];
                }
            }
            out.push(sum.max(conv.lo.unwrap_or(f32::NEG_INFINITY)));
        }
        out
    }

    #[test]
    fn convolutions_match_the_definition() {
        let base = Conv {
            batch: Num::Const(2),
            input: [9, 17],
            output: [9, 17],
            channels: 6,
            out_channels: 34,
            groups: 1,
            kernel: [3, 3],
            strides: [1, 1],
            pads: [1, 1],
            dilations: [1, 1],
            x: Pixels::dense(6),
            y: Pixels::dense(34),
            bias: true,
            residual: None,
            lo: Some(0.0),
            hi: None,
            activation: None,
            codes: None,
            bf16: false,
            tail: Tail::default(),
            tail_residuals: vec![],
            width: PANEL,
        };
        let cases = [
            base.clone(),
            Conv {
                strides: [2, 2],
                output: [5, 9],
                ..base.clone()
            },
            Conv {
                groups: 2,
                dilations: [2, 1],
                pads: [2, 1],
                lo: None,
                ..base.clone()
            },
            Conv {
                kernel: [1, 1],
                pads: [0, 0],
                strides: [2, 2],
                output: [5, 9],
                ..base.clone()
            },
            Conv {
                pads: [0, 0],
                output: [7, 15],
                batch: Num::Sym,
                ..base
            },
        ];
        for conv in cases {
            let n = 2;
            let x = numbers(
                n * (conv.input[0] * conv.input[1] * conv.channels) as usize,
                1,
            );
            let w = numbers(
                (conv.out_channels * conv.channels / conv.groups * conv.kernel[0] * conv.kernel[1])
                    as usize,
                2,
            );
            let bias = numbers(conv.out_channels as usize, 3);
            let bytes: Vec<u8> = w.iter().flat_map(|v| v.to_le_bytes()).collect();
            let mut packed = vec![];
            conv.pack(&bytes, &mut packed);
            let packed: Vec<f32> = packed
                .chunks_exact(4)
                .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                .collect();
            let sizes: &[i64] = if conv.batch == Num::Sym { &[2] } else { &[] };
            let len = n * (conv.output[0] * conv.output[1] * conv.out_channels) as usize;
            let got = run(&conv.kernel("conv"), &[&x, &packed, &bias], len, sizes);
            close(&got, &reference(&conv, n, &x, &w, &bias));
        }
    }
}
