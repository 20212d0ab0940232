//! ONNX Runtime's weights of 2, 4 or 8 bits with a scale per block, packed low bits first.
//!
//! A product with constant weights is `matmul(a, transpose(const affine{scales; int{bits}; zeros}))`: the weights are a term over the
//! bytes as the file has them. What is not constant is decoded by arithmetic.

use crate::builder::Builder;
use crate::encodings::{Encoding, affine, dense, int};
use crate::graph::Node;
use crate::ops::compose::Len;
use crate::ops::{
    AttrDef, AttrKind, Default, Eval, InferCtx, OpDef, OpError, Operand, Tolerance, resolve_axis,
};
use crate::types::TensorType;
use crate::{Constant, Dim, ElemType, Tensor, Type, ValueId};
use bytes::Bytes;

/// Numbers as 8-bit codes would hold them.
pub static ROUND_BLOCKS: OpDef = OpDef {
    name: "round_blocks",
    summary: "s * clamp(round(x * (127 / m)), -127, 127), ties to even, where m is the largest |x| of a block along the last axis and \
              s = m / 127; all in f32, a code that is no number is 0",
    source: "ONNX Runtime com.microsoft MatMulNBits-1 with accuracy_level 4 on CPUs; the codes are those of ggml's Q8_0",
    operands: &[Operand::One("x")],
    attrs: &[AttrDef::new("block_size", AttrKind::Int, Default::Required, "elements that share a scale; a row may end with fewer")],
    infer: |ctx| {
        if ctx.elem(0)? != ElemType::F32 {
            return Err(OpError::new("only f32 is rounded in blocks"));
        }
        if ctx.shape(0)?.is_some_and(<[Dim]>::is_empty) || ctx.int("block_size")? < 1 {
            return Err(OpError::new("the operand must have an axis, and attribute `block_size` must be positive"));
        }
        Ok(vec![Type::Tensor(TensorType { elem: ElemType::F32, shape: ctx.shape(0)?.map(<[_]>::to_vec) })])
    },
    eval: Eval::Direct(|ctx| {
        let x = ctx.tensor(0)?;
        let size = usize::try_from(ctx.int("block_size")?).unwrap_or(0).max(1);
        let values = x.floats().ok_or_else(|| OpError::new("is not defined for these elements"))?;
        let row = x.shape().last().copied().unwrap_or(1).max(1);
        let rounded = values.chunks(row).flat_map(|row| row.chunks(size)).flat_map(rounded).collect();
        Ok(vec![Tensor::from_f64(ElemType::F32, x.shape(), rounded).into()])
    }),
    tolerance: Tolerance::Rounding(1),
    ..OpDef::BASE
};

/// One block of [`ROUND_BLOCKS`].
fn rounded(block: &[f64]) -> Vec<f64> {
    let most = block.iter().fold(0f32, |most, &x| {
        let x = (x as f32).abs();
        if most.is_nan() || most >= x { most } else { x }
    });
    let (scale, inverse) = (most / 127.0, 127.0 / most);
    let code = |x: f64| {
        let code = (x as f32 * inverse).round_ties_even().clamp(-127.0, 127.0);
        if code.is_nan() { 0.0 } else { code }
    };
    block.iter().map(|&x| f64::from(code(x) * scale)).collect()
}

