//! Language models as instructions for an FPGA overlay: the command's project under sanitizers, and what it refuses.
//!
//! g++ and make are needed, and for the real model `LAPIDARY_DATA`; a test that lacks one says that it is skipped.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::data::data;
use support::lapidary;

fn bundled(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/checkpoints/models")
        .join(name)
}

fn build(model: &Path, output: &Path, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(lapidary());
    command
        .arg("build")
        .arg(model)
        .args(["--emit", "flight", "-o"]);
    let done = command.arg(output).args(more).output().expect("it runs");
    let text = [done.stdout, done.stderr].concat();
    (
        done.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn projects_of_the_command_pass_their_own_checks() {
    let found = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    if !found("g++") || !found("make") {
        println!("skipped: there is no g++ or make");
        return;
    }
    let Some(model) = data("stories260k") else {
        return;
    };
    let place = tempfile::tempdir().expect("a folder");
    for (name, more) in [
        ("dense", &[][..]),
        (
            "sparse",
            &["--keep", "8", "--tolerance", "0.01", "--part", "vhk158"],
        ),
    ] {
        let project = place.path().join(name);
        let (done, said) = build(&model, &project, more);
        assert!(done && said.contains("tokens/s"), "{said}");
        assert_eq!(
            said.split_once('\n').map(|s| s.1),
            fs::read_to_string(project.join("report.txt"))
                .ok()
                .as_deref()
        );
        let checked = Command::new("make")
            .arg("check")
            .current_dir(&project)
            .output();
        let checked = checked.expect("make runs");
        let text = String::from_utf8_lossy(&checked.stdout);
        assert!(
            checked.status.success() && text.contains("8 steps equal"),
            "{text}"
        );
        let (again, said) = build(&model, &project, more);
        assert!(!again, "{said}");
    }
    let size = |name: &str| {
        fs::metadata(place.path().join(name).join("image.bin"))
            .expect("it is there")
            .len()
    };
    assert!(size("sparse") < size("dense"));
}

#[test]
fn what_the_overlay_cannot_run_is_refused() {
    let place = tempfile::tempdir().expect("a folder");
    let output = place.path().join("out");
    for (model, more, why) in [
        ("gemma3", &[][..], "only `llama` is supported"),
        ("llama31-rope", &[], "scales angles"),
        ("llama31-rope", &["--bits", "4"], "of its own form"),
        ("llama31-rope", &["--keep", "5"], "none of 2, 4, 8 and 16"),
        ("missing", &[], "missing"),
    ] {
        let (done, said) = build(&bundled(model), &output, more);
        // Messages are broken into lines.
        let said = said.replace("\n  │ ", " ");
        assert!(!done && said.contains(why), "{model}: {said}");
        assert!(!output.exists());
    }
}
