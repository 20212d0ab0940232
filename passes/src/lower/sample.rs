//! Sampling images at points that are data.

use super::expr::{Body, E};
use super::index::Pos;
use super::{Element, Rule};
use lapidary_ir::kernel::{Binary, Unary};
use lapidary_ir::ops::OpError;
use lapidary_ir::{Dim, ElemType};

/// The family's lowerings.
pub static RULES: &[Rule] = &[Rule::general("grid_sample", grid_sample)];

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// Float arithmetic on coordinates of one type.
struct Coordinates<'b> {
    b: &'b mut Body,
    ty: ElemType,
}

impl Coordinates<'_> {
    fn number(&mut self, v: f64) -> E {
        self.b.float(self.ty, v)
    }

    /// A length as a float, plus `plus`.
    fn length(&mut self, n: &Dim, plus: f64) -> E {
        let n = self.b.index(n.clone());
        let n = self.b.cast(self.ty, n);
        let plus = self.number(plus);
        self.b.binary(Binary::Add, n, plus)
    }

    fn op(&mut self, f: Binary, a: E, b: E) -> E {
        self.b.binary(f, a, b)
    }

    fn clamp(&mut self, at: E, low: E, high: E) -> E {
        let at = self.op(Binary::Max, at, low);
        self.op(Binary::Min, at, high)
    }

    /// Folds a coordinate back into `low..=high`.
    fn reflect(&mut self, at: E, low: E, high: E) -> E {
        let zero = self.number(0.0);
        let range = self.op(Binary::Sub, high, low);
        let twice = self.op(Binary::Add, range, range);
        let from_low = self.op(Binary::Sub, at, low);
        let offset = self.op(Binary::Mod, from_low, twice);
        let back = self.op(Binary::Sub, twice, offset);
        let beyond = self.op(Binary::Gt, offset, range);
        let folded = self.b.select(beyond, back, offset);
        let folded = self.op(Binary::Add, low, folded);
        // One pixel has no range to fold into; a point that is no number is anywhere.
        let flat = self.op(Binary::Le, range, zero);
        let low = self.op(Binary::Max, low, zero);
        let finite = self.op(Binary::Eq, from_low, from_low);
        let folded = self.b.select(finite, folded, low);
        self.b.select(flat, low, folded)
    }

    /// The pixel that is read at coordinate `p`, and whether there is one.
    fn pixel(&mut self, p: E, n: &Dim, padding: Padding, align: bool) -> (Dim, Option<E>) {
        let (zero, last) = (self.number(0.0), self.length(n, -1.0));
        let half = self.number(0.5);
        let p = match padding {
            Padding::Zeros | Padding::Border => p,
            Padding::Reflection if align => self.reflect(p, zero, last),
            Padding::Reflection => {
                let low = self.number(-0.5);
                let high = self.op(Binary::Add, last, half);
                self.reflect(p, low, high)
            }
        };
        let valid = (padding == Padding::Zeros).then(|| {
            let above = self.op(Binary::Ge, p, zero);
            let below = self.op(Binary::Le, p, last);
            self.op(Binary::And, above, below)
        });
        let p = self.clamp(p, zero, last);
        let p = self.op(Binary::Add, p, half);
        let p = self.b.unary(Unary::Floor, p);
        let i = self.b.cast(ElemType::I64, p);
        // Whatever the point was: nothing outside the image is read.
        let (zero, last) = (
            self.b.int(ElemType::I64, 0),
            self.b.index(n - &Dim::from(1i64)),
        );
        let i = self.b.binary(Binary::Min, i, last);
        let i = self.b.binary(Binary::Max, i, zero);
        (self.b.data_index(i), valid)
    }

    /// The cubic convolution kernel at distances of `t` (0..=1) plus -1, 0, 1 and 2 (Keys, equation 4).
    fn cubic(&mut self, t: E) -> [E; 4] {
        const A: f64 = -0.75;
        let one = self.number(1.0);
        let rest = self.op(Binary::Sub, one, t);
        let near = |s: &mut Self, d: E| {
            // ((a + 2) d - (a + 3)) d^2 + 1
            let (c2, c3) = (s.number(A + 2.0), s.number(A + 3.0));
            let y = s.op(Binary::Mul, c2, d);
            let y = s.op(Binary::Sub, y, c3);
            let y = s.op(Binary::Mul, y, d);
            let y = s.op(Binary::Mul, y, d);
            s.op(Binary::Add, y, one)
        };
        let far = |s: &mut Self, d: E| {
            // a (((d - 5) d + 8) d - 4) at 1 + d
            let d = s.op(Binary::Add, d, one);
            let [five, eight, four, a] = [5.0, 8.0, 4.0, A].map(|v| s.number(v));
            let y = s.op(Binary::Sub, d, five);
            let y = s.op(Binary::Mul, y, d);
            let y = s.op(Binary::Add, y, eight);
            let y = s.op(Binary::Mul, y, d);
            let y = s.op(Binary::Sub, y, four);
            s.op(Binary::Mul, a, y)
        };
        [
            far(self, t),
            near(self, t),
            near(self, rest),
            far(self, rest),
        ]
    }
}

