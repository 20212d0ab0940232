//! A limit on memory: weights that are mapped from a file leave it again where others need their place.
//!
//! What leaves first is what is used least often, such as experts of a mixture that few tokens choose; of what every run uses, what was
//! used last, since the programs go round and it is needed again last. It is read from the file again when it is used. While a layer of
//! experts runs, what its tokens still need leaves after everything else, of the coldest experts first.

use super::limit::{Limit, Memory};
use crate::error::RunError;
use crate::memory::{Mapping, Weights};
use crate::plan::{self, Plan};
use lapidary_abi::experts::{Unit, leaving};
use lapidary_abi::program::Place;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What there must be room for besides weights and working memory: code, stacks, tables.
const BASE: u64 = 16 << 20;

/// What is left free of the limit for values whose size is known only while the program runs: they grow between two launches that bring
/// weights. Twice as much is left free of what is read ahead.
const FRESH: u64 = BASE / 2;

/// How much a single run changes what is known of how often a part is used.
const NEWS: f32 = 0.1;

/// Weights of a model, in parts, within a limit.
pub struct Residency {
    limit: Limit,
    mapping: Arc<Mapping>,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    /// By offset.
    all: HashMap<u64, Part>,
    /// Launches so far.
    clock: u64,
    /// Bytes that the current launch is the first to use.
    launching: u64,
    /// Bytes that are being read ahead.
    arriving: u64,
}

/// One weight.
struct Part {
    bytes: u64,
    /// When a launch last used it.
    used: u64,
    /// The share of launches that could use it and did, the latest most.
    often: f32,
    /// It was used, or read ahead, since it last left.
    held: bool,
    /// It is being read ahead.
    arriving: bool,
    /// What it is to the layer of experts that runs, if tokens need it there.
    wanted: Option<Unit>,
}

impl Residency {
    /// For weights that are mapped from a file; an error if they are not, or if the limit leaves no room for the largest of them.
    pub fn new(
        memory: Memory,
        plan: &Plan,
        weights: &Weights,
        working: usize,
    ) -> Result<Residency, RunError> {
        let Weights::Mapped(mapping) = weights else {
            return Err(RunError::Input(
                "memory can be limited where weights are read from a file: build an executable"
                    .to_owned(),
            ));
        };
        if resident().is_none() {
            return Err(RunError::System(
                "memory cannot be limited on this system".to_owned(),
            ));
        }
        let limit = Limit::new(memory)?;
        let parts = plan.values.iter().filter_map(|v| match v.place {
            Place::Weights { offset, bytes } => {
                let part = Part {
                    bytes,
                    used: 0,
                    often: 0.5,
                    held: false,
                    arriving: false,
                    wanted: None,
                };
                Some((offset, part))
            }
            _ => None,
        });
        let all: HashMap<u64, Part> = parts.collect();
        let largest = all.values().map(|p| p.bytes).max().unwrap_or(0);
        let least = largest + working as u64 + BASE;
        let bytes = limit.bytes();
        if bytes < least {
            return Err(RunError::Input(format!(
                "the model needs {least} bytes of memory at least, the limit is {bytes}"
            )));
        }
        Ok(Residency {
            limit,
            mapping: Arc::clone(mapping),
            parts: Mutex::new(Parts {
                all,
                ..Parts::default()
            }),
        })
    }

    /// Weights in this range have left.
    pub fn left(&self, range: Range<u64>) {
        let mut parts = self.parts();
        let inside = parts.all.iter_mut().filter(|p| range.contains(p.0));
        inside.for_each(|(_, part)| part.held = false);
    }

    /// Looks at the limit, which a file may say.
    pub fn look(&self) {
        self.limit.look();
    }

