//! How launches of a top function share time: whether they overlap, and the room that arrays between them need for it.

use crate::channels::{self, Task};
use crate::top::{Layer, Top};
use lapidary_abi::program::{Arg, Place, ValueIndex};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::Param;
use std::collections::{BTreeMap, BTreeSet};

/// Runs that are simulated to see how launches overlap.
const RUNS: u64 = 32;

impl Top<'_> {
    /// Whether each array between launches is written by one launch and read by one later one, and none by two.
    pub fn overlaps(&self, launches: &[(usize, Vec<Arg>)]) -> bool {
        let mut writes: BTreeMap<ValueIndex, Vec<usize>> = BTreeMap::new();
        let mut reads = writes.clone();
        for (n, (k, args)) in launches.iter().enumerate() {
            for (param, arg) in self.source.kernels[*k].params.iter().zip(args) {
                let (Param::Buffer { written, .. }, Arg::Buffer(v)) = (param, arg) else {
                    continue;
                };
                let v = self.root(*v);
                if matches!(
                    self.source.program.values[v as usize].place,
                    Place::Weights { .. }
                ) {
                    continue;
                }
                let of = if *written { &mut writes } else { &mut reads };
                of.entry(v).or_default().push(n);
            }
        }
        let copied = self.source.program.outputs.iter().any(|p| {
            let root = self.root(p.value);
            !matches!(
                self.source.program.values[root as usize].place,
                Place::Output(_)
            )
        });
        // A circuit is one task: two launches of it cannot overlap.
        let distinct: BTreeSet<usize> = launches.iter().map(|l| l.0).collect();
        !copied
            && distinct.len() == launches.len()
            && writes.values().chain(reads.values()).all(|n| n.len() == 1)
            && writes
                .iter()
                .all(|(v, w)| reads.get(v).is_none_or(|r| r[0] > w[0]))
    }

    /// How many buffers each array between overlapping launches needs, so that none waits for room.
    pub fn depths(&self, launches: &[(usize, Vec<Arg>)]) -> Result<BTreeMap<String, u64>, Error> {
        let between = self.values.iter().filter(|(v, _)| {
            let place = &self.source.program.values[**v as usize].place;
            matches!(place, Place::Arena { .. } | Place::Prepared { .. })
        });
        let channels: Vec<(ValueIndex, String)> =
            between.map(|(v, a)| (*v, a.name.clone())).collect();
        let task = |(layer, (k, args)): (&Layer, &(usize, Vec<Arg>))| {
            let mut task = Task {
                name: layer.name.clone(),
                cycles: layer.cycles.ceil() as u64,
                reads: vec![],
                writes: vec![],
                firings: RUNS,
            };
            for (param, arg) in self.source.kernels[*k].params.iter().zip(args) {
                let (Param::Buffer { written, .. }, Arg::Buffer(v)) = (param, arg) else {
                    continue;
                };
                let root = self.root(*v);
                if let Some(channel) = channels.iter().position(|c| c.0 == root) {
                    let of = if *written {
                        &mut task.writes
                    } else {
                        &mut task.reads
                    };
                    of.push((channel, 1));
                }
            }
            task
        };
        let tasks: Vec<Task> = self.design.layers.iter().zip(launches).map(task).collect();
        let depths = channels::depths(&tasks, channels.len());
        let depths = depths.map_err(|e| self.unsupported(e.to_string()))?;
        let names = channels.into_iter().map(|c| c.1);
        Ok(names.zip(depths).collect())
    }

    /// Elements of each value that are accessed in one cycle at most.
    pub fn ports(&self, launches: &[(usize, Vec<Arg>)]) -> BTreeMap<ValueIndex, u32> {
        let mut ports = BTreeMap::new();
        for (layer, (_, args)) in self.design.layers.iter().zip(launches) {
            for (param, arg) in args.iter().enumerate() {
                if let Arg::Buffer(v) = arg {
                    let elements = layer.cost.ports.get(&(param as u32)).copied().unwrap_or(1);
                    let most = ports.entry(self.root(*v)).or_insert(1);
                    *most = elements.max(*most);
                }
            }
        }
        ports
    }
}