/// One neighbour along an axis: where, whether it exists, and its weight.
type Tap = (Dim, Option<E>, Option<E>);

fn grid_sample(x: &mut Element, p: &Pos) -> Result<E, OpError> {
    let (shape, out) = (x.shape(0)?, x.out_shape()?);
    let padding = match x.text("padding_mode").as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => {
            return Err(OpError::new(format!(
                "attribute `padding_mode` must not be `{other}`"
            )));
        }
    };
    let (align, mode) = (x.flag("align_corners"), x.text("mode"));
    let r = shape.len() - 2;
    if r > 3 {
        return Err(OpError::new("kernels sample at most 3 spatial axes"));
    }
    let at = p.indices(&x.x.body, &out);
    let mut axes: Vec<Vec<Tap>> = vec![];
    for axis in 0..r {
        let coordinate = Dim::from(r - 1 - axis);
        let place = [&at[..1], &at[2..], &[coordinate]].concat();
        let g = x.at(1, &Pos::At(place))?;
        axes.push(taps(x.b(), g, &shape[2 + axis], padding, align, &mode)?);
    }
    let float = {
        let elem = x.elem(0)?;
        if elem.is_float() {
            super::expr::compute_type(elem)
        } else {
            ElemType::F32
        }
    };
    let mut sum: Option<E> = None;
    let mut choice = vec![0; r];
    loop {
        let chosen: Vec<&Tap> = choice
            .iter()
            .zip(&axes)
            .map(|(&c, taps)| &taps[c])
            .collect();
        let mut from = at[..2].to_vec();
        from.extend(chosen.iter().map(|t| t.0.clone()));
        let value = x.at(0, &Pos::At(from))?;
        let b = x.b();
        let mut value = b.cast(float, value);
        for valid in chosen.iter().filter_map(|t| t.1) {
            let zero = b.float(float, 0.0);
            value = b.select(valid, value, zero);
        }
        for weight in chosen.iter().filter_map(|t| t.2) {
            let weight = b.cast(float, weight);
            value = b.binary(Binary::Mul, value, weight);
        }
        sum = Some(match sum {
            Some(sum) => b.binary(Binary::Add, sum, value),
            None => value,
        });
        // The next combination, the last axis fastest.
        let Some(axis) = (0..r).rev().find(|&a| choice[a] + 1 < axes[a].len()) else {
            break;
        };
        choice[axis] += 1;
        choice[axis + 1..].fill(0);
    }
    let sum = sum.ok_or_else(|| OpError::new("an image without axes"))?;
    let elem = x.out_elem()?;
    Ok(x.b().cast(elem, sum))
}

/// The neighbours of normalized coordinate `g` along an axis of `n` pixels.
fn taps(
    b: &mut Body,
    g: E,
    n: &Dim,
    padding: Padding,
    align: bool,
    mode: &str,
) -> Result<Vec<Tap>, OpError> {
    let ty = b.ty(g);
    let mut c = Coordinates { b, ty };
    let (zero, one, half) = (c.number(0.0), c.number(1.0), c.number(0.5));
    let last = c.length(n, -1.0);
    let mut at = c.op(Binary::Add, g, one);
    if align {
        at = c.op(Binary::Mul, at, half);
        at = c.op(Binary::Mul, at, last);
    } else {
        let n = c.length(n, 0.0);
        at = c.op(Binary::Mul, at, n);
        at = c.op(Binary::Sub, at, one);
        at = c.op(Binary::Mul, at, half);
    }
    let cubic = matches!(mode, "cubic" | "bicubic");
    if !cubic {
        // Cubic filters read the unfolded neighbourhood; the others fold the point itself.
        at = match padding {
            Padding::Zeros => at,
            Padding::Border => c.clamp(at, zero, last),
            Padding::Reflection if align => c.reflect(at, zero, last),
            Padding::Reflection => {
                let low = c.number(-0.5);
                let high = c.op(Binary::Add, last, half);
                c.reflect(at, low, high)
            }
        };
    }
    let points: Vec<(E, Option<E>)> = match mode {
        "nearest" => vec![(c.b.unary(Unary::RoundEven, at), None)],
        "linear" | "bilinear" => {
            let low = c.b.unary(Unary::Floor, at);
            let high = c.op(Binary::Add, low, one);
            let (to_high, to_low) = (c.op(Binary::Sub, high, at), c.op(Binary::Sub, at, low));
            vec![(low, Some(to_high)), (high, Some(to_low))]
        }
        "cubic" | "bicubic" => {
            let low = c.b.unary(Unary::Floor, at);
            let t = c.op(Binary::Sub, at, low);
            let weights = c.cubic(t);
            let mut points = vec![];
            for (i, w) in weights.into_iter().enumerate() {
                let i = c.number(i as f64 - 1.0);
                points.push((c.op(Binary::Add, low, i), Some(w)));
            }
            points
        }
        other => {
            return Err(OpError::new(format!(
                "attribute `mode` must not be `{other}`"
            )));
        }
    };
    Ok(points
        .into_iter()
        .map(|(p, w)| {
            let (i, valid) = c.pixel(p, n, padding, align);
            (i, valid, w)
        })
        .collect())
}
