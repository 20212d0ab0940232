//! Fourier transforms, windows, and the mel scale. Complex numbers are a last axis of 2.

use super::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance, checked_count, resolve_axis};
use super::compose::Len;
use crate::builder::Builder;
use crate::graph::Node;
use crate::tensor::{Tensor, Value, count};
use crate::{Dim, ElemType, Type, ValueId};
use std::f64::consts::TAU;

/// The family's ops.
pub static OPS: &[&OpDef] = &[&DFT, &STFT, &MEL_WEIGHT_MATRIX, &HANN_WINDOW, &HAMMING_WINDOW, &BLACKMAN_WINDOW];

const CLOSE: Tolerance = Tolerance::Approximate(1e-4, 1e-5);

/// Discrete Fourier transform along an axis.
pub static DFT: OpDef = OpDef {
    name: "dft",
    summary: "discrete Fourier transform along an axis, of the input cut or padded to `dft_length`",
    source: "ONNX DFT-20",
    operands: &[Operand::One("input"), Operand::Optional("dft_length"), Operand::Optional("axis")],
    attrs: &[
        AttrDef::new("inverse", AttrKind::Int, Default::Int(0), "1 for the inverse, which divides by the length"),
        AttrDef::new("onesided", AttrKind::Int, Default::Int(0), "1 to give (inverse: take) only the first half of the spectrum of a real signal"),
    ],
    infer: infer_dft,
    eval: Eval::Direct(eval_dft),
    decompose: Some(decompose_dft),
    tolerance: CLOSE,
    ..OpDef::BASE
};

/// Fourier transforms of frames of a signal.
pub static STFT: OpDef = OpDef {
    name: "stft",
    summary: "Fourier transform of each windowed frame of a signal: [batch, frames, bins, 2]",
    source: "ONNX STFT-17",
    operands: &[
        Operand::One("signal"),
        Operand::One("frame_step"),
        Operand::Optional("window"),
        Operand::Optional("frame_length"),
    ],
    attrs: &[AttrDef::new("onesided", AttrKind::Int, Default::Int(1), "1 to give only the first half of the spectrum (real signals)")],
    infer: infer_stft,
    eval: Eval::Direct(eval_stft),
    decompose: Some(decompose_stft),
    tolerance: CLOSE,
    ..OpDef::BASE
};

/// Triangular filters on the mel scale.
pub static MEL_WEIGHT_MATRIX: OpDef = OpDef {
    name: "mel_weight_matrix",
    summary: "weights that turn spectrum bins into mel bins",
    source: "ONNX MelWeightMatrix-17",
    operands: &[
        Operand::One("num_mel_bins"),
        Operand::One("dft_length"),
        Operand::One("sample_rate"),
        Operand::One("lower_edge_hertz"),
        Operand::One("upper_edge_hertz"),
    ],
    attrs: &[OUTPUT_DATATYPE],
    infer: |ctx| {
        let one = |i| match ctx.dims(i) {
            Some([d]) => d.clone(),
            _ => ctx.fresh_dim(),
        };
        let bins = one(1).floor_div(&Dim::from(2i64)) + Dim::from(1i64);
        Ok(vec![Type::tensor(output_type(ctx.elem_attr("output_datatype")), [bins, one(0)])])
    },
    eval: Eval::Direct(eval_mel),
    ..OpDef::BASE
};

const OUTPUT_DATATYPE: AttrDef = AttrDef::new("output_datatype", AttrKind::Elem, Default::Elem(ElemType::F32), "element type of the result");
const WINDOW_ATTRS: &[AttrDef] = &[
    OUTPUT_DATATYPE,
    AttrDef::new("periodic", AttrKind::Int, Default::Int(1), "0 for a symmetric window"),
];

/// Hann window.
pub static HANN_WINDOW: OpDef = OpDef {
    name: "hann_window",
    summary: "0.5 - 0.5 cos(2πn/N)",
    source: "ONNX HannWindow-17",
    operands: &[Operand::One("size")],
    attrs: WINDOW_ATTRS,
    infer: infer_window,
    eval: Eval::Direct(|ctx| window(ctx, [0.5, 0.5, 0.0])),
    ..OpDef::BASE
};

