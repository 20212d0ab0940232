//! Scattering windows: the transposed convolution and `col2im`.

use super::{AUTO_PAD, DILATIONS, GROUP, KERNEL_SHAPE, PADS, STRIDES, kernel_of};
use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::ops::linear::checked_count;
use crate::ops::window::{image, image_shape, list, unravel};
use crate::ops::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand, Tolerance};
use crate::tensor::{Data, Tensor, Value, count};
use crate::{Dim, Type, ValueId};

/// Transposed convolution.
pub static CONV_TRANSPOSE: OpDef = OpDef {
    name: "conv_transpose",
    summary: "gradient of a convolution: every input element scatters `[c, m/group, kernel..]`",
    source: "ONNX ConvTranspose-22",
    operands: &[Operand::One("x"), Operand::One("w"), Operand::Optional("b")],
    attrs: &[
        AUTO_PAD,
        DILATIONS,
        GROUP,
        KERNEL_SHAPE,
        AttrDef::new("output_padding", AttrKind::Ints, Default::Absent, "extra length at the end of each axis; 0 each"),
        AttrDef::new("output_shape", AttrKind::Ints, Default::Absent, "spatial lengths; pads follow from it"),
        PADS,
        STRIDES,
    ],
    infer: infer_transpose,
    eval: Eval::Direct(eval_transpose),
    decompose: Some(decompose_transpose),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Sum of overlapping blocks.
pub static COL2IM: OpDef = OpDef {
    name: "col2im",
    summary: "sums the columns `[n, c * block.., places]` back into the image they were cut from",
    source: "ONNX Col2Im-18",
    operands: &[Operand::One("input"), Operand::One("image_shape"), Operand::One("block_shape")],
    attrs: &[DILATIONS, PADS, STRIDES],
    infer: infer_col2im,
    eval: Eval::Direct(eval_col2im),
    tolerance: Tolerance::Approximate(1e-5, 1e-6),
    ..OpDef::BASE
};

/// Geometry of a scatter: where tap `k` of place `p` lands along each axis.
struct Scatter {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    begin: Vec<i64>,
    input: Vec<usize>,
    out: Vec<usize>,
}

impl Scatter {
    /// Linear output position of a tap of an input place, if it is not cut off.
    fn target(&self, place: &[usize], tap: &[usize]) -> Option<usize> {
        let mut position = 0;
        for i in 0..self.out.len() {
            let p = (place[i] * self.strides[i] + tap[i] * self.dilations[i]) as i64 - self.begin[i];
            let p = usize::try_from(p).ok().filter(|&p| p < self.out[i])?;
            position = position * self.out[i] + p;
        }
        Some(position)
    }

    /// For every place and tap its target: `places * taps` entries.
    fn targets(&self) -> Vec<Option<usize>> {
        let (places, taps) = (count(&self.input), count(&self.kernel));
        let taps: Vec<Vec<usize>> = (0..taps).map(|t| unravel(t, &self.kernel)).collect();
        (0..places)
            .flat_map(|p| {
                let place = unravel(p, &self.input);
                taps.iter().map(move |t| self.target(&place, t)).collect::<Vec<_>>()
            })
            .collect()
    }
}

struct TransposeAttrs {
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    extra: Vec<i64>,
    shape: Option<Vec<i64>>,
    auto_pad: String,
}

impl TransposeAttrs {
    fn read(node: &Node, n: usize) -> Result<TransposeAttrs, OpError> {
        let shape = node.ints("output_shape").filter(|s| !s.is_empty());
        // Some exporters give batch and channels as well.
        let shape = shape.map(|s| s[s.len().saturating_sub(n)..].to_vec());
        if shape.as_ref().is_some_and(|s| s.len() != n || s.iter().any(|&d| !(0..=i64::from(i32::MAX)).contains(&d))) {
            return Err(OpError::new(format!("attribute `output_shape` must give {n} lengths")));
        }
        let auto_pad = node.text("auto_pad");
        if !["", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"].contains(&auto_pad.as_str()) {
            return Err(OpError::new(format!("attribute `auto_pad` must not be `{auto_pad}`")));
        }
        Ok(TransposeAttrs {
            strides: list(node, "strides", n, 1, 1)?,
            dilations: list(node, "dilations", n, 1, 1)?,
            pads: list(node, "pads", 2 * n, 0, 0)?,
            extra: list(node, "output_padding", n, 0, 0)?,
            shape,
            auto_pad,
        })
    }

    /// Output length along axis `i`, and the padding cut off at its beginning (known if lengths are).
    fn axis(&self, i: usize, input: &Dim, kernel: i64) -> Result<(Dim, Option<i64>), OpError> {
        let n = self.strides.len();
        let reach = (kernel - 1).checked_mul(self.dilations[i]).ok_or_else(|| OpError::new("the window is too large"))? + 1;
        let full = Dim::from(self.strides[i]) * (input - &Dim::from(1i64)) + Dim::from(self.extra[i] + reach);
        let out = match (&self.shape, self.auto_pad.starts_with("SAME")) {
            (Some(shape), _) => Dim::from(shape[i]),
            (None, true) => input * &Dim::from(self.strides[i]),
            (None, false) if self.auto_pad == "VALID" => return Ok((full, Some(0))),
            (None, false) => return Ok((full - Dim::from(self.pads[i] + self.pads[n + i]), Some(self.pads[i]))),
        };
        let total = (&full - &out).as_const().map(|t| t.max(0));
        let begin = total.map(|t| if self.auto_pad == "SAME_UPPER" { t / 2 } else { t - t / 2 });
        Ok((out, begin))
    }
}

fn infer_transpose(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    if ctx.elem(1)? != elem {
        return Err(OpError::new("operands must have one element type"));
    }
    let filters = ctx.shape(1)?;
    let Some((n, c, spatial)) = image(ctx, 0)? else {
        return Ok(vec![Type::unranked(elem)]);
    };
    if let Some(f) = filters {
        if f.len() != spatial.len() + 2 {
            return Err(OpError::new(format!("filters of rank {} meet an input of rank {}", f.len(), spatial.len() + 2)));
        }
        if let (Some(p), Some(q)) = (c.as_const(), f[0].as_const())
            && p != q
        {
            return Err(OpError::new(format!("{p} channels meet filters for {q}")));
        }
    }
    let attrs = TransposeAttrs::read(ctx.node, spatial.len())?;
    let mut shape = vec![n.clone()];
    shape.push(match filters {
        Some(f) => &f[1] * &Dim::from(ctx.int("group")?),
        None => ctx.fresh_dim(),
    });
    match kernel_of(ctx.node, filters)? {
        Some(kernel) if kernel.len() == spatial.len() => {
            for (i, d) in spatial.iter().enumerate() {
                shape.push(attrs.axis(i, d, kernel[i])?.0);
            }
        }
        _ => shape.extend(spatial.iter().map(|_| ctx.fresh_dim())),
    }
    if shape.iter().any(|d| d.as_const().is_some_and(|d| d < 0)) {
        return Err(OpError::new("the padding is larger than the output"));
    }
    Ok(vec![Type::tensor(elem, shape)])
}

/// A convolution with turned filters over the input with zeros between its elements. Spatial lengths must be known.
fn decompose_transpose(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (x, w) = (node.need(0)?, node.need(1)?);
    let numbers = |b: &Builder, v: ValueId, from: usize| -> Result<Vec<i64>, OpError> {
        let dims = b.shape(v)?.get(from..).unwrap_or_default().iter().map(Dim::as_const).collect::<Option<_>>();
        dims.ok_or_else(|| OpError::new("spatial lengths and filters must be known: fix dimensions with `--dim`"))
    };
    let (input, filters) = (numbers(b, x, 2)?, numbers(b, w, 0)?);
    let group = node.int("group")?;
    let (Some(&[c, per_group]), n) = (filters.get(..2), input.len()) else {
        return Err(OpError::new("filters must have rank 3 or more"));
    };
    if group <= 0 || c % group != 0 || filters.len() != n + 2 {
        return Err(OpError::new("filters do not fit the input"));
    }
    let kernel = &filters[2..];
    let attrs = TransposeAttrs::read(node, n)?;
    // Zeros between the elements of each axis: an axis of its own, padded, merged.
    let mut y = x;
    if attrs.strides.iter().any(|&s| s > 1) {
        let (mut apart, mut pads, mut merged) = (vec![Len::Of(x, 0), Len::Of(x, 1)], vec![0; 2], vec![Len::Of(x, 0), Len::Of(x, 1)]);
        for (&len, &stride) in input.iter().zip(&attrs.strides) {
            apart.extend([Len::N(len), Len::N(1)]);
            pads.extend([0, stride - 1]);
            merged.push(Len::N(len * stride));
        }
        y = b.reshape(y, &apart)?;
        let pads = b.ints(&[vec![0; pads.len()], pads].concat());
        y = b.op("pad", &[y, pads])?;
        y = b.reshape(y, &merged)?;
    }
    let (mut before, mut after) = (vec![0; 2], vec![0; 2]);
    for i in 0..n {
        let (out, begin) = attrs.axis(i, &Dim::from(input[i]), kernel[i])?;
        let (Some(out), Some(begin)) = (out.as_const(), begin) else {
            return Err(OpError::new("the padding must be known"));
        };
        let reach = attrs.dilations[i] * (kernel[i] - 1);
        before.push(reach - begin);
        // What the convolution must read in all, less what is there.
        after.push(out + reach - input[i] * attrs.strides[i] - (reach - begin));
    }
    let pads = b.ints(&[before, after].concat());
    y = b.op("pad", &[y, pads])?;
    // [c, m/group, kernel..] to [m, c/group, kernel..], turned around.
    let spatial = kernel.iter().map(|&k| Len::N(k));
    let grouped: Vec<Len> = [group, c / group, per_group].map(Len::N).into_iter().chain(spatial.clone()).collect();
    let mut f = b.reshape(w, &grouped)?;
    let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..n + 3).collect();
    f = b.transpose(f, &perm)?;
    let flat: Vec<Len> = [group * per_group, c / group].map(Len::N).into_iter().chain(spatial).collect();
    f = b.reshape(f, &flat)?;
    for axis in 2..n + 2 {
        f = b.slice_step(f, axis as i64, -1, i64::MIN, -1)?;
    }
    let attrs = [("group", group.into()), ("dilations", attrs.dilations.into())];
    b.multi("conv", &[Some(y), Some(f), node.operand(2)], &attrs, 1)
}

