//! The list of cases: `index-VERSION.json` in the folder of the cases.

use std::path::Path;

/// One case: a model and its data sets.
#[derive(Clone, Debug)]
pub struct Case {
    /// `node`, `simple`, `pytorch-operator`, `pytorch-converted`, `light`.
    pub kind: String,
    /// Name, unique.
    pub name: String,
    /// Folder below the root.
    pub dir: String,
    /// Relative tolerance.
    pub rtol: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// Operators of the model.
    pub ops: Vec<String>,
    /// True if the model is a function body in place of the operator.
    pub expanded: bool,
}

/// The cases that are asked for.
pub fn read_index(root: &Path) -> Result<Vec<Case>, String> {
    let mut files: Vec<_> = std::fs::read_dir(root)
        .map_err(|e| format!("{}: {e}", root.display()))?
        .filter_map(|f| Some(f.ok()?.path()))
        .filter(|p| {
            p.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with("index-") && n.ends_with(".json"))
        })
        .collect();
    files.sort();
    let file = files.pop().ok_or("there is no index-VERSION.json")?;
    let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let all = json.as_array().ok_or("the index is not a list")?;
    let cases = all
        .iter()
        .map(read_case)
        .collect::<Option<Vec<Case>>>()
        .ok_or("a case lacks a field")?;
    Ok(cases.into_iter().filter(wanted).collect())
}

fn read_case(json: &serde_json::Value) -> Option<Case> {
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    Some(Case {
        kind: text("kind")?,
        name: text("name")?,
        dir: text("dir")?,
        rtol: json["rtol"].as_f64()?,
        atol: json["atol"].as_f64()?,
        ops: json["ops"]
            .as_array()?
            .iter()
            .filter_map(|o| o.as_str().map(str::to_owned))
            .collect(),
        expanded: json["expanded"].as_bool().unwrap_or(false),
    })
}

/// The filter from the environment, in the form that [`plain`] gives.
pub fn filter() -> Option<String> {
    std::env::var("LAPIDARY_ONNX_FILTER")
        .ok()
        .filter(|f| !f.is_empty())
        .map(|f| plain(&f))
}

fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "")
}

fn wanted(case: &Case) -> bool {
    let light = case.kind != "light" || std::env::var_os("LAPIDARY_ONNX_LIGHT").is_some();
    let matches =
        |f: &String| plain(&case.name).contains(f) || case.ops.iter().any(|o| plain(o) == *f);
    light && filter().as_ref().is_none_or(matches)
}
