//! What a run is worth: a table by operator, and the comparison with the list of expected failures.

use crate::cases::filter;
use crate::engine::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Prints the table, and fails if a case that is not expected to fails.
pub fn conclude(engine: &str, outcomes: &[Outcome]) {
    table(engine, outcomes);
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/conformance/expected-failures-{engine}.txt"));
    let filtered = filter().is_some();
    if filtered {
        for o in outcomes {
            println!(
                "{} {}",
                if o.failure.is_some() { "FAIL" } else { "ok  " },
                o.case.name
            );
            o.failure.iter().for_each(|why| println!("       {why}"));
        }
    }
    if std::env::var_os("LAPIDARY_BLESS").is_some() && !filtered {
        std::fs::write(&file, list(engine, outcomes)).expect("the list can be written");
        return;
    }
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let expected: BTreeSet<&str> = text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split('\t').next())
        .collect();
    let fails = |o: &&Outcome| o.failure.is_some() && !expected.contains(o.case.name.as_str());
    let unexpected: Vec<&Outcome> = outcomes.iter().filter(fails).collect();
    let better = outcomes
        .iter()
        .filter(|o| o.failure.is_none() && expected.contains(o.case.name.as_str()))
        .count();
    if better > 0 {
        println!(
            "{better} cases listed in {} pass now: LAPIDARY_BLESS=1 removes them",
            file.display()
        );
    }
    for o in &unexpected {
        println!(
            "unexpected failure of {}: {}",
            o.case.name,
            o.failure.as_deref().unwrap_or_default()
        );
    }
    assert!(
        unexpected.is_empty(),
        "{} cases fail that are not in {}",
        unexpected.len(),
        file.display()
    );
}

fn list(engine: &str, outcomes: &[Outcome]) -> String {
    let mut lines: Vec<String> = outcomes
        .iter()
        .filter_map(|o| {
            Some(format!(
                "{}\t{}\n",
                o.case.name,
                one_line(o.failure.as_deref()?)
            ))
        })
        .collect();
    lines.sort();
    format!(
        "# ONNX cases that the {engine} does not pass, and why. LAPIDARY_BLESS=1 rewrites this list.\n{}",
        lines.concat()
    )
}

/// A reason on one line, short, and without what differs from machine to machine.
fn one_line(why: &str) -> String {
    let line = why.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(200).collect()
}

fn table(engine: &str, outcomes: &[Outcome]) {
    let mut kinds: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    let mut ops: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for o in outcomes {
        let passed = usize::from(o.failure.is_none());
        let add = |slot: &mut [usize; 2]| {
            slot[0] += passed;
            slot[1] += 1;
        };
        let suffix = if o.case.expanded { "-expanded" } else { "" };
        add(kinds.entry(format!("{}{suffix}", o.case.kind)).or_default());
        if o.case.kind == "node" && !o.case.expanded {
            o.case
                .ops
                .iter()
                .for_each(|op| add(ops.entry(op).or_default()));
        }
    }
    let passed = outcomes.iter().filter(|o| o.failure.is_none()).count();
    println!("{engine}: {passed} of {} cases pass", outcomes.len());
    kinds
        .iter()
        .for_each(|(kind, [p, n])| println!("  {kind:<24} {p:>4} / {n}"));
    let full = ops.values().filter(|[p, n]| p == n).count();
    println!(
        "  operators whose every case passes: {full} / {}; the others:",
        ops.len()
    );
    ops.iter()
        .filter(|(_, [p, n])| p < n)
        .for_each(|(op, [p, n])| println!("    {op:<40} {p:>3} / {n}"));
}
