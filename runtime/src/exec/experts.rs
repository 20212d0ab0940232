//! A layer of experts: weights that are not in memory are read by a thread of their own, in an order that says which are needed most,
//! while experts that have theirs are computed.
//!
//! Each expert is computed as it would be alone, and what they give is added later in the order of the program: the results do not
//! depend on what came when.

use super::residency::Residency;
use super::run::Run;
use crate::error::RunError;
use crate::memory::{Mapping, Weights};
use crate::plan::{Expert, Mixture, Part};
use lapidary_abi::experts::{Order, Unit};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The order that an option names; `None` within is for weights that are read when they are used.
pub fn parse_expert_order(name: &str) -> Option<Option<Order>> {
    match name {
        "none" => Some(None),
        _ => Order::named(name).map(Some),
    }
}

/// A weight that is not in memory and that tokens need.
struct Load {
    unit: Unit,
    part: Part,
}

/// What the reader tells.
enum Report {
    /// A unit of this expert is in memory.
    Loaded(usize),
    /// There is no room for the next one. The reader waits for an answer.
    Full,
}

/// Where the reader and the one that computes tell each other things.
#[derive(Default)]
struct Desk {
    notes: Mutex<Notes>,
    news: Condvar,
}

#[derive(Default)]
struct Notes {
    /// Experts of which a unit was loaded, and how many of these reports were taken.
    loaded: Vec<usize>,
    taken: usize,
    /// The reader asks for room.
    full: bool,
    /// What it is answered: the expert that was computed to make room, if there was one left.
    answer: Option<Option<usize>>,
    /// One of both is gone.
    closed: bool,
}

impl Desk {
    /// Waits until something is there to take.
    fn wait<T>(&self, mut take: impl FnMut(&mut Notes) -> Option<T>) -> T {
        let mut notes = self.notes();
        loop {
            if let Some(found) = take(&mut notes) {
                return found;
            }
            let woken = self.news.wait(notes);
            notes = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// False if the other one is gone.
    fn tell(&self, note: impl FnOnce(&mut Notes)) -> bool {
        let mut notes = self.notes();
        note(&mut notes);
        self.news.notify_all();
        !notes.closed
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next report, those of what was loaded first; none if the reader is gone.
    fn report(&self) -> Option<Report> {
        self.wait(|notes| {
            if let Some(&expert) = notes.loaded.get(notes.taken) {
                notes.taken += 1;
                return Some(Some(Report::Loaded(expert)));
            }
            if std::mem::take(&mut notes.full) {
                return Some(Some(Report::Full));
            }
            notes.closed.then_some(None)
        })
    }

    /// Asks for room: the expert that was computed, if one was; `None` without if nobody answers.
    fn ask(&self) -> Option<Option<usize>> {
        self.tell(|notes| notes.full = true);
        self.wait(|notes| match notes.answer.take() {
            Some(answer) => Some(Some(answer)),
            None => notes.closed.then_some(None),
        })
    }
}

/// Tells the other one, when it is dropped, that this one is gone.
struct Seat<'d>(&'d Desk);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.tell(|notes| notes.closed = true);
    }
}

