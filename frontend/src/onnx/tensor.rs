//! `TensorProto` to constants and back: one place for ONNX's ways of storing elements.
//!
//! ```text
//! raw_data       little-endian, row-major          (or the same bytes in an external file)
//! 4-, 2-bit      packed, low bits first, no row padding
//! float_data     f32, c64 (pairs)        double_data  f64, c128 (pairs)
//! int32_data     every type of at most 32 bits; f16 and the like as bit patterns; packed bytes for 4, 2 bits
//! int64_data     i64                     uint64_data  u32, u64              string_data  strings
//! ```

use super::external::external_data;
use super::proto::{SparseTensorProto, TensorProto};
use crate::files::Files;
use bytes::Bytes;
use lapidary_ir::encodings::int;
use lapidary_ir::tensor::{Data, count, strides};
use lapidary_ir::{Constant, ElemType, Tensor};

/// Largest dense size, in elements, that a sparse tensor is expanded to.
const MAX_SPARSE: usize = 1 << 28;

/// The element type with this ONNX number.
pub fn elem_type(number: Option<i32>) -> Result<ElemType, String> {
    let number = number.unwrap_or(0);
    ElemType::from_onnx(number).ok_or_else(|| match number {
        0 => "element type is missing".to_owned(),
        27 | 28 => "6-bit floats are not supported".to_owned(),
        n => format!("element type {n} is not known"),
    })
}

/// Concrete dimensions whose element count fits memory addresses.
fn shape(dims: &[i64]) -> Result<Vec<usize>, String> {
    let shape: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = shape.ok_or_else(|| format!("shape {dims:?} has a negative dimension"))?;
    // Zeros hide an overflow of the others' product; `count` multiplies them all.
    let product = shape
        .iter()
        .try_fold(1usize, |a, &d| a.checked_mul(d.max(1)));
    match product.and_then(|n| n.checked_mul(16)) {
        Some(n) if isize::try_from(n).is_ok() => Ok(shape),
        _ => Err(format!("shape {dims:?} has too many elements")),
    }
}

/// True for types that ONNX packs several to a byte.
fn is_packed(elem: ElemType) -> bool {
    elem.bits() > 0 && elem.bits() < 8 && elem != ElemType::Bool
}

/// A tensor as a constant, whose bytes are views of the message or file where that is possible.
pub fn constant(tensor: &TensorProto, files: &Files) -> Result<Constant, String> {
    let elem = elem_type(tensor.data_type)?;
    let shape = shape(&tensor.dims)?;
    if tensor.segment.is_some() {
        return Err("is stored in segments, which are not supported".into());
    }
    if elem == ElemType::String {
        return strings(tensor, shape);
    }
    let bytes = match external_data(files, tensor)? {
        Some(bytes) => bytes,
        None => inner_bytes(tensor, elem)?,
    };
    let encoding = match elem {
        ElemType::F4E2M1 => {
            let n = count(&shape);
            if bytes.len() != n.div_ceil(2) {
                return Err(format!(
                    "{elem}{shape:?} needs {} bytes, found {}",
                    n.div_ceil(2),
                    bytes.len()
                ));
            }
            let codes: Vec<u8> = (0..n).map(|i| bytes[i / 2] >> (4 * (i % 2)) & 15).collect();
            return Ok(Constant::dense(elem, shape, codes.into()));
        }
        _ if is_packed(elem) => int::int(elem, elem.bits(), shape, bytes),
        ElemType::Bool if bytes.iter().any(|&b| b > 1) => {
            let clean: Vec<u8> = bytes.iter().map(|&b| u8::from(b != 0)).collect();
            lapidary_ir::encodings::dense::dense(elem, shape, Bytes::from(clean))
        }
        _ => lapidary_ir::encodings::dense::dense(elem, shape, bytes),
    };
    encoding.check().map_err(|e| e.reason)?;
    Ok(Constant::new(encoding))
}

/// A tensor, decoded.
pub fn decode(tensor: &TensorProto, files: &Files) -> Result<Tensor, String> {
    constant(tensor, files)?.decode().map_err(|e| e.reason)
}

fn strings(tensor: &TensorProto, shape: Vec<usize>) -> Result<Constant, String> {
    let text =
        |b: &Bytes| String::from_utf8(b.to_vec()).map_err(|_| "holds a string that is not UTF-8");
    let values = tensor
        .string_data
        .iter()
        .map(text)
        .collect::<Result<Vec<_>, _>>()?;
    if values.len() != count(&shape) {
        return Err(format!(
            "string{shape:?} needs {} strings, found {}",
            count(&shape),
            values.len()
        ));
    }
    Ok(Constant::from_tensor(&Tensor::new(
        ElemType::String,
        shape,
        Data::Str(values),
    )))
}

