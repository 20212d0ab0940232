//! Trained checkpoints: stored logits, perplexities and embeddings.

use super::*;
use lapidary::eval::{LanguageModel, evaluate, tokens};

fn language_model(folder: &Path, seq: usize) -> LanguageModel {
    let options = CompileOptions::host(THREADS);
    LanguageModel::load(folder, &options, THREADS, Some(seq), None)
        .unwrap_or_else(|e| panic!("{e}"))
}

fn perplexity(folder: &Path, tokens: &[u32], seq: usize, windows: usize) -> f64 {
    let mut model = language_model(folder, seq);
    let found =
        evaluate(&mut model, None, tokens, windows, |_| ()).unwrap_or_else(|e| panic!("{e}"));
    found.score.perplexity()
}

fn near(found: f64, want: f64) {
    assert!(
        (found / want - 1.0).abs() < 1e-3,
        "found {found}, expected {want}"
    );
}

/// The first 64 tokens' logits, as transformers gave them.
fn first_logits(folder: &Path, stored: &str, tokens: &[u32]) {
    let want = npy::read(&read(folder.join(stored)), None).expect("an array");
    let first: Vec<u16> = tokens[..64].iter().map(|&t| t as u16).collect();
    let found = run(import(folder), &[ids(&[&first])]);
    let excess = excess(&floats(&found[0]), &floats(&want.into()));
    assert!(excess <= 1.0, "{excess} times the tolerance");
}

#[test]
fn stories260k_has_its_logits_and_its_perplexity() {
    let Some(folder) = data("stories260k") else {
        return;
    };
    let greedy: serde_json::Value =
        serde_json::from_slice(&read(folder.join("greedy-reference.json"))).expect("JSON");
    let ids = greedy["greedy_ids"].as_array().expect("tokens").iter();
    let first: Vec<u32> = ids.map(|t| t.as_u64().expect("a token") as u32).collect();
    first_logits(&folder, "logits-first64.npy", &first);
    let tokens = tokens::read(&folder.join("tinystories-sample.tokens.u16.bin")).expect("tokens");
    near(perplexity(&folder, &tokens, 256, usize::MAX), 5.609);
    near(perplexity(&folder, &tokens, 512, usize::MAX), 5.446);
}

fn wikitext(of: &str, first_100: f64) {
    let (Some(folder), Some(text)) = (data(of), data("text")) else {
        return;
    };
    let tokens = tokens::read(&text.join("wikitext-2-test.bpe4096.u16.bin")).expect("tokens");
    first_logits(&folder, "test-logits-first64.npy", &tokens);
    near(perplexity(&folder, &tokens, 256, 100), first_100);
}

#[test]
fn llama_wt2_has_its_logits_and_its_perplexity() {
    wikitext("llama-wt2", 33.13);
}

#[test]
fn mixtral_wt2_has_its_logits_and_its_perplexity() {
    wikitext("mixtral-wt2", 64.10);
}

#[test]
fn text_is_encoded_as_its_tokenizer_does() {
    let (Some(model), Some(text)) = (data("llama-wt2"), data("text")) else {
        return;
    };
    let want = tokens::read(&text.join("wikitext-2-valid.bpe4096.u16.bin")).expect("tokens");
    let found =
        tokens::encode(&text.join("wikitext-2-valid.txt"), true, &model, None).expect("encodes");
    assert_eq!(found.len(), want.len());
    assert!(found == want);
}

#[test]
fn minilm_gives_its_embeddings() {
    let (Some(folder), Some(sts)) = (data("all-MiniLM-L6-v2"), data("stsbenchmark")) else {
        return;
    };
    let want = npy::read(&read(folder.join("sts-test-emb-a-first64.npy")), None).expect("an array");
    let want = floats(&want.into());
    let bytes = read(sts.join("sts-test.wordpiece-ids.u16.bin"));
    let mut numbers = bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    let mut sentence = || -> Vec<u16> {
        let n = numbers.next().expect("a length");
        numbers.by_ref().take(usize::from(n)).collect()
    };
    let options = CompileOptions::host(THREADS);
    let compiled = driver::compile(import(&folder), "MiniLM", &options, None);
    let options = ModelOptions {
        threads: THREADS,
        pin: false,
        ..ModelOptions::default()
    };
    let model = compiled
        .and_then(|c| c.load(options))
        .unwrap_or_else(|e| panic!("{e}"));
    for want in want.chunks_exact(384) {
        let (own, _other) = (sentence(), sentence());
        let constant = |v: u16| ids(&[&vec![v; own.len()]]);
        let inputs = [ids(&[&own]), constant(1), constant(0)];
        let states = floats(&model.run(&inputs).unwrap_or_else(|e| panic!("{e}"))[0]);
        let mut mean = vec![0f32; 384];
        for row in states.chunks_exact(384) {
            mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
        }
        let norm = mean.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (m, w) in mean.iter().zip(want) {
            assert!((m / norm - w).abs() < 1e-5, "{} {w}", m / norm);
        }
    }
}
