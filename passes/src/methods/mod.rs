//! Compression methods: what proposes smaller encodings of a weight, each with its error and its bytes.
//!
//! A method is one file here and one line in [`METHODS`]. It is given a [`Layer`] (a weight `[O, I]` and perhaps
//! calibration statistics) and [`Settings`], and returns a [`Candidate`]; it never edits the graph, and the same
//! input gives the same candidate. Each file has a *numeric core* (a function from matrices to plain parts: codes,
//! scales, tables, masks, factors) and a last step that writes the parts as an encoding term. What is about more than one
//! weight, or changes a layer's bias or inputs as well, is public here and not in the list: [`smoothquant`], the covariance
//! settings of [`lowrank`], [`filters`], [`bct`], and all of [`structured`]. Cores take shapes as they are stated; [`Layer::new`] is
//! where they are checked.
//!
//! Shared by them: [`matrix`] and [`factor`] (linear algebra), [`statistics`] (calibration), [`groups`] and [`grid`] (uniform
//! grids), [`levels`] (tables of levels), [`sweep`] (error feedback from column to column), [`pattern`] (which weights
//! are kept) and `sparse` (their terms).

pub mod awq;
pub mod bct;
pub mod bitstack;
pub mod dkm;
pub mod entropy;
pub mod eora;
pub mod factor;
pub mod filters;
pub mod gptq;
pub mod gptvq;
pub mod grid;
pub mod groups;
pub mod hqq;
pub mod levels;
pub mod lowrank;
pub mod matrix;
pub mod mpo;
pub mod nested;
pub mod obs;
pub mod palette;
pub mod pattern;
pub mod pruning;
pub mod qmoe;
pub mod quest;
pub mod quip;
pub mod refit;
pub mod rtn;
pub mod smoothquant;
mod sparse;
pub mod sparsegpt;
pub mod spqr;
pub mod stack;
pub mod statistics;
pub mod structured;
pub mod sweep;
pub mod ternary;
pub mod threads;
pub mod vector;

#[cfg(test)]
pub(crate) mod testing;

use lapidary_ir::encodings::{DecodeError, Encoding};
use lapidary_ir::{ElemType, Tensor};
use matrix::Matrix;
use pattern::Pattern;
use statistics::Statistics;
use std::sync::OnceLock;

/// Every method whose candidates can be written as terms.
pub static METHODS: &[&Method] = &[
    &rtn::RTN,
    &gptq::GPTQ,
    &refit::GPTQ_REFIT,
    &awq::AWQ,
    &hqq::HQQ,
    &spqr::SPQR,
    &ternary::TERNARY,
    &ternary::TRITS,
    &ternary::BINARY,
    &qmoe::QMOE,
    &palette::PALETTE,
    &palette::SKETCH,
    &entropy::ENTROPY,
    &levels::NF4_BLOCKS,
    &levels::MXFP4,
    &levels::NVFP4,
    &levels::FP8,
    &quest::QUEST,
    &quip::QUIP,
    &gptvq::GPTVQ,
    &gptvq::AQLM,
    &bitstack::BITSTACK,
    &pruning::MAGNITUDE,
    &pruning::WANDA,
    &sparsegpt::SPARSEGPT,
    &lowrank::SVD,
    &lowrank::SVD_LLM,
    &mpo::MPO,
    &eora::EORA,
    &nested::NESTED,
    &stack::STACK,
];

/// Definition of a method.
#[derive(Debug)]
pub struct Method {
    /// Name in recipes and reports.
    pub name: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
    /// Title and section of its paper.
    pub source: &'static str,
    /// True if it needs calibration statistics.
    pub needs_statistics: bool,
    /// Code widths it knows.
    pub bits: std::ops::RangeInclusive<u32>,
    /// Proposes an encoding of a layer's weight.
    pub propose: fn(&Layer, &Settings) -> Result<Candidate, MethodError>,
}

/// What a method is asked for. A method ignores what it has no use for.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Bits of a code.
    pub bits: u32,
    /// Weights of a row that share a scale; 0 for the whole row. Rows are cut into equal groups of at most this length.
    pub group_len: usize,
    /// Grids symmetric around zero, without a zero point of their own.
    pub symmetric: bool,
    /// Searches the clipping of each group's range.
    pub clip: bool,
    /// Element type of scales.
    pub scale_elem: ElemType,
    /// Bits of the codes that scales of grids are stored as, times a power of two for each row; 0 for `scale_elem`.
    pub scale_bits: u32,
    /// Which weights pruning keeps.
    pub pattern: Pattern,
    /// Rank of a low-rank correction; 0 for one of a quarter of a bit for each weight.
    pub rank: usize,
    /// Stored bits for each weight, where a method can meet any number of them; 0 asks for `bits`.
    pub rate: f64,
    /// How softly values are assigned while a palette is made, as [`dkm::soften`] takes it; 0 for the exact optimum.
    pub temperature: f64,
    /// Start of the random numbers, where there are any.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            bits: 4,
            group_len: 128,
            symmetric: false,
            clip: false,
            scale_elem: ElemType::F16,
            scale_bits: 0,
            pattern: Pattern::Rows { sparsity: 0.5 },
            rank: 0,
            rate: 0.0,
            temperature: 0.0,
            seed: 0,
        }
    }
}

