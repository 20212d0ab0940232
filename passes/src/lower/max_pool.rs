//! Maximum pools of channels-last pixels: windows over each channel, as depthwise convolutions have them.

use super::Lowerer;
use super::conv::{MAX_TAPS, const_dims, pads, two_axes};
use super::conv_kernel::Schedule;
use super::expand::Facts;
use crate::schedules::Num;
use crate::schedules::codes::{Codes, Tail, Zero};
use crate::schedules::conv::{Conv, Pixels};
use crate::schedules::depthwise::Depthwise;
use lapidary_ir::kernel::contraction::PANEL;
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::window::WindowAttrs;
use lapidary_ir::{Dim, ElemType, NodeId};

/// Lowers `max_pool` of channels-last pixels as windows over each channel; false if it has no such schedule.
pub fn steps(low: &mut Lowerer, n: NodeId) -> Result<bool, OpError> {
    let Some((mut conv, batch)) = plan(&low.facts, n) else {
        return Ok(false);
    };
    let node = low.facts.module.node(n);
    let (Some(x), out) = (node.operand(0), node.results[0]) else {
        return Ok(false);
    };
    let y = low.channels_last_result(out)?;
    conv.x = low.pixels(x, conv.channels);
    conv.y = low.pixels(y, conv.channels);
    let small_tiles = !low.target.micro_kernels;
    let schedule = Schedule::Depthwise(Depthwise {
        conv,
        maximum: true,
        small_tiles,
    });
    schedule.launch(low, "max_pool", &[x, y], &batch)?;
    low.finish_result(y, out)?;
    Ok(true)
}

fn plan(facts: &Facts, n: NodeId) -> Option<(Conv, Dim)> {
    let node = facts.module.node(n);
    let (x, out) = (node.operand(0)?, *node.results.first()?);
    let elem = facts.elem(x).ok()?;
    if node.results.len() != 1
        || !matches!(elem, ElemType::F32 | ElemType::U8)
        || !facts.channels.contains_key(&x)
    {
        return None;
    }
    let (shape, result) = (facts.shape(x).ok()?, facts.shape(out).ok()?);
    let (input, output) = (
        const_dims(&shape[1..]).ok()?,
        const_dims(&result[1..]).ok()?,
    );
    let kernel = node.ints("kernel_shape")?;
    let rank = kernel.len();
    let window = WindowAttrs::read(node, kernel.clone()).ok()?;
    let pads = pads(&window, &input[1..], &output[1..]).ok()?;
    let fits = (0..rank).all(|i| {
        // Every window then begins inside the image or reaches into it.
        let last = (output[1 + i] - 1) * window.strides[i] - pads[i].0;
        window.dilations[i] == 1 && pads[i].0 < kernel[i] && last < input[1 + i]
    });
    if !(1..=2).contains(&rank)
        || input.len() != rank + 1
        || !fits
        || kernel.iter().product::<i64>() > MAX_TAPS
    {
        return None;
    }
    let channels = input[0];
    let two = |v: &[i64], unit: i64| two_axes(rank, v, unit);
    let begin: Vec<i64> = pads.iter().map(|p| p.0).collect();
    let conv = Conv {
        batch: shape[0].as_const().map_or(Num::Sym, Num::Const),
        input: two(&input[1..], 1),
        output: two(&output[1..], 1),
        channels,
        out_channels: channels,
        groups: channels,
        kernel: two(&kernel, 1),
        strides: two(&window.strides, 1),
        pads: two(&begin, 0),
        dilations: [1, 1],
        x: Pixels::dense(channels),
        y: Pixels::dense(channels),
        bias: false,
        residual: None,
        lo: None,
        hi: None,
        activation: None,
        codes: (elem == ElemType::U8).then_some(Codes {
            zero: Zero::Nothing,
            result: Some((ElemType::U8, 0)),
        }),
        bf16: false,
        tail: Tail::default(),
        tail_residuals: vec![],
        width: PANEL,
    };
    Some((conv, shape[0].clone()))
}

#[cfg(test)]
mod tests {
    use crate::lower::checks::{check, numbers};
    use lapidary_ir::Attr;

    #[test]
    fn maximum_pools_of_every_geometry() {
        type Case = (
            &'static [i64],
            &'static [i64],
            &'static [i64],
            &'static [i64],
            i64,
        );
        let cases: &[Case] = &[
            (&[3, 3], &[2, 2], &[1, 1, 1, 1], &[1, 1], 0),
            (&[2, 3], &[1, 2], &[1, 0, 0, 2], &[1, 1], 1),
            (&[3, 2], &[3, 2], &[0, 0, 0, 0], &[1, 1], 1),
            (&[2, 2], &[1, 1], &[0, 0, 0, 0], &[2, 3], 0),
        ];
        for (i, (kernel, strides, pads, dilations, ceil)) in cases.iter().enumerate() {
            for symbolic in [false, true] {
                check(&format!("pool{i}"), &[&[2, 4, 8, 9]], symbolic, |b, x| {
                    let w = b.constant(&numbers(&[19, 4, 1, 1], 5));
                    let y = b.op("conv", &[x[0], w]).expect("a convolution");
                    let ints = |v: &[i64]| Attr::Ints(v.to_vec());
                    let attrs = [
                        ("kernel_shape", ints(kernel)),
                        ("strides", ints(strides)),
                        ("pads", ints(pads)),
                        ("dilations", ints(dilations)),
                        ("ceil_mode", Attr::Int(*ceil)),
                    ];
                    let y = b.op_with("max_pool", &[y], attrs).expect("a pool");
                    let w = b.constant(&numbers(&[19, 1, 2, 2], 5));
                    let group = [("group", Attr::Int(19))];
                    let y = b.op_with("conv", &[y, w], group).expect("a convolution");
                    b.op("neg", &[y]).expect("neg")
                });
            }
        }
    }
}
