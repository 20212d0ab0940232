//! Sums over tiles: reductions along an axis, products of tiles, and products that a loop accumulates.

use crate::folding::Product;
use crate::kernel::{Fun, is_view};
use crate::types::{is_float, value};
use lapidary_ir::backend::Error;
use lapidary_ir::kernel::{Binary, Op, ReduceKind, Stmt, Var};

impl<'k> Fun<'k> {
    pub fn reduce(
        &mut self,
        kind: ReduceKind,
        x: Var,
        axis: u32,
        result: Var,
    ) -> Result<(), Error> {
        let f = match kind {
            ReduceKind::Sum => Binary::Add,
            ReduceKind::Prod => Binary::Mul,
            ReduceKind::Max => Binary::Max,
            ReduceKind::Min => Binary::Min,
            ReduceKind::And => Binary::And,
            ReduceKind::Or => Binary::Or,
        };
        let ty = self.kernel.ty(result).clone();
        let n = self.kernel.ty(x).shape[axis as usize];
        let name = self.name(result);
        self.declare(&name, &ty);
        self.elements(&ty.shape, &mut |fun, place| {
            let with = |k: &str| {
                let mut all = place.to_vec();
                all.insert(axis as usize, k.to_owned());
                all
            };
            let to = fun.at(result, place);
            let first = fun.at(x, &with("0"));
            fun.line(&format!("{to} = {first};"));
            fun.open(&format!("for (int k = 1; k < {n}; ++k)"));
            fun.pragma("UNROLL");
            let copies = fun.copies * f64::from(n - 1);
            fun.cost.charge(&Op::Binary(f, x, x), ty.elem, copies);
            let sum = fun.binary(f, ty.elem, &to, &fun.at(x, &with("k")))?;
            fun.line(&format!("{to} = {sum};"));
            fun.close();
            Ok(())
        })
    }

    pub fn dot(&mut self, [acc, a, b]: [Var; 3], result: Var) -> Result<(), Error> {
        let ty = self.kernel.ty(result).clone();
        let k = self.kernel.ty(a).shape[1];
        let c = value(ty.elem);
        let float = is_float(ty.elem);
        self.declare(&self.name(result), &ty);
        self.elements(&ty.shape, &mut |fun, place| {
            let [i, j] = [&place[0], &place[1]].map(|s| s.to_owned());
            let first = fun.at(acc, place);
            fun.line(&format!("{c} sum = {first};"));
            fun.open(&format!("for (int k = 0; k < {k}; ++k)"));
            fun.pragma("UNROLL");
            let copies = fun.copies * f64::from(k);
            fun.cost.charge(&Op::MulAdd(acc, acc, acc), ty.elem, copies);
            let (a, b) = (
                fun.at(a, &[i, "k".to_owned()]),
                fun.at(b, &["k".to_owned(), j]),
            );
            fun.line(&match float {
                true => format!("sum = sum + {a} * {b};"),
                false => format!("sum = lp::add<{c}>(sum, lp::mul<{c}>({a}, {b}));"),
            });
            fun.close();
            let to = fun.at(result, place);
            fun.line(&format!("{to} = sum;"));
            Ok(())
        })
    }

    /// The body of a loop that is a product: rows and groups of columns in turn, one group in each cycle. What the loop
    /// loads is written where it is read, so that the three loops nest perfectly and are one pipeline.
    pub fn product(
        &mut self,
        product: &Product,
        body: &'k [Stmt],
        entered: f64,
    ) -> Result<(), Error> {
        let (rows, columns, inner) = (product.rows, product.columns, product.inner);
        let pe = self.folding.columns(columns);
        self.open(&format!("for (int i = 0; i < {rows}; ++i)"));
        self.open(&format!(
            "for (int first = 0; first < {columns}; first += {pe})"
        ));
        self.times *= f64::from(rows * (columns / pe));
        self.pipeline(entered);
        self.cost.charge_product(product, pe);
        for stmt in body {
            let Some(&result) = stmt.results.first() else {
                continue;
            };
            match &stmt.op {
                op if is_view(op) => {
                    self.views.insert(result, op);
                }
                Op::Dot { .. } => {}
                _ if self.kernel.ty(result).shape.is_empty() => self.define(stmt, result, &[])?,
                _ => {
                    // Reported here, as elements are written without a way to fail.
                    let rank = self.kernel.ty(result).shape.len();
                    let place: Vec<String> = (0..rank).map(|_| "0".to_owned()).collect();
                    self.value(stmt, result, &place)?;
                    self.inlined.insert(result, stmt);
                    let at_once = if result == product.b {
                        pe * inner
                    } else {
                        inner
                    };
                    let (copies, outside) = (f64::from(at_once), self.copies);
                    self.copies = copies;
                    self.charge(&stmt.op, result);
                    self.copies = outside;
                }
            }
        }
        let pairs = product.is_packed(pe);
        let step = if pairs { 2 } else { 1 };
        let acc = self.name(product.acc);
        let sum = value(product.sum);
        self.open(&format!(
            "for (int j = first; j < first + {pe}; j += {step})"
        ));
        self.pragma("UNROLL");
        for n in 0..step {
            self.line(&format!("{sum} sum_{n} = {acc}[i][{}];", column(n)));
        }
        self.open(&format!("for (int k = 0; k < {inner}; ++k)"));
        self.pragma("UNROLL");
        let a = self.at(product.a, &["i".to_owned(), "k".to_owned()]);
        let b = |fun: &Fun, n| fun.at(product.b, &["k".to_owned(), column(n)]);
        let (first, second) = (b(self, 0), b(self, 1));
        if pairs {
            self.line(&format!(
                "lp::multiply_two({a}, {first}, {second}, sum_0, sum_1);"
            ));
        } else if is_float(product.sum) {
            self.line(&format!("sum_0 = sum_0 + {a} * {first};"));
        } else {
            self.line(&format!(
                "sum_0 = lp::add<{sum}>(sum_0, lp::mul<{sum}>({a}, {first}));"
            ));
        }
        self.close();
        for n in 0..step {
            self.line(&format!("{acc}[i][{}] = sum_{n};", column(n)));
        }
        (0..3).for_each(|_| self.close());
        self.inlined.clear();
        Ok(())
    }
}

/// The n-th column after the one that a loop is at, ready to be multiplied.
fn column(n: u32) -> String {
    match n {
        0 => "j".to_owned(),
        _ => format!("(j + {n})"),
    }
}
