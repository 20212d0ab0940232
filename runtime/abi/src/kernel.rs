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
    /// `fn(*const MoveF32)`: gathers the columns of an f32 matrix.
    MoveF32 = 3,
    /// `fn(*const WindowF32)`: a window over each channel, for some pixels.
    WindowF32 = 4,
    /// `fn(*const SparseF32)`: rows of a sparse f32 matrix times a panel.
    SparseF32 = 5,
    /// `fn(*const UnaryF32)`: a function of each number.
    UnaryF32 = 6,
    /// `fn(*const SparseI8)`: rows of a sparse int8 matrix times a panel of codes.
    SparseI8 = 7,
    /// `fn(*const RoundBlocks)`: numbers to codes, in blocks that share a scale.
    RoundBlocks = 8,
    /// `fn(*const UnpackBlocks)`: blocks of weights of a few bits as numbers.
    UnpackBlocks = 9,
    /// `fn(*const SoftmaxF32)`: rows of scores to the weights of a running softmax.
    SoftmaxF32 = 10,
    /// `fn(*const WidenF16)`: halves to numbers.
    WidenF16 = 11,
    /// `fn(*const GemmBf16)`: one tile of f32 activations, rounded to `bf16`, times `bf16` weights.
    GemmBf16 = 12,
}

/// Number of entries in [`KernelContext::imports`].
pub const IMPORT_COUNT: usize = 13;

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

/// Most columns of one bf16 panel.
pub const MAX_WIDTH_BF16: usize = 128;

/// Most rows of one f32 tile.
pub const MAX_ROWS_F32: usize = 14;

/// One tile of an f32 matrix product or convolution, with weights of `W`:
/// `c[r][j] = clamp(sum over t, k of a[t][r][k] * b[t][k][j]  + bias[j] + residual[r][j], lo, hi)`.
///
/// Rows are reached through pointers, so that the rows of a convolution's window need no copy.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gemm<W> {
    /// `taps * rows` row addresses, tap-major; row `r` of tap `t` is `a[t * rows + r]`.
    pub a: *const *const f32,
    /// Packed panel, 64-byte aligned: see [`GemmF32`], [`GemmBf16`].
    pub b: *const W,
    /// Address of the tile's first element in the result.
    pub c: *mut f32,
    /// Values of which the first `cols` are read, or null.
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
    /// Columns of this tile to write, `1..=width`.
    pub cols: u32,
    /// Columns of the panel.
    pub width: u32,
    /// Lower bound of the result (`-inf` for none).
    pub lo: f32,
    /// Upper bound of the result (`+inf` for none).
    pub hi: f32,
    /// Non-zero: start from what `c` holds instead of zero (bias and residual are added on top).
    pub accumulate: u32,
}

/// A [`Gemm`] of numbers; its panel is `[taps][k][PANEL_F32]`, and `width` is [`PANEL_F32`].
pub type GemmF32 = Gemm<f32>;

/// A [`Gemm`] that rounds numbers to `bf16`, to the nearest and of two to the even one, and multiplies them with weights that are
/// such numbers. Its panel is `[taps][ceil(k / 2)][width][2]`, of their bits; what is past `k` is zero. `width` is a multiple of
/// [`PANEL_F32`], at most [`MAX_WIDTH_BF16`]. Subnormal numbers may count as zero.
pub type GemmBf16 = Gemm<u16>;

/// Columns that an int8 panel has a multiple of.
pub const PANEL_I8: usize = 32;

/// Most rows of one int8 tile.
pub const MAX_ROWS_I8: usize = 14;

/// What a tile of [`GemmI8`] holds: sums as `i32`.
pub const RESULT_I32: u32 = 0;
/// Numbers as `f32`.
pub const RESULT_F32: u32 = 1;
/// Codes of 8 bits, signed or not.
pub const RESULT_CODE: u32 = 2;

/// Most rows of sums that [`GemmI8::init`] gives.
pub const MAX_ROWS_INIT_I8: usize = 16;

