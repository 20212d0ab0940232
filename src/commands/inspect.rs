//! `lapidary inspect`: a model at a stage of compilation.

use super::{kernels, print};
use crate::cli::{Format, Inspect, Stage};
use lapidary::{Error, driver};
use lapidary_ir::Module;
use lapidary_passes::lower::lower;
use serde_json::json;

/// Runs the command.
pub fn inspect(args: &Inspect) -> Result<(), Error> {
    let options = args.model.options(None)?;
    let file = args.model.file();
    let format = if args.model.json {
        Format::Json
    } else {
        args.format
    };
    let mut module = driver::import(&args.model.model, &options)?;
    if args.at != Stage::Imported || args.rules {
        driver::compress(&mut module, &file, &options)?;
    }
    let optimized = matches!(args.at, Stage::Optimized | Stage::Kernels) && options.optimize;
    if optimized || args.rules {
        let report = driver::optimize(&mut module, &options);
        if args.rules {
            print(&rules(&report, format == Format::Json));
            return Ok(());
        }
    }
    if args.at == Stage::Kernels {
        let lowered = lower(&module, &options.target, &options.lowering())
            .map_err(|errors| Error::Lower { file, errors })?;
        print(&match format {
            Format::Text => kernels::text(&lowered),
            Format::Dot => kernels::dot(&lowered),
            Format::Json => kernels::json(&lowered),
        });
        return Ok(());
    }
    print(&match format {
        Format::Text => lapidary_ir::text::print_elided(&module),
        Format::Dot => dot(&module),
        Format::Json => format!("{}\n", graph_json(&module)),
    });
    Ok(())
}

fn rules(report: &lapidary_passes::egraph::Report, as_json: bool) -> String {
    if as_json {
        let refused: Vec<_> = report
            .refused
            .iter()
            .map(|((rule, why), n)| json!({ "rule": rule, "reason": why, "matches": n }))
            .collect();
        return format!("{}\n", json!({ "fired": report.fired, "refused": refused }));
    }
    let mut text = String::from("fired:\n");
    for (rule, n) in &report.fired {
        text += &format!("{n:>8} x {rule}\n");
    }
    text += "matched but refused:\n";
    for ((rule, why), n) in &report.refused {
        text += &format!("{n:>8} x {rule}: {why}\n");
    }
    text
}

/// Graphviz: a box for each node, an edge for each value.
fn dot(module: &Module) -> String {
    let mut text = format!("digraph {:?} {{\n  node [shape=box];\n", module.name);
    for (r, &region) in module.reachable_regions().iter().enumerate() {
        text += &format!("  subgraph cluster_{r} {{\n");
        for &v in &module.region(region).inputs {
            let value = module.value(v);
            let label = format!("{}: {}", value.name, value.ty);
            text += &format!("    v{} [shape=ellipse, label={label:?}];\n", v.0);
        }
        for &n in &module.region(region).nodes {
            text += &format!("    n{} [label={:?}];\n", n.0, module.node(n).op.name);
            for &v in &module.node(n).results {
                let label = module.value(v).ty.to_string();
                text += &format!("    v{} [shape=plaintext, label={label:?}];\n", v.0);
                text += &format!("    n{} -> v{};\n", n.0, v.0);
            }
            for v in module.node(n).operands.iter().flatten() {
                let constant =
                    matches!(module.value(*v).def, lapidary_ir::graph::Def::Constant(..));
                if !constant {
                    text += &format!("    v{} -> n{};\n", v.0, n.0);
                }
            }
        }
        text += "  }\n";
    }
    text + "}\n"
}

fn graph_json(module: &Module) -> serde_json::Value {
    let value = |v: lapidary_ir::ValueId| {
        let value = module.value(v);
        json!({ "id": v.0, "name": value.name, "type": value.ty.to_string() })
    };
    let regions: Vec<_> = module
        .reachable_regions()
        .iter()
        .map(|&r| {
            let region = module.region(r);
            let nodes: Vec<_> = region
                .nodes
                .iter()
                .map(|&n| {
                    let node = module.node(n);
                    json!({
                        "name": node.name,
                        "op": node.op.name,
                        "operands": node.operands.iter().map(|o| o.map(value)).collect::<Vec<_>>(),
                        "results": node.results.iter().map(|&v| value(v)).collect::<Vec<_>>(),
                        "regions": node.regions.iter().map(|r| r.0).collect::<Vec<_>>(),
                    })
                })
                .collect();
            json!({
                "id": r.0,
                "inputs": region.inputs.iter().map(|&v| value(v)).collect::<Vec<_>>(),
                "nodes": nodes,
                "outputs": region.outputs.iter().map(|&v| value(v)).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "name": module.name, "regions": regions })
}
