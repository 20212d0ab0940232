//! How compiled kernels are called, and how they call the runtime's micro-kernels.
//!
//! A kernel is position-independent code without relocations: everything it needs from outside it
//! reaches through [`KernelContext`]. It computes the blocks `begin..end` of its linearised parallel
//! grid (row-major, last axis fastest), so a thread pool may cut the grid anywhere.

use core::ffi::c_void;

/// Entry point of a compiled kernel. `args[i]` is the kernel's i-th parameter: the address of a
/// buffer's first element, or a size as `i64` bits.
///
/// The caller promises that every buffer is as large as the host program states, that written buffers
/// are not aliased by other arguments unless the plan says so, and that `ctx` is valid for the call.
pub type KernelFn =
    unsafe extern "C" fn(ctx: *const KernelContext, args: *const u64, begin: u64, end: u64);

/// Micro-kernels that compiled code may call, by position in [`KernelContext::imports`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Import {
    /// `fn(*const GemmF32)`: one f32 tile.
    GemmF32 = 0,
    /// `fn(*const GemmI8)`: one int8 tile.
    GemmI8 = 1,
    /// `fn(*const GemmBlocks)`: one tile of int8 activations times weights of a few bits, both in blocks.
    GemmBlocks = 2,
    /// `fn(*const PackF32)`: packs part of an f32 matrix into panels.
    PackF32 = 3,
    /// `fn(*const WindowF32)`: a window over each channel, for some pixels.
    WindowF32 = 4,
}

/// Number of entries in [`KernelContext::imports`].
pub const IMPORT_COUNT: usize = 5;

/// Per-thread surroundings of a kernel call.
#[repr(C)]
pub struct KernelContext {
    /// [`IMPORT_COUNT`] function addresses, in the order of [`Import`].
    pub imports: *const *const c_void,
    /// Memory of this thread alone, 64-byte aligned, at least the kernel's `scratch_bytes`.
    pub scratch: *mut u8,
    /// At least [`ZEROS_BYTES`] zero bytes: what padded rows read.
    pub zeros: *const u8,
}

/// Length of [`KernelContext::zeros`]; a kernel whose padded rows are longer uses its own padding.
pub const ZEROS_BYTES: usize = 64 << 10;

/// Columns of one packed f32 panel: `panel[k][PANEL_F32]`.
pub const PANEL_F32: usize = 32;

/// Most rows of one f32 tile.
pub const MAX_ROWS_F32: usize = 14;

/// One tile of an f32 matrix product or convolution:
/// `c[r][j] = clamp(sum over t, k of a[t][r][k] * b[t][k][j]  + bias[j] + residual[r][j], lo, hi)`.
///
/// Rows are reached through pointers, so that the rows of a convolution's window need no copy.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GemmF32 {
    /// `taps * rows` row addresses, tap-major; row `r` of tap `t` is `a[t * rows + r]`.
    pub a: *const *const f32,
    /// Packed panel, `[taps][k][PANEL_F32]`, 64-byte aligned.
    pub b: *const f32,
    /// Address of the tile's first element in the result.
    pub c: *mut f32,
    /// `PANEL_F32` values (only the first `cols` are read), or null.
    pub bias: *const f32,
    /// First element of the tile to add, with `residual_stride`, or null.
    pub residual: *const f32,
    /// Elements between rows of `c`.
    pub c_stride: usize,
    /// Elements between rows of `residual`.
    pub residual_stride: usize,
    /// Length of each row of `a`, in elements; consecutive.
    pub k: usize,
    /// Number of taps (1 for a matrix product).
    pub taps: usize,
    /// Rows of this tile, `1..=MAX_ROWS_F32`.
    pub rows: u32,
    /// Columns of this tile to write, `1..=PANEL_F32`.
    pub cols: u32,
    /// Lower bound of the result (`-inf` for none).
    pub lo: f32,
    /// Upper bound of the result (`+inf` for none).
    pub hi: f32,
    /// Non-zero: start from what `c` holds instead of zero (bias and residual are added on top).
    pub accumulate: u32,
}

/// Columns of one packed int8 panel.
pub const PANEL_I8: usize = 32;

/// Most rows of one int8 tile.
pub const MAX_ROWS_I8: usize = 14;

/// What a tile of [`GemmI8`] holds: sums as `i32`.
pub const RESULT_I32: u32 = 0;
/// Numbers as `f32`.
pub const RESULT_F32: u32 = 1;
/// Codes of 8 bits, signed or not.
pub const RESULT_CODE: u32 = 2;

/// One tile of an int8 product: `sum = sum over t, k of a[t][r][k] * b[t][k][j] - a_zero * sums[j]`, and of it
///
/// * [`RESULT_I32`]: the sum;
/// * [`RESULT_F32`]: `x = clamp(f32(sum) * scale[j] + bias[j], lo, hi)`;
/// * [`RESULT_CODE`]: `round_to_even(x) + zero`, for bounds that keep it in the code's range.
///
/// `a` is unsigned, `b` signed (what `vpdpbusd` multiplies). `sums` are those of the columns of `b`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GemmI8 {
    /// Row addresses as in [`GemmF32::a`].
    pub a: *const *const u8,
    /// Packed panel `[taps][k / 4][PANEL_I8][4]`, zero-filled past `k` up to a multiple of 4.
    pub b: *const i8,
    /// Address of the tile's first element in the result.
    pub c: *mut c_void,
    /// `cols` column sums of `b` over all taps; null if `a_zero` is 0.
    pub sums: *const i32,
    /// `cols` values; null for sums.
    pub scale: *const f32,
    /// `cols` values, or null.
    pub bias: *const f32,
    /// Elements between rows of `c`.
    pub c_stride: usize,
    /// Row length; rows of `a` need not be readable past it.
    pub k: usize,
    /// Number of taps.
    pub taps: usize,
    /// `1..=MAX_ROWS_I8`.
    pub rows: u32,
    /// `1..=PANEL_I8`.
    pub cols: u32,
    /// The code of zero in `a`.
    pub a_zero: i32,
    /// The code of zero in the result.
    pub zero: i32,
    /// Lower bound before rounding (`-inf` for none).
    pub lo: f32,
    /// Upper bound before rounding (`+inf` for none).
    pub hi: f32,
    /// [`RESULT_I32`], [`RESULT_F32`] or [`RESULT_CODE`].
    pub result: u32,
}

