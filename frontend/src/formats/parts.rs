//! The tensors of one module, as formats read them: each checked for type and shape, with messages that name it.

use crate::checkpoint::config::Config;
use crate::checkpoint::safetensors::Stored;
use crate::checkpoint::weights::Weights;
use crate::error::Problem;
use bytes::Bytes;
use lapidary_ir::encodings::strided::{Places, strided};
use lapidary_ir::encodings::{Encoding, dense, gather, int};
use lapidary_ir::{ElemType, Tensor};

/// What to do about parts that do not fit each other.
const REMEDY: &str = "is the checkpoint complete, and not changed since it was quantized?";

/// The tensors of a module.
pub(crate) struct Parts<'w> {
    module: &'w str,
    weights: &'w Weights,
    /// What `quantization_config` says.
    pub settings: &'w Config,
}

/// A tensor whose type and shape are what was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub elem: ElemType,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

impl<'w> Parts<'w> {
    pub fn new(module: &'w str, weights: &'w Weights, settings: &'w Config) -> Parts<'w> {
        Parts {
            module,
            weights,
            settings,
        }
    }

    /// The module's name.
    pub fn module(&self) -> &str {
        self.module
    }

    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.module)
    }

    /// Whether the module has this part.
    pub fn has(&self, part: &str) -> bool {
        self.weights.has(&self.name(part))
    }

    /// A part that nothing is read from: what it says is known.
    pub fn skip(&self, part: &str) {
        self.weights.take(&self.name(part));
    }

    /// A problem with a part.
    pub fn wrong(&self, part: &str, reason: impl Into<String>) -> Problem {
        let name = self.name(part);
        let file = self.weights.file_of(&name);
        Problem {
            place: match file {
                Some(file) => format!("tensor `{name}` of `{file}`"),
                None => format!("tensor `{name}`"),
            },
            reason: reason.into(),
            remedy: Some(REMEDY.to_owned()),
        }
    }

    fn stored(&self, part: &str) -> Result<&'w Stored, Problem> {
        let found = self.weights.take(&self.name(part));
        let (stored, _) =
            found.ok_or_else(|| self.wrong(part, "is missing beside the weight's other parts"))?;
        Ok(stored)
    }

    /// The lengths of a part with this many, none of which is 0.
    pub fn shape<const N: usize>(&self, part: &str) -> Result<[usize; N], Problem> {
        let shape = &self.stored(part)?.shape;
        let fits = <[usize; N]>::try_from(&shape[..]).ok();
        fits.filter(|s| !s.contains(&0)).ok_or_else(|| {
            self.wrong(
                part,
                format!("has shape {shape:?}; {N} lengths above 0 are needed"),
            )
        })
    }

    /// The lengths of a part.
    pub fn shape_of(&self, part: &str) -> Result<Vec<usize>, Problem> {
        Ok(self.stored(part)?.shape.clone())
    }

    /// The bytes of a part, whatever type they are said to be of.
    pub fn raw(&self, part: &str) -> Result<Bytes, Problem> {
        Ok(self.stored(part)?.bytes.clone())
    }

    fn checked(
        &self,
        part: &str,
        shape: &[usize],
        wanted: &str,
        fits: impl Fn(ElemType) -> bool,
    ) -> Result<Part, Problem> {
        let stored = self.stored(part)?;
        let elem = match &stored.elem {
            Ok(elem) if fits(*elem) => *elem,
            Ok(elem) => {
                return Err(self.wrong(part, format!("is of {elem}; {wanted} is needed")));
            }
            Err(name) => {
                return Err(self.wrong(part, format!("is of {name}; {wanted} is needed")));
            }
        };
        if stored.shape != shape {
            let reason = format!(
                "has shape {:?}; beside the other parts it must be {shape:?}",
                stored.shape
            );
            return Err(self.wrong(part, reason));
        }
        Ok(Part {
            elem,
            shape: shape.to_vec(),
            bytes: stored.bytes.clone(),
        })
    }

    /// A part of floats of at least 16 bits.
    pub fn floats(&self, part: &str, shape: &[usize]) -> Result<Part, Problem> {
        let float = |e: ElemType| e.is_float() && e.bits() >= 16;
        self.checked(part, shape, "a float type", float)
    }

    /// A part of one of these types.
    pub fn of(&self, part: &str, elems: &[ElemType], shape: &[usize]) -> Result<Part, Problem> {
        let names: Vec<&str> = elems.iter().map(|e| e.name()).collect();
        self.checked(part, shape, &names.join(" or "), |e| elems.contains(&e))
    }

    /// The whole numbers of a short part of any shape, of any integer type.
    pub fn numbers(&self, part: &str) -> Result<Vec<i64>, Problem> {
        let shape = self.stored(part)?.shape.clone();
        let part_of = self.checked(part, &shape, "an integer type", ElemType::is_int)?;
        let tensor = Tensor::from_bytes(part_of.elem, shape, &part_of.bytes);
        let numbers = tensor.and_then(|t| t.to_i64s());
        numbers.ok_or_else(|| self.wrong(part, "holds numbers that are too large"))
    }

    /// The one number of a part.
    pub fn number(&self, part: &str) -> Result<i64, Problem> {
        match self.numbers(part)?[..] {
            [n] => Ok(n),
            _ => Err(self.wrong(part, "must hold one number")),
        }
    }
}

