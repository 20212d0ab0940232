//! `lapidary tune`: measures this machine for the cost model.

use super::{all_threads, print, progress};
use crate::cli::Tune;
use lapidary::profile::{self, Profile};
use lapidary::{Error, tune};
use lapidary_ir::speeds::{Speeds, WORKS};
use lapidary_ir::target::Target;
use std::time::Instant;

/// Runs the command. Nothing is written before all is measured.
pub fn tune(args: &Tune) -> Result<(), Error> {
    let path = args.out.clone().or_else(profile::default_path);
    let path = path.ok_or_else(|| Error::Usage {
        message: "there is no cache folder to write to".to_owned(),
        help: "set `XDG_CACHE_HOME` or `HOME`, or name a file: `--out FILE`".to_owned(),
    })?;
    let threads = args.threads.unwrap_or_else(all_threads).max(1);
    let start = Instant::now();
    let speeds = tune::tune(threads, &progress())?;
    let seconds = start.elapsed().as_secs_f64();
    let profile = Profile::of(&Target::host(), profile::machine(), speeds);
    profile.write(&path)?;
    let path = path.display().to_string();
    if args.json {
        let report = serde_json::json!({
            "profile": path, "seconds": seconds, "machine": profile.machine, "speeds": profile.speeds,
        });
        print(&format!("{report}\n"));
    } else {
        print(&format!(
            "{}{path}: measured in {seconds:.1} s\n",
            text(&profile.speeds)
        ));
    }
    Ok(())
}

/// What was measured, for people.
fn text(speeds: &Speeds) -> String {
    let mut text = format!("a launch takes {:.0} ns", speeds.launch_ns);
    for (threads, ns) in speeds.fork_ns.iter().skip(1) {
        text += &format!(", sharing it among {threads} threads {ns:.0} ns more");
    }
    text += "\n";
    for m in &speeds.memory {
        text += &format!(
            "{:>8} KiB read in turn: {:6.1} GB/s by one thread, {:6.1} by {}\n",
            m.bytes >> 10,
            m.one,
            m.all,
            speeds.threads
        );
    }
    for row in WORKS {
        let points = speeds.rates.get(&row.work).into_iter().flatten();
        let points = points.map(|&(at, rate)| match row.shape {
            "" => format!("{rate:.2}"),
            _ => format!("{rate:.2} ({at})"),
        });
        let points: Vec<String> = points.collect();
        text += &format!("{:>8} in a ns: {}", points.join(", "), row.unit);
        text += &match row.shape {
            "" => "\n".to_owned(),
            shape => format!(" (by {shape})\n"),
        };
    }
    text
}