fn eval_transpose(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let (x, w) = (ctx.tensor(0)?, ctx.tensor(1)?);
    let (n, c, spatial) = image_shape(x.shape())?;
    let (cw, m_group, kernel) = image_shape(w.shape())?;
    let group = usize::try_from(ctx.int("group")?).ok().filter(|&g| g > 0 && c % g == 0);
    let Some(group) = group.filter(|_| cw == c && kernel.len() == spatial.len()) else {
        return Err(OpError::new(format!("filters {:?} do not fit an input {:?}", w.shape(), x.shape())));
    };
    let attrs = TransposeAttrs::read(ctx.node, spatial.len())?;
    let mut scatter = Scatter {
        kernel: kernel.to_vec(),
        strides: attrs.strides.iter().map(|&v| v as usize).collect(),
        dilations: attrs.dilations.iter().map(|&v| v as usize).collect(),
        begin: vec![],
        input: spatial.to_vec(),
        out: vec![],
    };
    for i in 0..spatial.len() {
        let (out, begin) = attrs.axis(i, &Dim::from(spatial[i]), kernel[i] as i64)?;
        let out = out.as_const().and_then(|d| usize::try_from(d).ok());
        scatter.out.push(out.ok_or_else(|| OpError::new("the padding is larger than the output"))?);
        scatter.begin.push(begin.unwrap_or(0));
    }
    let m = m_group * group;
    let mut shape = vec![n, m];
    shape.extend(&scatter.out);
    let (Some(xs), Some(ws)) = (x.floats(), w.floats()) else {
        return Err(OpError::new(format!("is not defined for {}", x.elem())));
    };
    let (places, taps, plane) = (count(spatial), count(kernel), count(&scatter.out));
    let targets = scatter.targets();
    let mut out = vec![0.0; checked_count(&shape)?];
    for i in 0..n {
        for ch in 0..c {
            let first = ch / (c / group) * m_group;
            for o in 0..m_group {
                let base = (i * m + first + o) * plane;
                let filter = &ws[(ch * m_group + o) * taps..][..taps];
                for p in 0..places {
                    let v = xs[(i * c + ch) * places + p];
                    for (t, f) in filter.iter().enumerate() {
                        if let Some(at) = targets[p * taps + t] {
                            out[base + at] += v * f;
                        }
                    }
                }
            }
        }
    }
    if let Some(bias) = ctx.tensor_opt(2).and_then(Tensor::floats) {
        if bias.len() != m {
            return Err(OpError::new(format!("a bias of {m} elements is needed")));
        }
        out.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i / plane.max(1) % m]);
    }
    Ok(vec![Tensor::from_f64(x.elem(), shape, out).into()])
}