/// Hamming window.
pub static HAMMING_WINDOW: OpDef = OpDef {
    name: "hamming_window",
    summary: "25/46 - 21/46 cos(2πn/N)",
    source: "ONNX HammingWindow-17",
    operands: &[Operand::One("size")],
    attrs: WINDOW_ATTRS,
    infer: infer_window,
    eval: Eval::Direct(|ctx| window(ctx, [25.0 / 46.0, 21.0 / 46.0, 0.0])),
    ..OpDef::BASE
};

/// Blackman window.
pub static BLACKMAN_WINDOW: OpDef = OpDef {
    name: "blackman_window",
    summary: "0.42 - 0.5 cos(2πn/N) + 0.08 cos(4πn/N)",
    source: "ONNX BlackmanWindow-17",
    operands: &[Operand::One("size")],
    attrs: WINDOW_ATTRS,
    infer: infer_window,
    eval: Eval::Direct(|ctx| window(ctx, [0.42, 0.5, 0.08])),
    ..OpDef::BASE
};

fn output_type(given: Option<ElemType>) -> ElemType {
    given.unwrap_or(ElemType::F32)
}

fn infer_window(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let size = match ctx.dims(0) {
        Some([size]) => size.clone(),
        Some(_) => return Err(OpError::new("`size` must be one integer")),
        None => ctx.fresh_dim(),
    };
    Ok(vec![Type::tensor(output_type(ctx.elem_attr("output_datatype")), [size])])
}

fn window(ctx: &EvalCtx, [a, b, c]: [f64; 3]) -> Result<Vec<Value>, OpError> {
    let size = size_operand(ctx, 0)?;
    checked_count(&[size])?;
    let period = if ctx.flag("periodic") { size } else { size.saturating_sub(1) };
    let at = |n: usize| {
        let t = if period == 0 { 0.0 } else { TAU * n as f64 / period as f64 };
        a - b * t.cos() + c * (2.0 * t).cos()
    };
    let values: Vec<f64> = (0..size).map(at).collect();
    Ok(vec![typed(output_type(ctx.elem_attr("output_datatype")), vec![size], values)?])
}

fn typed(elem: ElemType, shape: Vec<usize>, values: Vec<f64>) -> Result<Value, OpError> {
    if elem.is_float() {
        Ok(Tensor::from_f64(elem, shape, values).into())
    } else if elem.is_int() {
        Ok(Tensor::from_int(elem, shape, values.into_iter().map(|v| v as i128).collect()).into())
    } else {
        Err(OpError::new(format!("cannot give elements of type {elem}")))
    }
}

/// The non-negative integer that operand `i` holds.
fn size_operand(ctx: &EvalCtx, i: usize) -> Result<usize, OpError> {
    match ctx.i64s(i)?.as_slice() {
        [n] => usize::try_from(*n).map_err(|_| OpError::new(format!("operand {i} must not be negative"))),
        _ => Err(OpError::new(format!("operand {i} must be one integer"))),
    }
}

fn infer_dft(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let Some(shape) = ctx.shape(0)? else {
        return Ok(vec![Type::unranked(elem)]);
    };
    let (mut dims, half) = (shape.to_vec(), ctx.flag("onesided"));
    let last = dims.len().checked_sub(1).filter(|&l| l > 0).ok_or_else(|| OpError::new("takes rank 2 or more"))?;
    let axis = if ctx.has(2) { ctx.const_ints(2) } else { Some(vec![-2]) };
    dims[last] = Dim::from(if half && ctx.flag("inverse") { 1i64 } else { 2 });
    match axis.as_deref() {
        Some(&[axis]) => {
            let axis = resolve_axis(axis, dims.len())?;
            let (one, two) = (Dim::from(1i64), Dim::from(2i64));
            let length = match (ctx.has(1), ctx.dims(1)) {
                (true, Some([n])) => n.clone(),
                (true, _) => ctx.fresh_dim(),
                (false, _) if half && ctx.flag("inverse") => (&dims[axis] - &one) * two.clone(),
                (false, _) => dims[axis].clone(),
            };
            dims[axis] = if half && !ctx.flag("inverse") { length.floor_div(&two) + one } else { length };
        }
        _ => dims[..last].iter_mut().for_each(|d| *d = ctx.fresh_dim()),
    }
    Ok(vec![Type::tensor(elem, dims)])
}

