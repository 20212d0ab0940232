//! Random numbers: random_normal, random_uniform, their `_like` forms, bernoulli, multinomial, dropout.
//!
//! ONNX leaves the generator open. Ours is SplitMix64, started with the seed's bits, so that a seed gives
//! the same numbers on every machine; without a seed every call draws anew. Normal numbers are by Box
//! and Muller, the cosine branch. Numbers are drawn in row-major order of the result.
//! Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

use super::call::{Call, Results, fail, length, one};
use super::number;
use crate::bytes::Bytes;
use crate::error::RunError;
use crate::value::{Tensor, count};
use lapidary_abi::ElemType;
use std::sync::atomic::{AtomicU64, Ordering};

struct Generator(u64);

impl Generator {
    fn of(call: &Call) -> Generator {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        match (call.attr_float("seed"), call.attr_int_opt("seed")) {
            (Some(seed), _) => Generator(u64::from(seed.to_bits())),
            (None, Some(seed)) => Generator(seed as u64),
            _ => {
                let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let time = time.map_or(0, |t| t.as_nanos() as u64);
                Generator(mix(CALLS.fetch_add(1, Ordering::Relaxed) ^ time))
            }
        }
    }

    /// A number in [0, 1).
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        // 1 - u keeps the logarithm finite.
        let (u, v) = (1.0 - self.unit(), self.unit());
        (-2.0 * libm::log(u)).sqrt() * libm::cos(std::f64::consts::TAU * v)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Element type and shape of the result: by attributes, or like the operand's.
fn result_type(call: &Call) -> Result<(ElemType, Vec<usize>), RunError> {
    let given = call.attr_elem("dtype");
    if call.has(0) {
        let like = call.tensor(0)?;
        return Ok((given.unwrap_or(like.elem()), like.dims().to_vec()));
    }
    let shape = call.attr_ints("shape").unwrap_or_default();
    let dims = shape.iter().map(|&d| length(d)).collect::<Result<_, _>>()?;
    Ok((given.unwrap_or(ElemType::F32), dims))
}

fn fill(call: &Call, mut draw: impl FnMut(&mut Generator) -> f64) -> Results {
    let (elem, dims) = result_type(call)?;
    let mut generator = Generator::of(call);
    let values = (0..count(&dims)?).map(|_| draw(&mut generator));
    if elem.is_float() {
        one(number::from_floats(
            elem,
            dims,
            &values.collect::<Vec<_>>(),
        )?)
    } else if elem.int_range().is_some() {
        let whole: Vec<i128> = values.map(|v| v as i128).collect();
        one(number::from_ints(elem, dims, &whole)?)
    } else {
        fail(format!("cannot draw numbers of type {elem}"))
    }
}

fn parameter(call: &Call, name: &str, default: f32) -> f64 {
    call.attr_float(name).unwrap_or(default).into()
}

pub fn normal(call: &Call) -> Results {
    let (mean, scale) = (parameter(call, "mean", 0.0), parameter(call, "scale", 1.0));
    fill(call, |g| mean + scale * g.normal())
}

pub fn uniform(call: &Call) -> Results {
    let (low, high) = (parameter(call, "low", 0.0), parameter(call, "high", 1.0));
    fill(call, |g| low + (high - low) * g.unit())
}

pub fn bernoulli(call: &Call) -> Results {
    let probabilities = number::floats(call.tensor(0)?);
    let mut next = probabilities.iter();
    fill(call, |g| {
        f64::from(u8::from(g.unit() < next.next().copied().unwrap_or(0.0)))
    })
}

pub fn multinomial(call: &Call) -> Results {
    let logits = call.tensor(0)?;
    let &[batch, classes] = logits.dims() else {
        return fail("takes rank 2");
    };
    let n = length(call.attr_int("sample_size", 1))?;
    count(&[batch, n])?;
    if classes == 0 {
        return fail("there is no category to draw");
    }
    let mut generator = Generator::of(call);
    let mut samples = Vec::with_capacity(batch * n);
    for row in 0..batch {
        let row: Vec<f64> = (0..classes)
            .map(|c| number::float(logits, row * classes + c))
            .collect();
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = row.iter().map(|l| libm::exp(l - top)).collect();
        let total: f64 = weights.iter().sum();
        for _ in 0..n {
            let mut left = generator.unit() * total;
            let class = weights.iter().position(|w| {
                left -= w;
                left < 0.0
            });
            samples.push(class.unwrap_or(classes - 1) as i128);
        }
    }
    one(number::from_ints(
        call.attr_elem("dtype").unwrap_or(ElemType::I32),
        vec![batch, n],
        &samples,
    )?)
}

pub fn dropout(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let ratio = call.float(1)?.unwrap_or(0.5);
    let training = call.float(2)?.unwrap_or(0.0) != 0.0;
    let dims = data.dims().to_vec();
    let all = |value: u8| Bytes::copy_of(&vec![value; data.len()]);
    if !training || ratio == 0.0 {
        let mask = Tensor::from_bytes(ElemType::Bool, dims, all(1)?)?;
        return Ok(vec![data.to_tensor()?.into(), mask.into()]);
    }
    if !(0.0..1.0).contains(&ratio) {
        return fail(format!("ratio {ratio} is not in [0, 1)"));
    }
    let mut generator = Generator::of(call);
    let mut mask = all(0)?;
    let mut values = Vec::with_capacity(data.len());
    for i in 0..data.len() {
        let keep = generator.unit() >= ratio;
        mask.as_mut_slice()[i] = keep.into();
        values.push(if keep {
            number::float(data, i) / (1.0 - ratio)
        } else {
            0.0
        });
    }
    let mask = Tensor::from_bytes(ElemType::Bool, dims.clone(), mask)?;
    Ok(vec![
        number::from_floats(data.elem(), dims, &values)?.into(),
        mask.into(),
    ])
}
