//! The container: metadata and tensors of a GGUF file, read as views and written in pieces.
//!
//! ```text
//! "GGUF" u32 version u64 tensors u64 pairs
//! pairs:    text key, u32 type, value          text: u64 length, bytes;  list: u32 type, u64 length, values
//! tensors:  text name, u32 rank, u64 lengths, the fastest first, u32 type, u64 offset
//! data from the next multiple of `general.alignment` (32 where it is not said); offsets count from there
//! ```
//! Source: the format's description at ggml-org/ggml, `docs/gguf.md`; versions 2 and 3.

use super::blocks::{self, BlockType};
use crate::error::Problem;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Most dimensions of a tensor.
const MAX_RANK: usize = 4;

/// Lists of metadata are read up to this length: longer ones are vocabularies, which few want.
const MAX_LIST: u64 = 1 << 12;

/// Longest text that is kept.
const MAX_TEXT: usize = 1 << 16;

const REMEDY: &str = "download the file again, or convert the model again";

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Meta {
    /// A whole number.
    Int(i128),
    /// A number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// A short list of numbers or texts.
    List(Vec<Meta>),
    /// A long list of so many values of a type, as the file has it.
    Long {
        /// How many.
        count: u64,
        /// Their type.
        kind: u32,
        /// Their bytes.
        bytes: Bytes,
    },
}

impl Meta {
    /// The values of a list, read from the file's bytes if it is long.
    pub fn values(&self) -> Option<Vec<Meta>> {
        match self {
            Meta::List(list) => Some(list.clone()),
            Meta::Long { count, kind, bytes } => {
                let mut r = Reader { all: bytes, at: 0 };
                (0..*count).map(|_| r.value(*kind, true).ok()).collect()
            }
            _ => None,
        }
    }
}

/// A tensor, row by row.
#[derive(Clone, Debug)]
pub struct Stored {
    /// How its elements are stored.
    pub kind: &'static BlockType,
    /// Lengths, outermost first.
    pub shape: Vec<usize>,
    /// Its blocks.
    pub bytes: Bytes,
}

/// A file's contents.
#[derive(Debug)]
pub struct File {
    /// Metadata by key.
    pub meta: BTreeMap<String, Meta>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Stored>,
}

/// Bytes not read yet.
struct Reader<'b> {
    all: &'b Bytes,
    at: usize,
}

/// What is wrong, without its place.
type Read<T> = Result<T, String>;

impl Reader<'_> {
    fn take(&mut self, n: u64) -> Read<&[u8]> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let end = end.filter(|&e| e <= self.all.len());
        let end = end.ok_or_else(|| format!("ends within its header, at byte {}", self.at))?;
        let from = std::mem::replace(&mut self.at, end);
        Ok(&self.all[from..end])
    }

    fn number<const N: usize>(&mut self) -> Read<[u8; N]> {
        let bytes = self.take(N as u64)?;
        <[u8; N]>::try_from(bytes).map_err(|e| e.to_string())
    }

    fn u32(&mut self) -> Read<u32> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.number().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Read<String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        let kept = &bytes[..bytes.len().min(MAX_TEXT)];
        Ok(String::from_utf8_lossy(kept).into_owned())
    }

    /// A value of this type. A list holds values, not lists: nesting would have no bound.
    fn value(&mut self, kind: u32, in_list: bool) -> Read<Meta> {
        Ok(match kind {
            0 => Meta::Int(u8::from_le_bytes(self.number()?).into()),
            1 => Meta::Int(i8::from_le_bytes(self.number()?).into()),
            2 => Meta::Int(u16::from_le_bytes(self.number()?).into()),
            3 => Meta::Int(i16::from_le_bytes(self.number()?).into()),
            4 => Meta::Int(self.u32()?.into()),
            5 => Meta::Int(i32::from_le_bytes(self.number()?).into()),
            6 => Meta::Float(f32::from_le_bytes(self.number()?).into()),
            7 => Meta::Bool(self.number::<1>()? != [0]),
            8 => Meta::Text(self.text()?),
            9 if !in_list => {
                let (kind, length) = (self.u32()?, self.u64()?);
                let (mut list, begin) = (vec![], self.at);
                for _ in 0..length {
                    let value = self.value(kind, true)?;
                    if length <= MAX_LIST {
                        list.push(value);
                    }
                }
                match length <= MAX_LIST {
                    true => Meta::List(list),
                    false => Meta::Long {
                        count: length,
                        kind,
                        bytes: self.all.slice(begin..self.at),
                    },
                }
            }
            10 => Meta::Int(self.u64()?.into()),
            11 => Meta::Int(i64::from_le_bytes(self.number()?).into()),
            12 => Meta::Float(f64::from_le_bytes(self.number()?)),
            other => {
                return Err(format!(
                    "has a value of type {other}, which is not known here"
                ));
            }
        })
    }
}