fn eval_dft(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let values = x.floats().ok_or_else(|| OpError::new("takes floats"))?;
    let (parts, axis) = match (x.shape().last(), ctx.tensor_opt(2)) {
        (Some(&p @ (1 | 2)), None) => (p, -2),
        (Some(&p @ (1 | 2)), Some(_)) => (p, ctx.i64s(2)?.first().copied().unwrap_or(-2)),
        _ => return Err(OpError::new("the last axis must be 1 (real) or 2 (complex)")),
    };
    let axis = resolve_axis(axis, x.rank())?;
    if axis + 1 == x.rank() {
        return Err(OpError::new("cannot transform along the last axis, which holds real and imaginary parts"));
    }
    let (inverse, half) = (ctx.flag("inverse"), ctx.flag("onesided"));
    if half && !inverse && parts == 2 {
        return Err(OpError::new("`onesided` needs a real signal"));
    }
    let from = x.shape()[axis];
    let n = match ctx.tensor_opt(1) {
        Some(_) => size_operand(ctx, 1)?,
        None if half && inverse => 2 * from.saturating_sub(1),
        None => from,
    };
    let to = if half && !inverse { n / 2 + 1 } else { n };
    let out_parts = if half && inverse { 1 } else { 2 };
    let mut shape = x.shape().to_vec();
    shape[axis] = to;
    shape[x.rank() - 1] = out_parts;
    let mut out = vec![0.0; checked_count(&shape)?];
    let (outer, inner) = (count(&x.shape()[..axis]), count(&x.shape()[axis + 1..x.rank() - 1]));
    let twiddles = twiddles(n, inverse)?;
    for o in 0..outer {
        for i in 0..inner {
            let line: Vec<[f64; 2]> = (0..from)
                .map(|k| {
                    let at = ((o * from + k) * inner + i) * parts;
                    [values[at], if parts == 2 { values[at + 1] } else { 0.0 }]
                })
                .collect();
            let line = if half && inverse { mirror(&line, n) } else { line };
            for (k, y) in transform(&line, &twiddles, to).into_iter().enumerate() {
                let at = ((o * to + k) * inner + i) * out_parts;
                let scale = if inverse { 1.0 / n as f64 } else { 1.0 };
                for p in 0..out_parts {
                    out[at + p] = y[p] * scale;
                }
            }
        }
    }
    Ok(vec![Tensor::from_f64(x.elem(), shape, out).into()])
}

/// `e^(∓2πi k/n)` for every `k` below `n`.
fn twiddles(n: usize, inverse: bool) -> Result<Vec<[f64; 2]>, OpError> {
    checked_count(&[n])?;
    let sign = if inverse { 1.0 } else { -1.0 };
    let angle = |k: usize| sign * TAU * k as f64 / n as f64;
    Ok((0..n).map(|k| [angle(k).cos(), angle(k).sin()]).collect())
}

/// The first `bins` of the transform of `line`, cut or padded with zeros to the number of twiddles.
fn transform(line: &[[f64; 2]], twiddles: &[[f64; 2]], bins: usize) -> Vec<[f64; 2]> {
    let n = twiddles.len();
    let at = |k: usize| {
        line.iter().take(n).enumerate().fold([0.0; 2], |[re, im], (j, [a, b])| {
            let [c, s] = twiddles[(k as u128 * j as u128 % n as u128) as usize];
            [re + a * c - b * s, im + a * s + b * c]
        })
    };
    (0..if n == 0 { 0 } else { bins }).map(at).collect()
}

/// The full spectrum of a real signal of length `n` from its first half.
fn mirror(half: &[[f64; 2]], n: usize) -> Vec<[f64; 2]> {
    let get = |k: usize| half.get(k).copied().unwrap_or_default();
    (0..n)
        .map(|k| {
            if k <= n / 2 {
                return get(k);
            }
            let [re, im] = get(n - k);
            [re, -im]
        })
        .collect()
}

/// Most entries of a transform's matrix: 2048 complex points.
const MAX_MATRIX: usize = 1 << 24;

/// The transform of a line of `from` values as a matrix `[from * parts, bins * out_parts]`.
struct Matrix {
    from: usize,
    parts: usize,
    n: usize,
    bins: usize,
    out_parts: usize,
    inverse: bool,
    mirrored: bool,
}

