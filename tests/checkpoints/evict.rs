//! Caches within a budget: what each policy keeps, and texts that are written with it.

use super::generate::{build, checkpoint, endless, lapidary, reference, run, str};
use super::*;
use lapidary::eval::{Evaluation, LanguageModel, evaluate, tokens};
use lapidary_ir::random::SplitMix64;
use lapidary_language::Session;
use lapidary_language::evict::{
    Attended, Budget, Eviction, Head, Merging, Policy, Rule, importance, keep,
};
use lapidary_runtime::Model;

const TOKENS: usize = 512;
const SIZE: usize = 64;
const QUERIES: usize = 544;
/// Tokens that queries look for.
const PLANTED: [usize; 8] = [5, 40, 77, 130, 200, 260, 301, 350];

/// Queries `[544][64]` and a head of 512 tokens that the first 512 of them saw, each those up to its own.
fn planted() -> (Vec<f32>, Head) {
    let mut random = SplitMix64::new(31);
    let mut normals = |n: usize| random.normals(n * SIZE);
    let (mut keys, values, mut queries) = (normals(TOKENS), normals(TOKENS), normals(QUERIES));
    let direction = normals(1);
    let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
    for token in PLANTED {
        for (x, u) in keys[token * SIZE..].iter_mut().zip(&direction) {
            *x += 10.0 * u / length;
        }
    }
    for query in queries.chunks_mut(SIZE) {
        for (x, u) in query.iter_mut().zip(&direction) {
            *x += 3.0 * u / length;
        }
    }
    let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let queries = narrow(queries);
    let mut head = Head {
        keys: narrow(keys),
        values: narrow(values),
        total: vec![0.0; TOKENS],
        local: vec![0.0; TOKENS],
        queries: (0..TOKENS).map(|t| (TOKENS - t) as f32).collect(),
        bias: vec![0.0; TOKENS],
    };
    for (i, query) in queries.chunks(SIZE).take(TOKENS).enumerate() {
        for (t, p) in probabilities(query, &head, i + 1).into_iter().enumerate() {
            head.total[t] += p as f32;
            if i >= TOKENS - 32 {
                head.local[t] += p as f32;
            }
        }
    }
    (queries, head)
}

