//! Convolutions.

use super::expr::{Body, E};
use super::index::{LoopVar, Pos};
use super::{Element, Rule};
use lapidary_ir::Dim;
use lapidary_ir::kernel::{Binary, ReduceKind};
use lapidary_ir::ops::OpError;
use lapidary_ir::ops::window::WindowAttrs;

/// The family's lowerings.
pub static RULES: &[Rule] = &[Rule::general("conv", |x, p| {
    let (shape, w, out) = (x.shape(0)?, x.shape(1)?, x.out_shape()?);
    let at = p.indices(&x.x.body, &out);
    let group = x.int("group").unwrap_or(1).max(1);
    let kernel = const_dims(&w[2..])?;
    let window = Taps::new(x, kernel, &shape[2..], &out[2..])?;
    let channel = x.b().loop_var(w[1].clone());
    let per_group = w[0].floor_div(&Dim::from(group));
    let first = if group == 1 {
        Dim::default()
    } else {
        x.b().div(&at[1], &per_group) * w[1].clone()
    };
    let (spatial, inside) = window.place(&mut x.x.body, &at[2..], &shape[2..]);
    let from = [&[at[0].clone(), first + channel.dim()][..], &spatial].concat();
    let value = x.at(0, &Pos::At(from))?;
    let taps: Vec<Dim> = window.vars.iter().map(|v| v.dim()).collect();
    let weight = x.at(
        1,
        &Pos::At([&[at[1].clone(), channel.dim()][..], &taps].concat()),
    )?;
    let b = x.b();
    let zero = b.int(b.ty(value), 0);
    let value = b.where_inside(inside, value, zero);
    let product = b.binary(Binary::Mul, value, weight);
    let vars = [&[channel], &window.vars[..]].concat();
    let mut y = b.reduce(ReduceKind::Sum, &vars, product);
    if x.has(2) {
        let bias = x.at(2, &Pos::At(vec![at[1].clone()]))?;
        y = x.b().binary(Binary::Add, y, bias);
    }
    Ok(y)
})];

/// Dimensions that must be numbers.
pub fn const_dims(d: &[Dim]) -> Result<Vec<i64>, OpError> {
    d.iter()
        .map(Dim::as_const)
        .collect::<Option<_>>()
        .ok_or_else(|| OpError::new("the kernel's shape must be constant"))
}

/// The loops over a window's taps.
pub struct Taps {
    /// One loop per spatial axis.
    pub vars: Vec<LoopVar>,
    /// Taps per axis.
    pub kernel: Vec<i64>,
    /// Steps between windows.
    pub strides: Vec<i64>,
    /// Steps between taps.
    pub dilations: Vec<i64>,
    /// Padding before the input.
    pub begin: Vec<Dim>,
    /// Declared padding after the input.
    pub end: Vec<Dim>,
}

impl Taps {
    /// Reads the node's window attributes and opens the loops.
    pub fn new(
        x: &mut Element,
        kernel: Vec<i64>,
        input: &[Dim],
        out: &[Dim],
    ) -> Result<Taps, OpError> {
        let w = WindowAttrs::read(x.n(), kernel)?;
        let n = w.kernel.len();
        let (mut begin, mut end) = (vec![], vec![]);
        for i in 0..n {
            let (b, e) = match w.auto_pad.as_str() {
                "NOTSET" => (Dim::from(w.pads[i]), Dim::from(w.pads[n + i])),
                "VALID" => (Dim::default(), Dim::default()),
                same => {
                    let spans = (&out[i] - &Dim::from(1i64)) * Dim::from(w.strides[i])
                        + Dim::from(w.reach(i)?);
                    let need = (spans - &input[i]).max_dim(&Dim::default());
                    let small = need.floor_div(&Dim::from(2i64));
                    let large = &need - &small;
                    if same == "SAME_UPPER" {
                        (small, large)
                    } else {
                        (large, small)
                    }
                }
            };
            begin.push(b);
            end.push(e);
        }
        let extents: Vec<Dim> = w.kernel.iter().map(|&k| Dim::from(k)).collect();
        Ok(Taps {
            vars: x.b().loop_vars(&extents),
            kernel: w.kernel,
            strides: w.strides,
            dilations: w.dilations,
            begin,
            end,
        })
    }

    /// Where the taps of the window at `at` lie in the input, and whether that is inside.
    pub fn place(&self, b: &mut Body, at: &[Dim], input: &[Dim]) -> (Vec<Dim>, E) {
        let mut inside = b.bool(true);
        let mut place = vec![];
        for (i, v) in self.vars.iter().enumerate() {
            let p = &at[i] * &Dim::from(self.strides[i]) + v.dim() * Dim::from(self.dilations[i])
                - &self.begin[i];
            let here = b.index_within(&p, &input[i]);
            inside = b.binary(Binary::And, inside, here);
            place.push(p);
        }
        (place, inside)
    }
}
