//! How many blocks a multiprocessor holds at a time: what hides the time that memory takes.

use lapidary_ir::target::Feature;

/// What the blocks of a multiprocessor share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiprocessor {
    /// Registers, given to warps 256 at a time.
    pub registers: u32,
    /// Threads.
    pub threads: u32,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of shared memory; a block takes a thousand more than it asks for.
    pub shared_bytes: u64,
}

impl Multiprocessor {
    /// Of a GPU. Source: CUDA C++ Programming Guide, technical specifications by compute capability.
    pub fn of(gpu: Feature) -> Multiprocessor {
        let (threads, blocks, kilobytes) = match gpu {
            Feature::Sm86 => (1536, 16, 100),
            Feature::Sm89 => (1536, 24, 100),
            Feature::Sm90a | Feature::Sm100 => (2048, 32, 228),
            _ => (2048, 32, 164),
        };
        Multiprocessor {
            registers: 65536,
            threads,
            blocks,
            shared_bytes: kilobytes << 10,
        }
    }

    /// Blocks at a time, of so many threads, registers of each, and bytes of shared memory.
    pub fn resident(&self, threads: u32, registers: u32, shared_bytes: u64) -> u32 {
        let warps = threads.div_ceil(32).max(1);
        let of_warp = (registers.max(1) * 32).next_multiple_of(256);
        let by_registers = self.registers / of_warp / warps;
        let by_shared = self.shared_bytes / (shared_bytes + 1024);
        let by_threads = self.threads / (32 * warps);
        by_registers
            .min(by_threads)
            .min(self.blocks)
            .min(by_shared as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_resource_decides() {
        let a100 = Multiprocessor::of(Feature::Sm80);
        assert_eq!(a100.resident(128, 32, 0), 16);
        assert_eq!(a100.resident(128, 128, 0), 4);
        assert_eq!(a100.resident(128, 32, 40 << 10), 4);
        assert_eq!(a100.resident(32, 16, 0), 32);
        assert_eq!(Multiprocessor::of(Feature::Sm86).resident(256, 32, 0), 6);
    }
}
