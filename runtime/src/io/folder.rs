//! Folders of inputs and outputs.
//!
//! Inputs are `input_0.pb`, `input_1.pb`, …; or `NAME.npy` for each input; or one `.npz`. Outputs are written in
//! the kind of the inputs. Characters of a name that do not belong in file names are written `_`.
//! Outputs are written beside their place and renamed when all are complete.

use super::{bad, npy, npz, pb};
use crate::error::RunError;
use crate::value::Value;
use lapidary_abi::program::{Port, ValueType};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Kind of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ONNX protobuf, one file each.
    Pb,
    /// numpy, one file each.
    Npy,
    /// numpy, one archive.
    Npz,
}

fn system(path: &Path, error: std::io::Error) -> RunError {
    RunError::System(format!("{}: {error}", path.display()))
}

fn at(path: &Path, error: RunError) -> RunError {
    match error {
        RunError::Input(m) => RunError::Input(format!("{}: {m}", path.display())),
        other => other,
    }
}

/// Names for a message: the first in order, and that there are more.
fn list(names: impl IntoIterator<Item = String>) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort_unstable();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    match (names.is_empty(), more) {
        (true, _) => "nothing".to_owned(),
        (_, 0) => names.join(", "),
        _ => format!("{}, and {more} more", names.join(", ")),
    }
}

/// A name as it is written in file names.
pub fn file_name(name: &str) -> String {
    let keep = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let text: String = name
        .chars()
        .map(|c| if keep(c) { c } else { '_' })
        .collect();
    if text.starts_with('.') || text.is_empty() {
        format!("_{text}")
    } else {
        text
    }
}

/// Reads a value for each port.
pub fn read_inputs(folder: &Path, ports: &[Port]) -> Result<(Vec<Value>, Kind), RunError> {
    let mut archives = Vec::new();
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| system(folder, e))? {
        let path = entry.map_err(|e| system(folder, e))?.path();
        names.extend(path.file_name().map(|n| n.to_string_lossy().into_owned()));
        if path.extension().is_some_and(|e| e == "npz") {
            archives.push(path);
        }
    }
    let has_pb = (0..ports.len()).any(|n| folder.join(format!("input_{n}.pb")).exists());
    match archives.as_slice() {
        _ if has_pb => {}
        [] => {}
        [archive] => return Ok((read_archive(archive, ports)?, Kind::Npz)),
        _ => return bad(format!("{}: more than one .npz file", folder.display())),
    }
    let mut values = Vec::with_capacity(ports.len());
    let mut kind = if has_pb || ports.is_empty() {
        Kind::Pb
    } else {
        Kind::Npy
    };
    for (n, port) in ports.iter().enumerate() {
        let pb = folder.join(format!("input_{n}.pb"));
        let arrays = [
            format!("{}.npy", port.name),
            format!("{}.npy", file_name(&port.name)),
            format!("input_{n}.npy"),
        ];
        let array = arrays.iter().map(|a| folder.join(a)).find(|p| p.exists());
        if pb.exists() {
            let bytes = fs::read(&pb).map_err(|e| system(&pb, e))?;
            values.push(pb::read_value(&bytes, &port.ty).map_err(|e| at(&pb, e))?);
            kind = Kind::Pb;
        } else if let Some(path) = array {
            let bytes = fs::read(&path).map_err(|e| system(&path, e))?;
            values.push(read_array(&bytes, port).map_err(|e| at(&path, e))?);
        } else if let ValueType::Optional(_) = port.ty {
            values.push(Value::Optional(None));
        } else {
            return bad(format!(
                "{}: no file for input `{}`: neither input_{n}.pb nor {}, found {}",
                folder.display(),
                port.name,
                arrays[1],
                list(names)
            ));
        }
    }
    Ok((values, kind))
}

fn read_array(bytes: &[u8], port: &Port) -> Result<Value, RunError> {
    match &port.ty {
        ValueType::Tensor { elem, .. } => Ok(Value::Tensor(npy::read(bytes, Some(*elem))?)),
        ValueType::Optional(of) => match of.as_ref() {
            ValueType::Tensor { elem, .. } => Ok(Value::Optional(Some(Box::new(Value::Tensor(
                npy::read(bytes, Some(*elem))?,
            ))))),
            _ => bad("a sequence needs a .pb file"),
        },
        ValueType::Sequence(_) => bad("a sequence needs a .pb file"),
    }
}

