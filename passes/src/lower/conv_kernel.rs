//! Which kernel computes a convolution, and its filters in the order that the kernel reads.
//!
//! Constant filters are packed when the weights are written. Filters that are computed, such as decoded ones, are packed
//! by a kernel, which runs once, when a model is loaded, if they depend on weights alone.

use super::conv::is_depthwise;
use super::index::Pos;
use super::linear::dense;
use super::{KernelArg, Lowerer, Spec, WeightSource};
use crate::schedules::Num;
use crate::schedules::conv::Conv;
use crate::schedules::depthwise::Depthwise;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Constant, Dim, ElemType, ValueId};
use std::sync::Arc;

/// Operations worth waking another thread for.
const THREAD_WORK: i64 = 256 << 10;

/// Which kernel computes a convolution.
pub enum Schedule {
    /// A matrix product.
    Product(Conv),
    /// A window over each channel.
    Depthwise(Depthwise),
}

impl Schedule {
    pub fn of(low: &Lowerer, conv: Conv) -> Schedule {
        if is_depthwise(conv.groups, conv.channels, conv.out_channels) {
            let small_tiles = !low.target.micro_kernels;
            return Schedule::Depthwise(Depthwise {
                conv,
                maximum: false,
                small_tiles,
            });
        }
        Schedule::Product(conv)
    }

    /// The packed filters, if they are no constant.
    pub fn packed(&self, low: &mut Lowerer, w: ValueId) -> Result<ValueId, OpError> {
        match self {
            Schedule::Product(conv) => panels(low, conv, w),
            Schedule::Depthwise(d) => taps(low, &d.conv, w),
        }
    }

    /// The packed weights, made when they are written.
    pub fn weights(&self, low: &mut Lowerer, w: Constant) -> ValueId {
        let pack: Arc<dyn Fn(&[u8], &mut Vec<u8>) + Send + Sync>;
        let (elem, len);
        match self {
            Schedule::Product(conv) => {
                [_, elem, _] = conv.kind().elems();
                len = conv.packed_bytes() / elem.size_bytes();
                let conv = conv.clone();
                pack = Arc::new(move |bytes, out| conv.pack(bytes, out));
            }
            Schedule::Depthwise(d) => {
                elem = ElemType::F32;
                len = w.shape().iter().product();
                let d = d.clone();
                pack = Arc::new(move |bytes, out| d.pack(bytes, out));
            }
        }
        let made = move || {
            let mut out = Vec::with_capacity(len * elem.size_bytes());
            pack(&dense(&w)?, &mut out);
            Ok(out)
        };
        low.made_weight(elem, vec![len], WeightSource::Made(Arc::new(made)))
    }

    pub fn launch(
        &self,
        low: &mut Lowerer,
        name: &str,
        buffers: &[ValueId],
        batch: &Dim,
    ) -> Result<(), OpError> {
        let (kernel, blocks, conv) = match self {
            Schedule::Product(conv) => (conv.kernel(name), conv.blocks(), conv),
            Schedule::Depthwise(d) => (d.kernel(name), d.blocks(), &d.conv),
        };
        let mut args: Vec<KernelArg> = buffers.iter().copied().map(KernelArg::Value).collect();
        let mut images = Dim::from(1i64);
        if conv.batch == Num::Sym {
            args.push(KernelArg::Size(batch.clone()));
            images = batch.clone();
        }
        let work = 2 * conv.products();
        let per_block = (work / blocks.max(1)).max(1);
        let grain = (THREAD_WORK / per_block).clamp(1, 1 << 20) as u32;
        let (grid, flops) = (&images * &Dim::from(blocks), &images * &Dim::from(work));
        low.launch(kernel, &args, &grid, grain, &flops)
    }
}

/// The filters `w` `[oc, c / groups, (kh,) kw]` in panels.
fn panels(low: &mut Lowerer, conv: &Conv, w: ValueId) -> Result<ValueId, OpError> {
    let (c, taps) = (conv.channels / conv.groups, conv.kernel[0] * conv.kernel[1]);
    let (oc, width) = (conv.group_out(), i64::from(conv.width));
    let count = (oc + width - 1) / width;
    let shape = [conv.groups, count, taps * c, width]
        .map(Dim::from)
        .to_vec();
    let out = low.temporary(ElemType::F32, shape.clone());
    low.kernel("pack_filters", out, |x| {
        let vars = x.body.loop_vars(&shape);
        let [group, panel, k, lane] = [0, 1, 2, 3].map(|i: usize| vars[i].dim());
        let column = &(&panel * &Dim::from(width)) + &lane;
        let of_channels = Dim::from(c);
        let (channel, tap) = (x.body.rem(&k, &of_channels), x.body.div(&k, &of_channels));
        let row = &(&group * &Dim::from(oc)) + &column;
        let at = position(x, row, channel, tap, conv.kernel[1], w)?;
        let mut value = x.value(w, &at)?;
        if oc % width != 0 {
            let inside = x.body.index_less(&column, &Dim::from(oc));
            let zero = x.body.float(ElemType::F32, 0.0);
            value = x.body.where_inside(inside, value, zero);
        }
        Ok(Spec {
            offset: Pos::At(vars.iter().map(|v| v.dim()).collect()).linear(&shape),
            vars,
            mask: None,
            value,
            serial: vec![],
        })
    })?;
    Ok(out)
}

/// The filters `w` `[c, 1, (kh,) kw]` of a depthwise convolution, tap by tap.
fn taps(low: &mut Lowerer, conv: &Conv, w: ValueId) -> Result<ValueId, OpError> {
    let shape = vec![
        Dim::from(conv.kernel[0] * conv.kernel[1]),
        Dim::from(conv.channels),
    ];
    let out = low.temporary(ElemType::F32, shape.clone());
    low.kernel("pack_taps", out, |x| {
        let vars = x.body.loop_vars(&shape);
        let (tap, channel) = (vars[0].dim(), vars[1].dim());
        let at = position(x, channel, Dim::from(0i64), tap, conv.kernel[1], w)?;
        Ok(Spec {
            offset: Pos::At(vec![vars[0].dim(), vars[1].dim()]).linear(&shape),
            value: x.value(w, &at)?,
            vars,
            mask: None,
            serial: vec![],
        })
    })?;
    Ok(out)
}

/// Where a filter's element is: filters have one or two spatial axes.
fn position(
    x: &mut super::Expand,
    row: Dim,
    channel: Dim,
    tap: Dim,
    kw: i64,
    w: ValueId,
) -> Result<Pos, OpError> {
    let kw = Dim::from(kw);
    Ok(Pos::At(if x.facts.shape(w)?.len() == 3 {
        vec![row, channel, tap]
    } else {
        let (y, x) = (x.body.div(&tap, &kw), x.body.rem(&tap, &kw));
        vec![row, channel, y, x]
    }))
}