impl<'a> Run<'a, '_> {
    /// Runs every expert of a layer.
    pub(super) fn experts(&mut self, mixture: &'a Mixture) -> Result<(), RunError> {
        let experts = &mixture.experts;
        let tokens = experts.iter().map(|e| self.size(&e.tokens));
        let tokens = tokens
            .map(|n| n.map(|n| u64::try_from(n).unwrap_or(0)))
            .collect::<Result<Vec<u64>, _>>()?;
        let model = self.model;
        // Parts of the weights that this run does not use lie behind all that it does.
        let parts = model.parts.as_ref();
        let end = parts.map_or(u64::MAX, |p| p.end(self.frame.symbols[p.symbol]));
        let loads = match (&model.weights, model.options.expert_order) {
            (Weights::Mapped(mapping), Some(order)) => {
                let loads = missing(mapping, units(experts, &tokens, end), order);
                Some((mapping, loads)).filter(|(_, loads)| !loads.is_empty())
            }
            _ => None,
        };
        let Some((mapping, loads)) = loads else {
            return experts.iter().try_for_each(|e| self.expert(e));
        };
        let residency = model.residency.as_ref();
        if let Some(residency) = residency {
            residency.expect(units(experts, &tokens, end));
        }
        let result = self.while_reading(experts, mapping, &loads);
        if let Some(residency) = residency {
            residency.expect(std::iter::empty());
        }
        result
    }

    fn expert(&mut self, expert: &'a Expert) -> Result<(), RunError> {
        expert.ops.iter().try_for_each(|op| self.op(op))?;
        if let Some(residency) = &self.model.residency {
            residency.finished(expert.weights.iter().map(|p| p.offset));
        }
        Ok(())
    }

    fn while_reading(
        &mut self,
        experts: &'a [Expert],
        mapping: &Mapping,
        loads: &[Load],
    ) -> Result<(), RunError> {
        let mut coming = vec![0; experts.len()];
        loads.iter().for_each(|l| coming[l.unit.expert] += 1);
        let mut order: Vec<usize> = loads.iter().map(|l| l.unit.expert).collect();
        order.dedup();
        let (residency, pool) = (self.model.residency.as_ref(), &self.model.pool);
        let desk = &Desk::default();
        std::thread::scope(move |scope| {
            // The reader is told when this ends, with an error too: only then is it waited for.
            let _own = Seat(desk);
            // Without a thread there are no reports, and weights are read when they are used.
            let name = "lapidary-reader".to_owned();
            let seat = Seat(desk);
            let reader = move || {
                pool.unpin_this_thread();
                read(mapping, residency, loads, &seat);
            };
            let _ = std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, reader);
            let mut done = vec![false; experts.len()];
            for e in (0..experts.len()).filter(|&e| coming[e] == 0) {
                self.expert(&experts[e])?;
                done[e] = true;
            }
            // Whether an expert has left room since the reader found none.
            let mut has_left = true;
            while let Some(report) = desk.report() {
                let next = match report {
                    Report::Loaded(e) => {
                        coming[e] -= 1;
                        (coming[e] == 0).then_some(e)
                    }
                    Report::Full if has_left => None,
                    Report::Full => order.iter().copied().find(|&e| !done[e]),
                };
                if let Some(e) = next.filter(|&e| !done[e]) {
                    self.expert(&experts[e])?;
                    done[e] = true;
                    has_left = true;
                }
                if matches!(report, Report::Full) {
                    has_left = false;
                    desk.tell(|notes| notes.answer = Some(next));
                }
            }
            (order.into_iter().filter(|&e| !done[e])).try_for_each(|e| self.expert(&experts[e]))
        })
    }
}

/// The weights of experts that tokens chose, as units, but for those that lie behind `end`.
fn units<'e>(
    experts: &'e [Expert],
    tokens: &'e [u64],
    end: u64,
) -> impl Iterator<Item = (Unit, Part)> + use<'e> {
    let chosen = experts.iter().zip(tokens).enumerate();
    chosen
        .filter(|(_, (_, tokens))| **tokens > 0)
        .flat_map(move |(expert, (e, &tokens))| {
            let used = e.weights.iter().filter(move |part| part.offset < end);
            used.enumerate().map(move |(plane, &part)| {
                let unit = Unit {
                    expert,
                    plane,
                    tokens,
                };
                (unit, part)
            })
        })
}

/// Those that are not in memory, in the order in which they are read.
fn missing(
    mapping: &Mapping,
    units: impl Iterator<Item = (Unit, Part)>,
    order: Order,
) -> Vec<Load> {
    let mut loads: Vec<Load> = vec![];
    for (unit, part) in units {
        if !mapping.is_in_memory(part.offset as usize, part.bytes as usize) {
            // There are few, and the library's sort would be a tenth of the code here.
            let at = loads.partition_point(|l| order.key(&l.unit) <= order.key(&unit));
            loads.insert(at, Load { unit, part });
        }
    }
    loads
}

/// Reads in order, until nobody listens any more.
fn read(mapping: &Mapping, residency: Option<&Residency>, loads: &[Load], seat: &Seat) {
    let mut computed = vec![];
    for Load { unit, part } in loads {
        while let Some(residency) = residency
            && !computed.contains(&unit.expert)
            && !residency.reserve(part.offset)
        {
            match seat.0.ask() {
                Some(expert) => computed.extend(expert),
                None => return,
            }
        }
        if computed.contains(&unit.expert) {
            continue;
        }
        mapping.read_ahead(part.offset as usize, part.bytes as usize);
        if let Some(residency) = residency {
            residency.arrived(part.offset);
        }
        if !seat.0.tell(|notes| notes.loaded.push(unit.expert)) {
            return;
        }
    }
}