/// Of the first `seen` tokens.
fn probabilities(query: &[f32], head: &Head, seen: usize) -> Vec<f64> {
    let dot = |key: &[f32]| -> f64 {
        let terms = query.iter().zip(key);
        terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let keys = head.keys.chunks(SIZE).zip(&head.bias).take(seen);
    let scores: Vec<f64> = keys
        .map(|(key, bias)| dot(key) / (SIZE as f64).sqrt() + f64::from(*bias))
        .collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.into_iter().map(|e| e / sum).collect()
}

/// What queries from the 512th on get of a head.
fn results(queries: &[f32], head: &Head) -> Vec<f64> {
    let of = |query: &[f32]| {
        let p = probabilities(query, head, head.len());
        let column = move |j: usize| -> f64 {
            let rows = head.values.chunks(SIZE).zip(&p);
            rows.map(|(v, p)| f64::from(v[j]) * p).sum()
        };
        (0..SIZE).map(column).collect::<Vec<f64>>()
    };
    queries.chunks(SIZE).skip(TOKENS).flat_map(of).collect()
}

/// Relative squared error.
fn error(found: &[f64], want: &[f64]) -> f64 {
    let off: f64 = found.iter().zip(want).map(|(f, w)| (f - w).powi(2)).sum();
    off / want.iter().map(|w| w * w).sum::<f64>()
}

/// The published errors of a budget of 64 tokens, of which 32 are the newest.
#[test]
fn policies_lose_as_much_as_they_should() {
    let (queries, head) = planted();
    let want = results(&queries, &head);
    let after = |policy: Policy, threshold: Option<f32>| {
        let merging = threshold.map(|threshold| Merging {
            threshold,
            weighted: false,
            corrected: false,
        });
        let rule = Rule {
            policy,
            sinks: 0,
            merging,
        };
        let mut left = head.clone();
        left.compress(&rule, 64);
        assert_eq!(left.len(), 64);
        error(&results(&queries, &left), &want)
    };
    let near =
        |found: f64, want: f64| assert!((found - want).abs() < 2e-3 * want, "{found}, not {want}");
    near(after(Policy::Recent, None), 1.436);
    near(after(Policy::H2o, None), 0.5425);
    near(after(Policy::Ems, None), 0.5426);
    near(after(Policy::Ems, Some(0.6)), 0.5426);
    near(after(Policy::Ems, Some(0.4)), 0.5449);
    // Keys that are not alike must not be merged.
    near(after(Policy::Ems, Some(0.3)), 2.264);
    // The last window alone.
    let local = keep(&head.local, 0, 32, 64);
    let row = |rows: &[f32], size: usize| -> Vec<f32> {
        let rows = local.iter().map(|&t| &rows[t * size..(t + 1) * size]);
        rows.flatten().copied().collect()
    };
    let left = Head {
        keys: row(&head.keys, SIZE),
        values: row(&head.values, SIZE),
        bias: row(&head.bias, 1),
        ..Head::default()
    };
    near(error(&results(&queries, &left), &want), 0.5099);
    let attended = Attended {
        total: &head.total,
        local: &head.local,
        queries: &head.queries,
    };
    for policy in [Policy::H2o, Policy::Ems] {
        let kept = keep(&importance(policy, &attended, TOKENS - 32), 0, 32, 64);
        assert!(
            PLANTED.iter().all(|t| kept.contains(t)),
            "{policy:?}: {kept:?}"
        );
    }
}

/// Tokens that are there twice become one without loss, if it counts as two.
#[test]
fn duplicates_are_merged_without_loss() {
    let (queries, head) = planted();
    let twice = |x: &[f32], size: usize| -> Vec<f32> {
        let first = &x[..48 * size];
        [first, first].concat()
    };
    let double = Head {
        keys: twice(&head.keys, SIZE),
        values: twice(&head.values, SIZE),
        total: twice(&head.total, 1),
        local: twice(&head.local, 1),
        queries: twice(&head.queries, 1),
        bias: twice(&head.bias, 1),
    };
    // One of each and one more token of its own.
    let mut double = double;
    double.keys.extend(&head.keys[60 * SIZE..61 * SIZE]);
    double.values.extend(&head.values[60 * SIZE..61 * SIZE]);
    for row in [&mut double.total, &mut double.local, &mut double.queries] {
        row.push(1.0);
    }
    double.bias.push(0.0);
    let want = results(&queries, &double);
    let after = |corrected: bool| {
        let merging = Some(Merging {
            threshold: 0.999,
            weighted: true,
            corrected,
        });
        let rule = Rule {
            policy: Policy::Recent,
            sinks: 0,
            merging,
        };
        let mut left = double.clone();
        left.compress(&rule, 49);
        error(&results(&queries, &left), &want)
    };
    assert!(after(true) < 1e-9, "{}", after(true));
    assert!(after(false) > 1e-6, "{}", after(false));
}

/// A model compiled step by step whose caches may lose tokens.
fn evictable(folder: &Path, threads: usize) -> Model {
    let options = CompileOptions {
        stepwise: true,
        evictable: true,
        ..CompileOptions::host(threads)
    };
    let loading = ModelOptions {
        threads,
        pin: false,
        ..ModelOptions::default()
    };
    driver::import(folder, &options)
        .and_then(|module| driver::compile(module, "checkpoint", &options, None))
        .and_then(|compiled| compiled.load(loading))
        .unwrap_or_else(|e| panic!("{e}"))
}

fn after(model: &Model, eviction: Option<Eviction>, ids: &[u32], steps: &[usize]) -> Vec<f32> {
    let most = eviction.as_ref().map_or(usize::MAX, |e| e.budget);
    let mut session = Session::new(model, eviction).unwrap_or_else(|e| panic!("{e}"));
    // The second sequence is the one that is compared.
    for other in [3, 5] {
        session.join().expect("memory");
        session
            .feed(session.sequences() - 1, &[other])
            .expect("fed");
    }
    for &n in steps {
        let begin = session.len(1) - 1;
        match n {
            1 => session.step(&[7, ids[begin]]),
            n => session.feed(1, &ids[begin..begin + n]),
        }
        .unwrap_or_else(|e| panic!("{e}"));
        assert!(session.cached(0) <= most && session.cached(1) <= most);
    }
    assert_eq!(session.len(1), 1 + steps.iter().sum::<usize>());
    if most < 250 {
        let mut whole = Session::new(model, None).expect("memory");
        whole.join().and_then(|()| whole.join()).expect("memory");
        assert!(2 * session.cache_bytes() <= whole.cache_bytes());
    }
    session.scores(1).collect()
}

#[test]
fn budgets_are_kept_and_large_ones_change_nothing() {
    let folder = bundled().join("llama31-rope");
    let ids: Vec<u32> = (0..600u32).map(|i| (i * i + 3 * i) % 128).collect();
    let model = evictable(&folder, 2);
    let steps = [vec![250], vec![1; 60], vec![100]].concat();
    let all = after(&model, None, &ids, &steps);
    for policy in [Policy::Recent, Policy::H2o, Policy::Ems] {
        let of = |budget| Eviction::new(policy, Budget::Tokens(budget), None).ok();
        let large = after(&model, of(450), &ids, &steps);
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
        assert!(large.iter().zip(&all).all(near), "{policy:?}");
        for budget in [8, 33, 100] {
            let small = after(&model, of(budget), &ids, &steps);
            assert!(small.iter().all(|x| x.is_finite()));
            assert!(!small.iter().zip(&all).all(near), "{policy:?}, {budget}");
            let one = after(&evictable(&folder, 1), of(budget), &ids, &steps);
            assert_eq!(
                one, small,
                "{policy:?}, {budget}: for any number of threads"
            );
        }
    }
}

#[test]
fn programs_write_within_a_budget() {
    let folder = checkpoint(128, endless());
    let (prompt, mut want) = reference();
    let max = want.len().to_string();
    want.push(b'\n');
    let program = build(&folder, &["--kv-evictable"]);
    let write = |args: &[&str], prompt: &[u8]| {
        let all = [&["--max-tokens", &max], args].concat();
        let (status, out, message) = run(&program, &all, prompt);
        assert_eq!(status, Some(0), "{message}");
        out
    };
    // All that there is fits.
    assert_eq!(write(&[], &prompt), want);
    for policy in ["recent", "h2o", "ems"] {
        let args = ["--kv-budget", "100%", "--kv-evict", policy];
        assert_eq!(write(&args, &prompt), want, "{policy}");
    }
    let long: Vec<u8> = prompt.iter().copied().cycle().take(100).collect();
    for policy in ["recent", "h2o", "ems"] {
        let texts = ["1", "2"].map(|threads| {
            let args = [
                "--kv-budget",
                "16",
                "--kv-evict",
                policy,
                "--threads",
                threads,
            ];
            write(&args, &long)
        });
        assert_eq!(texts[0], texts[1], "{policy}");
    }
    let run_here = [
        "run",
        str(folder.path()),
        "--kv-budget",
        "16",
        "--max-tokens",
        &max,
    ];
    let (status, out, message) = lapidary(&run_here, &long);
    assert_eq!(status, Some(0), "{message}");
    assert_eq!(out, write(&["--kv-budget", "16"], &long));
    let refused = |program: &Path, args: &[&str], status: i32, says: &str| {
        let (found, _, message) = run(program, args, &prompt);
        assert_eq!(found, Some(status), "{args:?}: {message}");
        assert!(message.contains(says), "{args:?}: {message}");
    };
    refused(&program, &["--kv-budget", "7"], 2, "no budget");
    refused(&program, &["--kv-budget", "0%"], 2, "no budget");
    refused(
        &program,
        &["--kv-budget", "16", "--kv-evict", "x"],
        2,
        "ems, h2o, recent",
    );
    refused(&program, &["--kv-evict", "h2o"], 1, "--kv-budget");
    refused(
        &program,
        &["--kv-budget", "16", "--prompt-cache", "x"],
        1,
        "--prompt-cache",
    );
    let other = checkpoint(128, endless());
    let plain = build(&other, &[]);
    refused(&plain, &["--kv-budget", "16"], 1, "--kv-evictable");
    let windows = bundled().join("gemma3");
    let (status, _, message) = lapidary(
        &[
            "eval",
            str(&windows),
            "--tokens",
            "none.u16.bin",
            "--kv-evict",
            "h2o",
        ],
        b"",
    );
    assert_eq!(status, Some(2), "{message}");
    let codes = ["run", str(folder.path()), "--kv-budget", "16", "--kv", "4"];
    let (status, _, message) = lapidary(&codes, &prompt);
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("cannot be evicted"), "{message}");
}

/// A quarter of the context: the newest tokens alone are the worst choice.
#[test]
fn attention_chooses_better_than_age() {
    let (Some(folder), Some(text)) = (data("llama-wt2"), data("text")) else {
        return;
    };
    let tokens = tokens::read(&text.join("wikitext-2-test.bpe4096.u16.bin")).expect("tokens");
    let options = CompileOptions::host(THREADS);
    let load = |limit| {
        LanguageModel::load(&folder, &options, THREADS, Some(256), limit)
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let mut original = load(None);
    let mut measure = |policy, share| -> Evaluation {
        let mut model = load(Some((policy, Budget::Share(share))));
        evaluate(&mut model, Some(&mut original), &tokens, 10, |_| ())
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let all = measure(Policy::H2o, 1.0);
    assert!(all.score.mean_kl() < 1e-6, "{all:?}");
    let [recent, h2o, ems] = [Policy::Recent, Policy::H2o, Policy::Ems]
        .map(|policy| measure(policy, 0.25).score.mean_kl());
    assert!(h2o < recent && ems < recent, "{recent} {h2o} {ems}");
}
