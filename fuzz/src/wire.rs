//! Mutations of protobuf messages without their schema: fields are removed, doubled, moved and given
//! values from elsewhere in the message; lengths around them stay right.

use super::random::Random;

/// Numbers that are often handled wrongly.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    7,
    11,
    64,
    1 << 20,
    1 << 31,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
    (-2i64) as u64,
];

/// Deepest message that is taken apart.
const MAX_DEPTH: usize = 12;

#[derive(Clone)]
enum Content {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

#[derive(Clone)]
struct Field {
    tag: u64,
    content: Content,
}

/// A message like this one, with up to four changes.
pub fn mutate(data: &[u8], random: &mut Random) -> Vec<u8> {
    let mut message = parse(data, 0).unwrap_or_default();
    for _ in 0..=random.below(4) {
        change(&mut message, random, 0);
    }
    let mut out = vec![];
    write(&message, &mut out);
    out
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'d>(data: &mut &'d [u8], n: usize) -> Option<&'d [u8]> {
    let (taken, rest) = data.split_at_checked(n)?;
    *data = rest;
    Some(taken)
}

fn parse(mut data: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = vec![];
    while !data.is_empty() {
        let tag = varint(&mut data)?;
        let content = match tag & 7 {
            0 => Content::Number(varint(&mut data)?),
            1 => Content::Fixed(take(&mut data, 8)?.to_vec()),
            5 => Content::Fixed(take(&mut data, 4)?.to_vec()),
            2 => {
                let len = usize::try_from(varint(&mut data)?).ok()?;
                let bytes = take(&mut data, len)?;
                match parse(bytes, depth + 1) {
                    Some(inner) if depth < MAX_DEPTH && !inner.is_empty() => {
                        Content::Message(inner)
                    }
                    _ => Content::Bytes(bytes.to_vec()),
                }
            }
            _ => return None,
        };
        if tag >> 3 == 0 {
            return None;
        }
        fields.push(Field { tag, content });
    }
    Some(fields)
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn write(fields: &[Field], out: &mut Vec<u8>) {
    for field in fields {
        put_varint(field.tag, out);
        match &field.content {
            Content::Number(n) => put_varint(*n, out),
            Content::Fixed(bytes) => out.extend(bytes),
            Content::Bytes(bytes) => {
                put_varint(bytes.len() as u64, out);
                out.extend(bytes);
            }
            Content::Message(inner) => {
                let mut bytes = vec![];
                write(inner, &mut bytes);
                put_varint(bytes.len() as u64, out);
                out.extend(bytes);
            }
        }
    }
}

/// Every field with this tag, anywhere.
fn same_tag<'f>(fields: &'f [Field], tag: u64, out: &mut Vec<&'f Field>) {
    for field in fields {
        if field.tag == tag {
            out.push(field);
        }
        if let Content::Message(inner) = &field.content {
            same_tag(inner, tag, out);
        }
    }
}

/// Goes down to some message and changes it.
fn change(fields: &mut Vec<Field>, random: &mut Random, depth: usize) {
    let inner: Vec<usize> = (0..fields.len())
        .filter(|&i| matches!(fields[i].content, Content::Message(_)))
        .collect();
    if depth < MAX_DEPTH
        && random.below(5) != 0
        && let Some(&i) = random.pick(&inner)
        && let Content::Message(message) = &mut fields[i].content
    {
        return change(message, random, depth + 1);
    }
    let at = random.below(fields.len());
    if fields.is_empty() {
        return;
    }
    match random.below(8) {
        0 => {
            fields.remove(at);
        }
        1 => {
            let copy = fields[at].clone();
            fields.insert(random.below(fields.len() + 1), copy);
        }
        2 => {
            let other = random.below(fields.len());
            fields.swap(at, other);
        }
        3 => {
            // The same kind of field, from elsewhere here.
            let mut found = vec![];
            same_tag(fields, fields[at].tag, &mut found);
            if let Some(&field) = random.pick(&found) {
                fields[at] = field.clone();
            }
        }
        4 => {
            // A message inside itself.
            let copy = fields.clone();
            if let Content::Message(inner) = &mut fields[at].content
                && copy.len() < 50
            {
                inner.extend(copy);
            }
        }
        _ => value(&mut fields[at].content, random),
    }
}

fn value(content: &mut Content, random: &mut Random) {
    match content {
        Content::Number(n) => {
            *n = match random.below(3) {
                0 => random.pick(NUMBERS).copied().unwrap_or(0),
                1 => n.wrapping_add(random.below(5) as u64).wrapping_sub(2),
                _ => random.below(32) as u64,
            }
        }
        Content::Fixed(bytes) | Content::Bytes(bytes) => {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.extend(std::iter::repeat_n(random.next() as u8, random.below(9))),
                _ if bytes.is_empty() => {}
                _ => bytes[at] = random.next() as u8,
            }
        }
        Content::Message(fields) => fields.clear(),
    }
}