impl Part {
    /// As it is stored, in another shape with as many elements.
    pub fn dense(&self, shape: &[usize]) -> Encoding {
        dense::dense(self.elem, shape.to_vec(), self.bytes.clone())
    }

    /// Elements at other places: `digits` are lengths and distances, in elements.
    pub fn strided(&self, shape: &[usize], first: usize, digits: &[(usize, usize)]) -> Encoding {
        let bits = self.elem.bits() as usize;
        let digits = digits.iter().map(|&(n, s)| (n, (s * bits) as i64));
        let places = Places {
            bits,
            first: (first * bits) as i64,
            digits: digits.collect(),
        };
        strided(self.elem, shape.to_vec(), places, self.bytes.clone())
    }

    /// A matrix `[a, b]` as the term `[b, a]`.
    pub fn transposed(&self) -> Encoding {
        let (a, b) = (self.shape[0], self.shape[1]);
        self.strided(&[b, a], 0, &[(b, 1), (a, b)])
    }
}

/// Codes of `bits` bits, the first at bit `first` of `bytes`; `digits` are those of a code's index, with lengths and
/// distances in bits. Codes that no byte holds a whole number of are followed bit by bit.
pub(crate) fn codes(
    bits: usize,
    shape: &[usize],
    first: i64,
    digits: &[(usize, i64)],
    bytes: &Bytes,
) -> Encoding {
    let mut digits = digits.to_vec();
    let mut field = bits;
    if !matches!(bits, 1 | 2 | 4 | 8) {
        digits.push((bits, 1));
        field = 1;
    }
    let places = Places {
        bits: field,
        first,
        digits,
    };
    let count: usize = shape.iter().product();
    let packed = (count * bits).div_ceil(8);
    let bytes = strided(ElemType::U8, vec![packed], places, bytes.clone());
    int::over(ElemType::U8, bits as u32, shape.to_vec(), bytes)
}

/// A part that holds for runs of `run` along an axis of length `n`, the last one perhaps shorter, as a term that the block
/// rule spreads over it: that makes all runs as long as each other.
pub(crate) fn by_runs(part: Encoding, axis: usize, n: usize, run: usize) -> Encoding {
    if n.div_ceil(part.shape[axis].max(1)) == run {
        return part;
    }
    let places = (0..n).map(|i| (i / run) as i128).collect();
    let index = dense::from_tensor(&Tensor::from_int(ElemType::I32, [n], places));
    gather::gather(axis, index, part)
}

/// Codes whose bytes, as `int` packs them, lie at these places: `digits` are those of a byte's index.
pub(crate) fn packed(
    bits: usize,
    shape: &[usize],
    digits: &[(usize, i64)],
    bytes: &Bytes,
) -> Encoding {
    let places = Places {
        bits: 8,
        first: 0,
        digits: digits.to_vec(),
    };
    let count: usize = shape.iter().product();
    let bytes = strided(
        ElemType::U8,
        vec![(count * bits).div_ceil(8)],
        places,
        bytes.clone(),
    );
    int::over(ElemType::U8, bits as u32, shape.to_vec(), bytes)
}