    /// Bytes that there are for weights beside working memory and states of so many bytes.
    pub fn room(&self, beside: u64) -> u64 {
        self.limit.bytes().saturating_sub(beside + BASE + FRESH)
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A launch comes to these weights, by their offsets; `used` unless it has nothing to do. Makes room for them.
    pub fn visit(&self, weights: impl Iterator<Item = u64>, used: bool) {
        let mut parts = self.parts();
        parts.clock += 1;
        let now = parts.clock;
        let mut needed = 0;
        for offset in weights {
            let Some(part) = parts.all.get_mut(&offset) else {
                continue;
            };
            part.often += NEWS * (f32::from(u8::from(used)) - part.often);
            if used {
                part.used = now;
                if !part.held {
                    part.held = true;
                    needed += part.bytes;
                }
            }
        }
        parts.launching = needed;
        if needed > 0 {
            let limit = self.limit.bytes().saturating_sub(FRESH);
            self.make_room(&mut parts, limit, |_| true);
        }
    }

    /// Room for a weight that is going to be read ahead; false if that would take what is needed sooner. Some is left free, since what
    /// launches compute takes more memory meanwhile.
    pub fn reserve(&self, offset: u64) -> bool {
        let mut parts = self.parts();
        let Some(part) = parts.all.get_mut(&offset).filter(|p| !p.held) else {
            return true;
        };
        let bytes = part.bytes;
        (part.held, part.arriving) = (true, true);
        parts.arriving += bytes;
        let limit = self.limit.bytes().saturating_sub(2 * FRESH);
        let has_room = self.make_room(&mut parts, limit, |part| part.wanted.is_none());
        if !has_room {
            parts.arriving -= bytes;
            if let Some(part) = parts.all.get_mut(&offset) {
                (part.held, part.arriving) = (false, false);
            }
        }
        has_room
    }

    /// What there was made room for is in memory.
    pub fn arrived(&self, offset: u64) {
        let mut parts = self.parts();
        if let Some(part) = parts.all.get_mut(&offset).filter(|p| p.arriving) {
            part.arriving = false;
            parts.arriving -= part.bytes;
        }
    }

    /// A layer of experts begins whose tokens need these weights, and no others; without any, it is over.
    pub fn expect(&self, wanted: impl Iterator<Item = (Unit, plan::Part)>) {
        let mut parts = self.parts();
        parts.all.values_mut().for_each(|p| p.wanted = None);
        for (unit, place) in wanted {
            if let Some(part) = parts.all.get_mut(&place.offset) {
                part.wanted = Some(unit);
            }
        }
    }

    /// The layer needs these weights no more, and the launches that used them are over.
    pub fn finished(&self, weights: impl Iterator<Item = u64>) {
        let mut parts = self.parts();
        parts.clock += 1;
        parts.launching = 0;
        for offset in weights {
            if let Some(part) = parts.all.get_mut(&offset) {
                part.wanted = None;
            }
        }
    }

    /// Lets weights go that may until there is room within a limit for what comes; false if there is not.
    fn make_room(&self, parts: &mut Parts, limit: u64, may_leave: impl Fn(&Part) -> bool) -> bool {
        let now = parts.clock;
        let coming = parts.launching + parts.arriving;
        while resident().is_some_and(|bytes| bytes + coming > limit) {
            let free = |p: &(&u64, &mut Part)| {
                p.1.held && !p.1.arriving && p.1.used != now && may_leave(p.1)
            };
            let first = |a: &(&u64, &mut Part), b: &(&u64, &mut Part)| {
                let key = |p: &Part| p.wanted.as_ref().map(leaving);
                (key(a.1).cmp(&key(b.1)))
                    .then(a.1.often.total_cmp(&b.1.often))
                    .then(b.1.used.cmp(&a.1.used))
            };
            let Some((&offset, part)) = parts.all.iter_mut().filter(free).min_by(first) else {
                return false;
            };
            part.held = false;
            self.mapping.give_back(offset as usize, part.bytes as usize);
        }
        true
    }
}

/// Bytes of this process that are in memory.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(page).ok().map(|page| pages * page)
}