impl Matrix {
    fn values(&self) -> Result<Vec<f64>, OpError> {
        let (rows, columns) = (self.from * self.parts, self.bins * self.out_parts);
        if rows.saturating_mul(columns) > MAX_MATRIX {
            return Err(OpError::new(format!("a transform of {} points is too long to compile", self.n)));
        }
        let twiddles = twiddles(self.n, self.inverse)?;
        let scale = if self.inverse { 1.0 / self.n as f64 } else { 1.0 };
        let mut out = vec![0.0; rows * columns];
        for j in 0..self.from.min(self.n) {
            // Where the sample stands in the whole line: the mirrored half holds its conjugate.
            let twin = self.n - j;
            let places: &[(usize, f64)] = match self.mirrored {
                true if j > self.n / 2 => &[],
                true if j > 0 && twin > self.n / 2 => &[(j, 1.0), (twin, -1.0)],
                _ => &[(j, 1.0)],
            };
            for part in 0..self.parts {
                let row = &mut out[(j * self.parts + part) * columns..][..columns];
                for k in 0..self.bins {
                    for &(place, sign) in places {
                        let [c, s] = twiddles[(k as u128 * place as u128 % self.n as u128) as usize];
                        let y = if part == 0 { [c, s] } else { [-s * sign, c * sign] };
                        for p in 0..self.out_parts {
                            row[k * self.out_parts + p] += y[p] * scale;
                        }
                    }
                }
            }
        }
        Ok(out)
    }

    /// `[.., from, parts]` to `[.., bins, out_parts]`.
    fn apply(&self, b: &mut Builder, x: ValueId) -> Result<ValueId, OpError> {
        let rank = b.shape(x)?.len();
        let lead = |last: &[i64]| -> Vec<Len> { (0..rank - 2).map(|i| Len::Of(x, i)).chain(last.iter().map(|&n| Len::N(n))).collect() };
        let (rows, columns) = (self.from * self.parts, self.bins * self.out_parts);
        let elem = b.elem(x)?;
        let matrix = b.constant(&Tensor::from_f64(elem, [rows, columns], self.values()?));
        let flat = b.reshape(x, &lead(&[rows as i64]))?;
        let y = b.op("matmul", &[flat, matrix])?;
        let mut lens: Vec<Len> = (0..rank - 2).map(|i| Len::Of(y, i)).collect();
        lens.extend([self.bins, self.out_parts].map(|n| Len::N(n as i64)));
        b.reshape(y, &lens)
    }
}

/// An integer operand, if it is given; it must be constant.
fn constant_int(b: &Builder, node: &Node, i: usize) -> Result<Option<i64>, OpError> {
    let Some(v) = node.operand(i) else { return Ok(None) };
    let value = b.module.as_constant(v).and_then(|c| c.decode().ok()?.to_i64s()?.first().copied());
    value.map(Some).ok_or_else(|| OpError::new(format!("operand {i} must be constant")))
}

fn length(b: &Builder, v: ValueId, axis: usize) -> Result<usize, OpError> {
    let known = b.shape(v)?[axis].as_const().and_then(|d| usize::try_from(d).ok());
    known.ok_or_else(|| OpError::new("the length of the signal must be known: fix it with `--dim`"))
}

/// A product with the matrix of the transform.
fn decompose_dft(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let x = node.need(0)?;
    let rank = b.shape(x)?.len();
    let axis = resolve_axis(constant_int(b, node, 2)?.unwrap_or(-2), rank)?;
    if rank < 2 || axis + 1 == rank {
        return Err(OpError::new("cannot transform along the last axis, which holds real and imaginary parts"));
    }
    let (inverse, half) = (node.flag("inverse"), node.flag("onesided"));
    let (from, parts) = (length(b, x, axis)?, length(b, x, rank - 1)?);
    let n = match constant_int(b, node, 1)? {
        Some(n) => usize::try_from(n).map_err(|_| OpError::new("the length must not be negative"))?,
        None if half && inverse => 2 * from.saturating_sub(1),
        None => from,
    };
    if n == 0 || !(1..=2).contains(&parts) {
        return Err(OpError::new("an empty transform"));
    }
    let matrix = Matrix {
        from,
        parts,
        n,
        bins: if half && !inverse { n / 2 + 1 } else { n },
        out_parts: if half && inverse { 1 } else { 2 },
        inverse,
        mirrored: half && inverse,
    };
    // The axis next to the parts, and back.
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 2);
    let x = b.transpose(x, &perm)?;
    let y = matrix.apply(b, x)?;
    Ok(vec![b.transpose(y, &perm)?])
}

