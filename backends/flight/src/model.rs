//! A Llama-shaped network of integers, and its meaning in plain Rust.
//!
//! Weights are codes of 8, 4 or 3 bits with a scale for each output. What goes into a product is 8-bit codes with one scale for the vector,
//! keys and values in the cache as well; everything between is numbers of [`crate::arith`]. Queries and keys are turned in halves.

use crate::arith;
use crate::packing::BLOCK;

/// The sizes of a network.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Numbers of a token's vector.
    pub hidden: usize,
    /// Numbers between the products of the feed-forward part.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Tokens that there are.
    pub vocab: usize,
    /// Tokens that a text may have.
    pub positions: usize,
    /// Added to the mean square by the norm.
    pub epsilon: f64,
    /// Base of the angles of positions.
    pub theta: f64,
}

/// How weights are quantized.
#[derive(Clone, Copy, Debug)]
pub struct Quantization {
    /// Weights that each output keeps of 16 inputs, the largest.
    pub keep: usize,
    /// Relative squared error up to which 16 outputs get 3 or 4 bits instead of 8.
    pub tolerance: f64,
}

/// A matrix of codes.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// A row for each output, with zeros up to a multiple of 16 both ways.
    pub rows: Vec<Vec<i8>>,
    /// Bits of codes of each 16 outputs.
    pub bits: Vec<usize>,
    /// Scale of each output, in units of 2^-32, over 127.
    pub scale: Vec<i32>,
}

/// A layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Gain of the norm before attention.
    pub attention_norm: Vec<i32>,
    /// Queries.
    pub q: Matrix,
    /// Keys.
    pub k: Matrix,
    /// Values.
    pub v: Matrix,
    /// From attention.
    pub o: Matrix,
    /// Gain of the norm before the feed-forward part.
    pub inner_norm: Vec<i32>,
    /// Goes through SiLU.
    pub gate: Matrix,
    /// Is multiplied with it.
    pub up: Matrix,
    /// Back to a token's vector.
    pub down: Matrix,
}

/// A network of integers. Vectors have zeros up to a multiple of 16.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its sizes.
    pub shape: Shape,
    /// A vector for each token.
    pub embedding: Vec<Vec<i32>>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Gain of the last norm.
    pub norm: Vec<i32>,
    /// Scores of tokens.
    pub head: Matrix,
    /// For each position cosines, then sines, in units of 2^-30.
    pub angles: Vec<Vec<i32>>,
}

fn number(x: f32) -> i32 {
    arith::saturate((f64::from(x) * 65536.0).round() as i128)
}

fn padded(x: &[f32]) -> Vec<i32> {
    let mut numbers: Vec<i32> = x.iter().map(|x| number(*x)).collect();
    numbers.resize(x.len().next_multiple_of(BLOCK), 0);
    numbers
}

impl Matrix {
    /// Quantizes `outputs` rows of `inputs` weights.
    ///
    /// # Errors
    /// There are not so many weights, one is not finite, or a scale is too large for 31 bits.
    pub fn of(
        weights: &[f32],
        outputs: usize,
        inputs: usize,
        how: &Quantization,
    ) -> Result<Matrix, String> {
        if weights.len() != outputs * inputs || inputs == 0 {
            return Err(format!(
                "{} weights are no matrix of {outputs} x {inputs}",
                weights.len()
            ));
        }
        if weights.iter().any(|w| !w.is_finite()) {
            return Err("a weight is not finite".to_owned());
        }
        let wide = inputs.next_multiple_of(BLOCK);
        let mut matrix = Matrix {
            rows: vec![],
            bits: vec![],
            scale: vec![],
        };
        for group in (0..outputs).step_by(BLOCK) {
            let mut rows = vec![vec![0f32; wide]; BLOCK];
            for (at, row) in rows.iter_mut().enumerate().take(outputs - group) {
                row[..inputs].copy_from_slice(&weights[(group + at) * inputs..][..inputs]);
                for block in row.chunks_mut(BLOCK) {
                    let mut order: Vec<usize> = (0..BLOCK).collect();
                    order.sort_by(|x, y| block[*y].abs().total_cmp(&block[*x].abs()));
                    order.iter().skip(how.keep).for_each(|at| block[*at] = 0.0);
                }
            }
            for bits in [3, 4, 8] {
                let limit = f64::from((1 << (bits - 1)) - 1);
                let (mut error, mut power) = (0.0, 0.0);
                let (mut codes, mut scales) = (vec![], vec![]);
                for row in &rows {
                    let largest = f64::from(row.iter().fold(0f32, |m, w| m.max(w.abs())));
                    let step = if largest > 0.0 { largest / limit } else { 1.0 };
                    codes.push(
                        row.iter()
                            .map(|w| (f64::from(*w) / step).round() as i8)
                            .collect::<Vec<i8>>(),
                    );
                    let scale = (step / 127.0 * 4294967296.0).round();
                    if scale > f64::from(i32::MAX) {
                        return Err(format!("a weight of {largest} is too large"));
                    }
                    scales.push(scale as i32);
                    for (w, code) in row.iter().zip(&codes[codes.len() - 1]) {
                        error += (f64::from(*w) - f64::from(*code) * step).powi(2);
                        power += f64::from(*w).powi(2);
                    }
                }
                if bits == 8 || error <= how.tolerance * power {
                    matrix.rows.extend(codes);
                    matrix.scale.extend(scales);
                    matrix.bits.push(bits);
                    break;
                }
            }
        }
        Ok(matrix)
    }

