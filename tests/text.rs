//! The text form: files that are read, verified and printed, files that must be refused, and every model of
//! ONNX's operator tests through import, print, parse and comparison.
//!
//! * `tests/text/good/NAME.lap` reads and verifies; what it prints stands in `NAME.out`, and reads back as
//!   the same program.
//! * `tests/text/bad/NAME.lap` is refused; each diagnostic stands in `NAME.out`, one a line, as
//!   `LINE:COLUMN CODE message (help)`.
//!
//! `LAPIDARY_BLESS=1` writes the `.out` files; read the difference before you keep it.

use lapidary_frontend::onnx::{ImportOptions, import_file};
use lapidary_ir::diagnostic::{CODES, Diagnostic, Place, Stage};
use lapidary_ir::text::{self, Parsed};
use lapidary_ir::verify;
use std::path::{Path, PathBuf};

/// Files with an ending in a folder, ordered.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/text")
        .join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "lap"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Compares with what is kept, or keeps it.
fn expect(path: &Path, found: &str, wrong: &mut Vec<String>) {
    let out = path.with_extension("out");
    if std::env::var_os("LAPIDARY_BLESS").is_some() {
        std::fs::write(&out, found).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
    } else if std::fs::read_to_string(&out).ok().as_deref() != Some(found) {
        wrong.push(format!("{} should be:\n{found}", out.display()));
    }
}

#[track_caller]
fn none(wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{}\n(`LAPIDARY_BLESS=1` writes the files)",
        wrong.join("\n")
    );
}

/// `LINE:COLUMN` of a place in the text.
fn line_column(source: &str, place: &Place) -> String {
    let Place::Text(span) = place else {
        return place.to_string();
    };
    let before = &source[..span.start];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = before.matches('\n').count() + 1;
    format!(
        "{line}:{}",
        source[line_start..span.start].chars().count() + 1
    )
}

fn one_line(source: &str, d: &Diagnostic) -> String {
    let mut line = format!(
        "{} {} {}",
        line_column(source, &d.place),
        d.code.code,
        d.message
    );
    for (place, text) in &d.labels {
        line += &format!("; {}: {text}", line_column(source, place));
    }
    if let Some(help) = &d.help {
        line += &format!(" ({help})");
    }
    line
}

/// Reads and verifies, with the side file `NAME.weights` if there is one; places are in the text where they
/// can be.
fn check(path: &Path, source: &str) -> Result<Parsed, Vec<Diagnostic>> {
    let weights = std::fs::read(path.with_extension("weights"))
        .ok()
        .map(Into::into);
    let parsed = text::parse_located(source, weights.as_ref())?;
    let errors = verify::verify(&parsed.module);
    if errors.is_empty() {
        return Ok(parsed);
    }
    Err(errors.into_iter().map(|d| parsed.locate(d)).collect())
}

#[test]
fn good_files_print_and_read_back() {
    let mut wrong = vec![];
    for path in files("good") {
        let source = read(&path);
        let module = match check(&path, &source) {
            Ok(parsed) => parsed.module,
            Err(errors) => {
                let lines: Vec<String> = errors.iter().map(|d| one_line(&source, d)).collect();
                wrong.push(format!("{}: {}", path.display(), lines.join("\n")));
                continue;
            }
        };
        let printed = text::print(&module);
        expect(&path, &printed, &mut wrong);
        match text::parse(&printed) {
            Ok(back) => wrong.extend(
                module
                    .first_difference(&back)
                    .map(|d| format!("{}: {d}", path.display())),
            ),
            Err(errors) => wrong.push(format!("{}: {errors:?}", path.display())),
        }
    }
    none(&wrong);
}

#[test]
fn bad_files_say_what_is_wrong_and_where() {
    let (mut wrong, mut seen) = (vec![], vec![]);
    for path in files("bad") {
        let source = read(&path);
        let Err(diagnostics) = check(&path, &source) else {
            wrong.push(format!("{} is accepted", path.display()));
            continue;
        };
        seen.extend(diagnostics.iter().map(|d| d.code.code));
        let lines: String = diagnostics
            .iter()
            .map(|d| one_line(&source, d) + "\n")
            .collect();
        expect(&path, &lines, &mut wrong);
    }
    none(&wrong);
    let untested: Vec<&str> = CODES
        .iter()
        .filter(|c| matches!(c.stage, Stage::Text | Stage::Verify))
        .map(|c| c.code)
        .filter(|c| !seen.contains(c))
        .collect();
    assert!(
        untested.is_empty(),
        "no file in tests/text/bad for {untested:?}"
    );
}

/// What is wrong with one model's way through the text form; false if it does not import, which is the
/// conformance test's subject.
fn round_trip(path: &Path) -> Result<bool, String> {
    let Ok(module) = import_file(path, &ImportOptions::default()) else {
        return Ok(false);
    };
    if let Some(error) = verify::errors(&module).first() {
        return Err(format!("imported, but not valid: {error}"));
    }
    let (printed, parts) = text::print_with_weights(&module);
    let mut weights = vec![];
    for (at, bytes) in parts {
        weights.resize(at as usize, 0);
        weights.extend_from_slice(&bytes);
    }
    for (printed, weights) in [
        (printed, Some(weights.into())),
        (text::print(&module), None),
    ] {
        let back = text::parse_located(&printed, weights.as_ref())
            .map_err(|e| format!("does not read back: {}", one_line(&printed, &e[0])))?;
        if let Some(difference) = module.first_difference(&back.module) {
            return Err(format!("reads back differently: {difference}"));
        }
    }
    Ok(true)
}

#[test]
fn every_onnx_operator_test_reads_back() {
    let Some(root) = std::env::var_os("LAPIDARY_ONNX_TESTS").map(PathBuf::from) else {
        println!(
            "skipped: LAPIDARY_ONNX_TESTS does not name the folder made by tests/conformance/generate.py"
        );
        return;
    };
    let mut wrong = vec![];
    let mut count = [0, 0];
    let folder = root.join("node");
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path().join("model.onnx");
        if path.is_file() {
            match round_trip(&path) {
                Ok(imported) => count[usize::from(imported)] += 1,
                Err(reason) => wrong.push(format!("{}: {reason}", entry.file_name().display())),
            }
        }
    }
    wrong.sort();
    let [refused, same] = count;
    println!(
        "{same} models read back, {} do not, {refused} do not import",
        wrong.len()
    );
    assert!(
        wrong.is_empty() && same > 10 * refused,
        "{}",
        wrong.join("\n")
    );
}
