//! Builds what artefacts are made of, so that `lapidary build` needs no toolchain: the runtime stub that
//! executables begin with, those of language models, and the runtime as one object for libraries.
//!
//! A nested cargo builds them from `runtime/`, always optimized, into a target folder of its own (the outer
//! cargo holds the lock of the usual one). It uses the workspace's lock file and the packages that the outer
//! cargo has fetched, so it needs no network; it runs again only when `runtime/` changes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the nested build reads.
const SOURCES: [&str; 10] = [
    "Cargo.toml",
    "Cargo.lock",
    "runtime/Cargo.toml",
    "runtime/src",
    "runtime/abi",
    "runtime/micro",
    "runtime/stub",
    "runtime/language",
    "runtime/server",
    "build.rs",
];

/// Exported functions of the C interface; the libraries keep what these reach.
const API: &str = include_str!("runtime/src/capi/exports.txt");

fn main() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-changed=runtime/src/capi/exports.txt");
    println!("cargo::rerun-if-env-changed=CC");
    let build = Build::new();
    let stubs = [
        ("lapidary-stub", "stub"),
        ("lapidary-language", "language-stub"),
        ("lapidary-server", "server-stub"),
    ];
    if is_linted() {
        let files = stubs.map(|(_, name)| name).into_iter().chain(["runtime.o"]);
        files.for_each(|name| build.save(Path::new(""), name));
        return;
    }
    build.programs(&stubs.map(|(package, _)| package));
    for (package, name) in stubs {
        build.save(&build.product(package), name);
    }
    let library = build.library();
    let object = build.one_object(&library);
    build.save(&object.unwrap_or_default(), "runtime.o");
}

/// True if this is for clippy, which has artefacts of its own: nobody runs what it builds, and the stubs take minutes.
fn is_linted() -> bool {
    let wrapper = std::env::var_os("RUSTC_WORKSPACE_WRAPPER");
    wrapper.is_some_and(|w| Path::new(&w).ends_with("clippy-driver"))
}

struct Build {
    root: PathBuf,
    out: PathBuf,
    target: String,
}

impl Build {
    fn new() -> Build {
        Build {
            root: PathBuf::from(variable("CARGO_MANIFEST_DIR")),
            out: PathBuf::from(variable("OUT_DIR")),
            target: variable("TARGET"),
        }
    }

    /// All at once, so that what they share is built once.
    fn programs(&self, packages: &[&str]) {
        let packages = packages.iter().flat_map(|p| ["-p", p]);
        let args: Vec<&str> = ["build", "--bins"].into_iter().chain(packages).collect();
        self.cargo(&args);
    }

    fn library(&self) -> PathBuf {
        self.cargo(&[
            "rustc",
            "-p",
            "lapidary-runtime",
            "--lib",
            "--crate-type",
            "staticlib",
            // See the profile in the manifest: here the runtime is the crate that is linked.
            "--",
            "-Copt-level=3",
        ]);
        self.product("liblapidary_runtime.a")
    }

    /// Where the nested build leaves a file.
    fn product(&self, name: &str) -> PathBuf {
        let folder = self.out.join("cargo").join(&self.target).join("runtime");
        folder.join(name)
    }

    fn cargo(&self, args: &[&str]) {
        let mut cargo = Command::new(variable("CARGO"));
        let (command, rest) = args.split_at(1);
        cargo.current_dir(&self.root).args(command);
        cargo.args(["--profile", "runtime", "--locked", "--offline", "--quiet"]);
        cargo.args(["--target", &self.target, "--target-dir"]);
        cargo.arg(self.out.join("cargo")).args(rest);
        // What the outer build was told (lints, coverage, another linker's flags, clippy's wrapper) is not
        // for code that ends in artefacts.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let disturbs = ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"]
                .contains(&name.as_str())
                || ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_"]
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
            if disturbs && !name.ends_with("_LINKER") {
                cargo.env_remove(name);
            }
        }
        cargo.env("CARGO_ENCODED_RUSTFLAGS", self.flags().join("\x1f"));
        match cargo.status() {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("the runtime does not build: {status}"),
            Err(error) => panic!("cannot start cargo for the runtime: {error}"),
        }
    }

    /// Flags of the compiler: the same bytes wherever the sources lie, and no library but libc.
    fn flags(&self) -> Vec<String> {
        let mut flags = vec![format!(
            "--remap-path-prefix={}=lapidary",
            self.root.display()
        )];
        if let Some(home) = std::env::var_os("CARGO_HOME") {
            flags.push(format!(
                "--remap-path-prefix={}=cargo",
                Path::new(&home).display()
            ));
        }
        if self.target.ends_with("-linux-gnu") {
            // The standard library asks for libgcc_s.so; its static half does as well. Linkers read a text
            // file under this name as a script, and search this folder first.
            let folder = self.out.join("link");
            fs::create_dir_all(&folder).expect("OUT_DIR is writable");
            fs::write(folder.join("libgcc_s.so"), "INPUT(-lgcc_eh -lgcc)\n")
                .expect("OUT_DIR is writable");
            flags.push(format!("-Lnative={}", folder.display()));
        }
        flags
    }

    /// The library as one relocatable object with what the C interface reaches, without debug information.
    /// `None` where the linker cannot do that; then libraries are not offered.
    fn one_object(&self, library: &Path) -> Option<PathBuf> {
        let object = self.out.join("one.o");
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        cc.args(["-r", "-nostdlib", "-Wl,--gc-sections", "-Wl,--strip-debug"]);
        for name in API.lines() {
            cc.arg(format!("-Wl,-u,{name}"));
        }
        cc.arg(library).arg("-o").arg(&object);
        match cc.output() {
            Ok(output) if output.status.success() => Some(object),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                let why = why.lines().next().unwrap_or_default();
                println!("cargo::warning=no `--emit staticlib` and `dylib`: {why}");
                None
            }
            Err(error) => {
                println!("cargo::warning=no `--emit staticlib` and `dylib`: cc: {error}");
                None
            }
        }
    }

    /// Copies a product to where the crate includes it; an empty path leaves an empty file.
    fn save(&self, from: &Path, name: &str) {
        let bytes = match from.as_os_str() == OsStr::new("") {
            true => Vec::new(),
            false => fs::read(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())),
        };
        fs::write(self.out.join(name), bytes).expect("OUT_DIR is writable");
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