/// One int8 product: `sum = sum over t, k of a[t][r][k] * b[t][k][j] - a_zero * sums[j]`, or sums that are given for the
/// products' (`sum = init[j][r] - a_zero * sums[j]`), and of it
///
/// * [`RESULT_I32`]: the sum;
/// * [`RESULT_F32`]: `x = clamp(f32(sum) * scale[j] + bias[j], lo, hi)`;
/// * [`RESULT_CODE`]: `round_to_even(x) + zero`, where `x` went through the [`StageI8`]s and the last bounds keep it in the
///   code's range; then what the table has for the code's bits.
///
/// `a` is unsigned, `b` signed (what `vpdpbusd` multiplies). `sums` are those of the columns of `b`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GemmI8 {
    /// Sums by column, `init_stride` apart, each of `rows` of them; `cols` rounded up to [`PANEL_I8`] columns are readable.
    /// Null: the sums are those of products. Else `a`, `b`, `k` and `taps` are not read.
    pub init: *const i32,
    /// Row addresses as in [`GemmF32::a`].
    pub a: *const *const u8,
    /// Packed panel `[taps][k / 4][width][4]`, 64-byte aligned, zero-filled past `k` up to a multiple of 4.
    pub b: *const i8,
    /// Address of the tile's first element in the result.
    pub c: *mut c_void,
    /// `cols` column sums of `b` over all taps; null if `a_zero` is 0.
    pub sums: *const i32,
    /// `cols` values; null for sums.
    pub scale: *const f32,
    /// `cols` values, or null.
    pub bias: *const f32,
    /// 256 codes, or null.
    pub table: *const u8,
    /// Elements between columns of `init`.
    pub init_stride: usize,
    /// Elements between rows of `c`.
    pub c_stride: usize,
    /// Row length; rows of `a` need not be readable past it.
    pub k: usize,
    /// Number of taps.
    pub taps: usize,
    /// `1..=MAX_ROWS_I8`; with `init`, `1..=MAX_ROWS_INIT_I8`.
    pub rows: u32,
    /// `1..=width`.
    pub cols: u32,
    /// Columns of the panel, a multiple of [`PANEL_I8`].
    pub width: u32,
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
    /// How many of `stages` there are.
    pub stage_count: u32,
    /// What codes go through before the last rounding.
    pub stages: [StageI8; MAX_STAGES_I8],
}

/// Most stages of one int8 product.
pub const MAX_STAGES_I8: usize = 2;

/// An addition to what was rounded to codes: `x = clamp(round_to_even(x) * factor + row[j] + residual[r][j] * residual_factor,
/// lo, hi)`, where every operation is rounded.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StageI8 {
    /// `cols` values: biases, and what the codes of zero make.
    pub row: *const f32,
    /// First unsigned code of the tile to add, with `residual_stride`, or null.
    pub residual: *const u8,
    /// Elements between rows of `residual`.
    pub residual_stride: usize,
    /// Of what was rounded.
    pub factor: f32,
    /// Of the residual.
    pub residual_factor: f32,
    /// Lower bound.
    pub lo: f32,
    /// Upper bound.
    pub hi: f32,
}

impl StageI8 {
    /// What is not read.
    pub const NONE: StageI8 = StageI8 {
        row: core::ptr::null(),
        residual: core::ptr::null(),
        residual_stride: 0,
        factor: 0.0,
        residual_factor: 0.0,
        lo: 0.0,
        hi: 0.0,
    };
}

/// Columns of one panel of weights in blocks.
pub const PANEL_BLOCKS: usize = 16;

/// Most rows of one tile of [`GemmBlocks`].
pub const MAX_ROWS_BLOCKS: usize = 12;

/// Bytes that a block of activations has besides its codes.
pub const ACT_BLOCK_EXTRA: usize = 8;

/// What blocks of weights have beside scales: nothing, as one zero point is that of all weights.
pub const ZEROS_SHARED: u32 = 0;
/// A zero point (`u8`) for each column.
pub const ZEROS_CODES: u32 = 1;
/// A number for each column, as wide as a scale, which is added to scale times code.
pub const ZEROS_MINIMUMS: u32 = 2;

/// The parts in which codes of `bits` bits are stored: how many of their lowest bits lie together, and how many of the others.
/// A byte holds whole fields of a part, so a part has 8, 4, 2 or 1 bits.
pub const fn code_parts(bits: u32) -> (u32, u32) {
    let low = match bits {
        8 => 8,
        4..8 => 4,
        2 | 3 => 2,
        _ => 1,
    };
    (low, bits - low)
}

/// Bits that codes of [`GemmBlocks`] may have: those of at most two parts.
pub const CODE_WIDTHS: [u32; 6] = [2, 3, 4, 5, 6, 8];

/// Steps along `k` whose codes fill whole lines of every part.
pub const fn code_unit(bits: u32) -> u32 {
    match code_parts(bits) {
        (low, 0) => 32 / low,
        (_, high) => 32 / high,
    }
}