fn infer_col2im(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let rank = |i: usize| -> Result<Option<usize>, OpError> {
        Ok(ctx.shape(i)?.and_then(|s| s.first()?.as_const()).and_then(|n| usize::try_from(n).ok()))
    };
    let spatial = match (ctx.dims(1), rank(1)?.or(rank(2)?)) {
        (Some(dims), _) => dims.to_vec(),
        (None, Some(n)) if n <= 16 => (0..n).map(|_| ctx.fresh_dim()).collect(),
        _ => return Ok(vec![Type::unranked(elem)]),
    };
    let (n, columns) = match ctx.shape(0)? {
        Some([n, c, _]) => (n.clone(), Some(c.clone())),
        Some(_) => return Err(OpError::new("operand 0 must have rank 3")),
        None => (ctx.fresh_dim(), None),
    };
    let channels = match (columns, ctx.dims(2)) {
        (Some(c), Some(block)) => {
            let block = block.iter().fold(Dim::from(1i64), |a, b| &a * b);
            if c.modulo(&block).as_const().is_some_and(|r| r != 0) {
                return Err(OpError::new(format!("{c} rows do not divide into blocks of {block}")));
            }
            c.floor_div(&block)
        }
        _ => ctx.fresh_dim(),
    };
    let mut shape = vec![n, channels];
    shape.extend(spatial);
    Ok(vec![Type::tensor(elem, shape)])
}

