//! Which values are stored channels last, and which are stored as channels of another.
//!
//! Shapes in the graph stay `[n, c, spatial..]`. What convolutions and pools write is stored `[n][spatial..][c]`, so
//! that pixels are rows of a matrix product; what reads such a value maps positions through [`Facts::offset`].
//! An operand of a concatenation along the channels is written where the concatenation is stored.

use super::expand::Facts;
use super::index::Pos;
use super::program::Lowerer;
use super::{Form, Fuse, Spec, conv, rule, sparse};
use crate::schedules::conv::Pixels;
use lapidary_ir::kernel::Binary;
use lapidary_ir::ops::{OpError, resolve_axis};
use lapidary_ir::{Attr, Dim, NodeId, ValueId};
use std::collections::{HashMap, HashSet};

/// Channels last: pixel `p`, channel `c` is element `p * pitch + first + c` of `root`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// The value that is stored; another one if this is a part of a concatenation.
    pub root: ValueId,
    /// Elements between pixels.
    pub pitch: i64,
    /// The first channel.
    pub first: i64,
}

impl Facts {
    /// The value whose memory holds `v`.
    pub fn root(&self, v: ValueId) -> ValueId {
        self.channels.get(&v).map_or(v, |c| c.root)
    }

    /// The element of [`Facts::root`] that is the one at a position.
    pub fn offset(&self, body: &super::expr::Body, v: ValueId, shape: &[Dim], pos: &Pos) -> Dim {
        let Some(c) = self.channels.get(&v) else {
            return pos.linear(shape);
        };
        let at = pos.indices(body, shape);
        let pixel = at[2..]
            .iter()
            .zip(&shape[2..])
            .fold(at[0].clone(), |sum, (i, n)| &(sum * n.clone()) + i);
        pixel * Dim::from(c.pitch) + Dim::from(c.first) + &at[1]
    }

    /// The axes of a value, outermost in memory first.
    pub fn memory_order(&self, v: ValueId, rank: usize) -> Vec<usize> {
        if self.channels.contains_key(&v) {
            [0].into_iter().chain(2..rank).chain([1]).collect()
        } else {
            (0..rank).collect()
        }
    }

    /// True if `v` is written as the channels of `whole` from `start` on.
    pub fn is_part(&self, v: ValueId, whole: ValueId, start: &Dim) -> bool {
        match (self.channels.get(&v), self.channels.get(&whole)) {
            (Some(part), Some(whole)) => {
                part.root == whole.root && Some(part.first - whole.first) == start.as_const()
            }
            _ => false,
        }
    }

    /// True if the bytes are the same in both layouts.
    pub fn is_row_major(&self, v: ValueId) -> bool {
        let Some(c) = self.channels.get(&v) else {
            return true;
        };
        let shape = self.module.value(v).ty.shape().unwrap_or_default();
        has_one_pixel(shape) && c.root == v
    }
}

/// Channels and the shape's other dimensions but the first, if they are numbers.
fn channel_count(shape: &[Dim]) -> Option<i64> {
    let known = (3..=4).contains(&shape.len())
        && shape[1..]
            .iter()
            .all(|d| d.as_const().is_some_and(|n| n > 0));
    known.then(|| shape[1].as_const()).flatten()
}

/// True if both layouts are the same.
fn has_one_pixel(shape: &[Dim]) -> bool {
    shape.iter().skip(2).all(|d| d.as_const() == Some(1))
}

impl Lowerer {
    /// Decides the layouts, region by region in the order of computation.
    pub(super) fn find_channels(&mut self) {
        let module = &self.facts.module;
        let mut users: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        let mut kept: HashSet<ValueId> = HashSet::new();
        let regions = module.reachable_regions();
        for &r in &regions {
            kept.extend(&module.region(r).outputs);
            for &n in &module.region(r).nodes {
                for &o in module.node(n).operands.iter().flatten() {
                    users.entry(o).or_default().push(n);
                }
            }
        }
        let mut concats = vec![];
        for &r in &regions {
            let nodes: HashSet<NodeId> = module.region(r).nodes.iter().copied().collect();
            for n in self.facts.module.region(r).nodes.clone() {
                let node = self.facts.module.node(n);
                let name = node.op.name;
                let (Some(&v), true) = (node.results.first(), self.writes_channels_last(n, &users))
                else {
                    continue;
                };
                let readable = users.get(&v).is_none_or(|u| {
                    u.iter()
                        .all(|c| nodes.contains(c) && self.reads_channels_last(*c))
                });
                let shape = self.facts.shape(v).unwrap_or_default();
                if let (Some(pitch), true) = (channel_count(&shape), readable && !kept.contains(&v))
                {
                    if name == "concat" {
                        concats.push(n);
                    }
                    let channels = Channels {
                        root: v,
                        pitch,
                        first: 0,
                    };
                    self.facts.channels.insert(v, channels);
                }
            }
        }
        // Later concatenations first, so that their operands' operands end up in them too.
        for &n in concats.iter().rev() {
            self.place_parts(n, &users);
        }
    }