/// The frames cut out, times the window, times the matrix of the transform.
fn decompose_stft(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let mut x = node.need(0)?;
    if b.shape(x)?.len() == 2 {
        x = b.unsqueeze(x, &[2])?;
    }
    let (len, parts) = (length(b, x, 1)?, length(b, x, 2)?);
    let step = constant_int(b, node, 1)?.and_then(|s| usize::try_from(s).ok()).unwrap_or(0);
    let window = node.operand(2);
    let frame = match (constant_int(b, node, 3)?, window) {
        (Some(n), _) => usize::try_from(n).unwrap_or(0),
        (None, Some(w)) => length(b, w, 0)?,
        (None, None) => len,
    };
    if step == 0 || frame == 0 || frame > len {
        return Err(OpError::new("the frame must fit the signal, and the step must be positive"));
    }
    let frames = (len - frame) / step + 1;
    let places: Vec<i64> = (0..frames).flat_map(|f| (0..frame).map(move |k| (f * step + k) as i64)).collect();
    let places = b.ints(&places);
    let cut = b.op_with("gather", &[x, places], [("axis", 1i64.into())])?;
    let lens = [Len::Of(x, 0), Len::N(frames as i64), Len::N(frame as i64), Len::N(parts as i64)];
    let mut cut = b.reshape(cut, &lens)?;
    if let Some(w) = window {
        let w = b.reshape(w, &[Len::N(frame as i64), Len::N(1)])?;
        cut = b.op("mul", &[cut, w])?;
    }
    let bins = if node.flag("onesided") { frame / 2 + 1 } else { frame };
    let matrix = Matrix { from: frame, parts, n: frame, bins, out_parts: 2, inverse: false, mirrored: false };
    Ok(vec![matrix.apply(b, cut)?])
}

fn infer_stft(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let (batch, length) = match ctx.shape(0)? {
        Some([batch, length] | [batch, length, _]) => (batch.clone(), length.clone()),
        None => (ctx.fresh_dim(), ctx.fresh_dim()),
        Some(_) => return Err(OpError::new("the signal must have rank 2 or 3")),
    };
    let frame = match (ctx.has(3), ctx.dims(3)) {
        (true, Some([n])) => n.clone(),
        (true, _) => ctx.fresh_dim(),
        (false, _) if ctx.has(2) => match ctx.shape(2)? {
            Some([n]) => n.clone(),
            _ => ctx.fresh_dim(),
        },
        (false, _) => length.clone(),
    };
    let one = Dim::from(1i64);
    let frames = match ctx.const_ints(1).as_deref() {
        Some(&[step]) if step > 0 => (length - &frame).floor_div(&Dim::from(step)) + one.clone(),
        _ => ctx.fresh_dim(),
    };
    let bins = if ctx.flag("onesided") { frame.floor_div(&Dim::from(2i64)) + one } else { frame };
    Ok(vec![Type::tensor(elem, [batch, frames, bins, Dim::from(2i64)])])
}

fn eval_stft(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let values = x.floats().ok_or_else(|| OpError::new("takes floats"))?;
    let (batch, length, parts) = match *x.shape() {
        [batch, length] => (batch, length, 1),
        [batch, length, parts @ (1 | 2)] => (batch, length, parts),
        _ => return Err(OpError::new("the signal must have shape [batch, length] or [batch, length, 1 or 2]")),
    };
    let step = size_operand(ctx, 1)?;
    let window = ctx.tensor_opt(2).and_then(Tensor::floats);
    let frame = if ctx.has(3) { size_operand(ctx, 3)? } else { window.map_or(length, <[f64]>::len) };
    if step == 0 || frame > length || window.is_some_and(|w| w.len() != frame) {
        return Err(OpError::new("the frame must fit the signal and the window, and the step must be positive"));
    }
    let half = ctx.flag("onesided");
    if half && parts == 2 {
        return Err(OpError::new("`onesided` needs a real signal"));
    }
    let (frames, bins) = ((length - frame) / step + 1, if half { frame / 2 + 1 } else { frame });
    let shape = vec![batch, frames, bins, 2];
    let mut out = Vec::with_capacity(checked_count(&shape)?);
    let twiddles = twiddles(frame, false)?;
    for b in 0..batch {
        for f in 0..frames {
            let line: Vec<[f64; 2]> = (0..frame)
                .map(|k| {
                    let (at, w) = ((b * length + f * step + k) * parts, window.map_or(1.0, |w| w[k]));
                    [values[at] * w, if parts == 2 { values[at + 1] * w } else { 0.0 }]
                })
                .collect();
            let mut row = transform(&line, &twiddles, bins);
            row.resize(bins, [0.0; 2]);
            out.extend(row.into_iter().flatten());
        }
    }
    Ok(vec![Tensor::from_f64(x.elem(), shape, out).into()])
}

