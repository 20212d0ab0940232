//! Quantized tensors: codes and scales, and products on codes.

mod blocked;
mod contrib;
mod fused;
pub mod integer;
mod linear;
mod packed;
mod products;
pub mod tail;

use super::OpDef;

/// The family's ops.
pub static OPS: &[&OpDef] = &[
    &linear::QUANTIZE_LINEAR,
    &linear::DEQUANTIZE_LINEAR,
    &linear::DYNAMIC_QUANTIZE_LINEAR,
    &fused::QUANTIZED_LINEAR,
    &fused::QUANTIZED_CONV,
    &fused::LOOKUP,
    &integer::INTEGER_SOFTMAX,
    &integer::INTEGER_LAYER_NORM,
    &products::QLINEAR_CONV,
    &products::QLINEAR_MATMUL,
    &products::DYNAMIC_QUANTIZE_MATMUL,
    &products::MATMUL_INTEGER_TO_FLOAT,
    &products::QGEMM,
    &contrib::QLINEAR_ADD,
    &contrib::QLINEAR_MUL,
    &contrib::QLINEAR_SIGMOID,
    &contrib::QLINEAR_LEAKY_RELU,
    &contrib::QLINEAR_AVERAGE_POOL,
    &contrib::QLINEAR_GLOBAL_AVERAGE_POOL,
    &contrib::QLINEAR_CONCAT,
    &contrib::QLINEAR_SOFTMAX,
    &packed::UNPACK,
    &packed::RANS_DECODE,
    &blocked::ROUND_BLOCKS,
    &blocked::MATMUL_NBITS,
    &blocked::GATHER_BLOCK_QUANTIZED,
];