    /// Makes the operands of a concatenation parts of it.
    fn place_parts(&mut self, n: NodeId, users: &HashMap<ValueId, Vec<NodeId>>) {
        let node = self.facts.module.node(n).clone();
        let whole = self.facts.channels[&node.results[0]];
        let mut first = whole.first;
        for v in node.operands.into_iter().flatten() {
            let count = self
                .facts
                .module
                .value(v)
                .ty
                .shape()
                .and_then(channel_count)
                .unwrap_or(0);
            let own = self.facts.channels.get(&v).is_some_and(|c| c.root == v);
            let once = users[&v].iter().filter(|&&c| c == n).count() == 1;
            // Only what is stored anyway: conv, pool and other concatenations write each element once.
            let written = self.facts.module.producer(v).is_some_and(|p| {
                let op = self.facts.module.node(p).op.name;
                op == "concat" || rule(op).is_some_and(|r| matches!(r.form, Form::Steps(_)))
            });
            if own && once && written {
                let part = Channels { first, ..whole };
                self.facts.channels.insert(v, part);
            }
            first += count;
        }
    }

    fn writes_channels_last(&self, n: NodeId, users: &HashMap<ValueId, Vec<NodeId>>) -> bool {
        if self.is_called(n) {
            return false;
        }
        let node = self.facts.module.node(n);
        let rank = |v: ValueId| self.facts.module.value(v).ty.shape().map(<[Dim]>::len);
        let result = rank(node.results[0]);
        let carried = || {
            node.operands
                .iter()
                .flatten()
                .any(|&o| rank(o) == result && self.facts.channels.contains_key(&o))
        };
        match node.op.name {
            "conv" | "fused_conv" | "quantized_conv" => {
                // The panels of sparse products are of consecutive pixels; what is made of others wants channels last, as do
                // those of codes.
                let sparse = node.op.name != "quantized_conv" && sparse::is_chosen(self, n);
                let wanted = || {
                    let wants = |&c: &NodeId| match self.facts.module.node(c).op.name {
                        "max_pool" | "average_pool" | "concat" => true,
                        "conv" | "fused_conv" => !sparse::is_chosen(self, c),
                        _ => false,
                    };
                    users
                        .get(&node.results[0])
                        .is_some_and(|u| u.iter().any(wants))
                };
                conv::plan(&self.facts, n).is_some() && (!sparse || wanted())
            }
            "max_pool" | "average_pool" => node.results.len() == 1 && carried(),
            "concat" => {
                let axis = node.attr("axis");
                let axis = match axis {
                    Some(Attr::Int(a)) => resolve_axis(a, result.unwrap_or(0)).ok(),
                    _ => None,
                };
                axis == Some(1) && carried()
            }
            op => {
                let known = rule(op);
                known.is_some_and(|r| {
                    matches!(r.form, Form::Elements(_)) && r.fuse == Fuse::Pointwise
                }) && node.results.len() == 1
                    && carried()
            }
        }
    }

    fn reads_channels_last(&self, n: NodeId) -> bool {
        let node = self.facts.module.node(n);
        if self.is_called(n) || !node.regions.is_empty() {
            return false;
        }
        match node.op.name {
            "conv" | "fused_conv" | "quantized_conv" | "max_pool" | "average_pool" | "concat" => {
                true
            }
            op => rule(op).is_some_and(|r| matches!(r.form, Form::Elements(_))),
        }
    }

