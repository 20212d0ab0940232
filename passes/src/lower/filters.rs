//! Filters that are computed, such as decoded ones, in the order that convolutions read: the packing of [`Conv::pack`] and
//! [`Depthwise::pack`] as a kernel. It runs once, when a model is loaded, if the filters depend on weights alone.
//!
//! [`Depthwise::pack`]: crate::schedules::depthwise::Depthwise::pack

use super::index::Pos;
use super::{Lowerer, Spec};
use crate::schedules::conv::Conv;
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, ElemType, ValueId};

/// The filters `w` `[oc, c / groups, (kh,) kw]` in panels.
pub fn panels(low: &mut Lowerer, conv: &Conv, w: ValueId) -> Result<ValueId, OpError> {
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
pub fn taps(low: &mut Lowerer, conv: &Conv, w: ValueId) -> Result<ValueId, OpError> {
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
