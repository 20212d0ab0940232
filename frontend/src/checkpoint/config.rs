//! `config.json`: settings by name, each checked where it is read.

use crate::error::Problem;
use crate::files::Files;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// The file's name.
pub const FILE: &str = "config.json";

/// Largest number that a size may be: far above what exists, far below what overflows.
const MAX_SIZE: u64 = 1 << 31;

/// Longest file; real ones have a few thousand bytes, and ten times this with tables of labels.
const MAX_BYTES: usize = 16 << 20;

/// What a file of JSON in `folder` holds; none if there is no such file.
pub(crate) fn optional<T: DeserializeOwned>(
    folder: &Path,
    file: &str,
) -> Result<Option<T>, Problem> {
    // A link to nowhere is there, and is reported; what is outside of the folder is never looked for.
    let missing = Files::is_inside(file) && folder.join(file).symlink_metadata().is_err();
    (!missing).then(|| read(folder, file)).transpose()
}

fn read<T: DeserializeOwned>(folder: &Path, file: &str) -> Result<T, Problem> {
    let wrong = |reason: String| Problem {
        place: format!("file `{file}`"),
        reason,
        remedy: None,
    };
    let bytes = Files::new(Some(folder))
        .open(file, "the configuration")
        .map_err(wrong)?;
    if bytes.len() > MAX_BYTES {
        return Err(wrong(format!(
            "has {} bytes; at most {MAX_BYTES} are read",
            bytes.len()
        )));
    }
    serde_json::from_slice(&bytes).map_err(|e| wrong(format!("is not valid: {e}")))
}

/// The settings of a checkpoint, or one object of settings inside them.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the settings are read from, for messages.
    file: String,
    /// Where in the file this object is, for messages.
    path: String,
    settings: Map<String, Value>,
}

impl Config {
    /// Reads the file in `folder`.
    pub fn read(folder: &Path) -> Result<Config, Problem> {
        let settings = read(folder, FILE).map_err(|problem| Problem {
            remedy: Some(
                "a checkpoint is a folder with `config.json` and `model.safetensors`".to_owned(),
            ),
            ..problem
        })?;
        Ok(Config::of(settings, FILE))
    }

    /// Reads another file of settings, which may be missing.
    pub(crate) fn optional(folder: &Path, file: &str) -> Result<Option<Config>, Problem> {
        let settings = optional(folder, file)?;
        Ok(settings.map(|settings| Config::of(settings, file)))
    }

    /// Settings out of a file of this name.
    pub(crate) fn of(settings: Map<String, Value>, file: &str) -> Config {
        Config {
            file: file.to_owned(),
            path: String::new(),
            settings,
        }
    }

    /// All settings as they are.
    pub(crate) fn into_settings(self) -> Map<String, Value> {
        self.settings
    }

    /// What the settings are read from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Names of all settings.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.keys().map(String::as_str)
    }

    /// Whether there is a setting, other than `null`.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.settings.get(name).filter(|v| !v.is_null())
    }

    /// A problem with a setting.
    pub fn problem(&self, name: &str, reason: impl Into<String>) -> Problem {
        Problem {
            place: format!("`{}{name}` of `{}`", self.path, self.file),
            reason: reason.into(),
            remedy: None,
        }
    }

    fn found<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let shown = || {
            let text: String = value.to_string().chars().take(40).collect();
            self.problem(name, format!("must be {wanted}, found {text}"))
        };
        read(value).map(Some).ok_or_else(shown)
    }

    fn needed<T>(&self, name: &str, found: Option<T>) -> Result<T, Problem> {
        found.ok_or_else(|| self.problem(name, "is missing"))
    }

    /// A positive number, if there is the setting.
    pub fn size_opt(&self, name: &str) -> Result<Option<usize>, Problem> {
        let size = |v: &Value| v.as_u64().filter(|n| (1..=MAX_SIZE).contains(n));
        Ok(self
            .found(name, "a positive whole number", size)?
            .map(|n| n as usize))
    }

    /// A positive number.
    pub fn size(&self, name: &str) -> Result<usize, Problem> {
        self.needed(name, self.size_opt(name)?)
    }

    /// A positive number or this one.
    pub fn size_or(&self, name: &str, default: usize) -> Result<usize, Problem> {
        Ok(self.size_opt(name)?.unwrap_or(default))
    }

    /// A number, if there is the setting.
    pub fn float_opt(&self, name: &str) -> Result<Option<f64>, Problem> {
        self.found(name, "a number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    /// A number or this one.
    pub fn float_or(&self, name: &str, default: f64) -> Result<f64, Problem> {
        Ok(self.float_opt(name)?.unwrap_or(default))
    }

    /// A positive number.
    pub fn positive(&self, name: &str) -> Result<f64, Problem> {
        let read = |v: &Value| v.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        let found = self.found(name, "a positive number", read)?;
        self.needed(name, found)
    }

    /// True, false or this.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool, Problem> {
        Ok(self
            .found(name, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    /// A text, if there is the setting.
    pub fn text(&self, name: &str) -> Result<Option<String>, Problem> {
        self.found(name, "a text", |v| v.as_str().map(str::to_owned))
    }

    /// A list of numbers.
    pub fn floats(&self, name: &str) -> Result<Vec<f64>, Problem> {
        let all = |v: &Value| {
            let numbers = v.as_array()?.iter().map(Value::as_f64);
            numbers.collect::<Option<Vec<f64>>>()
        };
        let found = self.found(name, "a list of numbers", all)?;
        self.needed(name, found)
    }

    /// A list of positive numbers, if there is the setting.
    pub fn lengths(&self, name: &str) -> Result<Option<Vec<usize>>, Problem> {
        let length = |v: &Value| v.as_u64().filter(|n| (1..=MAX_SIZE).contains(n));
        let all = |v: &Value| {
            let lengths = v.as_array()?.iter().map(|v| length(v).map(|n| n as usize));
            lengths.collect::<Option<Vec<usize>>>()
        };
        self.found(name, "a list of positive whole numbers", all)
    }

    /// A list of texts, if there is the setting.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, Problem> {
        let all = |v: &Value| {
            let texts = v.as_array()?.iter().map(|t| t.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<String>>>()
        };
        self.found(name, "a list of texts", all)
    }

    /// The settings inside a setting, if there is it.
    pub fn inner(&self, name: &str) -> Result<Option<Config>, Problem> {
        let settings = self.found(name, "an object", |v| v.as_object().cloned())?;
        Ok(settings.map(|settings| Config {
            file: self.file.clone(),
            path: format!("{}{name}.", self.path),
            settings,
        }))
    }

    /// The first of these names that is set, else the first: settings have had more than one name.
    pub fn alias<'n>(&self, names: &[&'n str]) -> &'n str {
        let set = names.iter().find(|n| self.has(n));
        set.or(names.first()).copied().unwrap_or_default()
    }

    /// An error if a setting that changes the network is not what is supported; absent is supported.
    pub fn only(&self, name: &str, supported: bool) -> Result<(), Problem> {
        match self.flag_or(name, supported)? {
            found if found == supported => Ok(()),
            found => Err(self.problem(name, format!("is {found}, which is not supported"))),
        }
    }
}
