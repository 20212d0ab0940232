//! Run-time values: tensors, sequences, optionals; and borrowed views of them.
//!
//! Tensors hold elements as [`ElemType`] says: 4- and 2-bit types one per byte, strings apart. Copies of a
//! value share its elements.

use crate::bytes::Bytes;
use crate::error::RunError;
use lapidary_abi::ElemType;
use lapidary_abi::program::ValueType;
use std::sync::Arc;

/// Most elements of one tensor that library operations make.
pub const MAX_ELEMENTS: usize = 1 << 31;

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// A sequence.
    Sequence(Vec<Value>),
    /// An optional.
    Optional(Option<Box<Value>>),
}

/// A tensor that owns its elements, or shares them with its copies.
#[derive(Clone, Debug)]
pub struct Tensor {
    elem: ElemType,
    dims: Vec<usize>,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Bytes(Arc<Bytes>),
    Strings(Arc<Vec<String>>),
}

/// A tensor that somebody else owns.
#[derive(Clone, Debug)]
pub struct View<'a> {
    elem: ElemType,
    dims: Vec<usize>,
    data: ViewData<'a>,
    owner: Option<&'a Tensor>,
}

#[derive(Clone, Copy, Debug)]
enum ViewData<'a> {
    Bytes(&'a [u8]),
    Strings(&'a [String]),
}

/// A value that somebody else owns.
#[derive(Clone, Debug)]
pub enum Operand<'a> {
    /// A tensor.
    Tensor(View<'a>),
    /// A sequence.
    Sequence(&'a [Value]),
    /// An optional.
    Optional(Option<&'a Value>),
}

/// Number of elements; an error beyond [`MAX_ELEMENTS`].
pub fn count(dims: &[usize]) -> Result<usize, RunError> {
    if dims.contains(&0) {
        return Ok(0);
    }
    dims.iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= MAX_ELEMENTS)
        .ok_or_else(|| RunError::Input(format!("a tensor of shape {dims:?} is too large")))
}

impl Tensor {
    /// A tensor of zeros (empty strings).
    pub fn zeros(elem: ElemType, dims: Vec<usize>) -> Result<Tensor, RunError> {
        let n = count(&dims)?;
        let data = if elem == ElemType::String {
            Data::Strings(Arc::new(vec![String::new(); n]))
        } else {
            Data::Bytes(Arc::new(Bytes::zeroed(n * elem.size_bytes())?))
        };
        Ok(Tensor { elem, dims, data })
    }

    /// A tensor of these bytes (little-endian elements, one byte for sub-byte types).
    pub fn from_bytes(elem: ElemType, dims: Vec<usize>, bytes: Bytes) -> Result<Tensor, RunError> {
        let expected = count(&dims)? * elem.size_bytes();
        if elem == ElemType::String || bytes.as_slice().len() != expected {
            return Err(RunError::Input(format!(
                "a tensor {elem}{dims:?} needs {expected} bytes, found {}",
                bytes.as_slice().len()
            )));
        }
        Ok(Tensor {
            elem,
            dims,
            data: Data::Bytes(Arc::new(bytes)),
        })
    }

    /// A tensor of strings.
    pub fn from_strings(dims: Vec<usize>, strings: Vec<String>) -> Result<Tensor, RunError> {
        if count(&dims)? != strings.len() {
            return Err(RunError::Input(format!(
                "a tensor of shape {dims:?} cannot hold {} strings",
                strings.len()
            )));
        }
        Ok(Tensor {
            elem: ElemType::String,
            dims,
            data: Data::Strings(Arc::new(strings)),
        })
    }

    /// A tensor of `i64`.
    pub fn from_i64(dims: Vec<usize>, values: &[i64]) -> Result<Tensor, RunError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::from_bytes(ElemType::I64, dims, Bytes::copy_of(&bytes)?)
    }

    /// A tensor of `f32`.
    pub fn from_f32(dims: Vec<usize>, values: &[f32]) -> Result<Tensor, RunError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::from_bytes(ElemType::F32, dims, Bytes::copy_of(&bytes)?)
    }

    /// A `bool` scalar.
    pub fn from_bool(value: bool) -> Result<Tensor, RunError> {
        Tensor::from_bytes(ElemType::Bool, Vec::new(), Bytes::copy_of(&[value.into()])?)
    }

    /// Element type.
    pub fn elem(&self) -> ElemType {
        self.elem
    }

    /// Dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The same elements under other dimensions of the same product.
    pub fn with_dims(mut self, dims: Vec<usize>) -> Result<Tensor, RunError> {
        if count(&dims)? != count(&self.dims)? {
            return Err(RunError::Input(format!(
                "{:?} elements cannot take the shape {dims:?}",
                self.dims
            )));
        }
        self.dims = dims;
        Ok(self)
    }

    /// The elements as bytes; none for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Bytes(b) => b.as_slice(),
            Data::Strings(_) => &[],
        }
    }

    /// The elements as strings; none for others.
    pub fn strings(&self) -> &[String] {
        match &self.data {
            Data::Bytes(_) => &[],
            Data::Strings(s) => s,
        }
    }

    /// The elements, if nobody shares them.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.data {
            Data::Bytes(b) => Arc::get_mut(b).map(Bytes::as_mut_slice),
            Data::Strings(_) => None,
        }
    }

    /// The tensor, borrowed.
    pub fn view(&self) -> View<'_> {
        View {
            elem: self.elem,
            dims: self.dims.clone(),
            data: match &self.data {
                Data::Bytes(b) => ViewData::Bytes(b.as_slice()),
                Data::Strings(s) => ViewData::Strings(s),
            },
            owner: Some(self),
        }
    }

    /// Address of the first element, for kernels; none for strings.
    pub(crate) fn address(&self) -> Option<*mut u8> {
        match &self.data {
            Data::Bytes(b) => Some(b.address()),
            Data::Strings(_) => None,
        }
    }

    /// The most bytes it could hold, if nobody shares them.
    pub(crate) fn room(&mut self) -> Option<usize> {
        match &mut self.data {
            Data::Bytes(b) => Arc::get_mut(b).map(|b| b.capacity()),
            Data::Strings(_) => None,
        }
    }

    /// Becomes another tensor with unspecified content, in the same memory: `bytes`, the length of its
    /// elements, must be within [`Tensor::room`].
    pub(crate) fn recycle(&mut self, elem: ElemType, dims: &[usize], bytes: usize) {
        if let Data::Bytes(b) = &mut self.data
            && let Some(b) = Arc::get_mut(b)
        {
            b.set_len(bytes);
            self.elem = elem;
            self.dims.clear();
            self.dims.extend_from_slice(dims);
        }
    }
}

