//! ONNX Runtime's weights of 2, 4 or 8 bits with a scale per block, packed low bits first.

use crate::builder::Builder;
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::ops::{AttrDef, AttrKind, Default, InferCtx, OpDef, OpError, Operand, Tolerance, resolve_axis};
use crate::{Dim, ElemType, Tensor, Type, ValueId};

/// Product with packed weights.
pub static MATMUL_NBITS: OpDef = OpDef {
    name: "matmul_nbits",
    summary: "a times the transpose of the weights `[n, k]` that the blocks of `b` decode to, plus bias",
    source: "ONNX Runtime com.microsoft MatMulNBits-1",
    operands: &[
        Operand::One("a"),
        Operand::One("b"),
        Operand::One("scales"),
        Operand::Optional("zero_points"),
        Operand::Optional("g_idx"),
        Operand::Optional("bias"),
    ],
    attrs: &[
        AttrDef::new("K", AttrKind::Int, Default::Required, "length of the sum"),
        AttrDef::new("N", AttrKind::Int, Default::Required, "columns of the result"),
        AttrDef::new("accuracy_level", AttrKind::Int, Default::Int(0), "a hint; the product is never less accurate"),
        AttrDef::new("bits", AttrKind::Int, Default::Int(4), "bits per weight: 2, 4 or 8"),
        AttrDef::new("block_size", AttrKind::Int, Default::Required, "weights along `k` that share a scale"),
        AttrDef::new("weight_prepacked", AttrKind::Int, Default::Int(0), "must be 0"),
    ],
    infer: infer_nbits,
    decompose: Some(decompose_nbits),
    tolerance: Tolerance::Approximate(1e-4, 1e-5),
    ..OpDef::BASE
};

/// Rows of a packed table.
pub static GATHER_BLOCK_QUANTIZED: OpDef = OpDef {
    name: "gather_block_quantized",
    summary: "gather of the numbers that blocks of codes decode to",
    source: "ONNX Runtime com.microsoft GatherBlockQuantized-1; an index out of range is an error here, not zeros",
    operands: &[
        Operand::One("data"),
        Operand::One("indices"),
        Operand::One("scales"),
        Operand::Optional("zero_points"),
    ],
    attrs: &[
        AttrDef::new("bits", AttrKind::Int, Default::Int(4), "bits per code of u8 data: 2, 4 or 8"),
        AttrDef::new("block_size", AttrKind::Int, Default::Int(128), "codes that share a scale; 0: the whole axis"),
        AttrDef::new("gather_axis", AttrKind::Int, Default::Int(0), "axis of the indices"),
        AttrDef::new("quantize_axis", AttrKind::Int, Default::Int(1), "axis of the blocks"),
    ],
    infer: infer_gather,
    decompose: Some(decompose_gather),
    tolerance: Tolerance::Rounding(2),
    ..OpDef::BASE
};

struct Blocks {
    n: i64,
    k: i64,
    bits: i64,
    size: i64,
    count: i64,
}

fn blocks(node: &Node) -> Result<Blocks, OpError> {
    let (n, k, bits, size) = (node.int("N")?, node.int("K")?, node.int("bits")?, node.int("block_size")?);
    if ![2, 4, 8].contains(&bits) {
        return Err(OpError::new(format!("attribute `bits` must be 2, 4 or 8, found {bits}")));
    }
    if !(1..1 << 31).contains(&n) || !(1..1 << 31).contains(&k) || !(1..1 << 31).contains(&size) || size * bits % 8 != 0 {
        return Err(OpError::new("attributes `N`, `K` and `block_size` must be positive, blocks whole bytes"));
    }
    if node.int("weight_prepacked")? != 0 {
        return Err(OpError::new("attribute `weight_prepacked` must be 0: other layouts belong to one device"));
    }
    Ok(Blocks { n, k, bits, size, count: (k + size - 1) / size })
}

