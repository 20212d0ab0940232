//! Mixtures of experts: a router's choice for each token, and the weighted sum of what the chosen give.

use super::net::{Built, Net};
use lapidary_ir::ops::compose::Len;
use lapidary_ir::{ElemType, ValueId};

/// A layer of experts.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many each token chooses.
    pub chosen: usize,
    /// The weights of the chosen sum to one.
    pub renormalized: bool,
}

impl Experts {
    /// The weighted sum of `expert(x, e)` for `x` f32[batch,seq,hidden]; `router.weight` scores the experts. Every expert
    /// is computed for every token, and has weight zero where it is not chosen.
    pub fn build(
        &self,
        net: &mut Net,
        x: ValueId,
        hidden: usize,
        router: &str,
        expert: impl Fn(&mut Net, ValueId, usize) -> Built,
    ) -> Built {
        let scores = net.linear(x, router, hidden, self.count, false)?;
        let weights = self.weights(net, scores)?;
        let mut sum = None;
        for e in 0..self.count {
            let y = expert(net, x, e)?;
            let mut b = net.b();
            let weight = b.slice(weights, -1, e as i64, e as i64 + 1)?;
            let y = b.op("mul", &[y, weight])?;
            sum = Some(match sum {
                Some(sum) => b.op("add", &[sum, y])?,
                None => y,
            });
        }
        Ok(sum.unwrap_or(x))
    }

    /// The weight of each expert for each token, f32[batch,seq,count].
    fn weights(&self, net: &mut Net, scores: ValueId) -> Built {
        if self.chosen > self.count {
            let reason = format!("is {}, of only {} experts", self.chosen, self.count);
            return Err(net.config.problem("num_experts_per_tok", reason).into());
        }
        let mut b = net.b();
        let p = b.op_with("softmax", &[scores], [("axis", (-1i64).into())])?;
        let k = b.ints(&[self.chosen as i64]);
        let top = b.multi("top_k", &[Some(p), Some(k)], &[], 2)?;
        let mut values = top[0];
        if self.renormalized {
            let sum = b.reduce("reduce_sum", values, &[-1], true)?;
            values = b.op("div", &[values, sum])?;
        }
        let lens = [
            Len::Of(scores, 0),
            Len::Of(scores, 1),
            Len::N(self.count as i64),
        ];
        let none = b.filled(ElemType::F32, 0.0, &lens)?;
        Ok(b.op_with(
            "scatter_elements",
            &[none, top[1], values],
            [("axis", (-1i64).into())],
        )?)
    }
}
