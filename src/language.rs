//! Models of language as programs for texts: which of them write text and which embed it, and what such a program carries.

use crate::driver::{CompileOptions, Compiled, Compression, compile, compress, import};
use crate::error::Error;
use lapidary_abi::program::File;
use lapidary_frontend::{Purpose, checkpoint, gguf};
use lapidary_language::embed::Limits;
use lapidary_language::settings;
use lapidary_passes::compress;
use std::path::Path;

/// What the model at `path` can do with text: that of a checkpoint's folder with its tokenizer, or of a GGUF file with a vocabulary.
/// None of others.
pub fn purpose(path: &Path) -> Option<Purpose> {
    match is_gguf(path) {
        // What is wrong with a file is said where it is imported.
        true => (!matches!(gguf::texts(path), Ok(None))).then_some(Purpose::WriteText),
        false => checkpoint::purpose(path).filter(|_| path.join(settings::TOKENIZER).is_file()),
    }
}

/// Compiles a model to a program for what it can do with text.
pub fn compile_for(
    purpose: Purpose,
    path: &Path,
    file: &str,
    options: &CompileOptions,
) -> Result<Compiled, Error> {
    if let Some(name) = options.dims.keys().next() {
        return Err(Error::Usage {
            message: format!("`--dim {name}=…`: a program for texts decides its dimensions itself"),
            help: "`build --scores` makes one that takes tokens".to_owned(),
        });
    }
    match purpose {
        Purpose::WriteText => compile_text(path, file, options),
        Purpose::Embed => compile_embeddings(path, file, options),
    }
}

/// Compiles an encoder to a program that gives embeddings: of any number of texts, with its tokenizer and what it must know of them.
fn compile_embeddings(
    path: &Path,
    file: &str,
    options: &CompileOptions,
) -> Result<Compiled, Error> {
    options.progress.stage("import");
    let encoder = checkpoint::import_encoder(path).map_err(Error::Import)?;
    let limits = Limits {
        vocabulary: encoder.vocabulary,
        longest: encoder.longest,
        lowercase: encoder.lowercase,
    };
    let mut compiled = compile(encoder.module, file, options, None)?;
    let mut files = text_files(path)?;
    files.retain(|f| f.name == settings::TOKENIZER);
    files.push(limits.file());
    compiled.program.files = files;
    Ok(compiled)
}

/// Whether the path names a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == gguf::ENDING)
}

/// The files that a program which writes text carries.
pub(crate) fn text_files(path: &Path) -> Result<Vec<File>, Error> {
    let file = |name: &str, text| File {
        name: name.to_owned(),
        text,
    };
    if is_gguf(path) {
        let texts = gguf::texts(path).map_err(Error::Import)?;
        let texts = texts.into_iter().flatten();
        return Ok(texts.map(|(name, text)| file(name, text)).collect());
    }
    let mut files = vec![];
    for name in settings::FILES {
        let path = path.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => files.push(file(name, text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::File { path, error }),
        }
    }
    Ok(files)
}

/// Compiles a language model to a program that writes text: step by step, for any number of sequences, with the files that
/// its tokenizer and settings are read from. Compression looks at the model as it predicts whole sequences.
pub fn compile_text(path: &Path, file: &str, options: &CompileOptions) -> Result<Compiled, Error> {
    if let Some(Compression::Recipe(recipe)) = &options.compression
        && recipe.activations.is_some()
    {
        return Err(Error::Usage {
            message: "a program that writes text has no ranges of its values: its steps are not the windows that calibration sees"
                .to_owned(),
            help: "`--round-activations` takes the range of each block as it comes; `build --scores --quantize` makes a program that \
                   takes tokens"
                .to_owned(),
        });
    }
    let stepwise = CompileOptions {
        stepwise: true,
        compression: None,
        ..options.clone()
    };
    let mut module = import(path, &stepwise)?;
    let mut report = None;
    if options.compression.is_some() {
        let mut whole = import(path, options)?;
        report = compress(&mut whole, file, options)?;
        if let Some(report) = &report {
            compress::transfer(&whole, report, &mut module).map_err(|error| Error::Compress {
                file: file.to_owned(),
                error,
            })?;
        }
    }
    let mut compiled = compile(module, file, &stepwise, None)?;
    compiled.compression = report;
    compiled.program.files = text_files(path)?;
    Ok(compiled)
}
