//! Rotary position embeddings: the frequencies of every form, and the angles of positions.

use super::blocks::Heads;
use super::net::{Net, Stop};
use crate::checkpoint::config::Config;
use crate::error::Problem;
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{ElemType, Tensor, ValueId};
use std::f64::consts::PI;

/// Most numbers of a head that are rotated.
const MAX_DIM: usize = 1 << 16;

/// Cosines and sines of the angles of all positions, `f32[batch,seq,dim / 2]` each.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// Cosines.
    pub cos: ValueId,
    /// Sines.
    pub sin: ValueId,
    /// Numbers of a head that are rotated, the first ones.
    pub dim: usize,
}

/// What the frequencies are made of: today's `rope_parameters`, or older settings at the top level.
#[derive(Debug)]
pub struct Settings {
    /// The base of the angles.
    pub theta: f64,
    /// The share of each head that is rotated.
    pub share: f64,
    scaling: Option<Config>,
}

impl Settings {
    /// Reads the settings. `theta` is the base where none is set.
    pub fn read(config: &Config, theta: f64) -> Result<Settings, Problem> {
        match config.inner("rope_parameters")? {
            Some(parameters) => Settings::within(config, &parameters, theta),
            None => Settings::older(config, theta),
        }
    }

    /// Reads the settings for one kind of layers, where each kind has its own.
    pub fn of_kind(config: &Config, kind: &str, theta: f64) -> Result<Option<Settings>, Problem> {
        let Some(all) = config.inner("rope_parameters")? else {
            return Ok(None);
        };
        let own = all.inner(kind)?;
        own.map(|own| Settings::within(config, &own, theta))
            .transpose()
    }

    fn within(config: &Config, parameters: &Config, theta: f64) -> Result<Settings, Problem> {
        let share = match parameters.float_opt("partial_rotary_factor")? {
            Some(share) => share,
            None => share(config)?,
        };
        Ok(Settings {
            theta: parameters.float_or("rope_theta", theta)?,
            share,
            scaling: Some(parameters.clone()),
        })
    }

    fn older(config: &Config, theta: f64) -> Result<Settings, Problem> {
        let base = config.alias(&["rope_theta", "rotary_emb_base"]);
        Ok(Settings {
            theta: config.float_or(base, theta)?,
            share: share(config)?,
            scaling: config.inner("rope_scaling")?,
        })
    }

    /// Without scaling, at this base.
    pub fn plain(theta: f64) -> Settings {
        Settings {
            theta,
            share: 1.0,
            scaling: None,
        }
    }

    /// True if every number of a head turns, by angles that nothing scales.
    pub fn is_plain(&self) -> Result<bool, Problem> {
        let kind = match &self.scaling {
            Some(scaling) => scaling.text(scaling.alias(&["rope_type", "type"]))?,
            None => None,
        };
        Ok(self.share == 1.0 && kind.is_none_or(|kind| kind == "default"))
    }

    /// Angles per position of each of the pairs of `dim` numbers.
    fn frequencies(&self, dim: usize) -> Result<Vec<f64>, Problem> {
        let pairs = 0..dim / 2;
        let plain: Vec<f64> = pairs
            .map(|i| self.theta.powf(-((2 * i) as f64) / dim as f64))
            .collect();
        let Some(scaling) = &self.scaling else {
            return Ok(plain);
        };
        let name = scaling.alias(&["rope_type", "type"]);
        match scaling.text(name)?.as_deref().unwrap_or("default") {
            "default" => Ok(plain),
            "linear" => {
                let factor = scaling.positive("factor")?;
                Ok(plain.iter().map(|f| f / factor).collect())
            }
            "llama3" => llama3(scaling, &plain),
            // Each frequency by its own number: how GGUF files say the others.
            "factors" => {
                let factors = scaling.floats("factors")?;
                if factors.len() != plain.len() || factors.contains(&0.0) {
                    let reason = format!("must be {} numbers other than 0", plain.len());
                    return Err(scaling.problem("factors", reason));
                }
                Ok(plain.iter().zip(factors).map(|(f, by)| f / by).collect())
            }
            other => Err(Problem {
                remedy: Some("known are default, linear, llama3".to_owned()),
                ..scaling.problem(
                    name,
                    format!("rotary embeddings of type `{other}` are not supported"),
                )
            }),
        }
    }