    /// The product with a vector of codes.
    fn times(&self, codes: &[i8], largest: i32) -> Vec<i32> {
        let one = |(row, scale): (&Vec<i8>, &i32)| {
            let sum: i64 = row
                .iter()
                .zip(codes)
                .map(|(w, x)| i64::from(*w) * i64::from(*x))
                .sum();
            arith::rescale(sum, largest, *scale)
        };
        self.rows.iter().zip(&self.scale).map(one).collect()
    }
}

impl Network {
    /// Quantizes a network; `weight` gives a tensor by its name in a Llama checkpoint, `lm_head.weight` as well where the scores have the
    /// weights of the table.
    ///
    /// # Errors
    /// A tensor is missing or has another size, or the sizes are none that the engine has.
    pub fn of(
        shape: Shape,
        how: &Quantization,
        weight: &dyn Fn(&str) -> Result<Vec<f32>, String>,
    ) -> Result<Network, String> {
        let (q, kv) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        let sizes = [
            shape.hidden,
            shape.inner,
            q,
            kv,
            shape.vocab,
            shape.layers,
            shape.positions,
        ];
        if sizes.contains(&0) || !q.is_multiple_of(BLOCK) || !kv.is_multiple_of(BLOCK) {
            return Err(format!(
                "{q} numbers of queries and {kv} of keys must be multiples of 16, and no size 0"
            ));
        }
        if !shape.heads.is_multiple_of(shape.kv_heads) || !shape.head_dim.is_multiple_of(4) {
            return Err(
                "heads must be a multiple of those of keys, their size one of 4".to_owned(),
            );
        }
        let tensor = |name: &str, size: usize| {
            let found = weight(name)?;
            match found.len() == size {
                true => Ok(found),
                false => Err(format!("`{name}` has {} numbers, not {size}", found.len())),
            }
        };
        let h = shape.hidden;
        let embedding = tensor("model.embed_tokens.weight", shape.vocab * h)?;
        let mut layers = vec![];
        for at in 0..shape.layers {
            let name = |part: &str| format!("model.layers.{at}.{part}.weight");
            let matrix = |part: &str, outputs, inputs| {
                Matrix::of(
                    &tensor(&name(part), outputs * inputs)?,
                    outputs,
                    inputs,
                    how,
                )
                .map_err(|reason| format!("`{}`: {reason}", name(part)))
            };
            layers.push(Layer {
                attention_norm: padded(&tensor(&name("input_layernorm"), h)?),
                q: matrix("self_attn.q_proj", q, h)?,
                k: matrix("self_attn.k_proj", kv, h)?,
                v: matrix("self_attn.v_proj", kv, h)?,
                o: matrix("self_attn.o_proj", h, q)?,
                inner_norm: padded(&tensor(&name("post_attention_layernorm"), h)?),
                gate: matrix("mlp.gate_proj", shape.inner, h)?,
                up: matrix("mlp.up_proj", shape.inner, h)?,
                down: matrix("mlp.down_proj", h, shape.inner)?,
            });
        }
        let half = shape.head_dim / 2;
        let angles = (0..shape.positions).map(|position| {
            let angle = |i: usize| position as f64 / shape.theta.powf(i as f64 / half as f64);
            let unit = |x: f64| (x * 1073741824.0).round() as i32;
            let cos = (0..half).map(|i| unit(angle(i).cos()));
            cos.chain((0..half).map(|i| unit(angle(i).sin()))).collect()
        });
        let head = tensor("lm_head.weight", shape.vocab * h)?;
        Ok(Network {
            angles: angles.collect(),
            embedding: embedding.chunks(h).map(padded).collect(),
            norm: padded(&tensor("model.norm.weight", h)?),
            head: Matrix::of(&head, shape.vocab, h, how)?,
            layers,
            shape,
        })
    }

