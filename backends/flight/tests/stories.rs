//! Text of a small network: the simulator's instructions and the plain integers give the same scores and the same text.
#![allow(missing_docs)]

use lapidary_flight::compile::{Program, compile};
use lapidary_flight::emit::project;
use lapidary_flight::isa::{LD, MV, decode, mask_bit};
use lapidary_flight::model::{Network, Quantization, Reference, Shape};
use lapidary_flight::simulate::Machine;
use lapidary_flight::timing::{Rates, predict};
use serde_json::Value;
use std::path::PathBuf;

const DENSE: Quantization = Quantization {
    keep: 16,
    tolerance: 0.0,
};

fn folder() -> Option<PathBuf> {
    let Some(data) = std::env::var_os("LAPIDARY_DATA") else {
        eprintln!("SKIPPED: LAPIDARY_DATA is not set");
        return None;
    };
    Some(PathBuf::from(data).join("stories260k"))
}

fn network(how: &Quantization) -> Option<Network> {
    let bytes = std::fs::read(folder()?.join("model.safetensors")).expect("the checkpoint");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let weight = |name: &str| {
        let name = match name {
            "lm_head.weight" => "model.embed_tokens.weight",
            name => name,
        };
        let entry = header.get(name).ok_or_else(|| format!("no `{name}`"))?;
        let at = |i: usize| 8 + length + entry["data_offsets"][i].as_u64().unwrap() as usize;
        let floats = bytes[at(0)..at(1)].as_chunks::<4>().0.iter();
        Ok(floats.map(|b| f32::from_le_bytes(*b)).collect())
    };
    let shape = Shape {
        hidden: 64,
        inner: 172,
        layers: 5,
        heads: 8,
        kv_heads: 4,
        head_dim: 8,
        vocab: 512,
        positions: 512,
        epsilon: 1e-5,
        theta: 10000.0,
    };
    Some(Network::of(shape, how, &weight).unwrap())
}

fn best(scores: &[i32]) -> usize {
    (0..scores.len())
        .rev()
        .max_by_key(|at| scores[*at])
        .unwrap()
}

/// Greedy texts of the reference and of the simulator, whose scores are equal at every step.
fn text(network: &Network, program: &Program, steps: usize, priority: [usize; 6]) -> Vec<usize> {
    let mut plain = Reference::new(network);
    let mut machine = Machine::new(program).unwrap();
    machine.priority = priority;
    let (mut ours, mut theirs) = (vec![1], vec![1]);
    for position in 0..steps {
        let expected = plain.step(theirs[position]).unwrap();
        let scores = machine.step(ours[position], position).unwrap();
        assert_eq!(scores, expected, "position {position}");
        theirs.push(best(&expected));
        ours.push(best(&scores));
    }
    assert_eq!(ours, theirs);
    ours
}

#[test]
fn simulator_and_reference_write_the_same_text() {
    let Some(network) = network(&DENSE) else {
        return;
    };
    let program = compile(&network).unwrap();
    let reference = std::fs::read(folder().unwrap().join("greedy-reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let float: Vec<usize> = reference["greedy_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as usize)
        .collect();
    let ours = text(&network, &program, float.len() - 1, [0, 1, 2, 3, 4, 5]);
    let same = ours.iter().zip(&float).take_while(|(x, y)| x == y).count();
    println!(
        "the first {same} of {} tokens are those of the float model",
        float.len()
    );
    assert!(same >= 32, "{same}");
    // Other turns of the queues: the tokens alone order what depends on each other.
    text(&network, &program, 40, [5, 4, 3, 2, 1, 0]);
    let (shared, each) = program.stream_bytes();
    println!(
        "{} streams, {shared} bytes; a stream for each length {each} bytes",
        program.streams.len()
    );
    assert!(shared * 15 < each);
}

#[test]
fn sparse_weights_of_mixed_bits_as_well() {
    let how = Quantization {
        keep: 8,
        tolerance: 0.01,
    };
    let Some(network) = network(&how) else { return };
    let bits = |n: usize| {
        network
            .layers
            .iter()
            .flat_map(|l| &l.down.bits)
            .filter(|b| **b == n)
            .count()
    };
    println!(
        "groups of 8, 4, 3 bits in `down`: {} {} {}",
        bits(8),
        bits(4),
        bits(3)
    );
    let program = compile(&network).unwrap();
    text(&network, &program, 40, [0, 1, 2, 3, 4, 5]);
    let dense = compile(&self::network(&DENSE).unwrap()).unwrap();
    assert!(program.image.len() < dense.image.len());
}

#[test]
fn perplexity_is_near_the_float_models() {
    let Some(network) = network(&DENSE) else {
        return;
    };
    let bytes = std::fs::read(folder().unwrap().join("tinystories-sample.tokens.u16.bin")).unwrap();
    let tokens: Vec<usize> = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|b| usize::from(u16::from_le_bytes(*b)))
        .collect();
    let mut plain = Reference::new(&network);
    let mut sum = 0.0;
    for pair in tokens[..257].windows(2) {
        let scores: Vec<f64> = plain
            .step(pair[0])
            .unwrap()
            .iter()
            .map(|x| f64::from(*x) / 65536.0)
            .collect();
        let top = scores.iter().copied().fold(f64::MIN, f64::max);
        sum += top + scores.iter().map(|x| (x - top).exp()).sum::<f64>().ln() - scores[pair[1]];
    }
    println!("perplexity of 256 tokens: {:.3}", (sum / 256.0).exp());
    // The float model's is 4.633.
    assert!((sum / 256.0).exp() < 4.633 * 1.02);
}

