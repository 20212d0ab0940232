//! Runs the kernels of an image on an NVIDIA GPU: the image's code is a PTX module, which the driver compiles when it is loaded.
//!
//! The driver is loaded at run time, so a program with this crate starts without a GPU, and [`open`] says what is missing.
//! Kernels work on the host's own memory, which the GPU must be able to read (Linux with heterogeneous memory management, or
//! a coherent link); pages move to the GPU as it touches them. Launches are in order, each waited for.
//!
//! What is absent: a compiler, memory of the GPU's own, graphs of launches.

#[cfg(feature = "cuda")]
mod driver;

use lapidary_runtime::RunError;
use lapidary_runtime::device::Device;
use std::sync::Arc;

/// What a kernel's lines in a module begin with: then come the bytes of workspace for each block, and the entry.
const MARK: &str = "// workspace ";

/// A kernel in the text of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the entry.
    pub name: String,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of workspace for each block.
    pub workspace_bytes: u64,
}

/// The kernel whose lines begin at an offset of a module; `None` if none does.
pub fn entry_at(module: &str, offset: u64) -> Option<Entry> {
    let text = module.get(usize::try_from(offset).ok()?..)?;
    let mut lines = text.strip_prefix(MARK)?.lines();
    let workspace_bytes = lines.next()?.trim().parse().ok()?;
    let name = lines.next()?.strip_prefix(".visible .entry ")?;
    let name = name.trim_end().trim_end_matches('(').to_owned();
    let threads = lines.find_map(|l| l.strip_prefix(".maxntid "))?;
    Some(Entry {
        name,
        threads: threads.split(',').next()?.trim().parse().ok()?,
        workspace_bytes,
    })
}

/// The GPU of this number, with a module on it.
///
/// # Errors
/// There is no driver, no such GPU, or it cannot run the module or reach the host's memory; or this crate was built without
/// the feature `cuda`.
#[cfg(feature = "cuda")]
pub fn open(number: u32, module: &str) -> Result<Arc<dyn Device>, RunError> {
    Ok(Arc::new(driver::Gpu::open(number, module)?))
}

/// See the feature `cuda`.
#[cfg(not(feature = "cuda"))]
pub fn open(_: u32, _: &str) -> Result<Arc<dyn Device>, RunError> {
    Err(RunError::System(
        "this lapidary was built without `--features cuda`, which GPUs need".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = ".version 7.0\n\n// workspace 64\n.visible .entry add(\n    .param .u64 a0)\n.maxntid 128, 1, 1\n{\n    ret;\n}\n";

    #[test]
    fn kernels_are_found_by_their_offsets() {
        let at = MODULE.find(MARK).unwrap() as u64;
        let want = Entry {
            name: "add".to_owned(),
            threads: 128,
            workspace_bytes: 64,
        };
        assert_eq!(entry_at(MODULE, at), Some(want));
        assert_eq!(entry_at(MODULE, at + 1), None);
        assert_eq!(entry_at(MODULE, 1 << 40), None);
    }

    /// Where there is a GPU, that it loads what it must.
    #[test]
    fn what_is_missing_is_said() {
        match open(0, MODULE) {
            Ok(_) => println!("there is a GPU"),
            Err(RunError::System(why)) => {
                assert!(why.contains("GPU") || why.contains("driver"), "{why}");
                println!("{why}");
            }
            Err(other) => panic!("{other}"),
        }
    }
}