    /// The angles of all positions, for heads of this many numbers.
    pub fn angles(&self, net: &mut Net, ids: ValueId, head: usize) -> Result<Rope, Stop> {
        let dim = (head as f64 * self.share) as usize;
        if dim < 2 || dim > head || dim > MAX_DIM || !dim.is_multiple_of(2) || self.theta <= 0.0 {
            let reason = format!("{dim} of {head} numbers of a head, base {}", self.theta);
            return Err(net
                .config
                .problem("rope_parameters", format!("cannot be used: {reason}"))
                .into());
        }
        let frequencies = self.frequencies(dim)?;
        let positions = net.positions(ids)?;
        let mut b = net.b();
        let frequencies = b.constant(&Tensor::from_f64(ElemType::F32, [dim / 2], frequencies));
        let positions = b.cast(positions, ElemType::F32)?;
        let positions = b.unsqueeze(positions, &[2])?;
        let angles = b.op("mul", &[positions, frequencies])?;
        let mut all = |op: &str| -> Result<ValueId, Stop> {
            let y = b.op(op, &[angles])?;
            Ok(b.expand(
                y,
                &[Len::Of(ids, 0), Len::Of(ids, 1), Len::N((dim / 2) as i64)],
            )?)
        };
        let (cos, sin) = (all("cos")?, all("sin")?);
        Ok(Rope { cos, sin, dim })
    }
}

/// The base of a model by its usual settings, and what divides the frequency of each pair of a whole head.
pub(crate) fn divided(config: &Config) -> Result<(f64, Vec<f64>), Problem> {
    let heads = Heads::read(config, config.size("hidden_size")?)?;
    // Of models with more than one, what layers without windows have.
    let settings = match Settings::of_kind(config, "full_attention", 1e6)? {
        Some(settings) => settings,
        None => Settings::read(config, 10_000.0)?,
    };
    if settings.share != 1.0 || heads.size > MAX_DIM {
        return Err(config.problem("partial_rotary_factor", "must be 1 here"));
    }
    let plain = Settings::plain(settings.theta).frequencies(heads.size)?;
    let own = settings.frequencies(heads.size)?;
    Ok((
        settings.theta,
        plain.iter().zip(own).map(|(p, f)| p / f).collect(),
    ))
}

fn share(config: &Config) -> Result<f64, Problem> {
    let name = config.alias(&["partial_rotary_factor", "rotary_pct"]);
    config.float_or(name, 1.0)
}

/// Long waves are stretched by the factor, short ones kept, those between blended (Llama 3.1).
fn llama3(scaling: &Config, plain: &[f64]) -> Result<Vec<f64>, Problem> {
    let factor = scaling.positive("factor")?;
    let low = scaling.positive("low_freq_factor")?;
    let high = scaling.positive("high_freq_factor")?;
    let context = scaling.positive("original_max_position_embeddings")?;
    if high <= low {
        return Err(scaling.problem("high_freq_factor", "must be above `low_freq_factor`"));
    }
    let stretched = |f: &f64| {
        let turns = context * f / (2.0 * PI);
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * f / factor + kept * f
    };
    Ok(plain.iter().map(stretched).collect())
}

impl Rope {
    /// Rotates the heads of `x`, `f32[batch,seq,heads * head]`.
    pub fn rotate(&self, net: &mut Net, x: ValueId, heads: usize) -> Result<ValueId, Stop> {
        let attrs = [
            ("num_heads", (heads as i64).into()),
            ("rotary_embedding_dim", (self.dim as i64).into()),
        ];
        Ok(net
            .b()
            .op_with("rotary_embedding", &[x, self.cos, self.sin], attrs)?)
    }
}
