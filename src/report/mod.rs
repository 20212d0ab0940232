//! What became of a model's weights, as one page that needs nothing besides itself.
//!
//! The page is `page.html`, filled with what [`Page`] says; plots are SVG within it. What is not in the report of the compression
//! itself is what follows from it: where bytes went, by kinds of weights; bits layer by layer; and what people should be warned of.

mod plots;

use crate::error::Error;
use lapidary_passes::compress::{Chosen, Distance, Measured, Report};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value};
use plots::{Curve, Plot};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Bits below which models are known to become less trustworthy in ways that no divergence shows.
const FEW_BITS: f64 = 3.5;

/// Zeros above which knowledge is known to suffer.
const MANY_ZEROS: f64 = 0.25;

/// What the page says.
#[derive(Serialize)]
struct Page {
    model: String,
    before: u64,
    after: u64,
    share: f64,
    bits: f64,
    predicted: Option<(f64, f64)>,
    latency_ms: Option<(f64, f64)>,
    measured: Option<Difference>,
    warnings: Vec<String>,
    front: Option<String>,
    errors: Option<String>,
    bytes: Option<String>,
    map: BitMap,
    weights: Vec<Row>,
}

#[derive(Serialize)]
struct Difference {
    what: &'static str,
    loss: f64,
    standard_error: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    agreement: Option<f64>,
    flips: Option<f64>,
    used: usize,
    given: usize,
}

#[derive(Serialize)]
struct Row {
    name: String,
    shape: [usize; 2],
    method: String,
    encoding: String,
    bits: f64,
    error: f64,
    before: u64,
    after: u64,
    notes: Vec<String>,
}

/// Bits of weights: kinds down, layers across.
#[derive(Serialize)]
struct BitMap {
    layers: Vec<usize>,
    kinds: Vec<(String, Vec<Option<Cell>>)>,
}

#[derive(Serialize)]
struct Cell {
    bits: f64,
    colour: String,
    name: String,
}

/// The page for a model of this name.
///
/// # Errors
/// A plot or the page cannot be drawn.
pub fn html(model: &str, report: &Report) -> Result<String, Error> {
    let page = page(model, report).map_err(failed)?;
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("short", |v: f64| match v {
        0.0 => "0".to_owned(),
        v if (0.01..1e4).contains(&v.abs()) => format!("{v:.4}"),
        v => format!("{v:.2e}"),
    });
    environment.add_filter("fixed", |v: f64, digits: usize| format!("{v:.digits$}"));
    let page = environment
        .render_str(include_str!("page.html"), Value::from(Serde(page)))
        .map_err(|e| failed(format!("{e:#}")))?;
    Ok(page)
}

fn failed(reason: String) -> Error {
    Error::Usage {
        message: format!("the report cannot be drawn: {reason}"),
        help: "`--json` prints what it would show".to_owned(),
    }
}

fn page(model: &str, report: &Report) -> Result<Page, String> {
    let elements: usize = report.weights.iter().map(elements).sum();
    let after: u64 = report.weights.iter().map(|w| w.bytes.1).sum();
    Ok(Page {
        model: model.to_owned(),
        before: report.bytes.0,
        after: report.bytes.1,
        share: report.bytes.1 as f64 / report.bytes.0.max(1) as f64,
        bits: 8.0 * after as f64 / elements.max(1) as f64,
        predicted: report.bound,
        latency_ms: report.latency_ns.map(|(a, b)| (a / 1e6, b / 1e6)),
        measured: report.measured.as_ref().map(difference),
        warnings: warnings(report),
        front: front(report)?,
        errors: errors(report)?,
        bytes: waterfall(report)?,
        map: bit_map(report),
        weights: report.weights.iter().map(row).collect(),
    })
}

fn elements(w: &Chosen) -> usize {
    w.shape[0] * w.shape[1]
}

fn bits(w: &Chosen) -> f64 {
    8.0 * w.bytes.1 as f64 / elements(w).max(1) as f64
}

fn difference(m: &Measured) -> Difference {
    let (d, (used, given)) = (m.difference, m.samples);
    Difference {
        what: match m.distance {
            Distance::Divergence => "divergence of a prediction from the original's, nats",
            Distance::Squares => {
                "squared difference of results, relative to the original's squares"
            }
        },
        loss: d.loss,
        standard_error: d.spread.map(|s| s.standard_error),
        p95: d.spread.map(|s| s.p95),
        p99: d.spread.map(|s| s.p99),
        agreement: d.agreement.map(|a| 100.0 * a),
        flips: d.agreement.map(|a| 100.0 * (1.0 - a)),
        used,
        given,
    }
}

/// What numbers alone would hide.
fn warnings(report: &Report) -> Vec<String> {
    let mut out = vec![];
    match &report.measured {
        None => out.push(
            "The model's results were not compared with the original's: errors are those of weights, or of what they are multiplied \
             with. Give data (--calibrate), or compare with `lapidary eval --against`."
                .to_owned(),
        ),
        Some(_) => out.push(
            "The difference was measured on the data that the choice was made by. What it is on other data `lapidary eval --against` \
             says."
                .to_owned(),
        ),
    }
    let elements: usize = report.weights.iter().map(elements).sum();
    let share = |f: &dyn Fn(&&Chosen) -> bool| {
        let some: usize = report.weights.iter().filter(f).map(self::elements).sum();
        some as f64 / elements.max(1) as f64
    };
    let few = share(&|w| !w.level.keeps() && bits(w) < FEW_BITS);
    if few > 0.1 {
        out.push(format!(
            "{:.0} % of the compressed weights have fewer than {FEW_BITS} bits: models of so few bits can lose calibration, safety and \
             rare knowledge that averages do not show (Hong et al., \"Decoding Compressed Trust\").",
            100.0 * few
        ));
    }
    let pruned = share(&|w| w.level.sparsity >= MANY_ZEROS);
    if pruned > 0.1 {
        out.push(format!(
            "{:.0} % of the compressed weights have at least {:.0} % zeros: pruning by a quarter and more hurts tasks of knowledge before \
             perplexity shows it (Jaiswal et al., \"Compressing LLMs: The Truth Is Rarely Pure and Never Simple\").",
            100.0 * pruned,
            100.0 * MANY_ZEROS
        ));
    }
    let rarely = |w: &&Chosen| w.assumptions.iter().any(|a| a.contains("were seen"));
    let rarely = report.weights.iter().filter(rarely).count();
    if rarely > 0 {
        out.push(format!(
            "The inputs of {rarely} weights were seen less than four times as often as there are inputs; their notes say how often."
        ));
    }
    out
}

