//! How much of the weights runs use, where a program leaves that open: as many parts as there is memory for, or as are asked for.

use crate::plan::Plan;
use lapidary_abi::program::{Detail, WeightPart};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The weights of a program in parts.
pub struct Parts {
    /// Where the number of parts that a run uses is bound.
    pub symbol: usize,
    detail: Detail,
    /// Bytes of the weights with so many parts.
    sizes: Vec<u64>,
    /// The most parts that runs may use.
    most: AtomicUsize,
    /// Parts that the last run used.
    used: AtomicUsize,
}

impl Parts {
    /// Of a program that has some; runs use all of them at first.
    pub fn of(plan: &Plan) -> Option<Parts> {
        let detail = plan.detail.clone()?;
        let all: u64 = detail.parts.iter().map(|p| p.bytes).sum();
        let mut sizes = vec![plan.weights_bytes.saturating_sub(all)];
        for part in &detail.parts {
            sizes.push(sizes[sizes.len() - 1] + part.bytes);
        }
        let count = detail.parts.len();
        Some(Parts {
            symbol: detail.symbol as usize,
            detail,
            sizes,
            most: AtomicUsize::new(count),
            used: AtomicUsize::new(count),
        })
    }

    /// Bytes of the weights with the fewest parts, with those that the last run used, and with all.
    pub fn bytes(&self) -> [u64; 3] {
        let used = self.used.load(Ordering::Relaxed);
        [
            self.sizes[0],
            self.sizes[used],
            self.sizes[self.detail.parts.len()],
        ]
    }

    /// Where the weights end that a run of so many parts uses.
    pub fn end(&self, used: i64) -> u64 {
        let left = usize::try_from(used)
            .ok()
            .and_then(|used| self.detail.parts.get(used..));
        let mut left = left.into_iter().flatten().filter(|p| p.bytes > 0);
        left.next().map_or(u64::MAX, |p| p.offset)
    }

    /// The most parts with which the weights take no more than so many bytes; none if not even without any.
    fn fitting(&self, bytes: u64) -> usize {
        self.sizes
            .partition_point(|&s| s <= bytes)
            .saturating_sub(1)
    }

    /// Lets runs use no more parts than weights of so many bytes have.
    pub fn limit(&self, bytes: u64) {
        self.most.store(self.fitting(bytes), Ordering::Relaxed);
    }

    /// How many parts a run uses, where there are so many bytes for weights, if that is limited; and those that the run before used
    /// and this one does not.
    pub fn begin(&self, bytes: Option<u64>) -> (usize, &[WeightPart]) {
        let most = self.most.load(Ordering::Relaxed);
        let now = bytes.map_or(most, |bytes| self.fitting(bytes).min(most));
        let before = self.used.swap(now, Ordering::Relaxed);
        let left = self.detail.parts.get(now..before);
        (now, left.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        let part = |offset| WeightPart { offset, bytes: 64 };
        Parts {
            symbol: 0,
            detail: Detail {
                symbol: 0,
                parts: [128, 192, 256].map(part).to_vec(),
            },
            sizes: vec![128, 192, 256, 320],
            most: AtomicUsize::new(3),
            used: AtomicUsize::new(3),
        }
    }

    #[test]
    fn runs_use_as_many_parts_as_fit() {
        let parts = parts();
        for (bytes, used, of_weights, left) in [
            (None, 3, 320, 0),
            (Some(300), 2, 256, 1),
            (Some(10), 0, 128, 2),
            (Some(192), 1, 192, 0),
            (Some(u64::MAX), 3, 320, 0),
        ] {
            let (now, gone) = parts.begin(bytes);
            assert_eq!((now, gone.len()), (used, left));
            assert_eq!(parts.bytes(), [128, of_weights, 320]);
        }
        assert_eq!([0, 2, 3].map(|used| parts.end(used)), [128, 256, u64::MAX]);
        parts.limit(200);
        for (bytes, used) in [(None, 1), (Some(150), 0), (Some(1000), 1)] {
            assert_eq!(parts.begin(bytes).0, used);
        }
    }
}
