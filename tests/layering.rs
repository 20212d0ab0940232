//! Which crate may depend on which, read from the manifests: `ARCHITECTURE.md` says why.

use std::collections::BTreeSet;
use std::path::Path;
use toml::{Table, Value};

/// One crate's part of the rules.
struct Layer {
    /// Folder of its manifest.
    folder: &'static str,
    /// Crates of ours that it may use; its tests may use `for_tests` too.
    ours: &'static [&'static str],
    for_tests: &'static [&'static str],
}

/// Every crate of the workspace, lowest first.
const LAYERS: &[Layer] = &[
    Layer {
        folder: "runtime/abi",
        ours: &[],
        for_tests: &[],
    },
    Layer {
        folder: "runtime/micro",
        ours: &["lapidary-abi"],
        for_tests: &[],
    },
    Layer {
        folder: "runtime",
        ours: &["lapidary-abi", "lapidary-micro"],
        for_tests: &[],
    },
    Layer {
        folder: "runtime/stub",
        ours: &["lapidary-runtime"],
        for_tests: &[],
    },
    Layer {
        folder: "runtime/cuda",
        ours: &["lapidary-runtime"],
        for_tests: &[],
    },
    Layer {
        folder: "runtime/language",
        ours: &["lapidary-abi", "lapidary-runtime"],
        for_tests: &[],
    },
    Layer {
        folder: "runtime/server",
        ours: &["lapidary-language", "lapidary-runtime"],
        for_tests: &[],
    },
    Layer {
        folder: "ir",
        ours: &["lapidary-abi"],
        for_tests: &[],
    },
    Layer {
        folder: "frontend",
        ours: &["lapidary-abi", "lapidary-ir"],
        for_tests: &[],
    },
    Layer {
        folder: "passes",
        ours: &["lapidary-abi", "lapidary-ir"],
        // Its results are run where they can be compared.
        for_tests: &["lapidary-frontend", "lapidary-runtime"],
    },
    Layer {
        folder: "backends/suite",
        // The tests of every backend; micro-kernels are called by generated code.
        ours: &["lapidary-abi", "lapidary-ir", "lapidary-runtime"],
        for_tests: &[],
    },
    Layer {
        folder: "backends/cranelift",
        ours: &["lapidary-abi", "lapidary-ir"],
        for_tests: &["lapidary-suite"],
    },
    Layer {
        folder: "backends/llvm",
        ours: &["lapidary-abi", "lapidary-ir"],
        for_tests: &["lapidary-suite"],
    },
    Layer {
        folder: "backends/flight",
        ours: &[],
        for_tests: &[],
    },
    Layer {
        folder: "backends/hls",
        ours: &["lapidary-abi", "lapidary-ir"],
        for_tests: &["lapidary-suite"],
    },
    Layer {
        folder: "backends/ptx",
        ours: &["lapidary-ir"],
        for_tests: &["lapidary-ptx-interp", "lapidary-suite"],
    },
    Layer {
        folder: "backends/ptx-interp",
        // What it says of a text must not depend on who wrote it.
        ours: &[],
        for_tests: &[],
    },
];

/// Dependencies that exactly one crate may use, so that what they define stays inside it.
const CONFINED: &[(&str, &str)] = &[
    ("egg", "passes"),
    ("faer", "passes"),
    ("prost", "frontend"),
    ("memmap2", "frontend"),
    ("cranelift-codegen", "backends/cranelift"),
    ("cranelift-frontend", "backends/cranelift"),
    ("cranelift-module", "backends/cranelift"),
    ("cranelift-native", "backends/cranelift"),
    ("cranelift-object", "backends/cranelift"),
    ("inkwell", "backends/llvm"),
    ("object", "backends/llvm"),
    ("cudarc", "runtime/cuda"),
    ("clap", "."),
    ("tokenizers", "runtime/language"),
    ("minijinja-contrib", "runtime/language"),
    ("miette", "."),
    ("axum", "runtime/server"),
    ("hyper", "runtime/server"),
    ("tokio", "runtime/server"),
];

fn text(folder: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .join("Cargo.toml");
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn manifest(folder: &str) -> Table {
    text(folder)
        .parse()
        .unwrap_or_else(|e| panic!("{folder}/Cargo.toml: {e}"))
}

fn workspace() -> Table {
    let root = manifest(".");
    root["workspace"]
        .as_table()
        .expect("the root manifest has a workspace table")
        .clone()
}

/// Names and values in a table of dependencies, those of `[target.….dependencies]` too.
fn dependencies(manifest: &Table, kind: &str) -> Vec<(String, Value)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let per_target = targets
        .into_iter()
        .flat_map(Table::values)
        .filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(per_target)
        .filter_map(|t| t.get(kind)?.as_table())
        .flat_map(|t| t.iter().map(|(k, v)| (k.clone(), v.clone())))
        .collect()
}