/// The stored bytes of a tensor that is inside the message, as `raw_data` would hold them.
fn inner_bytes(tensor: &TensorProto, elem: ElemType) -> Result<Bytes, String> {
    fn le<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Bytes {
        values
            .iter()
            .flat_map(|&v| bytes(v))
            .collect::<Vec<u8>>()
            .into()
    }
    let low = |n: usize| -> Bytes {
        tensor
            .int32_data
            .iter()
            .flat_map(|v| v.to_le_bytes().into_iter().take(n))
            .collect::<Vec<u8>>()
            .into()
    };
    let typed = match elem {
        ElemType::F32 | ElemType::C64 => le(&tensor.float_data, f32::to_le_bytes),
        ElemType::F64 | ElemType::C128 => le(&tensor.double_data, f64::to_le_bytes),
        ElemType::I64 => le(&tensor.int64_data, i64::to_le_bytes),
        ElemType::U64 => le(&tensor.uint64_data, u64::to_le_bytes),
        ElemType::U32 => le(&tensor.uint64_data, |v| (v as u32).to_le_bytes()),
        _ => low(elem.size_bytes()),
    };
    match &tensor.raw_data {
        Some(raw) if typed.is_empty() => Ok(raw.clone()),
        Some(raw) if !raw.is_empty() => Err("has both `raw_data` and typed data".into()),
        _ => Ok(typed),
    }
}

/// A sparse tensor, expanded.
pub fn sparse(sparse: &SparseTensorProto, files: &Files) -> Result<Constant, String> {
    let shape = shape(&sparse.dims)?;
    let n = count(&shape);
    if n > MAX_SPARSE {
        return Err(format!(
            "is sparse with {n} elements; at most {MAX_SPARSE} can be expanded"
        ));
    }
    let values = sparse
        .values
        .as_ref()
        .ok_or("sparse tensor has no values")?;
    let indices = sparse
        .indices
        .as_ref()
        .ok_or("sparse tensor has no indices")?;
    let (values, indices) = (decode(values, files)?, decode(indices, files)?);
    let nnz = values.len();
    let linear = indices.to_i64s().ok_or("sparse indices are not integers")?;
    let width = match *indices.shape() {
        [rows] if rows == nnz => 1,
        [rows, rank] if rows == nnz && rank == shape.len() => rank,
        _ => {
            return Err(format!(
                "sparse indices {:?} do not fit {nnz} values of rank {}",
                indices.shape(),
                shape.len()
            ));
        }
    };
    let steps = if indices.rank() == 1 {
        vec![1]
    } else {
        strides(&shape)
    };
    let bounds = if indices.rank() == 1 {
        vec![n]
    } else {
        shape.clone()
    };
    let position = |i: usize| -> Option<usize> {
        let row = &linear[i * width..(i + 1) * width];
        row.iter()
            .zip(&bounds)
            .zip(&steps)
            .map(|((&x, &bound), step)| {
                Some(usize::try_from(x).ok().filter(|&x| x < bound)? * step)
            })
            .sum()
    };
    let size = values.elem().size_bytes();
    let stored = values
        .to_bytes()
        .ok_or("sparse strings are not supported")?;
    let mut out = vec![0; n * size];
    for i in 0..nnz {
        let at =
            position(i).ok_or_else(|| format!("sparse index {i} is out of range for {shape:?}"))?;
        out[at * size..][..size].copy_from_slice(&stored[i * size..][..size]);
    }
    Ok(Constant::dense(values.elem(), shape, out.into()))
}