/// Reads a value for each port from an `.npz`.
pub fn read_archive(path: &Path, ports: &[Port]) -> Result<Vec<Value>, RunError> {
    let file = fs::read(path).map_err(|e| system(path, e))?;
    let members = npz::read(&file).map_err(|e| at(path, e))?;
    let find = |(n, port): (usize, &Port)| {
        let names = [
            port.name.clone(),
            file_name(&port.name),
            format!("input_{n}"),
            format!("arr_{n}"),
        ];
        let member = names
            .iter()
            .find_map(|name| members.iter().find(|(m, _)| m == name));
        match (member, &port.ty) {
            (Some((_, bytes)), _) => read_array(bytes, port).map_err(|e| at(path, e)),
            (None, ValueType::Optional(_)) => Ok(Value::Optional(None)),
            (None, _) => bad(format!(
                "{}: no array for input `{}`, found {}",
                path.display(),
                port.name,
                list(members.iter().map(|m| m.0.clone()))
            )),
        }
    };
    ports.iter().enumerate().map(find).collect()
}

/// Writes the outputs; the folder is made if it does not exist.
pub fn write_outputs(
    folder: &Path,
    ports: &[Port],
    values: &[Value],
    kind: Kind,
) -> Result<(), RunError> {
    let mut files = Vec::new();
    let mut arrays = Vec::new();
    for (n, (port, value)) in ports.iter().zip(values).enumerate() {
        match (value, kind) {
            (Value::Tensor(t), Kind::Npy) => {
                files.push((format!("{}.npy", file_name(&port.name)), npy::write(t)))
            }
            (Value::Tensor(t), Kind::Npz) => arrays.push((file_name(&port.name), npy::write(t))),
            // numpy has no form for sequences and optionals.
            _ => files.push((format!("output_{n}.pb"), pb::write_value(value, &port.name))),
        }
    }
    if !arrays.is_empty() {
        files.push(("outputs.npz".to_owned(), npz::write(&arrays)?));
    }
    fs::create_dir_all(folder).map_err(|e| system(folder, e))?;
    let mut written = Beside(Vec::new());
    for (name, content) in &files {
        // Several threads of a process may write to one folder.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        let beside = folder.join(format!(".{name}.{}.{write}", std::process::id()));
        written.0.push((beside.clone(), folder.join(name)));
        fs::write(&beside, content).map_err(|e| system(&beside, e))?;
    }
    written.rename()
}

/// Files that are complete but not in their place; removed if they never get there.
struct Beside(Vec<(PathBuf, PathBuf)>);

impl Beside {
    fn rename(mut self) -> Result<(), RunError> {
        while let Some((from, to)) = self.0.pop() {
            if let Err(e) = fs::rename(&from, &to) {
                self.0.push((from, to.clone()));
                return Err(system(&to, e));
            }
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for (path, _) in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_abi::ElemType;

    #[test]
    fn missing_inputs_are_named_with_what_is_there() {
        let folder = std::env::temp_dir().join(format!("lapidary-inputs-{}", std::process::id()));
        let port = |name: &str| Port {
            name: name.into(),
            ty: ValueType::Tensor {
                elem: ElemType::F32,
                dims: None,
            },
            value: 0,
        };
        let tensor = crate::Tensor::zeros(ElemType::F32, vec![2]).expect("fits");
        for (kind, found) in [(Kind::Npy, "found images.npy"), (Kind::Npz, "found images")] {
            let values = [tensor.clone().into()];
            write_outputs(&folder, &[port("images")], &values, kind).expect("written");
            let error = read_inputs(&folder, &[port("image")]).expect_err("another name");
            let text = error.to_string();
            assert!(
                text.contains("input `image`") && text.ends_with(found),
                "{text}"
            );
            let back = read_inputs(&folder, &[port("images")]).expect("the right name");
            assert_eq!(back.1, kind);
            fs::remove_dir_all(&folder).expect("was made");
        }
    }
}
