//! What sentence-transformers keeps beside an encoder: how its states become one vector, and which texts it takes.
//!
//! | file | what is read of it |
//! | --- | --- |
//! | `modules.json` | `Transformer`, `Pooling` and perhaps `Normalize`, in this order, and the folder of the second |
//! | `1_Pooling/config.json` | which of `pooling_mode_cls_token`, `pooling_mode_mean_tokens` and `pooling_mode_max_tokens` is set |
//! | `sentence_bert_config.json` (or `roberta`, `distilbert`) | `max_seq_length`, `do_lower_case` |
//! | `config_sentence_transformers.json` | that there is no `default_prompt_name` |
//!
//! Each may be missing: then [`Pooling::default`] holds, and texts are as long as the encoder has positions for. Vectors have length 1
//! but where there is a `modules.json` without `Normalize`.

use super::config::{self, Config};
use super::noted;
use crate::arch::{Mode, Pooling};
use crate::error::{Problem, Problems};
use serde_json::Value;
use std::path::Path;

const MODULES: &str = "modules.json";

/// Where the settings of pooling are, if nothing says it.
const POOLING: &str = "1_Pooling";

/// Settings of the encoder, by names of several years.
const ENCODER: [&str; 3] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
];

const PROMPTS: &str = "config_sentence_transformers.json";

/// Ways of pooling: what the setting `pooling_mode` calls them, and settings that are true or false.
const MODES: [(&str, &str, Mode); 3] = [
    ("cls", "pooling_mode_cls_token", Mode::First),
    ("mean", "pooling_mode_mean_tokens", Mode::Mean),
    ("max", "pooling_mode_max_tokens", Mode::Max),
];

/// What an encoder is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sentences {
    /// What becomes of its states.
    pub pooling: Pooling,
    /// Most tokens of a text, those that the tokenizer adds included, where it says so.
    pub longest: Option<usize>,
    /// Whether texts become lower case before they are cut into tokens.
    pub lowercase: bool,
}

impl Sentences {
    /// Reads what there is in `folder`; none if something is wrong, which is noted.
    pub(super) fn read(folder: &Path, problems: &mut Problems) -> Option<Sentences> {
        let pooling = noted(pooling(folder), problems);
        let encoder = noted(encoder(folder), problems);
        let prompts = noted(no_prompt(folder), problems);
        let (longest, lowercase) = encoder?;
        prompts?;
        Some(Sentences {
            pooling: pooling?,
            longest,
            lowercase,
        })
    }
}

fn pooling(folder: &Path) -> Result<Pooling, Problem> {
    let modules = config::optional(folder, MODULES)?;
    let (path, unit) = match &modules {
        Some(modules) => steps(modules)?,
        None => (POOLING.to_owned(), Pooling::default().unit),
    };
    let file = format!("{path}/{}", config::FILE);
    let config = match Config::optional(folder, &file)? {
        Some(config) => config,
        None if modules.is_none() => return Ok(Pooling::default()),
        None => {
            return Err(Problem {
                place: format!("file `{file}`"),
                reason: format!("is missing; `{MODULES}` names its folder"),
                remedy: None,
            });
        }
    };
    let mode = mode(&config)?;
    Ok(Pooling { mode, unit })
}

/// Where the settings of pooling are, and whether vectors are divided by their lengths afterwards.
fn steps(modules: &Value) -> Result<(String, bool), Problem> {
    let wrong = |reason: String| Problem {
        place: format!("file `{MODULES}`"),
        reason,
        remedy: None,
    };
    let step = |m: &Value| {
        Some((
            m["type"].as_str()?.to_owned(),
            m["path"].as_str()?.to_owned(),
        ))
    };
    let all = modules.as_array().map(|all| all.iter().map(step).collect());
    let Some(Some(all)) = all else {
        let reason = "must be a list of objects with `type` and `path`";
        return Err(wrong(reason.to_owned()));
    };
    let all: Vec<(String, String)> = all;
    let kinds: Vec<&str> = all
        .iter()
        .map(|(kind, _)| kind.rsplit('.').next().unwrap_or(kind))
        .collect();
    let unit = match kinds[..] {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            return Err(wrong(format!(
                "its modules are {}; supported are Transformer, Pooling and perhaps Normalize, in this order",
                kinds.join(", ")
            )));
        }
    };
    let [(_, encoder), (_, pooling), ..] = &all[..] else {
        return Err(wrong("has too few modules".to_owned()));
    };
    if !encoder.is_empty() {
        let reason = format!("the encoder is in the folder `{encoder}`, which is not supported");
        return Err(wrong(reason));
    }
    Ok((pooling.clone(), unit))
}

fn mode(config: &Config) -> Result<Mode, Problem> {
    const REMEDY: &str = "supported is one of cls, mean and max";
    let wrong = |name: &str, reason: String| Problem {
        remedy: Some(REMEDY.to_owned()),
        ..config.problem(name, reason)
    };
    if let Some(name) = config.text("pooling_mode")? {
        let found = MODES.iter().find(|(n, ..)| *n == name);
        let unknown = || {
            wrong(
                "pooling_mode",
                format!("is `{name}`, which is not supported"),
            )
        };
        return found.map(|&(.., mode)| mode).ok_or_else(unknown);
    }
    let mut chosen = vec![];
    for name in config.names().filter(|n| n.starts_with("pooling_mode_")) {
        if config.flag_or(name, false)? {
            let found = MODES.iter().find(|(_, n, _)| *n == name);
            let unknown = || wrong(name, "is true, which is not supported".to_owned());
            chosen.push((name, found.ok_or_else(unknown)?.2));
        }
    }
    match chosen[..] {
        [] => Ok(Pooling::default().mode),
        [(_, mode)] => Ok(mode),
        [(one, _), (other, _), ..] => Err(wrong(
            other,
            format!("is true and so is `{one}`; several at once are not supported"),
        )),
    }
}