/// A weight and what is known of its inputs.
#[derive(Debug)]
pub struct Layer<'a> {
    weight: &'a Matrix,
    statistics: Option<&'a Statistics>,
    energy: OnceLock<f64>,
}

impl<'a> Layer<'a> {
    /// The layer of a weight `[O, I]` whose `I` inputs have these statistics.
    ///
    /// Fails if the weight is empty or not finite, or the statistics are not of `I` inputs.
    pub fn new(
        weight: &'a Matrix,
        statistics: Option<&'a Statistics>,
    ) -> Result<Layer<'a>, MethodError> {
        if weight.rows() == 0 || weight.cols() == 0 {
            return Err(MethodError::Shape("the weight is empty".into()));
        }
        if !weight.is_finite() {
            return Err(MethodError::NotFinite("weight"));
        }
        if let Some(s) = statistics {
            s.check()?;
            if s.inputs() != weight.cols() {
                return Err(MethodError::Shape(format!(
                    "the weight has {} inputs, the statistics are of {}",
                    weight.cols(),
                    s.inputs()
                )));
            }
        }
        Ok(Layer {
            weight,
            statistics,
            energy: OnceLock::new(),
        })
    }

    /// The weight, `[O, I]`.
    pub fn weight(&self) -> &'a Matrix {
        self.weight
    }

    /// The statistics, if there are any.
    pub fn statistics(&self) -> Option<&'a Statistics> {
        self.statistics
    }

    /// The statistics, for a method that cannot do without.
    pub fn needed_statistics(&self) -> Result<&'a Statistics, MethodError> {
        self.statistics.ok_or(MethodError::NeedsStatistics)
    }

    /// Relative output error of an approximation of the weight: by the Hessian if there is one, else of the weights
    /// themselves. 0 for an exact one, and for a layer whose outputs are zero.
    pub fn error(&self, approximation: &Matrix) -> f64 {
        let energy = self.energy();
        let error = self.size(&self.weight.sub(approximation));
        if error > 0.0 && energy > 0.0 {
            error / energy
        } else {
            0.0
        }
    }

    /// `tr(W H W^T)`, or the sum of squares of a weight without statistics: what errors are relative to.
    pub fn energy(&self) -> f64 {
        *self.energy.get_or_init(|| self.size(self.weight))
    }

    fn size(&self, m: &Matrix) -> f64 {
        match self.statistics {
            Some(s) => m.quadratic(&s.hessian),
            None => m.square_sum(),
        }
    }
}

/// A proposal: an encoding of the layer's weight, and what it costs.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The term; it decodes to `f32[O, I]`.
    pub encoding: Encoding,
    /// Relative output error of the decoded weight, as [`Layer::error`].
    pub error: f64,
    /// Stored bytes of the term.
    pub bytes: u64,
    /// What was assumed or repaired on the way; empty if nothing.
    pub assumptions: Vec<String>,
}