/// One tile of a product of 8-bit activations with weights of a few bits, both in blocks of `block` along `k`:
///
/// ```text
/// c[r][j] = clamp(sum over blocks of f32(sum over k of a[r][k] * w[k][j] + zero[j] * offset[r]) * (scale of a * scale of w)
///                 + bias[j], lo, hi)
/// ```
/// The inner sum is exact; blocks are added up in f32 in their order. With minimums nothing is added to the inner sum, and
/// `f32(offset[r]) * scale of a * minimum[j]` to what is added up.
///
/// A block of activations is `offset` (`i32`), `block` signed codes, `scale` (`f32`). A block of weights is 16 scales (`f16` or
/// `f32`), what `zeros` says (1 is taken where zero points are shared), and unsigned codes. A line of 64 bytes holds the 16
/// columns, 4 bytes each; of these the lowest `f` bits are `k..k+4`, the next ones `k+4..k+8`, and so on, for each of the
/// [`code_parts`] of `f` bits. Units of [`code_unit`] steps along `k` follow each other, in each the lines of the low part first:
///
/// ```text
/// 4 bits   |k 0..8|                                 |k 8..16|
/// 5 bits   |low k 0..8|low k 8..16|low 16..24|low 24..32|high k 0..32|
/// 6 bits   |low k 0..8|low k 8..16|high k 0..16|
/// ```
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
    /// Length of a block: a multiple of [`code_unit`], at most [`MAX_BLOCK`].
    pub block: usize,
    /// Blocks of a row.
    pub blocks: usize,
    /// Rows; the kernel makes tiles of at most [`MAX_ROWS_BLOCKS`] of them.
    pub rows: u32,
    /// `1..=PANEL_BLOCKS`.
    pub cols: u32,
    /// One of [`CODE_WIDTHS`].
    pub bits: u32,
    /// Bytes of a scale: 2 or 4.
    pub scale_bytes: u32,
    /// [`ZEROS_SHARED`], [`ZEROS_CODES`] or [`ZEROS_MINIMUMS`].
    pub zeros: u32,
    /// Lower bound of the result (`-inf` for none).
    pub lo: f32,
    /// Upper bound of the result (`+inf` for none).
    pub hi: f32,
}

/// Longest block of [`GemmBlocks`]: sums fit 32 bits.
pub const MAX_BLOCK: usize = 1 << 14;

/// Numbers to the blocks of activations of [`GemmBlocks`]. With the largest `|x|` of a block, `m`, a code is
/// `clamp(round_to_even(x * (127 / m)), -127, 127)` (0 for what is no number), the scale is `m / 127`, and the offset is
/// `factor` times the sum of the codes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoundBlocks {
    /// `blocks * block` numbers.
    pub x: *const f32,
    /// `blocks` blocks of `block + ACT_BLOCK_EXTRA` bytes.
    pub y: *mut u8,
    /// Length of a block, at most [`MAX_BLOCK`].
    pub block: usize,
    /// Blocks.
    pub blocks: usize,
    /// Minus the zero point that is shared, -1 where columns have zero points, or 1 where they have minimums.
    pub factor: i32,
}

/// The numbers of a panel of weights as [`GemmBlocks`] has it: `y[k][j] = scale[j] * (code[k][j] - zero[j])`, with minimums
/// `scale[j] * code[k][j] + minimum[j]`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UnpackBlocks {
    /// `blocks` blocks of weights.
    pub w: *const u8,
    /// `blocks * block` rows of [`PANEL_BLOCKS`] numbers.
    pub y: *mut f32,
    /// Elements between rows of `y`.
    pub y_stride: usize,
    /// Length of a block, as in [`GemmBlocks`].
    pub block: usize,
    /// Blocks.
    pub blocks: usize,
    /// One of [`CODE_WIDTHS`].
    pub bits: u32,
    /// Bytes of a scale: 2 or 4.
    pub scale_bytes: u32,
    /// [`ZEROS_SHARED`], [`ZEROS_CODES`] or [`ZEROS_MINIMUMS`].
    pub zeros: u32,
    /// The zero point that is shared.
    pub zero: i32,
}

/// Most columns of one [`MoveF32`].
pub const MOVE_COLS: usize = 64;