/// Product with packed weights.
pub static MATMUL_NBITS: OpDef = OpDef {
    name: "matmul_nbits",
    summary: "a times the transpose of the weights `[n, k]` that the blocks of `b` decode to, plus bias; 16-bit floats are computed in f32",
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
        AttrDef::new("accuracy_level", AttrKind::Int, Default::Int(0), "4: `a` is rounded by `round_blocks` where codes have one integer zero point per block; else not at all"),
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
    lengths_fit(ctx, &blocks)?;
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

/// Checks what is known of the operands' lengths against the attributes; no weights at all are an omitted projection.
fn lengths_fit(ctx: &InferCtx, g: &Blocks) -> Result<(), OpError> {
    let length = |i: usize| -> Result<Option<i64>, OpError> {
        let shape = if ctx.has(i) { ctx.shape(i)? } else { None };
        Ok(shape.and_then(|s| s.iter().try_fold(1i64, |n, d| n.checked_mul(d.as_const()?))))
    };
    ctx.elem(1)?;
    if length(1)? == Some(0) {
        return Ok(());
    }
    let codes = ctx.has(3) && ctx.elem(3)? == ElemType::U8;
    let zeros = if codes { (g.count * g.bits + 7) / 8 } else { g.count };
    let each = [(1, g.count * (g.size * g.bits / 8)), (2, g.count), (3, zeros), (5, 1)];
    for (i, of_column) in each {
        let want = g.n.checked_mul(of_column);
        if let Some(found) = length(i)?
            && want != Some(found)
        {
            let want = want.map_or("more than there can be".into(), |n| n.to_string());
            return Err(OpError::new(format!("operand {i} has {found} elements, the attributes say {want}")));
        }
    }
    Ok(())
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

/// Where the operands of a node are.
struct Operands {
    packed: ValueId,
    scales: ValueId,
    zero: Option<ValueId>,
    groups: Option<ValueId>,
}

fn decompose_nbits(b: &mut Builder, node: &Node) -> Result<Vec<ValueId>, OpError> {
    let g = blocks(node)?;
    let a = node.need(0)?;
    let of = Operands { packed: node.need(1)?, scales: node.need(2)?, zero: node.operand(3), groups: node.operand(4) };
    let own = b.elem(a)?;
    let elem = if matches!(own, ElemType::F16 | ElemType::BF16) { ElemType::F32 } else { own };
    let empty = b.shape(of.packed)?.iter().any(|d| d.as_const() == Some(0));
    let mut y = if empty {
        // An omitted projection.
        let mut lens: Vec<Len> = (0..b.shape(a)?.len() - 1).map(|i| Len::Of(a, i)).collect();
        lens.push(Len::N(g.n));
        b.filled(elem, 0.0, &lens)?
    } else {
        let mut a = b.cast(a, elem)?;
        let integers = match of.zero {
            Some(zero) => b.elem(zero)? == ElemType::U8,
            None => true,
        };
        if node.int("accuracy_level")? == 4 && integers && of.groups.is_none() && elem == ElemType::F32 {
            a = b.op_with("round_blocks", &[a], [("block_size", g.size.into())])?;
        }
        let weights = match term(b, &g, &of, elem) {
            Some(term) => {
                let name = b.module.value(of.packed).name.clone();
                b.module.add_constant(&name, Constant::new(term))
            }
            None => decoded(b, &g, &of, elem)?,
        };
        let weights = b.transpose(weights, &[1, 0])?;
        b.op("matmul", &[a, weights])?
    };
    if let Some(bias) = node.operand(5) {
        let bias = b.cast(bias, elem)?;
        y = b.op("add", &[y, bias])?;
    }
    Ok(vec![b.cast(y, own)?])
}

/// Constant weights `[n, k]` as a term over the bytes of the operands; `None` if an operand is not constant, does not have
/// the length that the attributes say, or has zero points that are no codes.
fn term(b: &Builder, g: &Blocks, of: &Operands, elem: ElemType) -> Option<Encoding> {
    let plain = |v: ValueId| Some((b.module.as_constant(v)?, b.module.as_constant(v)?.dense_bytes()?.clone()));
    let (n, k, bits) = (usize::try_from(g.n).ok()?, usize::try_from(g.k).ok()?, g.bits as u32);
    let (count, row_bytes) = (g.count as usize, (g.count * g.bits + 7) as usize / 8);
    if g.count * g.size != g.k || of.groups.is_some() || !elem.is_float() {
        return None;
    }
    let (packed, codes) = plain(of.packed)?;
    let (scale, scales) = plain(of.scales)?;
    let fits = codes.len().checked_mul(8) == n.checked_mul(k)?.checked_mul(bits as usize)
        && Some(scales.len()) == n.checked_mul(count)?.checked_mul(scale.elem().size_bytes());
    if packed.elem() != ElemType::U8 || !scale.elem().is_float() || !fits {
        return None;
    }
    let zero = match of.zero {
        None => dense::dense(ElemType::U8, vec![1, 1], Bytes::from(vec![1u8 << (bits - 1)])),
        Some(zero) => {
            let (zero, zeros) = plain(zero)?;
            if zero.elem() != ElemType::U8 || Some(zeros.len()) != n.checked_mul(row_bytes) {
                return None;
            }
            match g.count * g.bits % 8 {
                0 => int::int(ElemType::U8, bits, vec![n, count], zeros),
                // Rows end within a byte.
                _ => {
                    let row = int::int(ElemType::U8, bits, vec![n, row_bytes * 8 / bits as usize], zeros).decode().ok()?;
                    let rows = row.integers()?.chunks(row_bytes * 8 / bits as usize);
                    let codes: Vec<u8> = rows.flat_map(|row| row[..count].iter().map(|&c| c as u8)).collect();
                    dense::dense(ElemType::U8, vec![n, count], codes.into())
                }
            }
        }
    };
    let scales = dense::dense(scale.elem(), vec![n, count], scales);
    let term = affine::affine(elem, scales, int::int(ElemType::U8, bits, vec![n, k], codes), Some(zero));
    term.check().ok().map(|()| term)
}

/// The weights `[n, k]`, decoded by arithmetic.
fn decoded(b: &mut Builder, g: &Blocks, of: &Operands, elem: ElemType) -> Result<ValueId, OpError> {
    let bytes = b.reshape(of.packed, &[Len::N(g.n), Len::N(g.count * g.size * g.bits / 8)])?;
    let codes = unpack(b, bytes, g.bits)?;
    let codes = b.cast(codes, elem)?;
    let scales = b.reshape(of.scales, &[Len::N(g.n), Len::N(g.count)])?;
    let scales = b.cast(scales, elem)?;
    let zero = match of.zero {
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
    if let Some(groups) = of.groups {
        let groups = b.slice(groups, 0, 0, g.k)?;
        let codes = b.slice(codes, 1, 0, g.k)?;
        let axis = [("axis", 1i64.into())];
        let scales = b.op_with("gather", &[scales, groups], axis.clone())?;
        let zero = if b.shape(zero)?.is_empty() { zero } else { b.op_with("gather", &[zero, groups], axis)? };
        let centred = b.op("sub", &[codes, zero])?;
        return b.op("mul", &[centred, scales]);
    }
    let codes = b.reshape(codes, &[Len::N(g.n), Len::N(g.count), Len::N(g.size)])?;
    let scales = b.unsqueeze(scales, &[2])?;
    let zero = if b.shape(zero)?.is_empty() { zero } else { b.unsqueeze(zero, &[2])? };
    let centred = b.op("sub", &[codes, zero])?;
    let weights = b.op("mul", &[centred, scales])?;
    let weights = b.reshape(weights, &[Len::N(g.n), Len::N(g.count * g.size)])?;
    if g.count * g.size == g.k { Ok(weights) } else { b.slice(weights, 1, 0, g.k) }
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
