use super::*;
use lapidary_passes::compress::{Alternative, Level, Spread};

fn report(names: &[&str]) -> Report {
    let level = |bits: u32| Level {
        method: "rtn".to_owned(),
        bits,
        ..Level::default()
    };
    let weight = |(i, name): (usize, &&str)| Chosen {
        name: (*name).to_owned(),
        shape: [64, 32],
        by_columns: false,
        level: level(3),
        encoding: "affine{int}".to_owned(),
        bytes: (8192, 800 + 10 * i as u64),
        error: 0.01,
        assumptions: vec!["its <b>32</b> inputs were seen 3 times".to_owned()],
        tried: [(8, 1e-5), (4, 1e-3), (3, 0.01)]
            .map(|(bits, error)| Alternative {
                level: level(bits),
                bytes: 256 * u64::from(bits),
                error,
            })
            .to_vec(),
    };
    Report {
        activations: None,
        cuts: vec![],
        first_term: 0,
        weights: names.iter().enumerate().map(weight).collect(),
        bytes: (20_000, 3000),
        bound: Some((0.02, 0.019)),
        front: vec![(2000, 0.1), (3000, 0.02), (6000, 0.001), (8000, 0.0)],
        measured: Some(Measured {
            distance: Distance::Divergence,
            difference: lapidary_passes::compress::Difference {
                loss: 0.021,
                agreement: Some(0.97),
                spread: Some(Spread {
                    standard_error: 0.001,
                    p95: 0.06,
                    p99: 0.09,
                }),
            },
            samples: (4, 4),
        }),
        latency_ns: None,
    }
}

#[test]
fn the_page_shows_everything_and_reads_nothing_from_elsewhere() {
    let names = ["layers.0.q", "layers.1.q", "layers.1.o", "head<script>"];
    let page = html("model.onnx", &report(&names)).expect("drawn");
    assert_eq!(page.matches("<svg").count(), 3);
    for said in [
        "97.00 %",
        "3.00 % flipped",
        "0.0210",
        "0.0900",
        "20000 &rarr; 3000",
        "fewer than 3.5 bits",
    ] {
        assert!(page.contains(said), "{said}");
    }
    // Kinds down, layers across.
    assert!(page.contains("<code>layers.*.q</code>") && page.contains("<th>1</th>"));
    assert!(
        !page.contains("<script") && !page.contains("<b>32"),
        "names are text"
    );
    assert!(!page.contains("href=") && !page.contains("src="));
}

#[test]
fn what_is_not_known_is_left_out() {
    let mut report = report(&["w"]);
    (report.bound, report.measured) = (None, None);
    report.front.clear();
    report.weights[0].tried.clear();
    let page = html("m", &report).expect("drawn");
    assert!(page.contains("were not compared") && !page.contains("flipped"));
    assert_eq!(page.matches("<svg").count(), 1);
    report.weights.clear();
    html("empty", &report).expect("drawn");
}