/// Gathers columns: `dst[i][j] = src[i * src_stride + at[j]]`, or 0 where `at[j]` is negative. Elements are copied bit by bit, so
/// they may be any four bytes.
///
/// What it is fast at: runs of columns that are consecutive, and a transposition (`src_stride` of 1).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MoveF32 {
    /// What `at` counts from.
    pub src: *const f32,
    /// First element of the result.
    pub dst: *mut f32,
    /// `cols` element offsets; negative: nothing is read.
    pub at: *const i64,
    /// Elements between rows of the source.
    pub src_stride: usize,
    /// Elements between rows of the result.
    pub dst_stride: usize,
    /// Rows.
    pub rows: usize,
    /// Columns, `1..=MOVE_COLS`.
    pub cols: usize,
}

/// Rows of a group and lanes of the panel that [`SparseF32`] knows, by [`SparseF32::shape`].
pub const SPARSE_SHAPES: [(usize, usize); 3] = [(2, 64), (8, 16), (16, 1)];

/// Groups of rows of a sparse matrix times a panel whose lanes are columns (tokens, pixels):
/// `c[row][j] = clamp(init[row][j] + bias[row] + sum over t of values[t][r] * x[offsets[t][r] + j], lo, hi)`
/// for the entries `t` of each group and the row `row = rows[group][r]` that is its `r`-th.
///
/// The rows of a group have equally many entries, so a group's loop has no branch for each row.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SparseF32 {
    /// The panel: what `offsets` count from; `lanes` elements are readable at each.
    pub x: *const f32,
    /// `[entry][R]` numbers, for the shape's `R` rows.
    pub values: *const f32,
    /// `[entry][R]` element offsets.
    pub offsets: *const u16,
    /// `groups + 1` entries: those of group `g` are `starts[g]..starts[g + 1]`.
    pub starts: *const u32,
    /// `[group][R]` rows; a row may be there twice in a group, with the same entries.
    pub rows: *const u32,
    /// By row, or null.
    pub bias: *const f32,
    /// What to add, or null.
    pub init: *const f32,
    /// Results; may be `init`.
    pub c: *mut f32,
    /// Elements between rows of `init`.
    pub init_stride: usize,
    /// Elements between rows of `c`.
    pub c_stride: usize,
    /// Groups.
    pub groups: usize,
    /// Lanes of `init` and `c`, `1..=lanes` of the shape.
    pub cols: u32,
    /// Position in [`SPARSE_SHAPES`].
    pub shape: u32,
    /// Lower bound of the result (`-inf` for none).
    pub lo: f32,
    /// Upper bound of the result (`+inf` for none).
    pub hi: f32,
}

/// Rows of a group of [`SparseI8`].
pub const SPARSE_ROWS_I8: usize = 4;

/// Most lanes of one [`SparseI8`].
pub const SPARSE_LANES_I8: usize = 64;

/// Groups of rows of a sparse matrix of signed codes times a panel of unsigned ones, whose lanes are columns (tokens, pixels):
/// `c[row][j] = init[row][j] + sum over t, q of values[t][r][q] * x[4 * (offsets[t][r] + j) + q]`, exact modulo 2^32, for the
/// entries `t` of each group and the row `row = rows[group][r]` that is its `r`-th. An entry is four codes of consecutive
/// inputs (`q`), which the panel has beside each other in each lane.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SparseI8 {
    /// The panel: what `offsets` count from, in units of four codes; lanes up to `cols` rounded up to 16 are readable at each.
    pub x: *const u8,
    /// `[entry][SPARSE_ROWS_I8][4]` codes.
    pub values: *const i8,
    /// `[entry][SPARSE_ROWS_I8]` offsets in units of four codes.
    pub offsets: *const u16,
    /// As [`SparseF32::starts`].
    pub starts: *const u32,
    /// As [`SparseF32::rows`], [`SPARSE_ROWS_I8`] in a group.
    pub rows: *const u32,
    /// What to add, or null.
    pub init: *const i32,
    /// Results; may be `init`.
    pub c: *mut i32,
    /// Elements between rows of `init`.
    pub init_stride: usize,
    /// Elements between rows of `c`.
    pub c_stride: usize,
    /// Groups.
    pub groups: usize,
    /// Lanes of `init` and `c`, `1..=SPARSE_LANES_I8`.
    pub cols: u32,
}

