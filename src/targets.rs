//! Descriptions of targets by their triples.

use crate::error::Error;
use lapidary_ir::target::Target;

/// What is known of any machine with this triple, and nothing about one of them.
pub fn by_triple(triple: &str) -> Result<Target, Error> {
    let base = match triple.split('-').next().unwrap_or_default() {
        "x86_64" => Target {
            fused_multiply_add: false,
            ..Target::x86_64()
        },
        "aarch64" => Target::aarch64(),
        arch if arch.starts_with("riscv64") => Target::riscv64(),
        _ => {
            return Err(Error::Usage {
                message: format!("there is no target `{triple}`"),
                help: "targets begin with `x86_64-`, `aarch64-` or `riscv64gc-`".to_owned(),
            });
        }
    };
    Ok(Target {
        triple: triple.to_owned(),
        ..base
    })
}

/// As [`by_triple`]; this machine's own triple stands for its features as well.
pub fn by_triple_or_host(triple: &str) -> Result<Target, Error> {
    let host = Target::host();
    if triple == host.triple {
        return Ok(host);
    }
    by_triple(triple)
}
