//! Static libraries: the `ar` format, as linkers read it.
//!
//! ```text
//! !<arch>\n [header of 60 bytes, index] [header, member] pad to 2 [header, member] ...
//! ```
//! The index says in which member each symbol is defined. Times, owners and modes are constant, so that the
//! same members give the same bytes.

use std::io::{Read, Result, Write};

/// A file in the archive.
pub struct Member<'a> {
    /// Its name, at most 15 characters.
    pub name: &'a str,
    /// What other objects may refer to.
    pub symbols: Vec<String>,
    /// Its content.
    pub content: &'a mut dyn Read,
    /// Its length.
    pub bytes: u64,
}

/// Writes an archive.
pub fn write(out: &mut dyn Write, members: Vec<Member>) -> Result<()> {
    const MAGIC: &[u8] = b"!<arch>\n";
    let names: Vec<&String> = members.iter().flat_map(|m| &m.symbols).collect();
    let index_bytes = 4 + names.iter().map(|n| 4 + n.len() as u64 + 1).sum::<u64>();
    let mut at = MAGIC.len() as u64 + 60 + index_bytes.next_multiple_of(2);
    let mut index = (names.len() as u32).to_be_bytes().to_vec();
    for member in &members {
        let offset = u32::try_from(at).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        for _ in &member.symbols {
            index.extend(offset.to_be_bytes());
        }
        at += 60 + member.bytes.next_multiple_of(2);
    }
    for name in names {
        index.extend(name.as_bytes());
        index.push(0);
    }
    out.write_all(MAGIC)?;
    header(out, "/", index_bytes)?;
    out.write_all(&index)?;
    pad(out, index_bytes)?;
    for member in members {
        header(out, &format!("{}/", member.name), member.bytes)?;
        std::io::copy(&mut member.content.take(member.bytes), out)?;
        pad(out, member.bytes)?;
    }
    Ok(())
}

fn header(out: &mut dyn Write, name: &str, bytes: u64) -> Result<()> {
    let (time, owner, group, mode) = (0, 0, 0, "100644");
    writeln!(
        out,
        "{name:<16}{time:<12}{owner:<6}{group:<6}{mode:<8}{bytes:<10}`"
    )
}

fn pad(out: &mut dyn Write, bytes: u64) -> Result<()> {
    match bytes % 2 {
        0 => Ok(()),
        _ => out.write_all(b"\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_lie_where_the_index_says() {
        let mut file = Vec::new();
        let (mut one, mut two) = (&b"one"[..], &b"four"[..]);
        let member = |name, symbol: &str, content, bytes| Member {
            name,
            symbols: vec![symbol.to_owned()],
            content,
            bytes,
        };
        let members = vec![
            member("a.o", "f", &mut one as &mut dyn Read, 3),
            member("b.o", "g", &mut two, 4),
        ];
        write(&mut file, members).expect("memory takes it");
        let offset = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("four"));
        assert_eq!(offset(68), 2);
        assert_eq!(&file[offset(72) as usize..][..4], b"a.o/");
        let second = offset(76) as usize;
        assert_eq!(&file[second..][..4], b"b.o/");
        assert_eq!(&file[second + 60..], b"four");
    }
}
