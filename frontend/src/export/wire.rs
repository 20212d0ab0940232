//! Protobuf messages field by field, so that a file can be changed in places and stay as it is in all others.
//!
//! Source: Protocol Buffers, "Encoding".

use bytes::Bytes;

/// A field of a message.
pub struct Field {
    /// Its number.
    pub number: u64,
    /// What it holds, if that has a length.
    pub body: Bytes,
    /// All of it, its number included.
    pub whole: Bytes,
}

/// The fields of a message, `None` where it is damaged.
pub fn fields(bytes: &Bytes) -> impl Iterator<Item = Option<Field>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let field = field(bytes, at);
        at = match &field {
            Some(f) => at + f.whole.len(),
            None => bytes.len(),
        };
        Some(field)
    })
}

fn field(bytes: &Bytes, begin: usize) -> Option<Field> {
    let mut at = begin;
    let key = varint(bytes, &mut at)?;
    let mut body = Bytes::new();
    match key & 7 {
        0 => drop(varint(bytes, &mut at)?),
        1 => at = at.checked_add(8)?,
        5 => at = at.checked_add(4)?,
        2 => {
            let length = usize::try_from(varint(bytes, &mut at)?).ok()?;
            let end = at.checked_add(length).filter(|&e| e <= bytes.len())?;
            body = bytes.slice(at..end);
            at = end;
        }
        _ => return None,
    }
    (at <= bytes.len()).then(|| Field {
        number: key >> 3,
        body,
        whole: bytes.slice(begin..at),
    })
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The number and length of a field that holds bytes.
pub fn header(number: u64, length: usize) -> Bytes {
    let mut out = vec![];
    for mut value in [number << 3 | 2, length as u64] {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }
    out.into()
}

/// Adds a field that holds these bytes.
pub fn message(number: u64, bytes: Vec<u8>, out: &mut Vec<Bytes>) {
    out.push(header(number, bytes.len()));
    out.push(bytes.into());
}
