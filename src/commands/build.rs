//! `lapidary build`: a model as an artefact.

use crate::cli::Build;
use lapidary::{Error, driver};

/// Runs the command.
pub fn build(args: &Build) -> Result<(), Error> {
    let options = args.model.options();
    let file = args.model.file();
    let module = driver::import(&args.model.model, &options)?;
    let _compiled = driver::compile(module, &file, &options, None)?;
    Err(Error::Usage {
        message: format!("`{:?}` cannot be written yet", args.emit),
        help: "use `lapidary run`".to_owned(),
    })
}
