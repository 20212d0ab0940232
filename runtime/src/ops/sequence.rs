//! Sequences and optionals.

use super::call::{Call, Results, axis, fail, length, one};
use super::number;
use super::parts::{cut, join};
use crate::error::RunError;
use crate::value::{Operand, Tensor, Value, View};

pub fn sequence_construct(call: &Call) -> Results {
    let values = (0..call.operands.len())
        .map(|n| call.operand(n)?.to_value())
        .collect::<Result<Vec<_>, _>>()?;
    Ok(vec![Value::Sequence(values)])
}

pub fn sequence_empty(_: &Call) -> Results {
    Ok(vec![Value::Sequence(Vec::new())])
}

/// Position in a sequence; `open` allows the end itself.
fn position(at: i64, len: usize, open: bool) -> Result<usize, RunError> {
    let from_front = if at < 0 {
        at.saturating_add(len as i64)
    } else {
        at
    };
    match usize::try_from(from_front) {
        Ok(i) if i < len || (open && i == len) => Ok(i),
        _ => fail(format!("position {at} is outside a sequence of {len}")),
    }
}

pub fn sequence_at(call: &Call) -> Results {
    let sequence = call.sequence(0)?;
    let at = position(call.int(1)?.unwrap_or(0), sequence.len(), false)?;
    Ok(vec![sequence[at].clone()])
}

pub fn sequence_insert(call: &Call) -> Results {
    let mut sequence = call.sequence(0)?.to_vec();
    let at = match call.int(2)? {
        Some(at) => position(at, sequence.len(), true)?,
        None => sequence.len(),
    };
    sequence.insert(at, call.operand(1)?.to_value()?);
    Ok(vec![Value::Sequence(sequence)])
}

pub fn sequence_erase(call: &Call) -> Results {
    let mut sequence = call.sequence(0)?.to_vec();
    let at = position(call.int(1)?.unwrap_or(-1), sequence.len(), false)?;
    sequence.remove(at);
    Ok(vec![Value::Sequence(sequence)])
}

pub fn sequence_length(call: &Call) -> Results {
    one(Tensor::from_i64(
        Vec::new(),
        &[call.sequence(0)?.len() as i64],
    )?)
}

pub fn split_to_sequence(call: &Call) -> Results {
    let data = call.tensor(0)?;
    let along = axis(call.attr_int("axis", 0), data.rank())?;
    let len = data.dims()[along];
    let (lengths, given) = match call.optional(1)? {
        None => (vec![1; len], false),
        // A scalar is the length of every piece but the last.
        Some(split) if split.rank() == 0 => {
            let piece = length(number::int(split, 0) as i64)?;
            if piece == 0 {
                return fail("pieces of length 0");
            }
            (
                (0..len)
                    .step_by(piece)
                    .map(|s| piece.min(len - s))
                    .collect(),
                true,
            )
        }
        Some(split) => {
            let lengths = (0..split.len()).map(|i| length(number::int(split, i) as i64));
            (lengths.collect::<Result<Vec<_>, _>>()?, true)
        }
    };
    let mut pieces = cut(data, along, &lengths)?;
    if !given && call.attr_int("keepdims", 1) == 0 {
        let mut dims = data.dims().to_vec();
        dims.remove(along);
        pieces = pieces
            .into_iter()
            .map(|p| p.with_dims(dims.clone()))
            .collect::<Result<_, _>>()?;
    }
    Ok(vec![Value::Sequence(
        pieces.into_iter().map(Value::Tensor).collect(),
    )])
}

pub fn concat_from_sequence(call: &Call) -> Results {
    let mut parts: Vec<View> = Vec::new();
    for value in call.sequence(0)? {
        match value {
            Value::Tensor(t) => parts.push(t.view()),
            other => return fail(format!("cannot join {}", other.describe())),
        }
    }
    let rank = parts.first().map_or(0, View::rank);
    let new_axis = call.attr_int("new_axis", 0) != 0;
    let along = axis(call.attr_int("axis", 0), rank + usize::from(new_axis))?;
    if new_axis {
        for part in &mut parts {
            let mut dims = part.dims().to_vec();
            dims.insert(along.min(dims.len()), 1);
            *part = part.clone().with_dims(dims)?;
        }
    }
    one(join(&parts, along)?)
}

pub fn optional(call: &Call) -> Results {
    let value = match call.has(0) {
        true => Some(Box::new(call.operand(0)?.to_value()?)),
        false => None,
    };
    Ok(vec![Value::Optional(value)])
}

pub fn optional_get_element(call: &Call) -> Results {
    match call.operand(0)? {
        Operand::Optional(Some(value)) => Ok(vec![(*value).clone()]),
        Operand::Optional(None) => fail("the optional is empty"),
        other => Ok(vec![other.to_value()?]),
    }
}

pub fn optional_has_element(call: &Call) -> Results {
    let has = call.has(0) && !matches!(call.operand(0)?, Operand::Optional(None));
    one(Tensor::from_bool(has)?)
}