/// The longest text and whether it becomes lower case.
fn encoder(folder: &Path) -> Result<(Option<usize>, bool), Problem> {
    for name in ENCODER {
        if let Some(config) = Config::optional(folder, name)? {
            let longest = config.size_opt("max_seq_length")?;
            return Ok((longest, config.flag_or("do_lower_case", false)?));
        }
    }
    Ok((None, false))
}

/// An error if a prompt would be put before every text.
fn no_prompt(folder: &Path) -> Result<(), Problem> {
    let Some(config) = Config::optional(folder, PROMPTS)? else {
        return Ok(());
    };
    match config.text("default_prompt_name")? {
        Some(name) if !name.is_empty() => Err(Problem {
            remedy: Some("remove it, and put the prompt before the texts yourself".to_owned()),
            ..config.problem(
                "default_prompt_name",
                format!("is `{name}`: prompts are not supported"),
            )
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a folder with these files says, or why not.
    fn read(files: &[(&str, &str)]) -> Result<Sentences, String> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            std::fs::write(path, text).expect("written");
        }
        let mut problems = Problems::new("");
        let found = Sentences::read(folder.path(), &mut problems);
        found.ok_or_else(|| problems.of("it").to_string())
    }

    const MEAN: &str = r#"{"word_embedding_dimension": 8, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}"#;

    #[test]
    fn what_a_folder_says_is_read() {
        assert_eq!(read(&[]), Ok(Sentences::default()));
        let modules = r#"[
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "pool", "type": "sentence_transformers.models.Pooling"}]"#;
        let files = [
            (MODULES, modules),
            (
                "pool/config.json",
                r#"{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": false}"#,
            ),
            (
                "sentence_bert_config.json",
                r#"{"max_seq_length": 32, "do_lower_case": true}"#,
            ),
            (
                PROMPTS,
                r#"{"prompts": {"query": "q: "}, "default_prompt_name": null}"#,
            ),
        ];
        let pooling = Pooling {
            mode: Mode::First,
            unit: false,
        };
        let want = Sentences {
            pooling,
            longest: Some(32),
            lowercase: true,
        };
        assert_eq!(read(&files), Ok(want));
        let normalized = modules.replace(
            "Pooling\"}",
            r#"Pooling"}, {"path": "2_Normalize", "type": "a.b.Normalize"}"#,
        );
        let found = read(&[
            (MODULES, &normalized),
            ("pool/config.json", r#"{"pooling_mode": "max"}"#),
        ]);
        let pooling = Pooling {
            mode: Mode::Max,
            unit: true,
        };
        assert_eq!(found.map(|s| s.pooling), Ok(pooling));
        let found = read(&[("1_Pooling/config.json", MEAN)]);
        assert_eq!(found.map(|s| s.pooling), Ok(Pooling::default()));
    }

    #[test]
    fn what_is_not_supported_is_said() {
        let pooling = "1_Pooling/config.json";
        for (files, why) in [
            (vec![(MODULES, "{}")], "must be a list"),
            (vec![(MODULES, "[")], "is not valid"),
            (
                vec![(
                    MODULES,
                    r#"[{"path": "", "type": "x.Transformer"}, {"path": "2", "type": "x.Dense"}]"#,
                )],
                "its modules are Transformer, Dense",
            ),
            (
                vec![(
                    MODULES,
                    r#"[{"path": "", "type": "x.Transformer"}, {"path": "../a", "type": "x.Pooling"}]"#,
                )],
                "inside the model's folder",
            ),
            (
                vec![(
                    MODULES,
                    r#"[{"path": "", "type": "Transformer"}, {"path": "p", "type": "Pooling"}]"#,
                )],
                "`p/config.json`: is missing",
            ),
            (
                vec![(
                    MODULES,
                    r#"[{"path": "0", "type": "Transformer"}, {"path": "p", "type": "Pooling"}]"#,
                )],
                "in the folder `0`",
            ),
            (
                vec![(pooling, r#"{"pooling_mode_lasttoken": true}"#)],
                "supported is one of",
            ),
            (
                vec![(pooling, r#"{"pooling_mode": "lasttoken"}"#)],
                "is `lasttoken`",
            ),
            (
                vec![(
                    pooling,
                    r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#,
                )],
                "several at once",
            ),
            (
                vec![(pooling, r#"{"pooling_mode_mean_tokens": 1}"#)],
                "true or false",
            ),
            (
                vec![(ENCODER[0], r#"{"max_seq_length": -1}"#)],
                "`max_seq_length`",
            ),
            (
                vec![(PROMPTS, r#"{"default_prompt_name": "query"}"#)],
                "prompts are not supported",
            ),
        ] {
            let message = read(&files).expect_err(why);
            assert!(message.contains(why), "{message}");
        }
    }
}
