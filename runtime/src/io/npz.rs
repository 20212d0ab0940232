//! numpy's `.npz`: a zip archive of `.npy` files, stored or deflated when read, stored when written.
//!
//! Source: PKWARE, ".ZIP File Format Specification" (APPNOTE), sections 4.3 and 4.4.

use super::bad;
use crate::error::RunError;
use std::borrow::Cow;

const END: &[u8] = b"PK\x05\x06";
const CENTRAL: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";

/// Largest member that is unpacked.
const MAX_MEMBER: usize = 1 << 33;

fn le(bytes: &[u8], at: usize, len: usize) -> Result<usize, RunError> {
    match bytes.get(at..at + len) {
        Some(b) => Ok(b.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b))),
        None => bad("not a .npz file, or cut short"),
    }
}

/// Names (without `.npy`) and contents of the archive's members.
pub fn read(file: &[u8]) -> Result<Vec<(String, Cow<'_, [u8]>)>, RunError> {
    // The end record is the last 22 bytes, or earlier if there is a comment.
    let first = file.len().saturating_sub(22 + 0xFFFF);
    let end = (first..file.len().saturating_sub(21))
        .rev()
        .find(|&at| file[at..].starts_with(END));
    let Some(end) = end else {
        return bad("not a .npz file, or cut short");
    };
    let members = le(file, end + 10, 2)?;
    let mut at = le(file, end + 16, 4)?;
    let mut found = Vec::new();
    for _ in 0..members {
        if !file.get(at..).is_some_and(|f| f.starts_with(CENTRAL)) {
            return bad("the archive's directory is damaged");
        }
        let name_len = le(file, at + 28, 2)?;
        let name = file.get(at + 46..at + 46 + name_len).unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_owned();
        found.push((name, member(file, at)?));
        at += 46 + name_len + le(file, at + 30, 2)? + le(file, at + 32, 2)?;
    }
    Ok(found)
}

/// The content of the member whose directory entry is at `entry`.
fn member(file: &[u8], entry: usize) -> Result<Cow<'_, [u8]>, RunError> {
    let (packed, size, local) = (
        le(file, entry + 20, 4)?,
        le(file, entry + 24, 4)?,
        le(file, entry + 42, 4)?,
    );
    if [packed, size, local].contains(&0xFFFF_FFFF) {
        return bad("archives beyond 4 GiB are not supported: give single .npy files");
    }
    if !file.get(local..).is_some_and(|f| f.starts_with(LOCAL)) {
        return bad("the archive is damaged");
    }
    let start = local + 30 + le(file, local + 26, 2)? + le(file, local + 28, 2)?;
    let Some(data) = file.get(start..).and_then(|d| d.get(..packed)) else {
        return bad("the archive is cut short");
    };
    match le(file, entry + 10, 2)? {
        0 => Ok(Cow::Borrowed(data)),
        8 if size <= MAX_MEMBER => Ok(Cow::Owned(inflate(data, size)?)),
        other => bad(format!("compression method {other} is not supported")),
    }
}

/// The `size` bytes that a deflate stream holds; a stream of another length is an error.
fn inflate(data: &[u8], size: usize) -> Result<Vec<u8>, RunError> {
    match miniz_oxide::inflate::decompress_to_vec_with_limit(data, size) {
        Ok(bytes) if bytes.len() == size => Ok(bytes),
        _ => bad("the compressed data is damaged, or has another length than stated"),
    }
}

/// An archive of `.npy` contents.
pub fn write(members: &[(String, Vec<u8>)]) -> Result<Vec<u8>, RunError> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, content) in members {
        let (Ok(size), Ok(offset)) = (u32::try_from(content.len()), u32::try_from(out.len()))
        else {
            return bad(
                "outputs beyond 4 GiB do not fit a .npz: give inputs as .npy to get .npy back",
            );
        };
        let name = format!("{name}.npy");
        // Version 2.0, no flags, stored, 1980-01-01 00:00.
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc32(content).to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        out.extend(LOCAL);
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(content);
        directory.extend(CENTRAL);
        directory.extend([20, 0]);
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (Ok(start), Ok(n)) = (u32::try_from(out.len()), u16::try_from(members.len())) else {
        return bad("outputs beyond 4 GiB do not fit a .npz: give inputs as .npy to get .npy back");
    };
    out.extend(&directory);
    out.extend(END);
    out.extend([0; 4]);
    out.extend(n.to_le_bytes());
    out.extend(n.to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    Ok(out)
}

/// The checksum of zip: CRC-32 with the reversed polynomial.
fn crc32(bytes: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (i, entry) in table.iter_mut().enumerate() {
        *entry = (0..8).fold(i as u32, |c, _| {
            if c & 1 == 1 {
                0xEDB8_8320 ^ (c >> 1)
            } else {
                c >> 1
            }
        });
    }
    !bytes.iter().fold(!0, |crc, &b| {
        table[((crc ^ u32::from(b)) & 0xFF) as usize] ^ (crc >> 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_decompress() {
        // Stored, and with fixed codes and matches, as zlib writes them.
        let cases: &[(&[u8], &str)] = &[
            (&[0x4b, 0x4c, 0x4a, 0x4e, 0x84, 0x21, 0x00], "abcabcabcabc"),
            (&[0x4b, 0x4c, 0x44, 0x00, 0x00], "aaaaaaaaaaaa"),
            (&[0x01, 0x02, 0x00, 0xfd, 0xff, 0x68, 0x69], "hi"),
        ];
        for (stream, text) in cases {
            assert_eq!(inflate(stream, text.len()).expect("reads"), text.as_bytes());
            assert!(inflate(stream, text.len() + 1).is_err());
            assert!(inflate(stream, text.len() - 1).is_err());
            assert!(inflate(&stream[..stream.len() - 1], text.len()).is_err());
        }
    }

    #[test]
    fn archives_read_back() {
        let members = vec![
            ("a".to_owned(), b"hello".to_vec()),
            ("b/c".to_owned(), vec![7; 1000]),
        ];
        let file = write(&members).expect("small");
        let back: Vec<_> = read(&file)
            .expect("reads")
            .into_iter()
            .map(|(n, c)| (n, c.into_owned()))
            .collect();
        assert_eq!(back, members);
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert!((0..file.len()).all(|end| read(&file[..end]).is_err()));
    }
}
