//! What the model keeps of a prompt, in a file, so that the next text after the same words need not read them again.
//!
//! ```text
//! MAGIC   key of the model u64   tokens u64   checksum of the rest u64
//! tokens u32 ..   scores after the last one f32 ..   every part of a state that has room for them
//! ```
//! Numbers are little-endian. Tokens are taken over in whole chunks, or all of them where the prompt is the same: what is left is
//! read in the same parts as without the file, so the text is the same to the last bit.

use crate::Error;
use crate::session::{CHUNK, Session};
use lapidary_runtime::exec::fingerprint;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 24] = b"lapidary prompt cache 1\n";

/// Bytes before the tokens.
const HEADER: usize = MAGIC.len() + 3 * size_of::<u64>();

/// Gives the session's first sequence, which has no tokens yet, what a file has of a prompt; whether that is all of it. A file that
/// does not exist has nothing.
pub fn take_up(path: &Path, session: &mut Session, prompt: &[u32]) -> Result<bool, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(path, &error)),
    };
    let bytes = file.metadata().map_err(|e| failed(path, &e))?.len();
    let mut file = BufReader::new(file);
    let mut header = [0; HEADER];
    let whole = bytes >= HEADER as u64;
    if !whole || file.read_exact(&mut header).is_err() || !header.starts_with(MAGIC) {
        return Err(wrong(path, "is no prompt cache"));
    }
    let (numbers, _) = header[MAGIC.len()..].as_chunks::<8>();
    let [key, tokens, checksum] = [0, 1, 2].map(|i: usize| u64::from_le_bytes(numbers[i]));
    if key != session.model().key() {
        return Err(wrong(
            path,
            "was made by another model, or another build of it",
        ));
    }
    // Nothing is allocated before the file is known to be as long as that.
    let cut = || wrong(path, "is cut, or damaged");
    let count = usize::try_from(tokens).map_err(|_| cut())?;
    if count == 0 || session.kept_bytes(count).map(|n| n + HEADER as u64) != Some(bytes) {
        return Err(cut());
    }
    let mut own = vec![0; count * size_of::<u32>()];
    let mut scores = vec![0; session.score_bytes()];
    let mut state = session.room_for(count)?;
    let mut found = 0;
    let memory = state.memory_mut();
    for part in [own.as_mut_slice(), scores.as_mut_slice()]
        .into_iter()
        .chain(memory)
    {
        file.read_exact(part).map_err(|e| failed(path, &e))?;
        found = fingerprint(found, part);
    }
    if found != checksum {
        return Err(wrong(path, "is damaged"));
    }
    let (own, _) = own.as_chunks::<4>();
    let own = own.iter().map(|&b| u32::from_le_bytes(b));
    let common = own.zip(prompt).take_while(|(a, b)| a == *b).count();
    let all = common == count && count == prompt.len();
    let take = if all {
        count
    } else {
        let take = common.min(prompt.len() - 1) / CHUNK * CHUNK;
        if session.can_forget(count, take) {
            take
        } else {
            0
        }
    };
    session.restore(&state, take, all.then_some(&scores))?;
    Ok(all)
}

/// Writes what the session's first sequence, which has the tokens of the prompt, is kept as. The file is whole or not there.
pub fn save(path: &Path, session: &Session, prompt: &[u32]) -> Result<(), Error> {
    let tokens: Vec<u8> = prompt.iter().flat_map(|t| t.to_le_bytes()).collect();
    let state = session.kept()?;
    let parts = || {
        [tokens.as_slice(), session.score_row()]
            .into_iter()
            .chain(state.memory())
    };
    let checksum = parts().fold(0, fingerprint);
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(&beside)?);
        file.write_all(MAGIC)?;
        for number in [session.model().key(), prompt.len() as u64, checksum] {
            file.write_all(&number.to_le_bytes())?;
        }
        parts().try_for_each(|part| file.write_all(part))?;
        file.into_inner()?.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&beside);
        failed(path, &e)
    })
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        format!("the prompt cache {}: {error}", path.display()),
        "check that the path exists, that you may use it, and that the disk has room",
    )
}

fn wrong(path: &Path, what: &str) -> Error {
    Error::new(
        format!("the prompt cache {} {what}", path.display()),
        "give another name, or delete the file so that it is made anew",
    )
}