impl<'a> View<'a> {
    /// A view of bytes that hold a tensor.
    pub fn new(elem: ElemType, dims: Vec<usize>, bytes: &'a [u8]) -> Result<View<'a>, RunError> {
        let expected = count(&dims)? * elem.size_bytes();
        if elem == ElemType::String || bytes.len() != expected {
            return Err(RunError::Input(format!(
                "a tensor {elem}{dims:?} needs {expected} bytes, found {}",
                bytes.len()
            )));
        }
        Ok(View {
            elem,
            dims,
            data: ViewData::Bytes(bytes),
            owner: None,
        })
    }

    /// A view of strings.
    pub fn of_strings(dims: Vec<usize>, strings: &'a [String]) -> Result<View<'a>, RunError> {
        if count(&dims)? != strings.len() {
            return Err(RunError::Input(format!(
                "a tensor of shape {dims:?} cannot hold {} strings",
                strings.len()
            )));
        }
        Ok(View {
            elem: ElemType::String,
            dims,
            data: ViewData::Strings(strings),
            owner: None,
        })
    }

    /// Element type.
    pub fn elem(&self) -> ElemType {
        self.elem
    }

    /// Dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as bytes; none for strings.
    pub fn bytes(&self) -> &'a [u8] {
        match self.data {
            ViewData::Bytes(b) => b,
            ViewData::Strings(_) => &[],
        }
    }

    /// The elements as strings; none for others.
    pub fn strings(&self) -> &'a [String] {
        match self.data {
            ViewData::Bytes(_) => &[],
            ViewData::Strings(s) => s,
        }
    }

    /// The same elements under other dimensions of the same product.
    pub fn with_dims(mut self, dims: Vec<usize>) -> Result<View<'a>, RunError> {
        if count(&dims)? != self.len() {
            return Err(RunError::Input(format!(
                "{:?} elements cannot take the shape {dims:?}",
                self.dims
            )));
        }
        self.dims = dims;
        Ok(self)
    }

    /// A tensor that outlives the view; shares the elements where it can.
    pub fn to_tensor(&self) -> Result<Tensor, RunError> {
        match (self.owner, self.data) {
            (Some(owner), _) => owner.clone().with_dims(self.dims.clone()),
            (None, ViewData::Bytes(b)) => {
                Tensor::from_bytes(self.elem, self.dims.clone(), Bytes::copy_of(b)?)
            }
            (None, ViewData::Strings(s)) => Tensor::from_strings(self.dims.clone(), s.to_vec()),
        }
    }
}

impl Value {
    /// The value, borrowed.
    pub fn operand(&self) -> Operand<'_> {
        match self {
            Value::Tensor(t) => Operand::Tensor(t.view()),
            Value::Sequence(s) => Operand::Sequence(s),
            Value::Optional(o) => Operand::Optional(o.as_deref()),
        }
    }

    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Value::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// What it is, for messages: `f32[2, 3]`, `a sequence of 2`, …
    pub fn describe(&self) -> String {
        self.operand().describe()
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Value {
        Value::Tensor(tensor)
    }
}

impl Operand<'_> {
    /// A value that outlives the borrow.
    pub fn to_value(&self) -> Result<Value, RunError> {
        Ok(match self {
            Operand::Tensor(v) => Value::Tensor(v.to_tensor()?),
            Operand::Sequence(s) => Value::Sequence(s.to_vec()),
            Operand::Optional(o) => Value::Optional(o.map(|v| Box::new(v.clone()))),
        })
    }

    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Operand::Tensor(v) => format!("{}{:?}", v.elem, v.dims),
            Operand::Sequence(s) => format!("a sequence of {}", s.len()),
            Operand::Optional(None) => "an empty optional".to_owned(),
            Operand::Optional(Some(v)) => format!("an optional of {}", v.describe()),
        }
    }

    /// Whether the value has the kind and element types of `ty`; dimensions are not looked at.
    pub(crate) fn has_kind(&self, ty: &ValueType) -> bool {
        match (self, ty) {
            (Operand::Tensor(v), ValueType::Tensor { elem, .. }) => v.elem == *elem,
            (Operand::Sequence(s), ValueType::Sequence(of)) => {
                s.iter().all(|v| v.operand().has_kind(of))
            }
            (Operand::Optional(None), ValueType::Optional(_)) => true,
            (Operand::Optional(Some(v)), ValueType::Optional(of)) => v.operand().has_kind(of),
            _ => false,
        }
    }
}
