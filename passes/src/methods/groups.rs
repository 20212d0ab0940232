//! How rows are cut into groups that share a scale.

use std::ops::Range;

/// How a row of `columns` weights is cut: `count` groups of `len` (the last may be shorter).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Weights of a row.
    pub columns: usize,
    /// Weights of a group.
    pub len: usize,
    /// Groups of a row.
    pub count: usize,
}

impl Groups {
    /// Equal groups of at most `wanted` weights, as the `affine` constructor spreads `count` scales over a row; 0
    /// wants the whole row.
    pub fn new(columns: usize, wanted: usize) -> Groups {
        let wanted = if wanted == 0 { columns } else { wanted };
        let count = columns.div_ceil(wanted.max(1)).max(1);
        let len = columns.div_ceil(count).max(1);
        Groups {
            columns,
            len,
            count,
        }
    }

    /// As [`Groups::new`], of whole runs of `run` columns: shorter where they do not fit `wanted`, and the whole row where no
    /// length is right.
    pub fn of_runs(columns: usize, wanted: usize, run: usize) -> Groups {
        let fewest = Groups::new(columns, wanted).count;
        let of_count = |count: usize| Groups::new(columns, columns.div_ceil(count));
        let whole = |g: &Groups| g.len.is_multiple_of(run.max(1));
        let found = (fewest..=columns).map(of_count).find(whole);
        found.unwrap_or_else(|| Groups::new(columns, 0))
    }

    /// The group of a column.
    pub fn of(&self, column: usize) -> usize {
        column / self.len
    }

    /// The columns of a group.
    pub fn range(&self, group: usize) -> Range<usize> {
        group * self.len..((group + 1) * self.len).min(self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_of_the_affine_constructor() {
        for columns in 1..70 {
            for wanted in 0..80 {
                let g = Groups::new(columns, wanted);
                assert_eq!(columns.div_ceil(g.count), g.len);
                assert_eq!(columns.div_ceil(g.len), g.count, "{columns} by {wanted}");
                assert!(wanted == 0 || g.len <= wanted);
                let covered: usize = (0..g.count).map(|k| g.range(k).len()).sum();
                assert_eq!(covered, columns);
            }
        }
    }

    #[test]
    fn groups_of_runs_cut_none() {
        let of = |columns, wanted, run| Groups::of_runs(columns, wanted, run).len;
        assert_eq!(
            (of(704, 128, 4), of(704, 128, 16), of(256, 64, 4)),
            (88, 64, 64)
        );
        assert_eq!((of(10, 4, 3), of(7, 4, 4), of(7, 2, 4)), (3, 4, 7));
    }
}