fn infer_nbits(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let elem = ctx.elem(0)?;
    let blocks = blocks(ctx.node)?;
    ctx.elem(1)?;
    Ok(vec![match ctx.shape(0)? {
        Some([front @ .., k]) => {
            if k.as_const().is_some_and(|k| k != blocks.k) {
                return Err(OpError::new(format!("operand 0 has rows of {k}, attribute `K` is {}", blocks.k)));
            }
            let mut shape = front.to_vec();
            shape.push(Dim::from(blocks.n));
            Type::tensor(elem, shape)
        }
        Some([]) => return Err(OpError::new("operand 0 must have an axis")),
        None => Type::unranked(elem),
    }])
}

/// `x` of `u8`, its last axis unpacked into codes of so many bits.
fn unpack(b: &mut Builder, x: ValueId, bits: i64) -> Result<ValueId, OpError> {
    if bits == 8 {
        return Ok(x);
    }
    let per_byte = 8 / bits;
    let rank = b.shape(x)?.len();
    let u8s = |values: Vec<i128>| Tensor::from_int(ElemType::U8, [values.len()], values);
    let shifts = b.constant(&u8s((0..per_byte).map(|i| i128::from(i * bits)).collect()));
    let mask = b.constant(&u8s(vec![(1 << bits) - 1]));
    let wide = b.unsqueeze(x, &[-1])?;
    let moved = b.op_with("bit_shift", &[wide, shifts], [("direction", "RIGHT".into())])?;
    let codes = b.op("bitwise_and", &[moved, mask])?;
    let mut lens: Vec<Len> = (0..rank - 1).map(|i| Len::Of(x, i)).collect();
    let last = b.shape(x)?[rank - 1].as_const();
    lens.push(Len::N(last.map_or(-1, |n| n * per_byte)));
    b.reshape(codes, &lens)
}

fn decompose_nbits(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let g = blocks(node)?;
    let (a, packed, scales) = (node.need(0)?, node.need(1)?, node.need(2)?);
    let elem = b.elem(a)?;
    let empty = b.shape(packed)?.iter().any(|d| d.as_const() == Some(0));
    let y = if empty {
        // An omitted projection.
        let mut lens: Vec<Len> = (0..b.shape(a)?.len() - 1).map(|i| Len::Of(a, i)).collect();
        lens.push(Len::N(g.n));
        b.filled(elem, 0.0, &lens)?
    } else {
        let bytes = b.reshape(packed, &[Len::N(g.n), Len::N(g.count * g.size * g.bits / 8)])?;
        let codes = unpack(b, bytes, g.bits)?;
        let codes = b.cast(codes, elem)?;
        let scales = b.reshape(scales, &[Len::N(g.n), Len::N(g.count)])?;
        let scales = b.cast(scales, elem)?;
        let zero = match node.operand(3) {
            None => b.scalar(elem, (1i64 << (g.bits - 1)) as f64),
            Some(zero) if b.elem(zero)? == ElemType::U8 => {
                let bytes = b.reshape(zero, &[Len::N(g.n), Len::N((g.count * g.bits + 7) / 8)])?;
                let zero = unpack(b, bytes, g.bits)?;
                let zero = b.slice(zero, 1, 0, g.count)?;
                b.cast(zero, elem)?
            }
            Some(zero) => {
                let zero = b.reshape(zero, &[Len::N(g.n), Len::N(g.count)])?;
                b.cast(zero, elem)?
            }
        };
        let weights = match node.operand(4) {
            Some(groups) => {
                let groups = b.slice(groups, 0, 0, g.k)?;
                let codes = b.slice(codes, 1, 0, g.k)?;
                let axis = [("axis", 1i64.into())];
                let scales = b.op_with("gather", &[scales, groups], axis.clone())?;
                let zero = if b.shape(zero)?.is_empty() { zero } else { b.op_with("gather", &[zero, groups], axis)? };
                let centred = b.op("sub", &[codes, zero])?;
                b.op("mul", &[centred, scales])?
            }
            None => {
                let codes = b.reshape(codes, &[Len::N(g.n), Len::N(g.count), Len::N(g.size)])?;
                let scales = b.unsqueeze(scales, &[2])?;
                let zero = if b.shape(zero)?.is_empty() { zero } else { b.unsqueeze(zero, &[2])? };
                let centred = b.op("sub", &[codes, zero])?;
                let weights = b.op("mul", &[centred, scales])?;
                let weights = b.reshape(weights, &[Len::N(g.n), Len::N(g.count * g.size)])?;
                if g.count * g.size == g.k { weights } else { b.slice(weights, 1, 0, g.k)? }
            }
        };
        let weights = b.transpose(weights, &[1, 0])?;
        b.op("matmul", &[a, weights])?
    };
    match node.operand(5) {
        Some(bias) => Ok(vec![b.op("add", &[y, bias])?]),
        None => Ok(vec![y]),
    }
}

