//! The weights of a sparse product, packed; and how long they are, by counting.

use super::{Blocks, Sparse};
use lapidary_ir::ElemType;
use lapidary_ir::kernel::sparse::Form;

/// The weights, packed: byte strings of one blob, each a multiple of 64 bytes long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedWeights {
    /// `f32 [entry][R]`, or `i8 [entry][R][4]`.
    pub values: Vec<u8>,
    /// `u16 [entry][R]`.
    pub offsets: Vec<u8>,
    /// `u32 [group + 1]`.
    pub starts: Vec<u8>,
    /// `u32 [group][R]`.
    pub rows: Vec<u8>,
    /// `u32 [band * blocks + 1]`: the groups of each block of a band.
    pub ranges: Vec<u8>,
}

/// Element types of the parts, in the order of the kernel's parameters.
fn elems(form: Form) -> [ElemType; 5] {
    [
        form.elems()[0],
        ElemType::U16,
        ElemType::U32,
        ElemType::U32,
        ElemType::U32,
    ]
}

/// Parts are as long as the next multiple of this.
const ALIGN: usize = 64;

impl PackedWeights {
    /// The parts in the order of the kernel's parameters.
    pub fn parts(&self) -> [&Vec<u8>; 5] {
        [
            &self.values,
            &self.offsets,
            &self.starts,
            &self.rows,
            &self.ranges,
        ]
    }
}

/// Rows of a block that are computed together.
struct Group {
    /// Positions in the band, as many as the form has.
    rows: Vec<usize>,
    /// Entries of the longest.
    entries: usize,
}

impl Sparse {
    /// Rows with so many entries each, in groups of those that have equally many.
    fn groups(&self, counts: &[usize]) -> Vec<Group> {
        let r = self.in_group() as usize;
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by_key(|&row| (std::cmp::Reverse(counts[row]), row));
        let group = |rows: &[usize]| Group {
            // A row that is missing is the group's first again: the same sum is stored twice.
            rows: (0..r).map(|i| *rows.get(i).unwrap_or(&rows[0])).collect(),
            entries: counts[rows[0]],
        };
        order.chunks(r).map(group).collect()
    }

    /// The rows of a band.
    fn rows_of(&self, band: i64) -> std::ops::Range<i64> {
        let first = band * self.band_rows();
        first..(first + self.band_rows()).min(self.n)
    }

    /// Taps and channels of a block, and where they are in its panel.
    fn places(&self, blocks: Blocks, block: i64) -> impl Iterator<Item = (i64, i64, i64)> + use<> {
        let (tap, part) = (block / blocks.parts * blocks.taps, block % blocks.parts);
        let first = part * blocks.channels;
        let channels = first..(first + blocks.channels).min(self.channels);
        let width = self.width();
        (tap..(tap + blocks.taps).min(self.taps)).flat_map(move |t| {
            let at = move |c| ((t - tap) * blocks.channels + c - first) * width;
            channels.clone().map(move |c| (t, c, at(c)))
        })
    }

    /// Types and bytes of the parts of [`PackedWeights`], and the entries with those that fill groups;
    /// `nonzero(row, tap, channel)`.
    pub fn sizes(
        &self,
        nonzero: impl Fn(i64, i64, i64) -> bool,
    ) -> (Vec<(ElemType, usize)>, usize) {
        let (r, blocks) = (self.in_group() as usize, self.blocks());
        let (mut entries, mut groups) = (0, 0);
        for band in 0..self.bands {
            for block in 0..blocks.count {
                let count = |row| {
                    let here = self.places(blocks, block);
                    here.filter(|&(t, c, _)| nonzero(row, t, c)).count()
                };
                let counts: Vec<usize> = self.rows_of(band).map(count).collect();
                for group in self.groups(&counts) {
                    (entries, groups) = (entries + group.entries, groups + 1);
                }
            }
        }
        let ranges = (self.bands * blocks.count) as usize + 1;
        let bytes = [
            entries * r * 4,
            entries * r * 2,
            (groups + 1) * 4,
            groups * r * 4,
            ranges * 4,
        ];
        let padded = bytes.map(|b| b.max(1).next_multiple_of(ALIGN));
        let parts = elems(self.form()).into_iter().zip(padded).collect();
        (parts, entries * r)
    }

    /// Packs the weights; `weight(row, tap, channel)` is the bits of an `f32`, or four codes, that are not zero.
    pub fn pack(&self, weight: impl Fn(i64, i64, i64) -> Option<u32>) -> PackedWeights {
        let blocks = self.blocks();
        let mut out = PackedWeights::default();
        let put = |to: &mut Vec<u8>, v: usize| to.extend((v as u32).to_le_bytes());
        let (mut entry, mut group_count) = (0, 0);
        put(&mut out.starts, entry);
        put(&mut out.ranges, group_count);
        for band in 0..self.bands {
            for block in 0..blocks.count {
                let list = |row| -> Vec<(u16, u32)> {
                    let here = self.places(blocks, block);
                    here.filter_map(|(t, c, at)| Some((at as u16, weight(row, t, c)?)))
                        .collect()
                };
                let lists: Vec<_> = self.rows_of(band).map(list).collect();
                let counts: Vec<usize> = lists.iter().map(Vec::len).collect();
                for group in self.groups(&counts) {
                    for t in 0..group.entries {
                        for &row in &group.rows {
                            let (offset, value) = lists[row].get(t).copied().unwrap_or((0, 0));
                            out.values.extend(value.to_le_bytes());
                            out.offsets.extend(offset.to_le_bytes());
                        }
                    }
                    for &row in &group.rows {
                        put(&mut out.rows, row);
                    }
                    (entry, group_count) = (entry + group.entries, group_count + 1);
                    put(&mut out.starts, entry);
                }
                put(&mut out.ranges, group_count);
            }
        }
        for part in [
            &mut out.values,
            &mut out.offsets,
            &mut out.starts,
            &mut out.rows,
            &mut out.ranges,
        ] {
            part.resize(part.len().max(1).next_multiple_of(ALIGN), 0);
        }
        out
    }
}