    /// The epsilon of norms in units of 2^-32.
    pub fn epsilon(&self) -> u64 {
        (self.shape.epsilon * 4294967296.0).round() as u64
    }
}

/// A run of a network: what it keeps of the tokens so far.
#[derive(Debug)]
pub struct Reference<'n> {
    network: &'n Network,
    /// For each layer: codes and scale of the keys and of the values of each position.
    cache: Vec<[Vec<(Vec<i8>, i32)>; 2]>,
}

impl<'n> Reference<'n> {
    /// Before the first token.
    pub fn new(network: &'n Network) -> Self {
        let cache = network.layers.iter().map(|_| [vec![], vec![]]).collect();
        Reference { network, cache }
    }

    /// Scores of what may follow `token`.
    ///
    /// # Errors
    /// There is no such token, or no position for it.
    pub fn step(&mut self, token: usize) -> Result<Vec<i32>, String> {
        let net = self.network;
        let (shape, epsilon) = (&net.shape, net.epsilon());
        let position = self.cache[0][0].len();
        let mut x = net
            .embedding
            .get(token)
            .ok_or_else(|| format!("no token {token}"))?
            .clone();
        let angles = net
            .angles
            .get(position)
            .ok_or_else(|| format!("no position {position}"))?;
        let dim = shape.head_dim;
        let root = arith::root((dim as u64) << 32) as i64;
        let turned = |x: &mut [i32]| {
            for head in x.chunks_mut(dim) {
                for i in 0..dim / 2 {
                    let pair = (head[i], head[i + dim / 2]);
                    (head[i], head[i + dim / 2]) =
                        arith::turn(pair, angles[i], angles[i + dim / 2]);
                }
            }
        };
        let plus = |x: &mut [i32], y: &[i32]| {
            x.iter_mut()
                .zip(y)
                .for_each(|(x, y)| *x = x.saturating_add(*y))
        };
        for (layer, [keys, values]) in net.layers.iter().zip(&mut self.cache) {
            let (codes, largest) = arith::quant(&arith::rms_norm(
                &x,
                &layer.attention_norm,
                shape.hidden,
                epsilon,
            ));
            let mut q = layer.q.times(&codes, largest);
            let mut k = layer.k.times(&codes, largest);
            turned(&mut q);
            turned(&mut k);
            keys.push(arith::quant(&k));
            values.push(arith::quant(&layer.v.times(&codes, largest)));
            let (q, query) = arith::quant(&q);
            let mut mixed = vec![0; q.len()];
            for head in 0..shape.heads {
                let kv = head / (shape.heads / shape.kv_heads) * dim;
                let dot = |key: &[i8]| -> i64 {
                    let pairs = q[head * dim..][..dim].iter().zip(&key[kv..]);
                    pairs.map(|(x, y)| i64::from(*x) * i64::from(*y)).sum()
                };
                let mut p: Vec<i32> = keys
                    .iter()
                    .map(|(key, s)| arith::score(dot(key), query, *s, root))
                    .collect();
                arith::softmax(&mut p, position + 1);
                for i in 0..dim {
                    let sum = p
                        .iter()
                        .zip(values.iter())
                        .map(|(p, (codes, s))| arith::part(*p, codes[kv + i], *s));
                    mixed[head * dim + i] = arith::mixed(sum.sum());
                }
            }
            let (codes, largest) = arith::quant(&mixed);
            plus(&mut x, &layer.o.times(&codes, largest));
            let (codes, largest) = arith::quant(&arith::rms_norm(
                &x,
                &layer.inner_norm,
                shape.hidden,
                epsilon,
            ));
            let (gate, up) = (
                layer.gate.times(&codes, largest),
                layer.up.times(&codes, largest),
            );
            let act: Vec<i32> = gate
                .iter()
                .zip(&up)
                .map(|(g, u)| arith::silu_mul(*g, *u))
                .collect();
            let (codes, largest) = arith::quant(&act);
            plus(&mut x, &layer.down.times(&codes, largest));
        }
        let (codes, largest) = arith::quant(&arith::rms_norm(&x, &net.norm, shape.hidden, epsilon));
        let mut scores = net.head.times(&codes, largest);
        scores.truncate(shape.vocab);
        Ok(scores)
    }
}
