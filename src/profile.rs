//! Profiles: how fast a machine is, as `lapidary tune` measured it, in a file.
//!
//! ```text
//! version = 1
//! machine = "…"          for people
//! arch = "x86_64"
//! features = ["avx2", …] what micro-kernels could use when it was measured
//! [speeds] …             `lapidary_ir::speeds::Speeds`
//! ```
//! A profile of another version, or of a processor with other features, is refused: its rates are of other code.

use crate::artefact::write_text;
use crate::error::Error;
use lapidary_ir::speeds::Speeds;
use lapidary_ir::target::Target;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the file's form, and of what its rates mean.
pub const VERSION: u32 = 1;

/// A measured machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    version: u32,
    /// Name of the processor, for people.
    pub machine: String,
    arch: String,
    features: Vec<String>,
    /// How fast it is.
    pub speeds: Speeds,
}

impl Profile {
    /// Of a machine that fits a description.
    pub fn of(target: &Target, machine: String, speeds: Speeds) -> Profile {
        Profile {
            version: VERSION,
            machine,
            arch: target.arch().to_owned(),
            features: features(target),
            speeds,
        }
    }

    /// Reads a profile for a target.
    ///
    /// # Errors
    /// It cannot be read, is none, or is of another version or processor.
    pub fn read(path: &Path, target: &Target) -> Result<Profile, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::File {
            path: path.to_owned(),
            error,
        })?;
        Profile::parse(&text, target).map_err(|what| Error::Usage {
            message: format!("{}: {what}", path.display()),
            help: "`lapidary tune` measures this machine and writes its profile; `--target-profile` names another, \
                   `--no-target-profile` does without"
                .to_owned(),
        })
    }

    fn parse(text: &str, target: &Target) -> Result<Profile, String> {
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| e.message().to_owned())?;
        // Before anything else is looked at: another version may have other fields.
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(v) if v == i64::from(VERSION) => (),
            Some(v) => {
                return Err(format!(
                    "a profile of version {v}, this lapidary reads {VERSION}"
                ));
            }
            None => return Err("this is no profile: it says no version".to_owned()),
        }
        let profile: Profile = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        if profile.arch != target.arch() || profile.features != features(target) {
            return Err(format!(
                "a profile of {} with {}, the target is {} with {}",
                profile.arch,
                profile.features.join(", "),
                target.arch(),
                features(target).join(", ")
            ));
        }
        match profile.speeds.problem() {
            Some(problem) => Err(problem),
            None => Ok(profile),
        }
    }

    /// Writes it beside the path, and renames it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |error| Error::File {
            path: path.to_owned(),
            error,
        };
        let text = toml::to_string(self).map_err(|e| failed(std::io::Error::other(e)))?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        write_text(path, &text)
    }

    /// The target as it was measured.
    pub fn describe(self, target: Target) -> Target {
        Target {
            measured: Some(Arc::new(self.speeds)),
            ..target
        }
    }
}

fn features(target: &Target) -> Vec<String> {
    target
        .feature_names()
        .into_iter()
        .map(str::to_owned)
        .collect()
}

/// Where this machine's profile is: in the user's cache folder (`XDG_CACHE_HOME`, else `.cache` of the home folder).
pub fn default_path() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = named.filter(|p| p.is_absolute());
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
    Some(cache.join("lapidary").join("target.toml"))
}

/// The name of this machine's processor, where the system tells.
pub fn machine() -> String {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = about.lines().find_map(|l| l.strip_prefix("model name"));
    let name = name
        .and_then(|l| l.split_once(':'))
        .map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ir::target::Feature;

    fn profile(target: &Target) -> Profile {
        Profile::of(target, "a machine".to_owned(), Speeds::of(target))
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("not/yet/there.toml");
        let target = Target::x86_64();
        let mut written = profile(&target);
        written.speeds.launch_ns = 41.25;
        written.write(&path).expect("writes");
        let read = Profile::read(&path, &target).expect("fits");
        assert_eq!(read, written);
        let described = read.describe(target.clone());
        assert_eq!(described.speeds().launch_ns, 41.25);
        // Nothing else is left beside it.
        let beside = std::fs::read_dir(path.parent().expect("a folder")).expect("there");
        assert_eq!(beside.count(), 1);
    }

    #[test]
    fn profiles_of_others_are_refused_with_what_to_do() {
        let target = Target::x86_64();
        let text = toml::to_string(&profile(&target)).expect("plain data");
        let wide = target.clone().with_features(vec![Feature::Avx512]);
        let cases: [(String, &Target, &str); 7] = [
            (
                text.replace("version = 1", "version = 2"),
                &target,
                "version 2",
            ),
            (text.replace("version = 1", ""), &target, "no version"),
            (text.clone(), &wide, "avx512"),
            (text.clone(), &Target::aarch64(), "aarch64"),
            (
                text.replace("launch_ns = 60.0", "launch_ns = -1.0"),
                &target,
                "launch",
            ),
            (
                text.replace("gemm_codes", "gemm_cods"),
                &target,
                "gemm_cods",
            ),
            ("version = ".to_owned(), &target, ""),
        ];
        let folder = tempfile::tempdir().expect("a folder");
        for (i, (text, target, said)) in cases.iter().enumerate() {
            let path = folder.path().join(format!("{i}.toml"));
            std::fs::write(&path, text).expect("writes");
            let Err(Error::Usage { message, help }) = Profile::read(&path, target) else {
                panic!("{i} is taken")
            };
            assert!(message.contains(said), "{i}: {message}");
            assert!(help.contains("lapidary tune"), "{help}");
        }
        let missing = Profile::read(&folder.path().join("none"), &target);
        assert!(matches!(missing, Err(Error::File { .. })));
    }
}
