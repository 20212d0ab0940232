//! What encoding terms need that ONNX has no op for: codes out of their packing.

use crate::encodings::coded::rans;
use crate::encodings::int;
use crate::ops::{AttrDef, AttrKind, Default, Eval, EvalCtx, InferCtx, OpDef, OpError, Operand};
use crate::tensor::{Value, count, wrap};
use crate::{Dim, ElemType, Tensor, Type};

const SHAPE: AttrDef = AttrDef::new("shape", AttrKind::Ints, Default::Required, "of the result");

/// Codes of a few bits.
pub static UNPACK: OpDef = OpDef {
    name: "unpack",
    summary: "the codes of `bits` bits that lie in the bytes of x one after the other, low bits first",
    source: "Lapidary; ONNX's packed 4-bit tensors are an instance",
    operands: &[Operand::One("x")],
    attrs: &[
        AttrDef::new("bits", AttrKind::Int, Default::Required, "bits of a code: 1 to 8"),
        SHAPE,
        AttrDef::new("to", AttrKind::Elem, Default::Required, "type of the codes: signed ones are sign-extended"),
    ],
    infer: |ctx| {
        let (bits, to) = (ctx.int("bits")?, elem(ctx.node.elem_attr("to"))?);
        if !(1..=8).contains(&bits) || !to.is_int() || i64::from(to.bits()) < bits {
            return Err(OpError::new(format!("codes of {bits} bits do not fit {to}")));
        }
        result(ctx, to, |n| (n.checked_mul(bits as usize)?).div_ceil(8).into())
    },
    eval: Eval::Direct(|ctx| {
        let to = elem(ctx.node.elem_attr("to"))?;
        let signed = to.int_range().is_some_and(|(lo, _)| lo < 0);
        let (shape, bytes) = (shape(ctx.node.ints("shape"))?, bytes(ctx)?);
        let codes = int::unpack(&bytes, ctx.int("bits")? as u32, signed).take(count(&shape));
        let codes = codes.map(|c| wrap(to, i128::from(c))).collect();
        Ok(vec![Tensor::from_int(to, shape, codes).into()])
    }),
    ..OpDef::BASE
};

/// Codes of an entropy coder.
pub static RANS_DECODE: OpDef = OpDef {
    name: "rans_decode",
    summary: "the codes of rANS blocks: block i of `block` codes is bytes[starts[i]..starts[i + 1]]",
    source: "Lapidary; Asymmetric numeral systems, section 3",
    operands: &[Operand::One("bytes"), Operand::One("starts"), Operand::One("frequencies")],
    attrs: &[AttrDef::new("block", AttrKind::Int, Default::Required, "codes of a block"), SHAPE],
    infer: |ctx| {
        if ctx.int("block")? < 1 || !ctx.elem(1)?.is_int() || !ctx.elem(2)?.is_int() {
            return Err(OpError::new("`block` must be positive, starts and frequencies integers"));
        }
        result(ctx, ElemType::U8, |_| None)
    },
    eval: Eval::Direct(|ctx| {
        let (shape, bytes) = (shape(ctx.node.ints("shape"))?, bytes(ctx)?);
        let block = usize::try_from(ctx.int("block")?).unwrap_or(1).max(1);
        let list = |i: usize| -> Result<Vec<i64>, OpError> {
            ctx.tensor(i)?.to_i64s().ok_or_else(|| OpError::new(format!("operand {i} must be of integers")))
        };
        let codes = rans::decode_blocks(&bytes, &list(1)?, &list(2)?, block, count(&shape)).map_err(OpError::new)?;
        let codes = codes.into_iter().map(i128::from).collect();
        Ok(vec![Value::Tensor(Tensor::from_int(ElemType::U8, shape, codes))])
    }),
    ..OpDef::BASE
};

fn elem(elem: Option<ElemType>) -> Result<ElemType, OpError> {
    elem.ok_or_else(|| OpError::new("attribute `to` is missing"))
}

fn shape(shape: Option<Vec<i64>>) -> Result<Vec<usize>, OpError> {
    let dims = shape.unwrap_or_default().into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>();
    let dims = dims.map_err(|_| OpError::new("attribute `shape` must not be negative"))?;
    let n = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    n.map(|_| dims).ok_or_else(|| OpError::new("attribute `shape` is too large"))
}

fn bytes(ctx: &EvalCtx) -> Result<Vec<u8>, OpError> {
    let bytes = ctx.tensor(0)?.integers().map(|v| v.iter().map(|&b| b as u8).collect());
    bytes.ok_or_else(|| OpError::new("operand 0 must be of u8"))
}

/// The result's type, if operand 0 are bytes, of which `needed` says how many there must be.
fn result(ctx: &InferCtx, to: ElemType, needed: impl Fn(usize) -> Option<usize>) -> Result<Vec<Type>, OpError> {
    let shape = shape(ctx.node.ints("shape"))?;
    if ctx.elem(0)? != ElemType::U8 {
        return Err(OpError::new(format!("operand 0 must be of u8, found {}", ctx.elem(0)?)));
    }
    let found = match ctx.shape(0)? {
        Some([n]) => n.as_const(),
        Some(_) => return Err(OpError::new("operand 0 must be a list of bytes")),
        None => None,
    };
    if let (Some(want), Some(found)) = (needed(count(&shape)), found)
        && want as i64 != found
    {
        return Err(OpError::new(format!("{want} bytes are needed, operand 0 has {found}")));
    }
    Ok(vec![Type::tensor(to, shape.into_iter().map(Dim::from))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attr, Attrs};
    use crate::eval::eval_op;

    #[test]
    fn codes_come_out_low_bits_first() {
        let x = Tensor::from_int(ElemType::U8, [3], vec![0b1101_0001, 0b0100_0110, 0]);
        let attrs = Attrs::from([
            ("bits".to_owned(), Attr::Int(3)),
            ("shape".to_owned(), Attr::Ints(vec![2, 4])),
            ("to".to_owned(), Attr::Elem(ElemType::I8)),
        ]);
        let y = eval_op("unpack", &[Some(x.into())], attrs, 1).expect("valid");
        let want = [1, 2, 3, 3, 4 - 8, 0, 0, 0];
        assert_eq!(y[0].as_tensor().and_then(Tensor::integers), Some(&want[..]));
    }
}
