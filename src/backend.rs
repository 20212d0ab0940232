//! The code generators that this build has, one line each.

use crate::error::Error;
use lapidary_ir::backend::{self, Code};
use lapidary_ir::kernel::Kernel;
use lapidary_ir::target::Target;

/// A code generator.
pub struct Backend {
    /// As users name it.
    pub name: &'static str,
    /// The description that kernels are lowered for and that code is generated for: what it can use of a machine.
    pub fit: fn(Target) -> Target,
    /// Kernels to machine code.
    pub compile: fn(&[Kernel], &Target) -> Result<Code, backend::Error>,
    /// Kernels to the text of their machine code, for people.
    pub listing: fn(&[Kernel], &Target) -> Result<Vec<String>, backend::Error>,
    /// Code is of processors, and those of this machine run it; else it is a device's, in its language.
    pub native: bool,
}

/// Every code generator, the default first.
pub static BACKENDS: &[Backend] = &[
    Backend {
        name: "cranelift",
        fit: narrow,
        compile: lapidary_cranelift::compile,
        listing: lapidary_cranelift::listing,
        native: true,
    },
    #[cfg(feature = "llvm")]
    Backend {
        name: "llvm",
        fit: Target::widest,
        compile: lapidary_llvm::compile,
        listing: lapidary_llvm::listing,
        native: true,
    },
    Backend {
        name: "ptx",
        fit: |target| target,
        compile: lapidary_ptx::compile,
        listing: lapidary_ptx::listing,
        native: false,
    },
];

/// Code generators that a build may leave out: name and feature.
const OPTIONAL: &[(&str, &str)] = &[("llvm", "llvm")];

/// Code generators whose code this machine runs.
pub fn native() -> impl Iterator<Item = &'static Backend> {
    BACKENDS.iter().filter(|b| b.native)
}

/// The code generator for a target: the one of this name, if its code is of the target's kind.
pub fn for_target(name: Option<&str>, target: &Target) -> Result<&'static Backend, Error> {
    let gpu = target.arch() == "nvptx64";
    let name = name.unwrap_or(if gpu { "ptx" } else { BACKENDS[0].name });
    let backend = named(name)?;
    if backend.native == gpu {
        return Err(Error::Usage {
            message: format!("the backend `{name}` makes no code for `{}`", target.triple),
            help: "leave out `--backend`, or choose another `--target`: `ptx` is one, with `--cpu sm_90a` and the like"
                .to_owned(),
        });
    }
    Ok(backend)
}

/// Cranelift's vectors have 128 bits.
fn narrow(target: Target) -> Target {
    Target {
        vector_bytes: target.vector_bytes.min(16),
        ..target
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The code generator of this name.
pub fn named(name: &str) -> Result<&'static Backend, Error> {
    if let Some(found) = BACKENDS.iter().find(|b| b.name == name) {
        return Ok(found);
    }
    let names: Vec<&str> = BACKENDS.iter().map(|b| b.name).collect();
    Err(match OPTIONAL.iter().find(|o| o.0 == name) {
        Some((_, feature)) => Error::Usage {
            message: format!("this lapidary was built without the backend `{name}`"),
            help: format!(
                "build it with `cargo build --features {feature}`, which needs LLVM 19 (`llvm-19-dev`)"
            ),
        },
        None => Error::Usage {
            message: format!("there is no backend `{name}`"),
            help: format!("there are: {}", names.join(", ")),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        assert_eq!(named("cranelift").map(|b| b.name).ok(), Some("cranelift"));
        let gpu = Target::named(Some("ptx"), None).unwrap();
        assert_eq!(for_target(None, &gpu).map(|b| b.name).ok(), Some("ptx"));
        assert!(for_target(Some("cranelift"), &gpu).is_err());
        assert!(for_target(Some("ptx"), &Target::host()).is_err());
        let unknown = named("gcc").unwrap_err();
        assert!(matches!(unknown, Error::Usage { help, .. } if help.contains("cranelift")));
        let llvm = named("llvm");
        assert_eq!(llvm.is_ok(), cfg!(feature = "llvm"));
    }
}
