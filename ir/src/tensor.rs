//! Tensors of the reference evaluator: plain, wide, and slow on purpose.
//!
//! Every float type is held as `f64` already rounded to its element type, every integer as `i128`
//! already wrapped to its range; so an op is written once per class of arithmetic, not once per type.

use crate::{ElemType, minifloat};
use lapidary_abi::elem::ElemClass;
use std::fmt;

/// The elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Float class; each value is representable in the tensor's element type.
    Float(Vec<f64>),
    /// Signed, unsigned and bool (0 or 1).
    Int(Vec<i128>),
    /// Real and imaginary parts.
    Complex(Vec<[f64; 2]>),
    /// Strings.
    Str(Vec<String>),
}

/// A concrete tensor.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    elem: ElemType,
    shape: Vec<usize>,
    data: Data,
}

/// A run-time value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// A sequence of values.
    Sequence(Vec<Value>),
    /// A value or nothing.
    Optional(Option<Box<Value>>),
}

/// Product of dimensions; one that does not fit is the largest number there is, so that limits hold.
pub fn count(shape: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    shape.iter().fold(1, |n, &d| n.saturating_mul(d))
}

/// Row-major strides of `shape`, in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i].saturating_mul(shape[i].max(1));
    }
    out
}

/// Wraps an integer to the range of `elem` (two's complement); `bool` is "not zero".
pub fn wrap(elem: ElemType, value: i128) -> i128 {
    match elem.class() {
        ElemClass::Bool => i128::from(value != 0),
        ElemClass::Signed => {
            let shift = 128 - elem.bits();
            (value << shift) >> shift
        }
        ElemClass::Unsigned => value & ((1i128 << elem.bits()) - 1),
        _ => value,
    }
}

impl Tensor {
    /// A float tensor; values are rounded to `elem`. Panics if the count does not match the shape or
    /// `elem` is not of float class.
    pub fn from_f64(elem: ElemType, shape: impl Into<Vec<usize>>, values: Vec<f64>) -> Tensor {
        assert!(elem.is_float(), "{elem} is not a float type");
        let data = Data::Float(
            values
                .into_iter()
                .map(|v| minifloat::round_to(elem, v))
                .collect(),
        );
        Tensor::new(elem, shape, data)
    }

    /// An integer or bool tensor; values are wrapped to `elem`. Panics as [`Tensor::from_f64`].
    pub fn from_int(elem: ElemType, shape: impl Into<Vec<usize>>, values: Vec<i128>) -> Tensor {
        assert!(elem.int_range().is_some(), "{elem} is not an integer type");
        Tensor::new(
            elem,
            shape,
            Data::Int(values.into_iter().map(|v| wrap(elem, v)).collect()),
        )
    }

    /// A 1-D `i64` tensor.
    pub fn ints(values: &[i64]) -> Tensor {
        Tensor::from_int(
            ElemType::I64,
            [values.len()],
            values.iter().map(|&v| i128::from(v)).collect(),
        )
    }

    /// A 0-D `i64` tensor.
    pub fn int(value: i64) -> Tensor {
        Tensor::from_int(ElemType::I64, [], vec![i128::from(value)])
    }

    /// A 0-D `f32` tensor.
    pub fn f32(value: f32) -> Tensor {
        Tensor::from_f64(ElemType::F32, [], vec![f64::from(value)])
    }

    /// A 0-D `bool` tensor.
    pub fn bool(value: bool) -> Tensor {
        Tensor::from_int(ElemType::Bool, [], vec![i128::from(value)])
    }

    /// A tensor from its parts, which must fit: count, and class of data for the element type.
    pub fn new(elem: ElemType, shape: impl Into<Vec<usize>>, data: Data) -> Tensor {
        let shape = shape.into();
        let len = match &data {
            Data::Float(v) => v.len(),
            Data::Int(v) => v.len(),
            Data::Complex(v) => v.len(),
            Data::Str(v) => v.len(),
        };
        assert_eq!(len, count(&shape), "data does not fill the shape {shape:?}");
        Tensor { elem, shape, data }
    }

    /// All zeros (empty strings, false).
    pub fn zeros(elem: ElemType, shape: impl Into<Vec<usize>>) -> Tensor {
        let shape = shape.into();
        let n = count(&shape);
        let data = match elem.class() {
            ElemClass::Float => Data::Float(vec![0.0; n]),
            ElemClass::Complex => Data::Complex(vec![[0.0; 2]; n]),
            ElemClass::String => Data::Str(vec![String::new(); n]),
            _ => Data::Int(vec![0; n]),
        };
        Tensor { elem, shape, data }
    }

    /// Element type.
    pub fn elem(&self) -> ElemType {
        self.elem
    }

    /// Dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rank.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        count(&self.shape)
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements of a float tensor, else `None`.
    pub fn floats(&self) -> Option<&[f64]> {
        match &self.data {
            Data::Float(v) => Some(v),
            _ => None,
        }
    }

    /// The elements of an integer or bool tensor, else `None`.
    pub fn integers(&self) -> Option<&[i128]> {
        match &self.data {
            Data::Int(v) => Some(v),
            _ => None,
        }
    }

    /// The elements of a string tensor, else `None`.
    pub fn strings(&self) -> Option<&[String]> {
        match &self.data {
            Data::Str(v) => Some(v),
            _ => None,
        }
    }