/// Why a method has no candidate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MethodError {
    /// It was asked for something it cannot do.
    #[error("{0}")]
    Settings(String),
    /// Shapes disagree.
    #[error("{0}")]
    Shape(String),
    /// A NaN or an infinity.
    #[error("the {0} has values that are not finite")]
    NotFinite(&'static str),
    /// There was no calibration.
    #[error("the method needs calibration statistics")]
    NeedsStatistics,
    /// A factorization failed and there is no way round it.
    #[error(transparent)]
    Singular(#[from] factor::Singular),
    /// The parts do not make a valid term.
    #[error(transparent)]
    Encoding(#[from] DecodeError),
}

/// A candidate whose error is that of what its term decodes to.
pub(crate) fn measured(
    layer: &Layer,
    encoding: Encoding,
    assumptions: Vec<String>,
) -> Result<Candidate, MethodError> {
    let decoded = decoded(layer, &encoding)?;
    candidate(layer, encoding, &decoded, assumptions)
}

/// What a term for the layer's weight decodes to.
pub(crate) fn decoded(layer: &Layer, encoding: &Encoding) -> Result<Matrix, MethodError> {
    let (weight, values) = (layer.weight(), encoding.decode()?.to_f64s());
    Matrix::new(weight.rows(), weight.cols(), values.unwrap_or_default())
        .ok_or_else(|| MethodError::Shape("the term has another shape than the weight".into()))
}

/// A plainly stored matrix.
pub(crate) fn dense(elem: ElemType, m: &Matrix) -> Encoding {
    let rounded = Tensor::from_f64(elem, [m.rows(), m.cols()], m.data().to_vec());
    lapidary_ir::encodings::dense::from_tensor(&rounded)
}

/// A candidate of an encoding whose decoded weight is `decoded`.
pub(crate) fn candidate(
    layer: &Layer,
    encoding: Encoding,
    decoded: &Matrix,
    assumptions: Vec<String>,
) -> Result<Candidate, MethodError> {
    encoding.check()?;
    Ok(Candidate {
        error: layer.error(decoded),
        bytes: encoding.stored_bytes(),
        encoding,
        assumptions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use testing::{correlated, random};

    /// Every method at every width, over ragged shapes, groups and grids, with and without calibration.
    fn each(check: impl Fn(&Method, &Layer, &Settings, Candidate)) {
        let shapes = [(5, 1, 0), (3, 24, 7), (9, 40, 20), (70, 48, 0)];
        let patterns = [
            Pattern::Rows { sparsity: 0.5 },
            Pattern::Tensor { sparsity: 0.97 },
            Pattern::NOfM { keep: 2, of: 4 },
            Pattern::Blocks {
                len: 4,
                sparsity: 0.5,
            },
        ];
        for (seed, (outputs, inputs, group_len)) in (0..).zip(shapes) {
            let weight = random(outputs, inputs, seed).map(|v| f64::from(v as f32));
            let statistics = Statistics::from_inputs(&correlated(inputs, 200, seed + 50));
            for method in METHODS {
                for bits in method.bits.clone() {
                    for symmetric in [false, true] {
                        for calibrated in [false, true] {
                            let statistics = calibrated.then_some(&statistics);
                            let layer = Layer::new(&weight, statistics).expect("sound");
                            let settings = Settings {
                                bits,
                                group_len,
                                symmetric,
                                clip: calibrated && inputs < 30,
                                scale_bits: if inputs == 40 { 6 } else { 0 },
                                rate: if inputs == 24 {
                                    f64::from(bits.min(5)) + 0.5
                                } else {
                                    0.0
                                },
                                pattern: patterns[seed as usize],
                                ..Settings::default()
                            };
                            match (method.propose)(&layer, &settings) {
                                Ok(c) => check(method, &layer, &settings, c),
                                Err(MethodError::NeedsStatistics) => {
                                    assert!(method.needs_statistics && !calibrated)
                                }
                                Err(e) => panic!("{}: {e}", method.name),
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn error_and_bytes_are_those_of_the_term() {
        each(|method, layer, _, c| {
            let decoded = c.encoding.decode().expect("a valid term");
            let weight = layer.weight();
            assert_eq!(decoded.shape(), [weight.rows(), weight.cols()]);
            assert_eq!(decoded.elem(), ElemType::F32);
            let values = decoded.floats().expect("floats").to_vec();
            let decoded = Matrix::new(weight.rows(), weight.cols(), values).expect("as many");
            let error = layer.error(&decoded);
            assert!((error - c.error).abs() <= 1e-9 * error, "{}", method.name);
            assert_eq!(c.bytes, c.encoding.stored_bytes(), "{}", method.name);
        });
    }

    #[test]
    fn the_same_seed_gives_the_same_candidate() {
        each(|method, layer, settings, c| {
            let again = (method.propose)(layer, settings).expect("as before");
            assert_eq!(again.encoding, c.encoding, "{}", method.name);
            assert_eq!(again.error.to_bits(), c.error.to_bits(), "{}", method.name);
        });
    }

    #[test]
    fn methods_have_names_of_their_own_and_sources() {
        let names: BTreeSet<_> = METHODS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METHODS.len());
        assert!(
            METHODS
                .iter()
                .all(|m| !m.source.is_empty() && !m.summary.is_empty())
        );
    }

    #[test]
    fn degenerate_weights_are_encoded() {
        let x = correlated(12, 50, 3);
        let silent = Statistics::from_inputs(&x.map(|v| v * 0.0));
        let heard = Statistics::from_inputs(&x);
        for weight in [
            Matrix::zeros(2, 12),
            Matrix::from_fn(2, 12, |_, _| -3e38),
            Matrix::from_fn(2, 12, |r, c| if r == c { 1e-40 } else { 0.0 }),
        ] {
            for statistics in [&silent, &heard] {
                let layer = Layer::new(&weight, Some(statistics)).expect("sound");
                for method in METHODS {
                    let settings = Settings {
                        bits: *method.bits.start(),
                        ..Settings::default()
                    };
                    let c = (method.propose)(&layer, &settings).expect("a candidate");
                    assert!(
                        c.error.is_finite() && c.encoding.decode().is_ok(),
                        "{}",
                        method.name
                    );
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let w = random(3, 8, 1);
        let s = Statistics::from_inputs(&random(20, 9, 2));
        assert!(matches!(
            Layer::new(&w, Some(&s)),
            Err(MethodError::Shape(_))
        ));
        assert!(Layer::new(&Matrix::zeros(0, 4), None).is_err());
        let nan = w.map(|_| f64::NAN);
        assert!(matches!(
            Layer::new(&nan, None),
            Err(MethodError::NotFinite(_))
        ));
        let layer = Layer::new(&w, None).expect("sound");
        for (bits, scale_elem) in [(0, ElemType::F16), (9, ElemType::F16), (4, ElemType::I8)] {
            let settings = Settings {
                bits,
                scale_elem,
                ..Settings::default()
            };
            assert!((rtn::RTN.propose)(&layer, &settings).is_err());
        }
    }
}