/// Reads a file named `file`.
pub fn read(bytes: &Bytes, file: &str) -> Result<File, Problem> {
    let wrong = |place: String, reason: String| Problem {
        place,
        reason,
        remedy: Some(REMEDY.to_owned()),
    };
    let whole = |reason: String| wrong(format!("file `{file}`"), reason);
    let mut r = Reader { all: bytes, at: 0 };
    if r.take(4).ok() != Some(b"GGUF") {
        return Err(whole("does not begin as GGUF files do".to_owned()));
    }
    let version = r.u32().map_err(whole)?;
    if !matches!(version, 2 | 3) {
        let reason = match version.swap_bytes() {
            2 | 3 => "is in big-endian order, which is not read".to_owned(),
            _ => format!("is of version {version}; 2 and 3 are read"),
        };
        return Err(whole(reason));
    }
    let (tensors, pairs) = (r.u64().map_err(whole)?, r.u64().map_err(whole)?);
    let mut meta = BTreeMap::new();
    for _ in 0..pairs {
        let key = r.text().map_err(whole)?;
        let kind = r.u32().map_err(whole)?;
        let place = || format!("metadata `{key}` of `{file}`");
        let value = r.value(kind, false).map_err(|e| wrong(place(), e))?;
        meta.insert(key, value);
    }
    let mut headers = vec![];
    for _ in 0..tensors {
        let name = r.text().map_err(whole)?;
        let header =
            header(&mut r).map_err(|e| wrong(format!("tensor `{name}` of `{file}`"), e))?;
        headers.push((name, header));
    }
    let alignment = match meta.get("general.alignment") {
        None => 32,
        Some(&Meta::Int(n)) if (1..=1 << 20).contains(&n) => n as usize,
        Some(other) => {
            let place = format!("metadata `general.alignment` of `{file}`");
            return Err(wrong(place, format!("is {other:?}, no alignment")));
        }
    };
    let data = bytes.slice(r.at.next_multiple_of(alignment).min(bytes.len())..);
    let stored = headers.into_iter().map(|(name, (shape, kind, offset))| {
        let place = || format!("tensor `{name}` of `{file}`");
        let kind = blocks::of_id(kind).map_err(|[reason, remedy]| Problem {
            place: place(),
            reason,
            remedy: Some(remedy),
        })?;
        let stored = stored(shape, kind, offset, &data).map_err(|e| wrong(place(), e))?;
        Ok((name, stored))
    });
    let tensors = stored.collect::<Result<BTreeMap<_, _>, Problem>>()?;
    Ok(File { meta, tensors })
}

/// Shape, type and offset.
fn header(r: &mut Reader) -> Read<(Vec<usize>, u32, u64)> {
    let rank = r.u32()? as usize;
    if rank > MAX_RANK {
        return Err(format!(
            "has {rank} dimensions; at most {MAX_RANK} are possible"
        ));
    }
    let mut shape = vec![];
    for _ in 0..rank {
        let n = usize::try_from(r.u64()?).ok().filter(|&n| n >= 1);
        shape.push(n.ok_or("has an impossible shape")?);
    }
    shape.reverse();
    Ok((shape, r.u32()?, r.u64()?))
}

fn stored(shape: Vec<usize>, kind: &'static BlockType, offset: u64, data: &Bytes) -> Read<Stored> {
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(kind.elements) {
        let reason = format!(
            "has rows of {row}, which blocks of {} do not fill",
            kind.elements
        );
        return Err(reason);
    }
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let size = count.and_then(|n| (n / kind.elements).checked_mul(kind.bytes));
    let begin = usize::try_from(offset).ok();
    let end = begin.zip(size).and_then(|(b, s)| b.checked_add(s));
    let range = begin.zip(end).filter(|&(_, e)| e <= data.len());
    let (begin, end) = range.ok_or_else(|| {
        format!(
            "is {}{shape:?} at {offset} of the file's data, which has {} bytes",
            kind.name,
            data.len()
        )
    })?;
    Ok(Stored {
        kind,
        shape,
        bytes: data.slice(begin..end),
    })
}

/// A value of metadata to be written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Written {
    /// A whole number.
    Int(u32),
    /// A number.
    Float(f32),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Numbers.
    Floats(Vec<f32>),
    /// Whole numbers.
    Ints(Vec<i32>),
}

/// Where data begins, and each tensor in it, in files that are written.
const ALIGNMENT: usize = 32;

/// A file in pieces: what stands before the data, then each tensor and what fills up its last bytes.
pub(crate) fn write(
    meta: &BTreeMap<String, Written>,
    tensors: &BTreeMap<String, Stored>,
) -> Vec<Bytes> {
    let text = |out: &mut Vec<u8>, t: &str| {
        out.extend((t.len() as u64).to_le_bytes());
        out.extend(t.as_bytes());
    };
    let list = |out: &mut Vec<u8>, kind: u32, length: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((length as u64).to_le_bytes());
    };
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((meta.len() as u64).to_le_bytes());
    for (key, value) in meta {
        text(&mut head, key);
        match value {
            Written::Int(n) => head.extend([4u32.to_le_bytes(), n.to_le_bytes()].concat()),
            Written::Float(v) => head.extend([6u32.to_le_bytes(), v.to_le_bytes()].concat()),
            Written::Bool(b) => head.extend([&7u32.to_le_bytes()[..], &[u8::from(*b)]].concat()),
            Written::Text(t) => {
                head.extend(8u32.to_le_bytes());
                text(&mut head, t);
            }
            Written::Texts(all) => {
                list(&mut head, 8, all.len());
                all.iter().for_each(|t| text(&mut head, t));
            }
            Written::Floats(all) => {
                list(&mut head, 6, all.len());
                all.iter().for_each(|v| head.extend(v.to_le_bytes()));
            }
            Written::Ints(all) => {
                list(&mut head, 5, all.len());
                all.iter().for_each(|n| head.extend(n.to_le_bytes()));
            }
        }
    }
    let mut offset = 0u64;
    for (name, t) in tensors {
        text(&mut head, name);
        head.extend((t.shape.len() as u32).to_le_bytes());
        let lengths = t.shape.iter().rev();
        lengths.for_each(|&n| head.extend((n as u64).to_le_bytes()));
        head.extend(t.kind.id.to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += t.bytes.len().next_multiple_of(ALIGNMENT) as u64;
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    let mut pieces = vec![Bytes::from(head)];
    for t in tensors.values() {
        pieces.push(t.bytes.clone());
        let gap = t.bytes.len().next_multiple_of(ALIGNMENT) - t.bytes.len();
        pieces.push(Bytes::from_static(&[0; ALIGNMENT][..gap]));
    }
    pieces
}
