//! Models and results from outside the project.
#![allow(dead_code, reason = "each test uses a part")]

use lapidary_runtime::io::{npy, npz};
use lapidary_runtime::value::Value;
use std::path::{Path, PathBuf};

/// A place among the data, where there are any; says so if there are none.
pub fn data(of: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("LAPIDARY_DATA").map(|d| PathBuf::from(d).join(of));
    let found = folder.filter(|f| f.exists());
    if found.is_none() {
        println!("skipped: LAPIDARY_DATA does not name the folder with `{of}`");
    }
    found
}

/// `in0`, `in1`, … and `out0`, `out1`, … of the reference.
pub fn reference(model: &Path) -> Result<(Vec<Value>, Vec<Value>), String> {
    let file = std::fs::read(model.with_extension("npz")).map_err(|e| e.to_string())?;
    let members = npz::read(&file).map_err(|e| e.to_string())?;
    let list = |prefix: &str| {
        let member = |n: usize| members.iter().find(|m| m.0 == format!("{prefix}{n}"));
        let read = |m: &(String, std::borrow::Cow<[u8]>)| npy::read(&m.1, None).map(Value::from);
        (0..)
            .map_while(member)
            .map(read)
            .collect::<Result<Vec<_>, _>>()
    };
    let read = || Ok((list("in")?, list("out")?));
    read().map_err(|e: lapidary_runtime::RunError| e.to_string())
}
