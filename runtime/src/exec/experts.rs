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
use std::sync::mpsc::{Receiver, Sender, channel};

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

impl<'a> Run<'a, '_> {
    /// Runs every expert of a layer.
    pub(super) fn experts(&mut self, mixture: &'a Mixture) -> Result<(), RunError> {
        let experts = &mixture.experts;
        let tokens = experts.iter().map(|e| self.size(&e.tokens));
        let tokens = tokens
            .map(|n| n.map(|n| u64::try_from(n).unwrap_or(0)))
            .collect::<Result<Vec<u64>, _>>()?;
        let model = self.model;
        let loads = match (&model.weights, model.options.expert_order) {
            (Weights::Mapped(mapping), Some(order)) => {
                let mut loads = missing(mapping, experts, &tokens);
                loads.sort_by_key(|l| order.key(&l.unit));
                Some((mapping, loads)).filter(|(_, loads)| !loads.is_empty())
            }
            _ => None,
        };
        let Some((mapping, loads)) = loads else {
            return experts.iter().try_for_each(|e| self.expert(e));
        };
        let residency = model.residency.as_ref();
        if let Some(residency) = residency {
            residency.expect(units(experts, &tokens));
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
        let (report, reports) = channel();
        let (answer, answers) = channel();
        // What the reader waits for is dropped when this ends, with an error too: only then is the reader waited for.
        std::thread::scope(move |scope| {
            // Without a thread there are no reports, and weights are read when they are used.
            let name = "lapidary-reader".to_owned();
            let reader = move || {
                pool.unpin_this_thread();
                read(mapping, residency, loads, &report, &answers);
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
            for report in &reports {
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
                    // A reader that has ended needs no answer.
                    let _ = answer.send(next);
                }
            }
            (order.into_iter().filter(|&e| !done[e])).try_for_each(|e| self.expert(&experts[e]))
        })
    }
}

/// The weights of experts that tokens chose, as units.
fn units<'e>(
    experts: &'e [Expert],
    tokens: &'e [u64],
) -> impl Iterator<Item = (Unit, Part)> + use<'e> {
    let chosen = experts.iter().zip(tokens).enumerate();
    chosen
        .filter(|(_, (_, tokens))| **tokens > 0)
        .flat_map(|(expert, (e, &tokens))| {
            e.weights.iter().enumerate().map(move |(plane, &part)| {
                let unit = Unit {
                    expert,
                    plane,
                    tokens,
                };
                (unit, part)
            })
        })
}

/// Those that are not in memory.
fn missing(mapping: &Mapping, experts: &[Expert], tokens: &[u64]) -> Vec<Load> {
    let is_missing = |part: &Part| !mapping.is_in_memory(part.offset as usize, part.bytes as usize);
    units(experts, tokens)
        .filter(|(_, part)| is_missing(part))
        .map(|(unit, part)| Load { unit, part })
        .collect()
}

/// Reads in order, until nobody listens any more.
fn read(
    mapping: &Mapping,
    residency: Option<&Residency>,
    loads: &[Load],
    report: &Sender<Report>,
    answers: &Receiver<Option<usize>>,
) {
    let mut computed = vec![];
    for Load { unit, part } in loads {
        while let Some(residency) = residency
            && !computed.contains(&unit.expert)
            && !residency.reserve(part.offset)
        {
            let told = report.send(Report::Full);
            match told.ok().and_then(|()| answers.recv().ok()) {
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
        if report.send(Report::Loaded(unit.expert)).is_err() {
            return;
        }
    }
}
