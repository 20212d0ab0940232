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
    /// The weighted sum of `expert(x, e)` for `x` `f32[batch,seq,hidden]`; `router.weight` scores the experts. An expert gets
    /// the tokens that chose it and no other, `f32[chosen,hidden]`.
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
        let mut b = net.b();
        let tokens = b.reshape(x, &[Len::N(-1), Len::N(hidden as i64)])?;
        let weights = b.reshape(weights, &[Len::N(-1), Len::N(self.count as i64)])?;
        let mut sum = b.filled(
            ElemType::F32,
            0.0,
            &[Len::Of(tokens, 0), Len::N(hidden as i64)],
        )?;
        for e in 0..self.count {
            let mut b = net.b();
            let weight = b.slice(weights, 1, e as i64, e as i64 + 1)?;
            let weight = b.squeeze(weight, &[1])?;
            let zero = b.lit(weight, 0.0)?;
            let chosen = b.op("greater", &[weight, zero])?;
            let places = b.op("non_zero", &[chosen])?;
            let places = b.transpose(places, &[1, 0])?;
            let rows = b.squeeze(places, &[1])?;
            let mut at = |of| b.op_with("gather", &[of, rows], [("axis", 0i64.into())]);
            let (own, weight) = (at(tokens)?, at(weight)?);
            let y = expert(net, own, e)?;
            let mut b = net.b();
            let weight = b.unsqueeze(weight, &[1])?;
            let y = b.op("mul", &[y, weight])?;
            let add = [("reduction", "add".into())];
            sum = b.op_with("scatter_nd", &[sum, places, y], add)?;
        }
        let lens = [Len::Of(x, 0), Len::Of(x, 1), Len::N(hidden as i64)];
        Ok(net.b().reshape(sum, &lens)?)
    }

    /// The weight of each expert for each token, `f32[batch,seq,count]`.
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
