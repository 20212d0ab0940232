//! Depthwise convolution and maximum pooling over channels-last activations.
//!
//! ```text
//! x [n][ih][iw][c]   w packed [kh*kw][c]   y [n][oh][ow][c]
//! grid (run of channels, n, oy, tile of up to 14 ox)
//! ```
//! A tile is a run of output pixels in one row by a run of channels, wide so that the row addresses of a window are
//! computed once for many channels.

use super::codes::{self, Codes};
use super::conv::{Conv, Pixels, Window};
use super::{Num, add, add_const, even_rows, mul_const};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::build::KernelBuilder;
use lapidary_ir::kernel::contraction::{self, Epilogue, MAX_ROWS, RowsAt, Scaled};
use lapidary_ir::kernel::window::{WindowTile, window};
use lapidary_ir::kernel::{Axis, Binary, Extent, Kernel};

/// A convolution of each channel by itself (`groups == channels == out_channels`), or the maximum over its windows.
///
/// Where `x` is codes, so are the weights, and there is a scale for each channel; what the code of zero makes of the sum is in
/// the bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Depthwise {
    /// Extents and epilogue.
    pub conv: Conv,
    /// The maximum, without weights; every window then has a pixel of the image, and dilations are 1.
    pub maximum: bool,
    /// Tiles that generated code can hold in registers, rather than those of a micro-kernel.
    pub small_tiles: bool,
}

/// Vectors begin at multiples of this many channels.
const LANES: i64 = 16;
/// Most channels of a tile.
const MAX_WIDTH: i64 = 128;
/// Codes in a vector.
const CODE_LANES: i64 = 64;
/// Most channels of a tile of codes.
const MAX_CODE_WIDTH: i64 = 256;

impl Depthwise {
    /// Pixels and channels of a tile.
    fn tile(&self) -> (u32, i64) {
        let (most, width, lanes) = match (self.small_tiles, self.conv.codes) {
            (true, _) => (4, LANES, LANES),
            (false, None) => (MAX_ROWS, MAX_WIDTH, LANES),
            (false, Some(_)) => (MAX_ROWS, MAX_CODE_WIDTH, CODE_LANES),
        };
        let c = self.conv.channels;
        let runs = (c + width - 1) / width;
        let even = (c + runs - 1) / runs;
        let rows = even_rows(Num::Const(self.conv.output[1]), most);
        (rows, (even + lanes - 1) / lanes * lanes)
    }

    /// Blocks of the grid, for one image if their number is not known.
    pub fn blocks(&self) -> i64 {
        let (rows, width) = self.tile();
        let tiles = (self.conv.output[1] as u64).div_ceil(u64::from(rows)) as i64;
        let runs = (self.conv.channels + width - 1) / width;
        runs * self.conv.batch.known().unwrap_or(1) * self.conv.output[0] * tiles
    }

    /// Packs ONNX weights `[c][1][kh][kw]` (codes, or little-endian f32).
    pub fn pack(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let taps = (self.conv.kernel[0] * self.conv.kernel[1]) as usize;
        for t in 0..taps {
            for c in 0..self.conv.channels as usize {
                let size = if self.conv.codes.is_some() { 1 } else { 4 };
                let at = (c * taps + t) * size;
                out.extend_from_slice(&bytes[at..at + size]);
            }
        }
    }

    /// The kernel. Parameters: `x`, `w` (unless the maximum), `scale` (of codes), `bias`?, `residual`?, `y`, then `batch` if it is [`Num::Sym`].
    pub fn kernel(&self, name: &str) -> Kernel {
        let conv = &self.conv;
        let mut b = KernelBuilder::new(name);
        let [of_x, of_w, _] = conv.kind().elems();
        let of_y = codes::result(conv.codes, &conv.tail);
        let x = b.buffer("x", of_x, false);
        let w = (!self.maximum).then(|| b.buffer("w", of_w, false));
        let scaled = w.filter(|_| conv.codes.is_some());
        let scale = scaled.map(|_| b.buffer("scale", ElemType::F32, false));
        let bias = conv.bias.then(|| b.buffer("bias", ElemType::F32, false));
        let residual = conv
            .residual
            .map(|at| (b.buffer("residual", ElemType::F32, false), at));
        let y = b.buffer("y", of_y, true);
        let batch = conv.batch.bind(&mut b, "batch");
        let (rows, width) = self.tile();
        let [oh, ow] = conv.output;
        let c = conv.channels;
        let run = b.grid(Extent::Const((c as u64).div_ceil(width as u64)));
        let image = b.grid(batch.tiles(1));
        let oy = b.grid(Extent::Const(oh as u64));
        let tile = b.grid(Extent::Const((ow as u64).div_ceil(u64::from(rows))));

        let ox0 = mul_const(&mut b, tile, i64::from(rows));
        let ow_var = b.index(ow);
        let left = b.binary(Binary::Sub, ow_var, ox0);
        let valid = (ow % i64::from(rows) != 0).then_some(left);
        let first = mul_const(&mut b, run, width);
        let end = b.index(c);
        let channels_left = b.binary(Binary::Sub, end, first);
        let cols = (c % width != 0).then_some(channels_left);
        let at = Window {
            conv,
            first,
            image,
            oy,
            ox0,
            valid,
            rows,
            window: conv.kernel,
            clamped: self.maximum,
        };
        let tile = WindowTile {
            rows,
            width: width as u32,
            a: x,
            codes: conv.codes.is_some(),
            weights: w.map(|w| (w, first, c)),
            cols,
            taps: (conv.kernel[0] * conv.kernel[1]) as u32,
        };
        let acc = window(&mut b, tile, |b, tap| at.rows(b, Some(tap)));

        let image_row = mul_const(&mut b, image, oh);
        let row = add(&mut b, image_row, oy);
        let row_pixel = mul_const(&mut b, row, ow);
        let pixel = add(&mut b, row_pixel, ox0);
        let mut tile_at = |at: Pixels| {
            let pixel_at = mul_const(&mut b, pixel, at.pitch);
            let channel = add_const(&mut b, first, at.first);
            RowsAt {
                base: add(&mut b, pixel_at, channel),
                rows: Axis {
                    valid,
                    ..Axis::stride(at.pitch)
                },
            }
        };
        let y_at = tile_at(conv.y);
        let residual = residual.map(|(buf, at)| (buf, tile_at(at)));
        let (lo, hi) = match conv.codes {
            Some(c) => c.bounds(conv.lo, conv.hi),
            None => (conv.lo, conv.hi),
        };
        let epilogue = Epilogue {
            scaled: scale.map(|scale| Scaled {
                zero: None,
                scale: (scale, first),
            }),
            bias: bias.map(|buf| (buf, first)),
            residual,
            lo,
            hi,
            code: conv.codes.and_then(Codes::code),
            stages: vec![],
            table: None,
            c: y,
            c_at: y_at,
            cols,
        };
        contraction::epilogue(&mut b, acc, epilogue);
        b.finish()
    }
}
