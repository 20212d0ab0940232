//! The parts that designs are fitted to, and what memories cost on them.

/// A device.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// As users name it.
    pub name: &'static str,
    /// As the vendor's tools name it.
    pub device: &'static str,
    /// Clock that designs are made for, in MHz.
    pub clock_mhz: f64,
    /// DSP slices; the VHK158's DSP58 count as the DSP48E2 of the others.
    pub dsp: u64,
    /// Block memories of 36 kbit.
    pub bram36: u64,
    /// Memories of 288 kbit.
    pub uram: u64,
    /// Look-up tables.
    pub lut: u64,
    /// Bytes per second of the memory beside it.
    pub memory_bandwidth: f64,
}

/// Every part. Figures of the U280 are those of its data sheet; of the VHK158 the bandwidth is its data sheet's, the rest and
/// the ZCU102's are from the vendor's product tables as remembered: check them before a design depends on a few per cent.
pub static PARTS: &[Part] = &[
    Part {
        name: "u280",
        device: "xcu280-fsvh2892-2L-e",
        clock_mhz: 225.0,
        dsp: 9024,
        bram36: 2016,
        uram: 960,
        lut: 1_303_680,
        memory_bandwidth: 460e9,
    },
    Part {
        name: "vhk158",
        device: "xcvh1582-vsva3697-2MP-e-S",
        clock_mhz: 225.0,
        dsp: 7392,
        bram36: 2541,
        uram: 1301,
        lut: 1_753_984,
        memory_bandwidth: 819.2e9,
    },
    Part {
        name: "zcu102",
        device: "xczu9eg-ffvb1156-2-e",
        clock_mhz: 200.0,
        dsp: 2520,
        bram36: 912,
        uram: 0,
        lut: 274_080,
        memory_bandwidth: 19.2e9,
    },
];

/// The part of this name; the error lists those that there are.
pub fn part(name: &str) -> Result<&'static Part, String> {
    let found = PARTS.iter().find(|p| p.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let names: Vec<&str> = PARTS.iter().map(|p| p.name).collect();
        format!("there is no part `{name}`: there are {}", names.join(", "))
    })
}

/// Block memories of 18 kbit for so many words of so many bits.
///
/// Source: FINN's estimator for weights of a matrix-vector unit.
pub fn bram18(words: u64, bits: u64) -> u64 {
    match bits {
        0 => 0,
        1 => words.div_ceil(16384),
        2 => words.div_ceil(8192),
        3..=4 => words.div_ceil(4096) * bits.div_ceil(4),
        5..=9 => words.div_ceil(2048) * bits.div_ceil(9),
        _ if bits <= 18 || words > 512 => words.div_ceil(1024) * bits.div_ceil(18),
        _ => words.div_ceil(512) * bits.div_ceil(36),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_hold_what_they_are_counted_for() {
        for bits in 1..80 {
            for words in [1, 511, 512, 513, 2048, 5000] {
                let blocks = bram18(words, bits);
                // Parity bits are bits of wide words only.
                assert!(
                    blocks * 18432 >= words * bits,
                    "{words} words of {bits} bits"
                );
            }
        }
        assert_eq!(bram18(1024, 18), 1);
        assert!(part("U280").is_ok());
        assert!(part("u250").unwrap_err().contains("zcu102"));
    }
}
