//! Tokens to evaluate on: numbers in a file, or a text that a tokenizer encodes.

use crate::error::Error;
use crate::language::{is_gguf, text_files};
use lapidary_language::settings::TOKENIZER;
use lapidary_language::vocabulary::{Tokenizer, tokenizer};
use lapidary_runtime::io::npy;
use std::path::{Path, PathBuf};

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::File {
        path: path.to_owned(),
        error,
    })
}

/// Tokens from a file: `.npy` with integers, little-endian u32 where the name ends in `.u32.bin`, else u16.
pub fn read(path: &Path) -> Result<Vec<u32>, Error> {
    let bytes = read_file(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tokens = match () {
        () if name.ends_with(".npy") => from_npy(&bytes),
        () if name.ends_with(".u32.bin") => whole(bytes.as_chunks::<4>(), u32::from_le_bytes),
        () => whole(bytes.as_chunks::<2>(), |b| u32::from(u16::from_le_bytes(b))),
    };
    tokens.map_err(|reason| Error::Usage {
        message: format!("{}: {reason}", path.display()),
        help: "tokens are `.npy` with integers, or little-endian u16 (u32 where the name ends in `.u32.bin`)".to_owned(),
    })
}

fn whole<const N: usize>(
    (all, rest): (&[[u8; N]], &[u8]),
    read: impl Fn([u8; N]) -> u32,
) -> Result<Vec<u32>, String> {
    match rest {
        [] => Ok(all.iter().map(|&b| read(b)).collect()),
        _ => Err(format!("ends within a number of {N} bytes")),
    }
}

fn from_npy(bytes: &[u8]) -> Result<Vec<u32>, String> {
    let array = npy::read(bytes, None).map_err(|e| e.to_string())?;
    let array = crate::values::to_evaluator(&array.into());
    let array = array
        .as_ref()
        .and_then(|v| v.as_tensor())
        .ok_or("is damaged")?;
    let numbers = array.integers().ok_or("has no integers")?;
    let token = |&n: &i128| u32::try_from(n).map_err(|_| format!("{n} is no token"));
    numbers.iter().map(token).collect()
}

/// The tokenizer at `path`, or in the folder of the checkpoint `model`.
fn tokenizer_of(model: &Path, path: Option<&Path>) -> Result<Tokenizer, Error> {
    let wrong = |path: &Path, reason: String| Error::Usage {
        message: format!("{}: {reason}", path.display()),
        help: "a tokenizer is a `tokenizer.json` as transformers saves it".to_owned(),
    };
    let path: PathBuf = match path {
        Some(path) => path.to_owned(),
        None if model.is_dir() => model.join(TOKENIZER),
        None => {
            let own = match is_gguf(model) {
                true => text_files(model)?,
                false => vec![],
            };
            if let Some(own) = own.iter().find(|f| f.name == TOKENIZER) {
                return tokenizer(own.text.as_bytes()).map_err(|e| wrong(model, e));
            }
            return Err(Error::Usage {
                message: format!("{} has no tokenizer of its own", model.display()),
                help: "name its `tokenizer.json` by --tokenizer, or give --tokens".to_owned(),
            });
        }
    };
    tokenizer(&read_file(&path)?).map_err(|e| wrong(&path, e))
}

/// The tokens of a text, with the special tokens that the tokenizer puts around one. With `lines`, each line is a text of
/// its own, its newline included.
pub fn encode(
    text: &Path,
    lines: bool,
    model: &Path,
    path: Option<&Path>,
) -> Result<Vec<u32>, Error> {
    let tokenizer = tokenizer_of(model, path)?;
    let wrong = |reason: String| Error::Usage {
        message: format!("{}: {reason}", text.display()),
        help: "a text is a file of UTF-8".to_owned(),
    };
    let content = String::from_utf8(read_file(text)?).map_err(|e| wrong(e.to_string()))?;
    let pieces: Vec<&str> = match lines {
        true => content.split_inclusive('\n').collect(),
        false => vec![&content],
    };
    let mut tokens = vec![];
    for piece in pieces {
        let encoding = tokenizer
            .encode_fast(piece, true)
            .map_err(|e| wrong(e.to_string()))?;
        tokens.extend_from_slice(encoding.get_ids());
    }
    Ok(tokens)
}
