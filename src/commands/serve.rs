//! `lapidary serve`: a language model or an encoder in memory, for clients of the OpenAI interface.

use super::run;
use crate::cli::Serve;
use lapidary::Error;
use lapidary_language::Program;
use lapidary_language::cli::Loaded;

/// Runs the command.
pub fn serve(args: &Serve) -> Result<(), Error> {
    let (path, file) = (&args.model.model, args.model.file());
    let mut options = args.model.options(None)?;
    options.evictable = args.text.0.kv_budget.is_some();
    let (model, files) = run::loaded(path, args.model.thread_count(), options)?;
    // A folder that is given as `.` has a name, too.
    let whole = path.canonicalize();
    let name = whole.as_deref().unwrap_or(path).file_name();
    let wrong = |error| Error::Text {
        file: file.clone(),
        error,
    };
    let program = Program::new(model, files).and_then(|p| p.within_budget(&args.text.0));
    let loaded = Loaded {
        program: program.map_err(wrong)?,
        name: name.map_or_else(|| file.clone(), |n| n.to_string_lossy().into_owned()),
        pin: true,
    };
    lapidary_server::serve(loaded, &args.text.0, &args.serving.0).map_err(wrong)
}