/// A window over each channel of some pixels (depthwise convolution, maximum pooling):
/// `c[r][j] = clamp((sum over t of a[t][r][j] * b[t][j]) * scale[j] + bias[j] + residual[r][j], lo, hi)`, or the maximum over
/// `t` of `a[t][r][j]` in place of the sum. `a` and `b` may be codes, which count as the numbers they are; the result may be the
/// code `round_to_even(c) + zero`, for bounds that keep it in the code's range.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WindowF32 {
    /// `taps * rows` addresses of `cols` elements each, tap-major: `f32`, or `u8` with `codes`.
    pub a: *const *const c_void,
    /// `taps` rows of `cols` weights, `b_stride` apart: `f32`, or `i8` with `codes`, of at most 256 taps, so that sums are
    /// exact. Null for the maximum.
    pub b: *const c_void,
    /// Address of the tile's first element in the result.
    pub c: *mut c_void,
    /// `cols` factors of the sums, or null.
    pub scale: *const f32,
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
    /// Non-zero: `a` and `b` are codes.
    pub codes: u32,
    /// [`RESULT_F32`] or [`RESULT_CODE`].
    pub result: u32,
    /// The code of zero in the result.
    pub zero: i32,
}

/// [`UnaryF32::function`]: the exponential.
pub const UNARY_EXP: u32 = 0;
/// The hyperbolic tangent.
pub const UNARY_TANH: u32 = 1;
/// The error function.
pub const UNARY_ERF: u32 = 2;

/// `1 / (1 + exp(-x))`.
pub const UNARY_SIGMOID: u32 = 3;
/// `x * sigmoid(x)`.
pub const UNARY_SWISH: u32 = 4;
/// `x * (0.5 * (1 + erf(x / sqrt(2))))`.
pub const UNARY_GELU: u32 = 5;
/// `x * (0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))))`.
pub const UNARY_GELU_TANH: u32 = 6;

/// A function of each of `n` numbers, as [`crate::math`] approximates it. `src` and `dst` may be the same.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UnaryF32 {
    /// Operands.
    pub src: *const f32,
    /// Results.
    pub dst: *mut f32,
    /// How many.
    pub n: usize,
    /// [`UNARY_EXP`] and its like.
    pub function: u32,
}

/// [`SoftmaxF32::mask`]: there is none.
pub const MASK_NONE: u32 = 0;
/// `bool`: a key that is false weighs nothing.
pub const MASK_BOOL: u32 = 1;
/// `f32`, which is added to the scaled score.
pub const MASK_ADDED: u32 = 2;

/// A stretch of keys of a softmax: rows of scores become weights relative to the largest score so far.
///
/// ```text
/// x = s[r][j] * scale + mask[r][j]           for the keys that row r sees, first + r * first_step <= j < end + r * end_step
/// m' = max(m[r], max x)                      0 in its place below where that is minus infinity
/// s[r][j] = exp(x - m'), 0 for j < here that it does not see
/// o[r] *= exp(m[r] - m');  l[r] = l[r] * exp(m[r] - m') + sum s[r];  m[r] = m'
/// ```
/// Without `m` this is the only stretch: `l[r]` is the sum, or without `l` the weights are divided by it (0 where it is 0).
/// Source: Milakov, Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867), section 3.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SoftmaxF32 {
    /// Scores, and weights afterwards.
    pub s: *mut f32,
    /// `rows` of `here` elements, or null.
    pub mask: *const u8,
    /// Largest scores so far, one for each row, or null.
    pub m: *mut f32,
    /// Sums so far, or null.
    pub l: *mut f32,
    /// With `m`: what the weights so far have given, `width` numbers of each row.
    pub o: *mut f32,
    /// Elements between rows of `s`: at least `here` rounded up to [`SOFTMAX_LANES`], all of which may be written.
    pub pitch: usize,
    /// Elements between rows of `mask`.
    pub mask_pitch: usize,
    /// Elements between rows of `o`.
    pub o_pitch: usize,
    /// Numbers of a row of `o`.
    pub width: usize,
    /// Rows.
    pub rows: usize,
    /// Keys.
    pub here: usize,
    /// The first key that row 0 sees; any number.
    pub first: i64,
    /// The one after its last; any number.
    pub end: i64,
    /// 0 or 1.
    pub first_step: u32,
    /// 0 or 1.
    pub end_step: u32,
    /// [`MASK_NONE`] and its like.
    pub mask_kind: u32,
    /// Factor of the scores.
    pub scale: f32,
}

/// Rows of [`SoftmaxF32::s`] are read and written in whole vectors of at most so many elements.
pub const SOFTMAX_LANES: usize = 16;

/// Each of `n` halves as an `f32`, exactly.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WidenF16 {
    /// Operands: bits of halves.
    pub src: *const u16,
    /// Results.
    pub dst: *mut f32,
    /// How many: a multiple of [`PANEL_F32`].
    pub n: usize,
}
