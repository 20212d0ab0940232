//! Round to nearest: every weight becomes the nearest value of its group's grid.
//!
//! The grid spans the group's range, or a part of it that is searched: clipping the extremes costs little and makes
//! the steps of all others smaller. Needs no data.
//! Source: "GPTQ: Accurate Post-training Compression for Generative Pretrained Transformers", section 5 (the baseline
//! RTN), and the clipping search of the quantizer published with it.

use super::grid::{AffineParts, GridSpec, Groups};
use super::matrix::Matrix;
use super::{Candidate, Layer, Method, MethodError, Settings, candidate};

/// The method.
pub static RTN: Method = Method {
    name: "rtn",
    summary: "rounds every weight to the nearest value of its group's grid",
    source: "GPTQ, section 5 (baseline)",
    needs_statistics: false,
    bits: 2..=8,
    propose,
};

/// Codes of `weights` `[O, I]` on grids fitted to their groups.
pub fn round_to_nearest(weights: &Matrix, spec: &GridSpec, groups: Groups) -> AffineParts {
    AffineParts::quantize(weights, spec, groups, |_, _, part| spec.fit(part))
}

fn propose(layer: &Layer, settings: &Settings) -> Result<Candidate, MethodError> {
    let spec = GridSpec::from_settings(settings)?;
    let groups = Groups::new(layer.weight().cols(), settings.group_len);
    let parts = round_to_nearest(layer.weight(), &spec, groups);
    candidate(layer, parts.encoding(), &parts.decode(), vec![])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::testing::{mse, near, random, tl1};
    use lapidary_ir::ElemType;

    fn spec(bits: u32) -> GridSpec {
        GridSpec {
            bits,
            symmetric: false,
            clip_exponent: None,
            scale_elem: ElemType::F16,
            scale_bits: 0,
        }
    }

    #[test]
    fn errors_on_the_reference_layer_are_the_known_ones() {
        let t = tl1();
        for (bits, group_len, golden) in [
            (4, 0, 0.012330),
            (4, 64, 0.008764),
            (4, 32, 0.006807),
            (3, 0, 0.053818),
            (3, 64, 0.037454),
            (3, 32, 0.030439),
            (2, 0, 0.299829),
            (2, 64, 0.218410),
            (2, 32, 0.171959),
        ] {
            let parts = round_to_nearest(&t.w, &spec(bits), Groups::new(256, group_len));
            near(t.rel(&parts.decode()), golden, 0.01);
        }
    }

    #[test]
    fn searching_the_range_reaches_the_known_error() {
        let t = tl1();
        let clipped = GridSpec {
            clip_exponent: Some(2.4),
            ..spec(3)
        };
        let parts = round_to_nearest(&t.w, &clipped, Groups::new(256, 64));
        near(t.rel(&parts.decode()), 0.032019, 0.01);
    }

    #[test]
    fn least_squares_clipping_never_raises_the_squared_error() {
        let w = random(40, 96, 3);
        for symmetric in [false, true] {
            for bits in 2..=8 {
                let plain = GridSpec {
                    symmetric,
                    ..spec(bits)
                };
                let clipped = GridSpec {
                    clip_exponent: Some(2.0),
                    ..plain
                };
                let error = |s| mse(&w, &round_to_nearest(&w, s, Groups::new(96, 32)).decode());
                assert!(error(&clipped) <= error(&plain));
            }
        }
    }

    #[test]
    fn errors_of_normal_weights_are_the_known_ones() {
        let w = random(4096, 64, 5);
        let parts = round_to_nearest(&w, &spec(4), Groups::new(64, 64));
        near(mse(&w, &parts.decode()), 0.0083, 0.01);
    }
}
