//! Protobuf's wire format: fields of a message, and writing them.
//!
//! Source: "Encoding", protobuf.dev.

use super::bad;
use crate::error::RunError;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    /// A varint.
    Varint(u64),
    /// Eight bytes.
    Fixed64([u8; 8]),
    /// Bytes, text, a message or packed numbers.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32([u8; 4]),
}

/// The fields of a message, in order, with their numbers.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Field<'a>), RunError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Field<'a>), RunError> {
        let key = varint(&mut self.0)?;
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut self.0)?),
            1 => Field::Fixed64(self.array()?),
            2 => {
                let len = varint(&mut self.0)?;
                Field::Bytes(self.bytes(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            5 => Field::Fixed32(self.array()?),
            other => return bad(format!("not a protobuf file: field kind {other}")),
        };
        Ok(((key >> 3) as u32, field))
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], RunError> {
        match self.0.split_at_checked(len) {
            Some((head, rest)) => {
                self.0 = rest;
                Ok(head)
            }
            None => bad("not a protobuf file, or cut short"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RunError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }
}

/// Takes a varint from the front.
pub fn varint(bytes: &mut &[u8]) -> Result<u64, RunError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let Some((&byte, rest)) = bytes.split_first() else {
            return bad("not a protobuf file, or cut short");
        };
        *bytes = rest;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    bad("not a protobuf file: a number is too long")
}

/// Numbers of a repeated varint field: one, or many packed.
pub fn varints(field: Field, into: &mut Vec<u64>) -> Result<(), RunError> {
    match field {
        Field::Varint(v) => into.push(v),
        Field::Bytes(mut packed) => {
            while !packed.is_empty() {
                into.push(varint(&mut packed)?);
            }
        }
        _ => return bad("a protobuf field has the wrong kind"),
    }
    Ok(())
}

/// Bytes of a repeated fixed-width field: one element, or many packed.
pub fn fixed(field: Field, into: &mut Vec<u8>) -> Result<(), RunError> {
    match field {
        Field::Bytes(b) => into.extend_from_slice(b),
        Field::Fixed32(b) => into.extend_from_slice(&b),
        Field::Fixed64(b) => into.extend_from_slice(&b),
        Field::Varint(_) => return bad("a protobuf field has the wrong kind"),
    }
    Ok(())
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a varint field.
pub fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3);
    put_varint(out, value);
}

/// Appends a field of bytes.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