/// How many codes one element of the data holds along its last axis.
fn codes_per_element(elem: ElemType, bits: i64) -> Result<i64, OpError> {
    match (elem, bits) {
        (ElemType::U8, 2 | 4 | 8) => Ok(8 / bits),
        (ElemType::U8, _) => Err(OpError::new(format!("attribute `bits` must be 2, 4 or 8, found {bits}"))),
        _ => Ok(1),
    }
}

fn infer_gather(ctx: &InferCtx) -> Result<Vec<Type>, OpError> {
    let (elem, per) = (ctx.elem(2)?, codes_per_element(ctx.elem(0)?, ctx.int("bits")?)?);
    let (Some(data), Some(indices)) = (ctx.shape(0)?, ctx.shape(1)?) else {
        return Ok(vec![Type::unranked(elem)]);
    };
    let axis = resolve_axis(ctx.int("gather_axis")?, data.len())?;
    let mut full = data.to_vec();
    if let Some(last) = full.last_mut() {
        *last = &*last * &Dim::from(per);
    }
    let mut shape = full[..axis].to_vec();
    shape.extend(indices.iter().cloned());
    shape.extend(full[axis + 1..].iter().cloned());
    Ok(vec![Type::tensor(elem, shape)])
}

fn decompose_gather(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let (data, indices, scales) = (node.need(0)?, node.need(1)?, node.need(2)?);
    let (own, elem, bits) = (b.elem(data)?, b.elem(scales)?, node.int("bits")?);
    let per = codes_per_element(own, bits)?;
    let packed = own == ElemType::U8;
    let codes = if per > 1 { unpack(b, data, bits)? } else { data };
    let zero = match node.operand(3) {
        Some(zero) if per > 1 => Some(unpack(b, zero, bits)?),
        Some(zero) => Some(zero),
        None => None,
    };
    let shape = b.shape(codes)?;
    let axis = resolve_axis(node.int("quantize_axis")?, shape.len())?;
    let gather_axis = resolve_axis(node.int("gather_axis")?, shape.len())?;
    let len = shape[axis].as_const().ok_or_else(|| OpError::new("needs data of known length along `quantize_axis`"))?;
    let size = match node.int("block_size")? {
        0 => len.max(1),
        size if size > 0 => size,
        size => return Err(OpError::new(format!("attribute `block_size` must not be {size}"))),
    };
    let picks: Vec<i64> = (0..len).map(|i| i / size).collect();
    let n_blocks = picks.last().map_or(0, |p| p + 1);
    let picks = b.ints(&picks);
    let mut table = b.cast(codes, elem)?;
    let spread = |b: &mut Builder, v: ValueId| -> Result<ValueId, OpError> {
        let v = b.slice(v, axis as i64, 0, n_blocks)?;
        b.op_with("gather", &[v, picks], [("axis", (axis as i64).into())])
    };
    if let Some(zero) = zero {
        let zero = spread(b, zero)?;
        let zero = b.cast(zero, elem)?;
        table = b.op("sub", &[table, zero])?;
    } else if packed {
        let middle = b.scalar(elem, (1i64 << (bits - 1)) as f64);
        table = b.op("sub", &[table, middle])?;
    }
    let scales = spread(b, scales)?;
    let table = b.op("mul", &[table, scales])?;
    let attrs = [("axis", (gather_axis as i64).into())];
    Ok(vec![b.op_with("gather", &[table, indices], attrs)?])
}
