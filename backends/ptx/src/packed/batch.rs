//! What entries for batches of `f16` times 4-bit weights have in common: which tile a block has, the ring of copies ahead of the step
//! that is multiplied, and how codes become halves.
//!
//! Source: "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models" (Frantar et al. 2024).

use crate::tile::WARP;
use crate::writer::{Ty, Val, Writer};
use lapidary_ir::kernel::packed::{Batch, GROUP, STEP, WARPS};

/// Threads of a block.
pub(super) const THREADS: u32 = WARPS * WARP;

/// Bytes of a vector's step, in shared memory: eight times 16, the `c`-th at `c ^ (row % 8)`.
pub(super) const ROW: u32 = 2 * STEP;

/// What a block computes.
pub(super) struct Tile {
    /// Vectors of all tiles.
    pub m: Val,
    /// Its part of the columns.
    pub part: Val,
    /// Its tile of outputs.
    pub across: Val,
    /// Its first vector.
    pub row: Val,
    /// Its first group.
    pub begin: Val,
    /// How many groups it has.
    pub groups: Val,
}

/// 16 bytes that a thread copies at every step.
pub(super) struct Source {
    pub from: Val,
    /// Offset in a step.
    pub to: Val,
    /// Where it is not there, zeros are copied.
    pub there: Option<Val>,
    /// Bytes between steps.
    pub step: u32,
    /// Whether this thread copies any of it, where not all do.
    pub mine: Option<Val>,
}

/// Where steps are copied to.
pub(super) struct Ring {
    sources: Vec<Source>,
    base: Val,
    /// The step that is multiplied.
    pub read: Val,
    write: Val,
    /// Steps that are still to be copied.
    left: Val,
    stages: u32,
    /// Bytes of a step.
    stage: u32,
}

/// Steps in shared memory: as many as 48 KiB hold, six at most.
pub(super) fn stages(stage: u32) -> u32 {
    (49152 / stage).min(6)
}

impl Tile {
    /// This block's, of so many tiles of outputs.
    pub(super) fn of(w: &mut Writer, p: &Batch, across: u32) -> Tile {
        let block = w.block();
        let (m, down) = match p.m {
            Some(m) => (
                Val::int(i64::from(m)),
                Val::int(i64::from(m.div_ceil(p.tile()))),
            ),
            None => {
                let m = w.size("m");
                let up = w.add(m, Val::int(i64::from(p.tile() - 1)));
                (m, w.int("shr.u32", up, p.tile().trailing_zeros()))
            }
        };
        let tiles = w.mul(down, Val::int(i64::from(across)));
        let [part, tile] = w.divide(block, tiles);
        let [across, down] = w.divide(tile, down);
        let row = w.mul(down, Val::int(i64::from(p.tile())));
        let begin = w.mul(part, Val::int(i64::from(p.groups())));
        let end = w.add(begin, Val::int(i64::from(p.groups())));
        let end = w.int("min.u32", end, p.weights.columns() / GROUP);
        Tile {
            m,
            part,
            across,
            row,
            begin,
            groups: w.sub(end, begin),
        }
    }

    /// Copies of the vectors, `[m][columns]`: first in a step.
    pub(super) fn vectors(&self, w: &mut Writer, p: &Batch, x: Val, tid: Val) -> Vec<Source> {
        let in_tile = w.int("shr.u32", tid, 3);
        let nth = w.int("and.b32", tid, 7);
        let each = |at| {
            // 32 rows of 8 times 16 bytes.
            let own = w.add(in_tile, Val::int(i64::from(at)));
            let of_x = w.add(self.row, own);
            let there = w.compare("lt.u32", of_x, self.m);
            let k = w.mul(self.begin, Val::int(i64::from(GROUP)));
            let k = w.mul_add(nth, Val::int(8), k);
            let element = w.mul_add(of_x, Val::int(i64::from(p.weights.columns())), k);
            let turn = w.int("and.b32", own, 7);
            let place = w.op(Ty::B32, "xor.b32", &[nth, turn]);
            let place = w.mul(place, Val::int(16));
            let to = w.mul_add(own, Val::int(i64::from(ROW)), place);
            let mine = (p.tile() < 32).then(|| w.compare("lt.u32", tid, Val::int(128)));
            Source {
                from: w.at(x, element, 2),
                to,
                there: Some(there),
                step: ROW,
                mine,
            }
        };
        (0..p.tile()).step_by(32).map(each).collect()
    }

    /// For each group of the part what `begin`s it, its steps as they come, and what `end`s it. Afterwards nothing is being copied.
    pub(super) fn each_group(
        &self,
        w: &mut Writer,
        ring: &Ring,
        begin: impl FnOnce(&mut Writer),
        mut step: impl FnMut(&mut Writer),
        end: impl FnOnce(&mut Writer),
    ) {
        ring.fill(w);
        let [top, after] = [(); 2].map(|()| w.label());
        // A part may have no groups where they are few.
        let none = w.compare("le.s32", self.groups, Val::int(0));
        w.line(format_args!("@{none} bra {after};"));
        w.place(top);
        begin(w);
        for _ in 0..GROUP / STEP {
            ring.turn(w);
            step(w);
            ring.next(w);
        }
        end(w);
        w.to(self.groups, "add.s32", &[self.groups, Val::int(-1)]);
        let more = w.compare("gt.s32", self.groups, Val::int(0));
        w.line(format_args!("@{more} bra {top};"));
        w.place(after);
        w.line(format_args!("cp.async.wait_group 0;"));
    }

