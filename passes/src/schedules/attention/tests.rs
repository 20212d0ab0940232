use super::*;
use crate::schedules::testing::{close, numbers, run};

fn check(a: &Attention, [batch, queries, keys]: [usize; 3]) {
    let (h, hk) = (a.heads as usize, a.kv_heads as usize);
    let (d, dv) = (a.size as usize, a.value_size as usize);
    let q = numbers(batch * h * queries * d, 1);
    let k = numbers(batch * hk * keys * d, 2);
    let v = numbers(batch * hk * keys * dv, 3);
    let of = |m: bool, n: usize| if m { n } else { 1 };
    let mask_len = a.mask.map_or(0, |m| {
        of(m.batch, batch) * of(m.heads, h) * of(m.rows, queries) * keys
    });
    let mask: Vec<f32> = numbers(mask_len, 4)
        .iter()
        .map(|&x| if x > 0.6 { f32::NEG_INFINITY } else { x })
        .collect();
    let index = |heads: usize, n: usize, size: usize, [b, h, i, j]: [usize; 4]| match a.layout {
        Heads::Apart => ((b * heads + h) * n + i) * size + j,
        Heads::Packed => ((b * n + i) * heads + h) * size + j,
    };
    let sizes = |all: &[(Num, usize)]| -> Vec<i64> {
        all.iter()
            .filter(|(num, _)| *num == Num::Sym)
            .map(|&(_, v)| v as i64)
            .collect()
    };
    let packing = sizes(&[(a.batch, batch), (a.keys, keys)]);
    let width = |n: usize| n.div_ceil(32) * 32;
    let kp = run(
        &a.pack(Packed::Keys),
        &[&k],
        batch * hk * width(keys) * d,
        &packing,
    );
    let vp = run(
        &a.pack(Packed::Values),
        &[&v],
        batch * hk * keys * width(dv),
        &packing,
    );
    let mut inputs: Vec<&[f32]> = vec![&q, &kp, &vp];
    if a.mask.is_some() {
        inputs.push(&mask);
    }
    let all = sizes(&[(a.batch, batch), (a.queries, queries), (a.keys, keys)]);
    let got = run(
        &a.kernel("attention"),
        &inputs,
        batch * h * queries * dv,
        &all,
    );
    let mut want = vec![0.0; got.len()];
    for b in 0..batch {
        for head in 0..h {
            for i in 0..queries {
                let own = head / (h / hk);
                let scores: Vec<f64> = (0..keys)
                    .map(|t| {
                        let dot: f32 = (0..d)
                            .map(|j| {
                                q[index(h, queries, d, [b, head, i, j])]
                                    * k[index(hk, keys, d, [b, own, t, j])]
                            })
                            .sum();
                        let bias = a.mask.map_or(0.0, |m| {
                            let at = |m: bool, i: usize| if m { i } else { 0 };
                            mask[((at(m.batch, b) * of(m.heads, h) + at(m.heads, head))
                                * of(m.rows, queries)
                                + at(m.rows, i))
                                * keys
                                + t]
                        });
                        let seen = (!a.causal || t <= i)
                            && a.left.is_none_or(|l| t as i64 >= i as i64 - l);
                        let score = match a.softcap {
                            Some(cap) => cap * (dot * a.scale / cap).tanh(),
                            None => dot * a.scale,
                        };
                        if seen {
                            f64::from(score + bias)
                        } else {
                            f64::NEG_INFINITY
                        }
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let e: Vec<f64> = scores
                    .iter()
                    .map(|s| {
                        if top == f64::NEG_INFINITY {
                            0.0
                        } else {
                            (s - top).exp()
                        }
                    })
                    .collect();
                let sum: f64 = e.iter().sum();
                for j in 0..dv {
                    let y: f64 = (0..keys)
                        .map(|t| e[t] * f64::from(v[index(hk, keys, dv, [b, own, t, j])]))
                        .sum();
                    want[index(h, queries, dv, [b, head, i, j])] =
                        if sum == 0.0 { 0.0 } else { (y / sum) as f32 };
                }
            }
        }
    }
    close(&got, &want);
}

#[test]
fn attention_matches_the_definition() {
    let c = Num::Const;
    let base = Attention {
        batch: c(2),
        heads: 2,
        kv_heads: 2,
        queries: c(17),
        keys: c(32),
        size: 8,
        value_size: 8,
        layout: Heads::Packed,
        scale: 0.4,
        mask: None,
        causal: false,
        left: None,
        softcap: None,
        stored: Stored::Packed,
        counted: false,
    };
    let mask = Mask {
        batch: true,
        heads: false,
        rows: false,
        condition: false,
    };
    check(&base, [2, 17, 32]);
    let shortest = Attention {
        queries: c(4),
        keys: c(4),
        ..base.clone()
    };
    check(&shortest, [2, 4, 4]);
    check(
        &Attention {
            causal: true,
            ..shortest
        },
        [2, 4, 4],
    );
    let long = Attention {
        keys: c(100),
        ..base.clone()
    };
    check(&long, [2, 17, 100]);
    check(
        &Attention {
            mask: Some(mask),
            ..base.clone()
        },
        [2, 17, 32],
    );
    check(
        &Attention {
            causal: true,
            queries: c(20),
            keys: c(20),
            ..base.clone()
        },
        [2, 20, 20],
    );
    let grouped = Attention {
        heads: 4,
        layout: Heads::Apart,
        keys: c(5),
        value_size: 40,
        ..base.clone()
    };
    let full = Mask {
        batch: false,
        heads: true,
        rows: true,
        ..mask
    };
    check(
        &Attention {
            mask: Some(full),
            ..grouped
        },
        [2, 17, 5],
    );
    let unknown = Attention {
        batch: Num::Sym,
        queries: Num::Sym,
        keys: Num::Sym,
        ..base
    };
    check(&unknown, [1, 3, 1]);
    check(&unknown, [1, 15, 530]);
    for left in [None, Some(0), Some(40), Some(600)] {
        let causal = Attention {
            causal: true,
            left,
            softcap: left.map(|_| 0.5),
            ..unknown.clone()
        };
        check(&causal, [1, 521, 521]);
    }
}
