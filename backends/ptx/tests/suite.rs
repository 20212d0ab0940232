//! Every kernel of the suite runs in the PTX interpreter and gives what the kernel interpreter gives.

mod support;

use lapidary_suite::Backend;

static BACKEND: Backend = Backend {
    compile: lapidary_ptx::compile,
    targets: support::targets,
    run: support::run,
};

lapidary_suite::suite!(kernels BACKEND);

#[test]
fn products_in_every_way() {
    support::products(&BACKEND);
}

#[test]
fn rows_of_several_warps() {
    support::wide_rows(&BACKEND);
}

/// What is recognised goes the way that is meant for it.
#[test]
fn products_use_what_the_gpu_has() {
    let text = |of: &str| {
        support::texts()
            .into_iter()
            .filter(|t| t.contains(of))
            .count()
    };
    assert!(text("mma.sync.aligned.m16n8k32") > 0);
    assert!(text("cp.async.cg.shared.global") > 0);
    assert!(text(".maxntid 256") > 0);
}

/// The checks find what they are for: without its barriers, a product that is staged is a race.
#[test]
fn without_barriers_there_are_races() {
    for (i, text) in support::texts().iter().enumerate() {
        let without = text.replace("    bar.sync 0;\n", "");
        assert_ne!(*text, without, "kernel {i} has barriers");
        assert!(support::run_alone(text).is_ok(), "kernel {i}");
        let fault = support::run_alone(&without).unwrap_err();
        assert_eq!(
            fault.wrong,
            lapidary_ptx_interp::Wrong::Race,
            "kernel {i}: {fault}"
        );
    }
}
