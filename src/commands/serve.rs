//! `lapidary serve`: a language model in memory, for clients of the OpenAI interface.

use super::run;
use crate::cli::Serve;
use lapidary::Error;
use lapidary_language::Generator;
use lapidary_language::cli::Loaded;

/// Runs the command.
pub fn serve(args: &Serve) -> Result<(), Error> {
    let (path, file) = (&args.model.model, args.model.file());
    let (model, files) = run::loaded(path, args.model.thread_count(), args.model.options(None)?)?;
    // A folder that is given as `.` has a name, too.
    let whole = path.canonicalize();
    let name = whole.as_deref().unwrap_or(path).file_name();
    let wrong = |error| Error::Text {
        file: file.clone(),
        error,
    };
    let loaded = Loaded {
        generator: Generator::new(model, files).map_err(wrong)?,
        name: name.map_or_else(|| file.clone(), |n| n.to_string_lossy().into_owned()),
        pin: true,
    };
    lapidary_server::serve(loaded, &args.text.0, &args.serving.0).map_err(wrong)
}
