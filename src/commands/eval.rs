//! `lapidary eval`: how well a language model predicts a text.

use super::print;
use crate::cli::Eval;
use indicatif::{ProgressBar, ProgressStyle};
use lapidary::Error;
use lapidary::eval::{Evaluation, LanguageModel, evaluate, tokens, windows};
use std::path::Path;

/// Runs the command.
pub fn eval(args: &Eval) -> Result<(), Error> {
    let (model_path, threads) = (&args.model.model, args.model.thread_count());
    let (text, found) = match (&args.tokens, &args.text) {
        (Some(path), _) => (path, tokens::read(path)?),
        (None, Some(path)) => {
            let tokenizer = args.tokenizer.as_deref();
            (
                path,
                tokens::encode(path, args.lines, model_path, tokenizer)?,
            )
        }
        (None, None) => {
            return Err(Error::Usage {
                message: "there is nothing to predict".to_owned(),
                help: "give --tokens FILE or --text FILE".to_owned(),
            });
        }
    };
    // The spinner of the compiler goes away with the options.
    let load = |path: &Path, compressed: bool, seq| {
        let mut options = args.model.options(None)?;
        options.compression = options.compression.filter(|_| compressed);
        options.adjustable &= compressed;
        options.kv = options.kv.filter(|_| compressed);
        let limit = args
            .kv_budget
            .filter(|_| compressed)
            .map(|budget| (args.kv_evict.unwrap_or_default(), budget));
        LanguageModel::load(path, &options, threads, seq, limit)
    };
    let mut model = load(model_path, true, args.seq)?;
    let seq = model.seq;
    if let Some(bytes) = args.weights {
        model.use_weights(bytes)?;
    }
    let mut other = match &args.against {
        // What is compared with is as it is.
        Some(path) => Some(load(path, false, Some(seq))?),
        None => None,
    };
    let all = windows(&found, seq).len();
    if all == 0 {
        return Err(Error::Usage {
            message: format!(
                "{} has {} tokens, a window needs {}",
                text.display(),
                found.len(),
                seq + 1
            ),
            help: "give a longer text, or shorter windows by --seq".to_owned(),
        });
    }
    let limit = args.windows.unwrap_or(all).min(all);
    let bar = bar(limit);
    let result = evaluate(&mut model, other.as_mut(), &found, limit, |so_far| {
        bar.set_message(format!("perplexity {:.3}", so_far.score.perplexity()));
        bar.set_position(so_far.windows as u64);
    });
    bar.finish_and_clear();
    report(args, seq, &result?, model.weight_bytes());
    Ok(())
}

/// A bar of windows, on a terminal.
fn bar(windows: usize) -> ProgressBar {
    let bar = ProgressBar::new(windows as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:40} {pos}/{len} windows, {eta} left, {msg}")
    {
        bar.set_style(style);
    }
    bar
}

fn report(args: &Eval, seq: usize, found: &Evaluation, weights: Option<[u64; 3]>) {
    let score = &found.score;
    let name = |path: &Path| path.display().to_string();
    let pair = args.against.as_ref().zip(found.other.as_ref());
    if args.model.json {
        let against = pair.map(|(path, other)| {
            serde_json::json!({
                "model": name(path), "nll": other.mean_nll(), "perplexity": other.perplexity(),
                "kl": score.mean_kl(), "top1_agreement": score.agreement(),
            })
        });
        let report = serde_json::json!({
            "model": name(&args.model.model), "seq": seq, "windows": found.windows, "tokens": score.tokens, "weights_bytes": weights.map(|[_, used, _]| used),
            "nll": score.mean_nll(), "perplexity": score.perplexity(), "against": against,
        });
        print(&format!("{report}\n"));
        return;
    }
    print(&format!(
        "{}: perplexity {:.4} ({:.5} nats a token; {} windows of {seq} tokens)\n",
        name(&args.model.model),
        score.perplexity(),
        score.mean_nll(),
        found.windows
    ));
    if let Some([least, used, all]) = weights {
        print(&format!(
            "weights: {used} bytes used, of at least {least} and at most {all}\n"
        ));
    }
    if let Some((path, other)) = pair {
        print(&format!(
            "{}: perplexity {:.4} ({:.5} nats a token)\n\
             divergence from it {:.6} nats a token; the most probable token is the same for {:.2} % of them\n",
            name(path),
            other.perplexity(),
            other.mean_nll(),
            score.mean_kl(),
            score.agreement() * 100.0
        ));
    }
}
