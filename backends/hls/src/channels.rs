//! Tasks that overlap, and the channels of bounded depth between them: whether they come to an end, how fast, and how deep
//! each channel must be.
//!
//! C simulation runs tasks one after another with channels that hold whatever comes, so it sees no deadlock. Here a task
//! begins when what it reads is there and what it writes has room, keeps both until it ends, and begins again: what a dataflow
//! region does, whose channels are arrays with a number of buffers. Tokens are whole buffers, several for a task that takes or makes several
//! at a time.

use std::fmt;

/// A task and what one of its firings does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// For messages.
    pub name: String,
    /// Cycles of a firing.
    pub cycles: u64,
    /// Channels that it reads, and how many tokens of each.
    pub reads: Vec<(usize, u64)>,
    /// Channels that it writes.
    pub writes: Vec<(usize, u64)>,
    /// Firings that the simulation waits for.
    pub firings: u64,
}

/// What a simulation saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Cycles until the last firing ended.
    pub cycles: u64,
    /// Most tokens that each channel held at once, those being written and read included.
    pub peaks: Vec<u64>,
}

/// Nobody can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// When.
    pub cycle: u64,
    /// Tasks that wait, and for which channel.
    pub waiting: Vec<(String, Wait)>,
}

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Tokens in this channel.
    Tokens(usize),
    /// Room in this channel.
    Room(usize),
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deadlock in cycle {}:", self.cycle)?;
        for (task, wait) in &self.waiting {
            match wait {
                Wait::Tokens(c) => write!(f, " `{task}` waits for channel {c} to be filled;")?,
                Wait::Room(c) => write!(f, " `{task}` waits for room in channel {c};")?,
            }
        }
        Ok(())
    }
}

/// Runs tasks until each has fired as often as it says. `depths` are the channels'.
///
/// # Errors
/// They stop before.
pub fn simulate(tasks: &[Task], depths: &[u64]) -> Result<Outcome, Deadlock> {
    // Tokens that can be read, and all that take room.
    let (mut ready, mut held) = (vec![0u64; depths.len()], vec![0u64; depths.len()]);
    let mut peaks = held.clone();
    let mut left: Vec<u64> = tasks.iter().map(|t| t.firings).collect();
    let mut until: Vec<Option<u64>> = vec![None; tasks.len()];
    let mut now = 0;
    loop {
        let mut waiting = vec![];
        for (t, task) in tasks.iter().enumerate() {
            if left[t] == 0 || until[t].is_some() {
                continue;
            }
            let empty = task.reads.iter().find(|r| ready[r.0] < r.1);
            let full = task
                .writes
                .iter()
                .find(|w| held[w.0].saturating_add(w.1) > depths[w.0]);
            match (empty, full) {
                (Some(r), _) => waiting.push((task.name.clone(), Wait::Tokens(r.0))),
                (None, Some(w)) => waiting.push((task.name.clone(), Wait::Room(w.0))),
                (None, None) => {
                    task.reads.iter().for_each(|r| ready[r.0] -= r.1);
                    for w in &task.writes {
                        held[w.0] += w.1;
                        peaks[w.0] = peaks[w.0].max(held[w.0]);
                    }
                    until[t] = Some(now + task.cycles.max(1));
                }
            }
        }
        let Some(next) = until.iter().flatten().min().copied() else {
            return match waiting.is_empty() {
                true => Ok(Outcome { cycles: now, peaks }),
                false => Err(Deadlock {
                    cycle: now,
                    waiting,
                }),
            };
        };
        now = next;
        for (t, task) in tasks.iter().enumerate() {
            if until[t] == Some(now) {
                until[t] = None;
                left[t] -= 1;
                task.reads.iter().for_each(|r| held[r.0] -= r.1);
                task.writes.iter().for_each(|w| ready[w.0] += w.1);
            }
        }
    }
}

/// The smallest depths with which tasks are as fast as with channels without bounds; found channel by channel, each checked by a
/// simulation.
///
/// # Errors
/// Not even channels without bounds let them end.
pub fn depths(tasks: &[Task], channels: usize) -> Result<Vec<u64>, Deadlock> {
    let best = simulate(tasks, &vec![u64::MAX; channels])?;
    let mut depths = best.peaks;
    for channel in 0..channels {
        while depths[channel] > 1 {
            depths[channel] -= 1;
            let slower = match simulate(tasks, &depths) {
                Ok(outcome) => outcome.cycles > best.cycles,
                Err(_) => true,
            };
            if slower {
                depths[channel] += 1;
                break;
            }
        }
    }
    Ok(depths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(
        name: &str,
        cycles: u64,
        reads: &[(usize, u64)],
        writes: &[(usize, u64)],
        firings: u64,
    ) -> Task {
        Task {
            name: name.to_owned(),
            cycles,
            reads: reads.to_vec(),
            writes: writes.to_vec(),
            firings,
        }
    }

    #[test]
    fn a_chain_with_two_buffers_is_as_fast_as_its_slowest_task() {
        let chain = [
            task("a", 10, &[], &[(0, 1)], 20),
            task("b", 30, &[(0, 1)], &[(1, 1)], 20),
            task("c", 20, &[(1, 1)], &[], 20),
        ];
        let two = simulate(&chain, &[2, 2]).unwrap();
        assert_eq!(two.cycles, 10 + 20 * 30 + 20);
        // With one buffer nothing overlaps with its neighbour.
        assert!(simulate(&chain, &[1, 1]).unwrap().cycles > two.cycles);
        // What a fast task does ahead of a slow one needs no room.
        assert_eq!(depths(&chain, 2).unwrap(), [2, 2]);
    }

    /// What skips tasks has to wait for them: with too little room nobody is slower, nobody moves.
    #[test]
    fn a_short_way_around_needs_room_for_the_long_one() {
        // `b` takes four at a time, `c` takes one of its results with each that came around it.
        let around = [
            task("a", 5, &[], &[(0, 1), (2, 1)], 16),
            task("b", 8, &[(0, 4)], &[(1, 4)], 4),
            task("c", 5, &[(1, 1), (2, 1)], &[], 16),
        ];
        let stuck = simulate(&around, &[8, 8, 2]).unwrap_err();
        let room = ("a".to_owned(), Wait::Room(2));
        assert!(stuck.waiting.contains(&room), "{stuck}");
        assert!(
            stuck.to_string().contains("`b` waits for channel 0"),
            "{stuck}"
        );
        let enough = depths(&around, 3).unwrap();
        assert!(enough[2] >= 4, "{enough:?}");
        let best = simulate(&around, &[u64::MAX; 3]).unwrap();
        assert_eq!(simulate(&around, &enough).unwrap().cycles, best.cycles);
    }

    #[test]
    fn what_never_fits_is_found() {
        let tasks = [
            task("a", 1, &[], &[(0, 3)], 1),
            task("b", 1, &[(0, 1)], &[], 3),
        ];
        assert!(simulate(&tasks, &[2]).is_err());
        assert!(simulate(&tasks, &[3]).is_ok());
        // Each waits for the other.
        let ring = [
            task("a", 1, &[(1, 1)], &[(0, 1)], 1),
            task("b", 1, &[(0, 1)], &[(1, 1)], 1),
        ];
        assert!(depths(&ring, 2).is_err());
    }
}