    /// The copies of all steps: into `shared`, of `stage` bytes a step.
    pub(super) fn ring(
        &self,
        w: &mut Writer,
        shared: &str,
        sources: Vec<Source>,
        stage: u32,
    ) -> Ring {
        let base = w.special(shared);
        let [read, write, left] = [(); 3].map(|()| w.register(Ty::B32));
        w.copy(read, base);
        w.copy(write, base);
        let all = w.mul(self.groups, Val::int(i64::from(GROUP / STEP)));
        w.copy(left, all);
        Ring {
            sources,
            base,
            read,
            write,
            left,
            stages: stages(stage),
            stage,
        }
    }
}

impl Ring {
    fn advance(&self, w: &mut Writer, slot: Val) {
        let stage = i64::from(self.stage);
        w.to(slot, "add.s32", &[slot, Val::int(stage)]);
        let end = w.add(self.base, Val::int(i64::from(self.stages) * stage));
        let over = w.compare("eq.u32", slot, end);
        w.line(format_args!("@{over} mov.b32 {slot}, {};", self.base));
    }

    /// Begins to copy a step; after the last, nothing.
    fn bring(&self, w: &mut Writer) {
        let some = w.compare("gt.s32", self.left, Val::int(0));
        for source in &self.sources {
            let there = source.there.map_or(some, |there| w.and(some, there));
            let bytes = w.select(there, Val::int(16), Val::int(0));
            let to = w.add(self.write, source.to);
            let guard = w.guard(source.mine);
            w.line(format_args!(
                "{guard}cp.async.cg.shared.global [{to}], [{}], 16, {bytes};",
                source.from
            ));
            let step = Val::long(i64::from(source.step));
            w.to(source.from, "add.s64", &[source.from, step]);
        }
        w.line(format_args!("cp.async.commit_group;"));
        w.to(self.left, "add.s32", &[self.left, Val::int(-1)]);
        self.advance(w, self.write);
    }

    /// Begins all copies but one, which is begun when the first has come.
    fn fill(&self, w: &mut Writer) {
        (1..self.stages).for_each(|_| self.bring(w));
    }

    /// Waits for a step, and begins to copy another.
    fn turn(&self, w: &mut Writer) {
        w.line(format_args!("cp.async.wait_group {};", self.stages - 2));
        // After this, all have multiplied the step whose place the next takes, and all see this one.
        w.line(format_args!("bar.sync 0;"));
        self.bring(w);
    }

    /// To the next step.
    fn next(&self, w: &mut Writer) {
        self.advance(w, self.read);
    }
}

/// Constants of the way from codes to halves.
pub(super) struct Constants {
    /// 1024 twice: the halves whose lowest bit is one.
    k1024: Val,
    k1032: Val,
    sixteenth: Val,
    minus72: Val,
}

impl Constants {
    pub(super) fn new(w: &mut Writer) -> Constants {
        Constants {
            k1024: w.number(0x6400_6400),
            k1032: w.number(0x6408_6408),
            sixteenth: w.number(0x2C00_2C00),
            minus72: w.number(0xD480_D480),
        }
    }

    /// `q - 8` of a word's codes, exactly: of one output, then of the other, columns from 0 and from 8 on. A code in the lowest bits of
    /// 1024 is `1024 + q`, four bits higher `1024 + 16 q`.
    pub(super) fn halves(&self, w: &mut Writer, word: Val) -> [[Val; 2]; 2] {
        let upper = w.int("shr.u32", word, 8);
        [word, upper].map(|word| {
            let [low, high] = [0x000F_000F, 0x00F0_00F0].map(|mask: u32| {
                let q = w.register(Ty::B32);
                w.line(format_args!(
                    "lop3.b32 {q}, {word}, {mask}, {}, 0xEA;",
                    self.k1024
                ));
                q
            });
            [
                w.op(Ty::B32, "sub.f16x2", &[low, self.k1032]),
                w.op(
                    Ty::B32,
                    "fma.rn.f16x2",
                    &[high, self.sixteenth, self.minus72],
                ),
            ]
        })
    }
}

impl Writer {
    /// The halves of a word, as numbers.
    pub(super) fn pair(&mut self, word: Val) -> [Val; 2] {
        let halves = [(); 2].map(|()| self.register(Ty::B16));
        let [low, high] = halves;
        self.line(format_args!("mov.b32 {{{low}, {high}}}, {word};"));
        halves.map(|h| self.op(Ty::F32, "cvt.f32.f16", &[h]))
    }
}