fn eval_col2im(ctx: &EvalCtx) -> Result<Vec<Value>, OpError> {
    let x = ctx.tensor(0)?;
    let lengths = |i: usize| -> Result<Vec<usize>, OpError> {
        let v = ctx.i64s(i)?;
        v.iter().map(|&d| usize::try_from(d).ok().filter(|&d| d <= 1 << 31)).collect::<Option<_>>().ok_or_else(|| OpError::new(format!("operand {i} must hold lengths")))
    };
    let (image, block) = (lengths(1)?, lengths(2)?);
    let n = image.len();
    let (strides, dilations, pads) =
        (list(ctx.node, "strides", n, 1, 1)?, list(ctx.node, "dilations", n, 1, 1)?, list(ctx.node, "pads", 2 * n, 0, 0)?);
    let taps = checked_count(&block)?;
    let &[batch, rows, places] = x.shape() else {
        return Err(OpError::new("operand 0 must have rank 3"));
    };
    if block.len() != n || taps == 0 || rows % taps != 0 {
        return Err(OpError::new(format!("a block {block:?} does not fit {rows} rows and an image {image:?}")));
    }
    let mut input = vec![];
    for i in 0..n {
        let reach = (block[i] as i64 - 1) * dilations[i] + 1;
        let slack = image[i] as i64 + pads[i] + pads[n + i] - reach;
        input.push(if slack < 0 { 0 } else { (slack / strides[i] + 1) as usize });
    }
    if checked_count(&input)? != places {
        return Err(OpError::new(format!("{places} columns are given, the image has {}", count(&input))));
    }
    let scatter = Scatter {
        kernel: block,
        strides: strides.iter().map(|&v| v as usize).collect(),
        dilations: dilations.iter().map(|&v| v as usize).collect(),
        begin: pads[..n].to_vec(),
        input,
        out: image,
    };
    let c = rows / taps;
    let mut shape = vec![batch, c];
    shape.extend(&scatter.out);
    let total = checked_count(&shape)?;
    let plane = count(&scatter.out);
    let targets = scatter.targets();
    // (element of the result, element of the operand), in the order of the columns.
    let pairs = (0..batch * c).flat_map(|block| {
        let targets = &targets;
        (0..taps).flat_map(move |t| {
            (0..places).filter_map(move |p| Some((block * plane + targets[p * taps + t]?, (block * taps + t) * places + p)))
        })
    });
    let out = match x.data() {
        Data::Float(v) => {
            let mut out = vec![0.0; total];
            pairs.for_each(|(to, from)| out[to] += v[from]);
            Tensor::from_f64(x.elem(), shape, out)
        }
        Data::Int(v) => {
            let mut out = vec![0i128; total];
            pairs.for_each(|(to, from)| out[to] += v[from]);
            Tensor::from_int(x.elem(), shape, out)
        }
        Data::Complex(v) => {
            let mut out = vec![[0.0; 2]; total];
            pairs.for_each(|(to, from)| out[to] = [out[to][0] + v[from][0], out[to][1] + v[from][1]]);
            Tensor::new(x.elem(), shape, Data::Complex(out))
        }
        Data::Str(_) => return Err(OpError::new("is not defined for strings")),
    };
    Ok(vec![out.into()])
}
