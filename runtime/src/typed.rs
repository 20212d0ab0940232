//! What `include_model!` gives: a compiled model with typed inputs and outputs.
//!
//! `lapidary::Build` writes a module for each model; its structs have a field for each input and output. A shape
//! that is known makes an array, one that depends on the inputs an [`Array`] or [`OwnedArray`] of known rank.

use crate::bytes::Bytes;
use crate::error::RunError;
use crate::image::Image;
use crate::value::{Operand, View};
use crate::{Model, ModelOptions, Tensor, Value};
use lapidary_abi::ElemType;

pub use half::{bf16, f16};

/// Includes the model that a build script compiled under this name, as a module of this name: `Model` loads and
/// runs it, `Inputs` and `Outputs` have a field for each input and output.
///
/// ```ignore
/// // build.rs: lapidary::Build::new("model.onnx").compile("digits")
/// lapidary_runtime::include_model!(digits);
///
/// let model = digits::Model::new()?;
/// let outputs = model.run(&digits::Inputs { image: &pixels })?;
/// ```
///
/// `examples/digits` of the repository is such a program.
#[macro_export]
macro_rules! include_model {
    ($name:ident) => {
        #[allow(missing_docs, dead_code, clippy::all, reason = "generated code")]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    };
}

/// Bytes of an included file, aligned as weights must be.
#[repr(C, align(64))]
pub struct Aligned<T: ?Sized>(pub T);

/// A type that is an element type of tensors.
pub trait Element: Copy + Default + 'static {
    /// The element type.
    const ELEM: ElemType;
}

macro_rules! elements {
    ($($ty:ty = $elem:ident,)*) => { $(impl Element for $ty { const ELEM: ElemType = ElemType::$elem; })* };
}

elements! {
    f32 = F32, f64 = F64, f16 = F16, bf16 = BF16,
    i8 = I8, i16 = I16, i32 = I32, i64 = I64,
    u8 = U8, u16 = U16, u32 = U32, u64 = U64,
    bool = Bool,
}

/// A tensor whose dimensions are known when it is given.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a, T, const RANK: usize> {
    /// Dimensions.
    pub dims: [usize; RANK],
    /// Elements, row-major.
    pub data: &'a [T],
}

/// A tensor that a model gave.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedArray<T, const RANK: usize> {
    /// Dimensions.
    pub dims: [usize; RANK],
    /// Elements, row-major.
    pub data: Vec<T>,
}

/// The model in an image that is part of this program.
pub fn load(image: &'static Aligned<[u8]>, options: ModelOptions) -> Result<Model, RunError> {
    Image::of_included(&image.0)?.load(options)
}

/// Runs a model that has `N` outputs.
pub fn run<const N: usize>(model: &Model, inputs: &[Operand]) -> Result<[Value; N], RunError> {
    let outputs = model.run_with(inputs, &mut [], None)?;
    let values: Option<Vec<Value>> = outputs.into_iter().map(|o| o.value).collect();
    values
        .and_then(|v| v.try_into().ok())
        .ok_or_else(|| RunError::program("an output is missing"))
}

/// An operand of elements in place.
pub fn input<'a, T: Element>(data: &'a [T], dims: &[usize]) -> Result<Operand<'a>, RunError> {
    // SAFETY: every `Element` is plain data without padding, so that its bytes are initialised.
    let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) };
    View::new(T::ELEM, dims.to_vec(), bytes).map(Operand::Tensor)
}

/// The elements of an output, which has the type that the model's program states.
pub fn output<T: Element>(value: &Value, name: &str) -> Result<Vec<T>, RunError> {
    let tensor = tensor::<T>(value, name)?;
    let n = tensor.bytes().len() / size_of::<T>();
    let mut data = vec![T::default(); n];
    // Any byte is a bool to the runtime; to Rust only 0 and 1 are.
    if T::ELEM == ElemType::Bool && tensor.bytes().iter().any(|&b| b > 1) {
        return Err(RunError::program(format!("output `{name}` holds no bools")));
    }
    // SAFETY: both hold `n` elements of plain data, and every pattern of bits is a value of `T` (checked
    // above for bool).
    unsafe {
        std::ptr::copy_nonoverlapping(
            tensor.bytes().as_ptr(),
            data.as_mut_ptr().cast(),
            n * size_of::<T>(),
        )
    };
    Ok(data)
}

/// The elements of an output of known shape.
pub fn output_array<T: Element, const N: usize>(
    value: &Value,
    name: &str,
) -> Result<Box<[T; N]>, RunError> {
    let data: Box<[T]> = output::<T>(value, name)?.into();
    data.try_into()
        .map_err(|_| RunError::program(format!("output `{name}` has another shape than stated")))
}

/// An output of known rank.
pub fn output_owned<T: Element, const RANK: usize>(
    value: &Value,
    name: &str,
) -> Result<OwnedArray<T, RANK>, RunError> {
    let dims = tensor::<T>(value, name)?.dims().to_vec();
    let dims = dims
        .try_into()
        .map_err(|_| RunError::program(format!("output `{name}` has another rank than stated")))?;
    Ok(OwnedArray {
        dims,
        data: output(value, name)?,
    })
}

fn tensor<'v, T: Element>(value: &'v Value, name: &str) -> Result<&'v Tensor, RunError> {
    value
        .as_tensor()
        .filter(|t| t.elem() == T::ELEM)
        .ok_or_else(|| {
            RunError::program(format!(
                "output `{name}` is {}, not a tensor of {}",
                value.describe(),
                T::ELEM
            ))
        })
}

impl<T: Element, const RANK: usize> OwnedArray<T, RANK> {
    /// The array, borrowed: what an output of one model is to the next.
    pub fn array(&self) -> Array<'_, T, RANK> {
        Array {
            dims: self.dims,
            data: &self.data,
        }
    }

    /// The array as a tensor.
    pub fn to_tensor(&self) -> Result<Tensor, RunError> {
        // SAFETY: every `Element` is plain data without padding.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.data.as_ptr().cast(), size_of_val(&self.data[..]))
        };
        Tensor::from_bytes(T::ELEM, self.dims.to_vec(), Bytes::copy_of(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_checked() {
        let value: Value = Tensor::from_f32(vec![2, 3], &[1., 2., 3., 4., 5., 6.])
            .expect("right size")
            .into();
        let owned = output_owned::<f32, 2>(&value, "y").expect("right type");
        assert_eq!((owned.dims, owned.data[5]), ([2, 3], 6.));
        assert!(output_owned::<f32, 1>(&value, "y").is_err());
        assert!(output::<i32>(&value, "y").is_err());
        assert!(output_array::<f32, 6>(&value, "y").is_ok());
        assert!(output_array::<f32, 5>(&value, "y").is_err());
        assert!(input(&[1i64, 2], &[3]).is_err());
    }
}