#[test]
fn times_and_faults() {
    let Some(network) = network(&DENSE) else {
        return;
    };
    let mut program = compile(&network).unwrap();
    let stream = program.streams[7].clone();
    for (part, bandwidth) in [("u280", 460e9), ("vhk158", 819.2e9)] {
        let rates = Rates::flight(225.0, bandwidth);
        let times = predict(&stream, &rates, 8, 8).unwrap();
        println!(
            "{part}, 128 tokens\n{}{}",
            times.text(),
            rates.assumptions()
        );
        let longest = times.busy.into_iter().fold(0.0, f64::max);
        assert!(
            times.seconds >= longest && times.seconds <= times.busy.iter().sum::<f64>() * 1.0001
        );
    }
    // A store whose `release` is gone leaves the end waiting.
    let mut cut = stream.clone();
    let last = cut.len() - 1;
    cut[last - 3] &= !(31 << 18);
    assert!(predict(&cut, &Rates::flight(225.0, 460e9), 8, 8).is_err());
    program.streams[0] = cut;
    assert!(
        Machine::new(&program)
            .unwrap()
            .step(1, 0)
            .unwrap_err()
            .contains("deadlock")
    );
    program.streams[0] = vec![1 << 28, 0, u32::MAX, 1 << 20, 0, 0, 0];
    assert!(
        Machine::new(&program)
            .unwrap()
            .step(1, 0)
            .unwrap_err()
            .contains("beyond")
    );
    assert!(Machine::new(&program).unwrap().step(512, 0).is_err());
    program.streams[0] = vec![0];
    assert!(Machine::new(&program).is_err());
}

#[test]
fn the_emitted_engine_is_the_simulator() {
    let Some(dense) = network(&DENSE) else { return };
    if std::process::Command::new("g++")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED: there is no g++");
        return;
    }
    let how = Quantization {
        keep: 8,
        tolerance: 0.01,
    };
    for network in [dense, network(&how).unwrap()] {
        let mut program = compile(&network).unwrap();
        let folder = tempfile::tempdir().unwrap();
        // Past the end of the first bucket.
        let tokens = [
            1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401,
        ];
        let write = |program: &Program| {
            for (name, bytes) in project(program, &tokens).unwrap() {
                std::fs::write(folder.path().join(name), bytes).unwrap();
            }
        };
        write(&program);
        let flags = [
            "-std=c++17",
            "-O1",
            "-Wall",
            "-Wno-unknown-pragmas",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ];
        let built = std::process::Command::new("g++")
            .args(flags)
            .args(["flight.cpp", "testbench.cpp", "-o", "bench"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        let run = || {
            let bench = folder.path().join("bench");
            let ran = std::process::Command::new(bench)
                .current_dir(folder.path())
                .output()
                .unwrap();
            (
                ran.status.success(),
                String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned(),
            )
        };
        assert_eq!(run(), (true, "18 steps equal\n".to_owned()));
        // Other weights are noticed, and so is what is no instruction.
        program.image[100] ^= 64;
        std::fs::write(folder.path().join("image.bin"), &program.image).unwrap();
        assert!(run().1.contains("differs"));
        std::fs::write(folder.path().join("stream_0.bin"), [0; 4]).unwrap();
        assert!(run().1.contains("the engine reports 1"));
    }
}

/// A token that is missing on both sides lets loads overtake the products that read what they overwrite.
#[test]
fn without_tokens_results_are_others() {
    let Some(network) = network(&DENSE) else {
        return;
    };
    let mut program = compile(&network).unwrap();
    let expected = Reference::new(&network).step(1).unwrap();
    assert_eq!(
        Machine::new(&program).unwrap().step(1, 0).unwrap(),
        expected
    );
    let mut stream = decode(&program.streams[0]).unwrap();
    let bit = |class: usize, other: usize| 1 << mask_bit(class, other).unwrap();
    for made in &mut stream {
        let (field, mask) = match made.class {
            LD => ("wait", bit(LD, MV)),
            MV => ("release", bit(MV, LD)),
            _ => continue,
        };
        made.set(field, made.get(field) & !mask).unwrap();
    }
    program.streams[0].clear();
    stream
        .iter()
        .for_each(|made| made.encode(&mut program.streams[0]));
    // Other scores, or an error where what was overwritten is read.
    let result = Machine::new(&program).unwrap().step(1, 0);
    assert_ne!(result, Ok(expected));
}
