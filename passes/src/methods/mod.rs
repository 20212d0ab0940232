//! Compression methods: what proposes smaller encodings of a weight, each with its error and its bytes.
//!
//! A method is one file here and one line in [`METHODS`]. It is given a [`Layer`] (a weight `[O, I]` and perhaps
//! calibration statistics) and [`Settings`], and returns a [`Candidate`]; it never edits the graph, and the same
//! input gives the same candidate. Each file has a *numeric core* (a function from matrices to plain parts: codes,
//! scales, tables, masks, factors) and a last step that writes the parts as an encoding term. Cores whose terms need
//! constructors that the algebra does not have yet are public here and not in the list.
//!
//! Shared by them: [`matrix`] and [`factor`] (linear algebra), [`statistics`] (calibration), [`grid`] (uniform
//! grids), [`levels`] (tables of levels), [`sweep`] (error feedback from column to column), [`pattern`] (which weights
//! are kept).

pub mod factor;
pub mod gptq;
pub mod grid;
pub mod matrix;
pub mod rtn;
pub mod statistics;
pub mod sweep;
pub mod threads;

#[cfg(test)]
pub(crate) mod testing;

use lapidary_ir::ElemType;
use lapidary_ir::encodings::{DecodeError, Encoding};
use matrix::Matrix;
use statistics::Statistics;
use std::sync::OnceLock;

/// Every method whose candidates can be written as terms.
pub static METHODS: &[&Method] = &[&rtn::RTN, &gptq::GPTQ];

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
        let energy = *self.energy.get_or_init(|| self.size(self.weight));
        let error = self.size(&self.weight.sub(approximation));
        if error > 0.0 && energy > 0.0 {
            error / energy
        } else {
            0.0
        }
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