    /// A channels-last copy of `x` with `pads` elements of value `fill` before and after the spatial axes; `x` itself if it
    /// is one.
    pub(super) fn channels_last(
        &mut self,
        x: ValueId,
        pads: &[(i64, i64)],
        fill: u8,
    ) -> Result<ValueId, OpError> {
        let plain = pads.iter().all(|p| *p == (0, 0));
        let one_pixel = has_one_pixel(&self.facts.shape(x)?);
        if plain && (self.facts.channels.contains_key(&x) || one_pixel) {
            return Ok(x);
        }
        let key = (x, pads.to_vec(), fill);
        if let Some(&copy) = self.copies.get(&key)
            && self.is_declared(copy)
        {
            return Ok(copy);
        }
        let (elem, shape) = (self.facts.elem(x)?, self.facts.shape(x)?);
        let mut padded = shape.clone();
        for (d, (before, after)) in padded[2..].iter_mut().zip(pads) {
            *d = d.clone() + Dim::from(before + after);
        }
        let copy = self.temporary(elem, padded.clone());
        let pitch = shape[1]
            .as_const()
            .ok_or_else(|| OpError::new("the number of channels is not known"))?;
        self.facts.channels.insert(
            copy,
            Channels {
                root: copy,
                pitch,
                first: 0,
            },
        );
        self.kernel("channels_last", copy, |b| {
            // The order of the source: its elements are then consecutive, and the copy's rows stay in cache.
            let vars = b.body.loop_vars(&padded);
            let at: Vec<Dim> = vars.iter().map(|v| v.dim()).collect();
            let mut inside = b.body.bool(true);
            let mut from = at.clone();
            for (i, (before, _)) in pads.iter().enumerate() {
                from[2 + i] = &at[2 + i] - &Dim::from(*before);
                if pads[i] != (0, 0) {
                    let here = b.body.index_within(&from[2 + i], &shape[2 + i]);
                    inside = b.body.binary(Binary::And, inside, here);
                }
            }
            let value = b.value(x, &Pos::At(from))?;
            let fill = b.body.int(elem, i64::from(fill));
            let value = b.body.where_inside(inside, value, fill);
            let offset = b.facts.offset(&b.body, copy, &padded, &Pos::At(at));
            let vars = [0]
                .into_iter()
                .chain(2..padded.len())
                .chain([1])
                .map(|i| vars[i])
                .collect();
            Ok(Spec {
                vars,
                offset,
                mask: None,
                value,
                serial: vec![],
            })
        })?;
        self.mark_local(copy);
        self.copies.insert(key, copy);
        Ok(copy)
    }

    /// Where the channels of a value's pixels are.
    pub(super) fn pixels(&self, v: ValueId, channels: i64) -> Pixels {
        self.facts
            .channels
            .get(&v)
            .map_or(Pixels::dense(channels), |c| Pixels {
                pitch: c.pitch,
                first: c.first,
            })
    }

    /// What to write a result to: itself, or a channels-last value to be copied by [`Lowerer::finish_result`].
    pub(super) fn channels_last_result(&mut self, out: ValueId) -> Result<ValueId, OpError> {
        let shape = self.facts.shape(out)?;
        if self.facts.channels.contains_key(&out) || has_one_pixel(&shape) {
            return Ok(out);
        }
        let y = self.temporary(self.facts.elem(out)?, shape.clone());
        let pitch = shape[1]
            .as_const()
            .ok_or_else(|| OpError::new("the number of channels is not known"))?;
        self.facts.channels.insert(
            y,
            Channels {
                root: y,
                pitch,
                first: 0,
            },
        );
        Ok(y)
    }

    /// Copies what was written where [`Lowerer::channels_last_result`] said to the result, if it is not there.
    pub(super) fn finish_result(&mut self, y: ValueId, out: ValueId) -> Result<(), OpError> {
        if y == out {
            Ok(())
        } else {
            self.row_major(y, out)
        }
    }

    /// Copies a channels-last value to one in row-major order.
    fn row_major(&mut self, from: ValueId, to: ValueId) -> Result<(), OpError> {
        let (elem, shape) = (self.facts.elem(to)?, self.facts.shape(to)?);
        self.kernel("row_major", to, |b| {
            let vars = b.body.loop_vars(&shape);
            let pos = Pos::At(vars.iter().map(|v| v.dim()).collect());
            let at = b.facts.offset(&b.body, from, &shape, &pos);
            let value = b.stored(from, elem, at);
            Ok(Spec {
                vars,
                offset: pos.linear(&shape),
                mask: None,
                value,
                serial: vec![],
            })
        })
    }
}