fn eval_mel(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (mels, length, rate) = (size_operand(ctx, 0)?, size_operand(ctx, 1)?, size_operand(ctx, 2)?);
    let hertz = |i: usize| {
        let v = ctx.tensor(i)?.to_f64s().and_then(|v| v.first().copied());
        v.filter(|v| v.is_finite() && *v >= 0.0).ok_or_else(|| OpError::new(format!("operand {i} must be a frequency")))
    };
    let mel = |f: f64| 2595.0 * (1.0 + f / 700.0).log10();
    let (low, high) = (mel(hertz(3)?), mel(hertz(4)?));
    let bins = length / 2 + 1;
    let n = checked_count(&[bins, mels])?;
    if rate == 0 {
        return Err(OpError::new("`sample_rate` must be positive"));
    }
    let step = (high - low) / (mels + 2) as f64;
    let edge = |i: usize| {
        let f = 700.0 * (10f64.powf((low + step * i as f64) / 2595.0) - 1.0);
        let bin = ((length + 1) as f64 * f / rate as f64).floor();
        (bin >= 0.0 && bin < bins as f64).then_some(bin as usize).ok_or_else(|| OpError::new("an edge lies above half the sample rate"))
    };
    let mut out = vec![0.0; n];
    for i in 0..mels {
        let (left, centre, right) = (edge(i)?, edge(i + 1)?, edge(i + 2)?);
        if left == centre {
            out[centre * mels + i] = 1.0;
        }
        for j in left..centre + usize::from(centre > left) {
            out[j * mels + i] = (j - left) as f64 / (centre - left) as f64;
        }
        for j in centre..right {
            out[j * mels + i] = (right - j) as f64 / (right - centre) as f64;
        }
    }
    Ok(vec![typed(output_type(ctx.elem_attr("output_datatype")), vec![bins, mels], out)?])
}

#[cfg(test)]
mod tests {
    use crate::Attr;
    use crate::eval::testing::{f32s, i64s, refuses, run};
    use crate::tensor::Value;

    fn close(got: &[Value], shape: &[usize], expected: &[f64]) {
        let t = got[0].as_tensor().expect("a tensor");
        assert_eq!(t.shape(), shape);
        let near = |a: &f64, b: &f64| (a - b).abs() < 1e-6;
        assert!(t.floats().expect("floats").iter().zip(expected).all(|(a, b)| near(a, b)), "{t:?}");
    }

    #[test]
    fn transforms_and_their_inverses() {
        let x = f32s(&[1, 3, 1], &[1.0, 2.0, 4.0]);
        let half = [("onesided", Attr::Int(1))];
        let y = run("dft", std::slice::from_ref(&x), &half, 1).expect("transforms");
        close(&y, &[1, 2, 2], &[7.0, 0.0, -2.0, 3f64.sqrt()]);
        let back = [("onesided", Attr::Int(1)), ("inverse", Attr::Int(1))];
        let z = run("dft", &[y[0].clone(), i64s(&[], &[3])], &back, 1).expect("transforms");
        close(&z, &[1, 3, 1], &[1.0, 2.0, 4.0]);
        refuses("dft", &[y[0].clone()], &half, "real signal");
        let full = run("dft", &[x, i64s(&[], &[4])], &[], 1).expect("transforms");
        close(&full, &[1, 4, 2], &[7.0, 0.0, -3.0, -2.0, 3.0, 0.0, -3.0, 2.0]);
    }

    #[test]
    fn frames_and_windows() {
        let x = f32s(&[1, 4], &[1.0, 1.0, 2.0, 2.0]);
        let y = run("stft", &[x, i64s(&[], &[2]), f32s(&[2], &[1.0, 0.5])], &[], 1).expect("transforms");
        close(&y, &[1, 2, 2, 2], &[1.5, 0.0, 0.5, 0.0, 3.0, 0.0, 1.0, 0.0]);
        let w = run("hann_window", &[i64s(&[], &[3])], &[("periodic", Attr::Int(0))], 1).expect("a window");
        close(&w, &[3], &[0.0, 1.0, 0.0]);
    }
}