/// A tensor as a message, with `raw_data` (strings: `string_data`).
pub fn to_proto(name: &str, tensor: &Tensor) -> TensorProto {
    let mut out = TensorProto {
        name: name.to_owned(),
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.elem().onnx()),
        ..TensorProto::default()
    };
    match tensor.data() {
        Data::Str(s) => out.string_data = s.iter().map(|s| Bytes::from(s.clone())).collect(),
        _ => {
            let bytes = tensor.to_bytes().unwrap_or_default();
            let bits = tensor.elem().bits();
            out.raw_data = Some(Bytes::from(if is_packed(tensor.elem()) {
                int::pack(bytes, bits)
            } else {
                bytes
            }));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_reads_back() {
        for &elem in ElemType::ALL {
            let tensor = match elem {
                ElemType::String => Tensor::new(
                    elem,
                    [3],
                    Data::Str(vec!["a".into(), String::new(), "ü".into()]),
                ),
                ElemType::C64 | ElemType::C128 => Tensor::new(
                    elem,
                    [3],
                    Data::Complex(vec![[1.0, -2.0], [0.5, 0.0], [3.0, 4.0]]),
                ),
                e if e.is_float() => Tensor::from_f64(e, [3], vec![1.0, 2.0, 4.0]),
                e => Tensor::from_int(e, [3], vec![1, 0, -1]),
            };
            let back = decode(&to_proto("t", &tensor), &Files::default());
            assert_eq!(back, Ok(tensor), "{elem}");
        }
    }

    #[test]
    fn typed_fields_are_read() {
        let base = |elem: ElemType, dims: Vec<i64>| TensorProto {
            data_type: Some(elem.onnx()),
            dims,
            ..TensorProto::default()
        };
        let cases = [
            (
                TensorProto {
                    int32_data: vec![0x3C00, 0xC000],
                    ..base(ElemType::F16, vec![2])
                },
                Tensor::from_f64(ElemType::F16, [2], vec![1.0, -2.0]),
            ),
            (
                TensorProto {
                    int32_data: vec![-1, 5],
                    ..base(ElemType::I8, vec![2])
                },
                Tensor::from_int(ElemType::I8, [2], vec![-1, 5]),
            ),
            (
                TensorProto {
                    int32_data: vec![0x8F, 0x01],
                    ..base(ElemType::I4, vec![3])
                },
                Tensor::from_int(ElemType::I4, [3], vec![-1, -8, 1]),
            ),
            (
                TensorProto {
                    int32_data: vec![0b11_10_01_00, 1],
                    ..base(ElemType::U2, vec![5])
                },
                Tensor::from_int(ElemType::U2, [5], vec![0, 1, 2, 3, 1]),
            ),
            (
                TensorProto {
                    int32_data: vec![0x42],
                    ..base(ElemType::F4E2M1, vec![2])
                },
                Tensor::from_f64(ElemType::F4E2M1, [2], vec![1.0, 2.0]),
            ),
            (
                TensorProto {
                    uint64_data: vec![7],
                    ..base(ElemType::U32, vec![])
                },
                Tensor::from_int(ElemType::U32, [], vec![7]),
            ),
            (
                TensorProto {
                    float_data: vec![1.0, 2.0],
                    ..base(ElemType::C64, vec![1])
                },
                Tensor::new(ElemType::C64, [1], Data::Complex(vec![[1.0, 2.0]])),
            ),
        ];
        for (proto, want) in cases {
            assert_eq!(decode(&proto, &Files::default()), Ok(want));
        }
    }

    #[test]
    fn bad_tensors_are_errors() {
        let base = |dims: Vec<i64>| TensorProto {
            data_type: Some(1),
            dims,
            raw_data: Some(Bytes::from_static(&[0; 8])),
            ..TensorProto::default()
        };
        let cases = [
            (base(vec![3]), "needs 12 bytes"),
            (base(vec![-2]), "negative"),
            (base(vec![1 << 40]), "needs"),
            (base(vec![1 << 40, 1 << 40, 0]), "too many"),
            (
                TensorProto {
                    data_type: Some(99),
                    ..base(vec![2])
                },
                "not known",
            ),
            (
                TensorProto {
                    data_type: Some(27),
                    ..base(vec![2])
                },
                "6-bit",
            ),
            (
                TensorProto {
                    data_type: None,
                    ..base(vec![2])
                },
                "missing",
            ),
            (
                TensorProto {
                    float_data: vec![1.0],
                    ..base(vec![2])
                },
                "both",
            ),
            (
                TensorProto {
                    segment: Some(Default::default()),
                    ..base(vec![2])
                },
                "segments",
            ),
            (
                TensorProto {
                    data_type: Some(8),
                    ..base(vec![1 << 40])
                },
                "strings",
            ),
        ];
        for (proto, want) in cases {
            let got = constant(&proto, &Files::default()).expect_err(want);
            assert!(got.contains(want), "{got}");
        }
    }

    #[test]
    fn sparse_tensors_expand() {
        let values = to_proto("", &Tensor::from_f64(ElemType::F32, [2], vec![5.0, 6.0]));
        let at = |t: Tensor| SparseTensorProto {
            values: Some(values.clone()),
            indices: Some(to_proto("", &t)),
            dims: vec![2, 2],
        };
        let want = Tensor::from_f64(ElemType::F32, [2, 2], vec![0.0, 5.0, 6.0, 0.0]);
        let pairs = Tensor::ints(&[0, 1, 1, 0]).with_shape([2, 2]);
        for indices in [Tensor::ints(&[1, 2]), pairs] {
            assert_eq!(
                sparse(&at(indices), &Files::default())
                    .expect("valid")
                    .decode(),
                Ok(want.clone())
            );
        }
        assert!(sparse(&at(Tensor::ints(&[1, 4])), &Files::default()).is_err());
        let huge = SparseTensorProto {
            dims: vec![1 << 40],
            ..at(Tensor::ints(&[1, 2]))
        };
        assert!(
            sparse(&huge, &Files::default())
                .expect_err("huge")
                .contains("expanded")
        );
    }
}