/// Columns of one panel of weights in blocks.
pub const PANEL_BLOCKS: usize = 16;

/// Most rows of one tile of [`GemmBlocks`].
pub const MAX_ROWS_BLOCKS: usize = 12;

/// Bytes that a block of activations has besides its codes.
pub const ACT_BLOCK_EXTRA: usize = 8;

/// One tile of a product of 8-bit activations with weights of 2, 4 or 8 bits, both in blocks of `block` along `k`:
/// `c[r][j] = clamp(sum over blocks of f32(sum over k of a[r][k] * w[k][j] + zero[j] * offset[r]) * (scale of a * scale of w)
/// + bias[j], lo, hi)`. The inner sum is exact; blocks are added up in f32 in their order.
///
/// A block of activations is `offset` (`i32`), `block` signed codes, `scale` (`f32`). A block of weights is 16 scales (`f16` or
/// `f32`), with `zeros` 16 zero points (`u8`; 1 is taken without them), and unsigned codes: each 64 bytes hold the 16 columns,
/// 4 bytes each; of these the lowest `bits` are `k..k+4`, the next ones `k+4..k+8`, and so on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GemmBlocks {
    /// The first row's blocks; 4-byte aligned.
    pub a: *const u8,
    /// The panel: `blocks` blocks of weights.
    pub w: *const u8,
    /// Address of the tile's first element in the result.
    pub c: *mut f32,
    /// `cols` values, or null.
    pub bias: *const f32,
    /// Bytes between rows of `a`.
    pub a_stride: usize,
    /// Elements between rows of `c`.
    pub c_stride: usize,
    /// Length of a block: a multiple of `32 / bits`, at most [`MAX_BLOCK`].
    pub block: usize,
    /// Blocks of a row.
    pub blocks: usize,
    /// `1..=MAX_ROWS_BLOCKS`.
    pub rows: u32,
    /// `1..=PANEL_BLOCKS`.
    pub cols: u32,
    /// 2, 4 or 8.
    pub bits: u32,
    /// Bytes of a scale: 2 or 4.
    pub scale_bytes: u32,
    /// Non-zero: there are zero points.
    pub zeros: u32,
    /// Lower bound of the result (`-inf` for none).
    pub lo: f32,
    /// Upper bound of the result (`+inf` for none).
    pub hi: f32,
}

/// Longest block of [`GemmBlocks`]: sums fit 32 bits.
pub const MAX_BLOCK: usize = 1 << 14;

/// Packs `k x cols` elements of a strided f32 matrix into one panel, zero-filling up to [`PANEL_F32`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PackF32 {
    /// First element.
    pub src: *const f32,
    /// Panel `[k][PANEL_F32]`.
    pub dst: *mut f32,
    /// Elements from one k to the next.
    pub k_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
    /// Rows to pack.
    pub k: usize,
    /// Columns to pack, `1..=PANEL_F32`.
    pub cols: usize,
}

/// A window over each channel of some pixels (depthwise convolution, maximum pooling):
/// `c[r][j] = clamp(sum over t of a[t][r][j] * b[t][j]  + bias[j] + residual[r][j], lo, hi)`, or the maximum over `t` of
/// `a[t][r][j]` in place of the sum. `a` may be codes, which count as the numbers they are; the result may be the code
/// `round_to_even(c) + zero`, for bounds that keep it in the code's range.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WindowF32 {
    /// `taps * rows` addresses of `cols` elements each, tap-major: `f32`, or `u8` with `codes`.
    pub a: *const *const c_void,
    /// `taps` rows of `cols` weights, `b_stride` apart; null for the maximum.
    pub b: *const f32,
    /// Address of the tile's first element in the result.
    pub c: *mut c_void,
    /// `cols` values, or null.
    pub bias: *const f32,
    /// First element of the tile to add, with `residual_stride`, or null.
    pub residual: *const f32,
    /// Elements between the weights of one tap and the next.
    pub b_stride: usize,
    /// Elements between rows of `c`.
    pub c_stride: usize,
    /// Elements between rows of `residual`.
    pub residual_stride: usize,
    /// Number of taps.
    pub taps: usize,
    /// Channels of this tile.
    pub cols: usize,
    /// Pixels of this tile.
    pub rows: u32,
    /// Lower bound of the result (`-inf` for none).
    pub lo: f32,
    /// Upper bound of the result (`+inf` for none).
    pub hi: f32,
    /// Non-zero: `a` is codes.
    pub codes: u32,
    /// [`RESULT_F32`] or [`RESULT_CODE`].
    pub result: u32,
    /// The code of zero in the result.
    pub zero: i32,
}