/// Every member of the workspace with its manifest, the root first.
fn members() -> Vec<(String, Table)> {
    let listed = workspace()["members"]
        .as_array()
        .expect("members are a list")
        .clone();
    let folders = listed
        .iter()
        .map(|m| m.as_str().expect("a member is a folder").to_owned());
    std::iter::once(".".to_owned())
        .chain(folders)
        .map(|folder| (folder.clone(), manifest(&folder)))
        .collect()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("lapidary")
}

#[test]
fn dependencies_go_one_way() {
    let mut wrong = vec![];
    for (folder, manifest) in members() {
        let layer = LAYERS.iter().find(|l| l.folder == folder);
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for (name, _) in dependencies(&manifest, kind) {
                if let Some((_, owner)) = CONFINED.iter().find(|(n, _)| *n == name)
                    && folder != *owner
                {
                    wrong.push(format!(
                        "`{name}` belongs to `{owner}`, but `{folder}` uses it"
                    ));
                }
                if !is_ours(&name) || ["."].contains(&folder.as_str()) || is_example(&folder) {
                    continue;
                }
                let Some(layer) = layer else {
                    wrong.push(format!("`{folder}` has no row in this test's LAYERS"));
                    break;
                };
                let allowed = layer.ours.contains(&name.as_str())
                    || kind == "dev-dependencies" && layer.for_tests.contains(&name.as_str());
                if !allowed {
                    wrong.push(format!("`{folder}` may not depend on `{name}` ({kind})"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Examples and benches use the compiler as everybody else does.
fn is_example(folder: &str) -> bool {
    folder.starts_with("examples/") || folder.starts_with("benches/")
}

#[test]
fn every_layer_exists() {
    let members: Vec<String> = members().into_iter().map(|(folder, _)| folder).collect();
    for layer in LAYERS {
        assert!(
            members.iter().any(|m| m == layer.folder),
            "`{}` is no member",
            layer.folder
        );
    }
}

#[test]
fn versions_are_pinned_once() {
    let mut wrong = vec![];
    let shared = workspace()["dependencies"]
        .as_table()
        .expect("a table")
        .clone();
    for (name, value) in &shared {
        let version = value.as_str().or_else(|| value.get("version")?.as_str());
        let path = value.get("path").is_some();
        if path != is_ours(name) || !path && !version.is_some_and(|v| v.starts_with('=')) {
            wrong.push(format!("`{name}` must be pinned: `\"=1.2.3\"`"));
        }
    }
    for (folder, manifest) in members() {
        for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for (name, value) in dependencies(&manifest, kind) {
                let shared = value.get("workspace").and_then(Value::as_bool) == Some(true);
                // Examples show what somebody else would write.
                if !shared && !is_example(&folder) {
                    wrong.push(format!("`{folder}`: `{name}` must come from the workspace"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_dependency_has_a_reason_and_a_user() {
    let root = text(".");
    let section = root
        .split("[workspace.dependencies]")
        .nth(1)
        .and_then(|rest| rest.split("\n[").next())
        .expect("the root manifest has workspace dependencies");
    let used: BTreeSet<String> = members()
        .iter()
        .flat_map(|(_, m)| {
            ["dependencies", "build-dependencies", "dev-dependencies"]
                .map(|kind| dependencies(m, kind))
        })
        .flatten()
        .map(|(name, _)| name)
        .collect();
    let mut wrong = vec![];
    let mut seen = 0;
    for line in section.lines().filter(|l| !l.trim_start().starts_with('#')) {
        let Some((name, rest)) = line.split_once(" = ") else {
            continue;
        };
        seen += 1;
        let reason = rest
            .rsplit_once('#')
            .map_or("", |(_, reason)| reason.trim());
        if !is_ours(name) && reason.is_empty() {
            wrong.push(format!("`{name}` has no reason beside it"));
        }
        if !used.contains(name) {
            wrong.push(format!("`{name}` is used by no crate"));
        }
    }
    let shared = workspace()["dependencies"].as_table().map(Table::len);
    assert_eq!(Some(seen), shared, "one dependency a line");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