    /// Integer elements as `i64` (what shapes, axes and indices are), else `None`.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        self.integers()?
            .iter()
            .map(|&v| i64::try_from(v).ok())
            .collect()
    }

    /// Any number class as `f64` (complex and strings: `None`).
    pub fn to_f64s(&self) -> Option<Vec<f64>> {
        match &self.data {
            Data::Float(v) => Some(v.clone()),
            Data::Int(v) => Some(v.iter().map(|&v| v as f64).collect()),
            _ => None,
        }
    }

    /// The same elements under another shape of equal count.
    pub fn with_shape(mut self, shape: impl Into<Vec<usize>>) -> Tensor {
        let shape = shape.into();
        assert_eq!(
            count(&shape),
            self.len(),
            "reshape keeps the number of elements"
        );
        self.shape = shape;
        self
    }

    /// A tensor of `shape` whose element at output position `i` is this one's at `source(i)`
    /// (both row-major linear).
    pub fn gather_linear(
        &self,
        shape: impl Into<Vec<usize>>,
        source: impl Fn(usize) -> usize,
    ) -> Tensor {
        let shape = shape.into();
        let n = count(&shape);
        fn pick<T: Clone>(v: &[T], n: usize, source: impl Fn(usize) -> usize) -> Vec<T> {
            (0..n).map(|i| v[source(i)].clone()).collect()
        }
        let data = match &self.data {
            Data::Float(v) => Data::Float(pick(v, n, source)),
            Data::Int(v) => Data::Int(pick(v, n, source)),
            Data::Complex(v) => Data::Complex(pick(v, n, source)),
            Data::Str(v) => Data::Str(pick(v, n, source)),
        };
        Tensor {
            elem: self.elem,
            shape,
            data,
        }
    }

    /// Reads little-endian bytes, one element per [`ElemType::size_bytes`]; `None` if the length is
    /// wrong or the type is `string`.
    pub fn from_bytes(
        elem: ElemType,
        shape: impl Into<Vec<usize>>,
        bytes: &[u8],
    ) -> Option<Tensor> {
        let shape = shape.into();
        let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
        let size = elem.size_bytes();
        if size == 0 || bytes.len() != n.checked_mul(size)? {
            return None;
        }
        let chunks = bytes.chunks_exact(size);
        let data = match elem.class() {
            ElemClass::Float => Data::Float(chunks.map(|c| read_float(elem, c)).collect()),
            ElemClass::Complex => {
                let half = if elem == ElemType::C64 {
                    ElemType::F32
                } else {
                    ElemType::F64
                };
                Data::Complex(
                    chunks
                        .map(|c| {
                            [
                                read_float(half, &c[..size / 2]),
                                read_float(half, &c[size / 2..]),
                            ]
                        })
                        .collect(),
                )
            }
            _ => Data::Int(
                chunks
                    .map(|c| {
                        wrap(
                            elem,
                            c.iter().rev().fold(0i128, |a, &b| (a << 8) | i128::from(b)),
                        )
                    })
                    .collect(),
            ),
        };
        Some(Tensor { elem, shape, data })
    }

    /// Little-endian bytes as [`Tensor::from_bytes`] reads them; `None` for strings.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let size = self.elem.size_bytes();
        let mut out = Vec::with_capacity(self.len() * size);
        match &self.data {
            Data::Float(v) => v.iter().for_each(|&x| write_float(self.elem, x, &mut out)),
            Data::Int(v) => v
                .iter()
                .for_each(|x| out.extend_from_slice(&x.to_le_bytes()[..size])),
            Data::Complex(v) => {
                let half = if self.elem == ElemType::C64 {
                    ElemType::F32
                } else {
                    ElemType::F64
                };
                v.iter()
                    .flatten()
                    .for_each(|&x| write_float(half, x, &mut out));
            }
            Data::Str(_) => return None,
        }
        Some(out)
    }
}

fn read_float(elem: ElemType, bytes: &[u8]) -> f64 {
    match *bytes {
        [a] => minifloat::decode(elem, a),
        [a, b] if elem == ElemType::F16 => half::f16::from_le_bytes([a, b]).to_f64(),
        [a, b] => half::bf16::from_le_bytes([a, b]).to_f64(),
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => f64::NAN,
    }
}

fn write_float(elem: ElemType, value: f64, out: &mut Vec<u8>) {
    match elem {
        ElemType::F32 => out.extend((value as f32).to_le_bytes()),
        ElemType::F64 => out.extend(value.to_le_bytes()),
        ElemType::F16 => out.extend(half::f16::from_f64(value).to_le_bytes()),
        ElemType::BF16 => out.extend(half::bf16::from_f64(value).to_le_bytes()),
        _ => out.push(minifloat::encode(elem, value, true)),
    }
}

impl Value {
    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Value::Tensor(t) => Some(t),
            _ => None,
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Value {
        Value::Tensor(tensor)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?} ", self.elem, self.shape)?;
        match &self.data {
            Data::Float(v) => write!(f, "{:?}", &v[..v.len().min(16)]),
            Data::Int(v) => write!(f, "{:?}", &v[..v.len().min(16)]),
            Data::Complex(v) => write!(f, "{:?}", &v[..v.len().min(16)]),
            Data::Str(v) => write!(f, "{:?}", &v[..v.len().min(16)]),
        }
    }
}