fn front(report: &Report) -> Result<Option<String>, String> {
    let points = report.front.iter().filter(|p| p.1 > 0.0);
    let points: Vec<(f64, f64)> = points.map(|&(b, l)| (b as f64, l)).collect();
    let Some((predicted, _)) = report.bound.filter(|_| points.len() > 1) else {
        return Ok(None);
    };
    let mut marks = vec![("chosen, as predicted", (report.bytes.1 as f64, predicted))];
    marks.extend(report.measured.map(|m| {
        let place = (report.bytes.1 as f64, m.difference.loss);
        ("chosen, as measured", place)
    }));
    let plot = Plot {
        x: "bytes of all weights",
        y: match report.measured {
            Some(_) => "predicted loss",
            None => "mean relative error",
        },
        log_x: true,
        curves: vec![Curve::plain(points)],
        marks,
    };
    plot.svg().map(Some)
}

fn errors(report: &Report) -> Result<Option<String>, String> {
    let curve = |w: &Chosen| {
        let per = 8.0 / elements(w).max(1) as f64;
        let lossy = w.tried.iter().filter(|a| a.error > 0.0);
        let mut points: Vec<(f64, f64)> = lossy.map(|a| (a.bytes as f64 * per, a.error)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        // What is larger and no better is not drawn.
        let mut least = f64::INFINITY;
        points.retain(|p| {
            let better = p.1 < least;
            least = least.min(p.1);
            better
        });
        Curve::plain(points)
    };
    let curves: Vec<Curve> = report.weights.iter().map(curve).collect();
    if curves.iter().all(|c| c.points.len() < 2) {
        return Ok(None);
    }
    let chosen = report.weights.iter().filter(|w| w.error > 0.0);
    let plot = Plot {
        x: "bits for each weight",
        y: "relative error",
        log_x: false,
        curves,
        marks: chosen.map(|w| ("chosen", (bits(w), w.error))).collect(),
    };
    plot.svg().map(Some)
}

/// The weight's layer, and its name without it.
fn place(name: &str) -> (Option<usize>, String) {
    let mut layer = None;
    let kind: Vec<&str> = name
        .split('.')
        .map(|part| match (layer, part.parse::<usize>()) {
            (None, Ok(n)) => {
                layer = Some(n);
                "*"
            }
            _ => part,
        })
        .collect();
    (layer, kind.join("."))
}

/// Where bytes went: what each kind of weights saved, the largest first.
fn waterfall(report: &Report) -> Result<Option<String>, String> {
    const SHOWN: usize = 8;
    let mut saved: BTreeMap<String, f64> = BTreeMap::new();
    for w in &report.weights {
        *saved.entry(place(&w.name).1).or_default() += w.bytes.0 as f64 - w.bytes.1 as f64;
    }
    let mut saved: Vec<(String, f64)> = saved.into_iter().collect();
    saved.sort_by(|a, b| b.1.total_cmp(&a.1));
    let rest: f64 = saved.iter().skip(SHOWN).map(|s| s.1).sum();
    if saved.len() > SHOWN {
        saved.truncate(SHOWN);
        saved.push(("others".to_owned(), rest));
    }
    plots::waterfall(report.bytes.0 as f64, &saved, report.bytes.1 as f64).map(Some)
}

fn bit_map(report: &Report) -> BitMap {
    let mut layers = BTreeSet::new();
    let mut kinds: BTreeMap<String, BTreeMap<Option<usize>, &Chosen>> = BTreeMap::new();
    for w in &report.weights {
        let (layer, kind) = place(&w.name);
        layers.extend(layer);
        kinds.entry(kind).or_default().insert(layer, w);
    }
    let cell = |w: &&Chosen| Cell {
        bits: bits(w),
        colour: plots::heat(bits(w) / 8.0),
        name: w.name.clone(),
    };
    let layers: Vec<usize> = layers.into_iter().collect();
    let rows = kinds.iter().map(|(kind, of)| {
        let alone = of.get(&None).map(cell);
        let cells = layers.iter().map(|l| of.get(&Some(*l)).map(cell));
        let cells: Vec<Option<Cell>> = [alone].into_iter().chain(cells).collect();
        (kind.clone(), cells)
    });
    BitMap {
        kinds: rows.collect(),
        layers: layers.clone(),
    }
}

fn row(w: &Chosen) -> Row {
    Row {
        name: w.name.clone(),
        shape: w.shape,
        method: w.level.method.clone(),
        encoding: w.encoding.clone(),
        bits: bits(w),
        error: w.error,
        before: w.bytes.0,
        after: w.bytes.1,
        notes: w.assumptions.clone(),
    }
}

#[cfg(test)]
mod tests;
