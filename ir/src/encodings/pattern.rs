//! Patterns: where the values of `sparse` and `patch` belong.
//!
//! ```text
//! bitmap   where: 1 bit for each block of the result          values [count, block..]
//! rows     where: first entry of each row, and their count    values [count] or [count, 1, block]
//!          columns: column (of blocks) of each entry
//! nm       where: places in their groups [.., groups, n]      values [.., groups, n]; `m` is a group's length
//! ```
//! A bitmap's grid divides the result evenly: with one bit per element it is unstructured, with one per row it keeps
//! whole rows, with `[r, c / 16]` it keeps 1x16 blocks. Values lie in row-major order of their blocks; where a block is
//! one element they are a list. `rows` is compressed sparse rows of a matrix. `nm` groups lie along the last axis.

use super::sampling::Sampler;
use super::{DecodeError, Encoding, dense};
use crate::builder::Builder;
use crate::ops::OpError;
use crate::ops::compose::Len;
use crate::tensor::{count, strides};
use crate::{Attr, ElemType, Tensor, ValueId};

/// A pattern of a term whose children from `first` on are `values`, `where` and perhaps `columns`.
pub struct Pattern<'e> {
    e: &'e Encoding,
    first: usize,
    kind: Kind,
}

enum Kind {
    /// Blocks of this shape, on a grid of this shape.
    Bitmap { grid: Vec<usize>, block: Vec<usize> },
    /// Rows of blocks `[1, width]`; so many blocks a row.
    Rows { columns: usize, width: usize },
    /// Groups of `m`.
    Nm { m: usize },
}

impl<'e> Pattern<'e> {
    /// The pattern of a term.
    pub fn of(e: &'e Encoding, first: usize) -> Result<Pattern<'e>, DecodeError> {
        let kind = e.str_param("pattern").unwrap_or_default();
        let (values, places) = (&e.children[first], &e.children[first + 1]);
        if !places.elem.is_int() || values.elem != e.elem || !(e.elem.is_float() || e.elem.is_int())
        {
            return Err(e.error("places must be integers, values numbers of the result's type"));
        }
        if e.children.len() != first + 2 + usize::from(kind == "rows") {
            return Err(e.error("`columns` belong to the pattern `rows`, and only to it"));
        }
        let kind = match kind {
            "bitmap" => bitmap(e, &places.shape, &values.shape)?,
            "rows" => rows(e, first)?,
            "nm" => {
                let m = e.size_param("m")?;
                let mut groups = e.shape.clone();
                let last = groups.last_mut().filter(|n| n.is_multiple_of(m));
                *last.ok_or_else(|| e.error("`m` must divide the last axis"))? /= m;
                let fits = places
                    .shape
                    .split_last()
                    .is_some_and(|(&n, front)| front == groups && n <= m);
                if !fits || places.shape != values.shape {
                    return Err(
                        e.error("needs a place for each value, by groups along the last axis")
                    );
                }
                Kind::Nm { m }
            }
            other => {
                return Err(e.error(format!("there is no pattern `{other}`: bitmap, rows or nm")));
            }
        };
        Ok(Pattern { e, first, kind })
    }

    /// Where each value belongs, in row-major order of the result. Checks what the places are.
    pub fn targets(&self) -> Result<Vec<usize>, DecodeError> {
        let e = self.e;
        let places = e.codes(self.first + 1)?;
        let blocks = |block: &[usize], corners: Vec<usize>| {
            let (stride, inner) = (strides(&e.shape), strides(block));
            let offsets = (0..count(block)).map(|i| {
                let along = |a: usize| i / inner[a] % block[a].max(1) * stride[a];
                (0..block.len()).map(along).sum::<usize>()
            });
            let offsets: Vec<usize> = offsets.collect();
            corners
                .iter()
                .flat_map(|c| offsets.iter().map(move |o| c + o))
                .collect::<Vec<_>>()
        };
        match &self.kind {
            Kind::Bitmap { grid, block } => {
                let (on, stride) = (strides(grid), strides(&e.shape));
                let corner = |i: usize| {
                    (0..grid.len())
                        .map(|a| i / on[a] % grid[a].max(1) * block[a] * stride[a])
                        .sum()
                };
                let corners: Vec<usize> = (0..places.len())
                    .filter(|&i| places[i] != 0)
                    .map(corner)
                    .collect();
                if corners.len() != self.entries() {
                    return Err(e.error(format!(
                        "{} blocks are marked, {} are there",
                        corners.len(),
                        self.entries()
                    )));
                }
                Ok(blocks(block, corners))
            }
            Kind::Rows { columns, width } => {
                let at = e.codes(self.first + 2)?;
                let legal = |i: i64| usize::try_from(i).ok().filter(|&i| i <= at.len());
                let offsets: Option<Vec<usize>> = places.iter().map(|&i| legal(i)).collect();
                let offsets =
                    offsets.filter(|o| o[0] == 0 && o[o.len() - 1] == at.len() && o.is_sorted());
                let offsets =
                    offsets.ok_or_else(|| e.error("rows must begin one after the other"))?;
                let mut corners = Vec::with_capacity(at.len());
                for (row, w) in offsets.windows(2).enumerate() {
                    let mut least = 0;
                    for &column in &at[w[0]..w[1]] {
                        let column = usize::try_from(column)
                            .ok()
                            .filter(|&c| c >= least && c < *columns);
                        let column = column
                            .ok_or_else(|| e.error("columns of a row must grow, inside the row"))?;
                        least = column + 1;
                        corners.push((row * columns + column) * width);
                    }
                }
                Ok(blocks(&[1, *width], corners))
            }
            Kind::Nm { m } => {
                let n = e.children[self.first]
                    .shape
                    .last()
                    .copied()
                    .unwrap_or(1)
                    .max(1);
                let mut out = Vec::with_capacity(places.len());
                for (group, places) in places.chunks(n).enumerate() {
                    let legal = places.iter().all(|&p| p >= 0 && p < *m as i64)
                        && places.windows(2).all(|w| w[0] < w[1]);
                    if !legal {
                        return Err(e.error(format!("places in a group must grow, below {m}")));
                    }
                    out.extend(places.iter().map(|&p| group * m + p as usize));
                }
                Ok(out)
            }
        }
    }

    /// Values, or blocks of them.
    fn entries(&self) -> usize {
        self.e.children[self.first]
            .shape
            .first()
            .copied()
            .unwrap_or(0)
    }

    /// The term's values put over `base` (zeros without one), as ops.
    pub fn place(&self, b: &mut Builder, base: Option<ValueId>) -> Result<ValueId, OpError> {
        let e = self.e;
        let lens = |shape: &[usize]| shape.iter().map(|&n| Len::N(n as i64)).collect::<Vec<_>>();
        let base = match base {
            Some(v) => v,
            None => b.filled(e.elem, 0.0, &lens(&e.shape))?,
        };
        if e.is_empty() || e.children[self.first].is_empty() {
            return Ok(base);
        }
        let (values, places) = (e.child(b, self.first), e.child(b, self.first + 1));
        match &self.kind {
            Kind::Bitmap { grid, block } => {
                let rank = grid.len();
                // [g0, b0, g1, b1, ..]: blocks in their places, from one block after the other.
                let apart: Vec<usize> =
                    grid.iter().zip(block).flat_map(|(&g, &n)| [g, n]).collect();
                let set = b.cast(places, ElemType::Bool)?;
                let ones = b.cast(set, ElemType::I32)?;
                let flat = b.reshape(ones, &[Len::N(count(grid) as i64)])?;
                let (axis, one) = (b.constant(&Tensor::int(0)), b.scalar(ElemType::I32, 1.0));
                let before = b.op("cumsum", &[flat, axis])?;
                let before = b.op("sub", &[before, one])?;
                let zero = b.scalar(ElemType::I32, 0.0);
                // Blocks that are not there read the first one, which is then not taken.
                let before = b.op("max", &[before, zero])?;
                let all = b.op("gather", &[values, before])?;
                let all = b.reshape(all, &lens(&[&grid[..], &block[..]].concat()))?;
                let order: Vec<usize> = (0..rank).flat_map(|a| [a, rank + a]).collect();
                let all = b.transpose(all, &order)?;
                let set = b.unsqueeze(
                    set,
                    &(0..rank as i64).map(|a| 2 * a + 1).collect::<Vec<_>>(),
                )?;
                let base = b.reshape(base, &lens(&apart))?;
                let y = b.op("where", &[set, all, base])?;
                b.reshape(y, &lens(&e.shape))
            }
            Kind::Rows { columns, width } => {
                let n = self.entries() as i64;
                let rows = e.shape[0] as i64;
                let places = b.cast(places, ElemType::I64)?;
                // An entry's row: how many rows, not counting the first, begin at it or before it.
                let starts = b.slice(places, 0, 1, rows)?;
                let counts = b.filled(ElemType::I32, 0.0, &[Len::N(n + 1)])?;
                let ones = b.filled(ElemType::I32, 1.0, &[Len::N(rows - 1)])?;
                let counts = b.op_with(
                    "scatter_elements",
                    &[counts, starts, ones],
                    [("reduction", "add".into())],
                )?;
                let axis = b.constant(&Tensor::int(0));
                let row = b.op("cumsum", &[counts, axis])?;
                let row = b.slice(row, 0, 0, n)?;
                let row = b.cast(row, ElemType::I64)?;
                let long = b.scalar(ElemType::I64, *columns as f64);
                let begin = b.op("mul", &[row, long])?;
                let column = e.child(b, self.first + 2);
                let column = b.cast(column, ElemType::I64)?;
                let at = b.op("add", &[begin, column])?;
                let at = b.unsqueeze(at, &[1])?;
                let blocks = [Len::N(rows * *columns as i64), Len::N(*width as i64)];
                let base = b.reshape(base, &blocks)?;
                let values = b.reshape(values, &[Len::N(n), Len::N(*width as i64)])?;
                let y = b.op("scatter_nd", &[base, at, values])?;
                b.reshape(y, &lens(&e.shape))
            }
            Kind::Nm { m } => {
                let mut groups = e.children[self.first].shape.clone();
                if let Some(last) = groups.last_mut() {
                    *last = *m;
                }
                let base = b.reshape(base, &lens(&groups))?;
                let places = b.cast(places, ElemType::I64)?;
                let y = b.op_with(
                    "scatter_elements",
                    &[base, places, values],
                    [("axis", (-1i64).into())],
                )?;
                b.reshape(y, &lens(&e.shape))
            }
        }
    }
}

fn bitmap(e: &Encoding, grid: &[usize], values: &[usize]) -> Result<Kind, DecodeError> {
    let divides = |(&g, &n): (&usize, &usize)| g == n || g > 0 && n.is_multiple_of(g);
    if grid.len() != e.shape.len() || !grid.iter().zip(&e.shape).all(divides) {
        return Err(e.error(format!(
            "a grid of shape {grid:?} does not divide {:?} evenly",
            e.shape
        )));
    }
    let block: Vec<usize> = grid
        .iter()
        .zip(&e.shape)
        .map(|(&g, &n)| if g == n { 1 } else { n / g })
        .collect();
    let single = block.iter().all(|&n| n == 1);
    match values {
        [_] if single => {}
        [_, rest @ ..] if rest == block => {}
        _ => {
            return Err(e.error(format!(
                "values of shape {values:?} are no list of blocks {block:?}"
            )));
        }
    }
    Ok(Kind::Bitmap {
        grid: grid.to_vec(),
        block,
    })
}

fn rows(e: &Encoding, first: usize) -> Result<Kind, DecodeError> {
    let (values, places, columns) = (
        &e.children[first],
        &e.children[first + 1],
        &e.children[first + 2],
    );
    let &[r, c] = &e.shape[..] else {
        return Err(e.error("`rows` are those of a matrix"));
    };
    let width = match values.shape[..] {
        [_] => 1,
        [_, 1, w] if w > 0 => w,
        _ => return Err(e.error("values are a list, or a list of blocks [1, n]")),
    };
    let fits =
        columns.elem.is_int() && columns.shape == [values.shape[0]] && places.shape == [r + 1];
    if !fits || !c.is_multiple_of(width) {
        return Err(e.error("needs a column for each entry, and where each row begins"));
    }
    Ok(Kind::Rows {
        columns: c / width,
        width,
    })
}

/// Random values and places for a result of this shape: the parameters, and the children in order.
pub fn sample(
    s: &mut Sampler,
    elem: ElemType,
    shape: &[usize],
) -> Option<(Vec<(&'static str, Attr)>, Vec<Encoding>)> {
    let (&last, front) = shape.split_last()?;
    if count(shape) == 0 {
        return None;
    }
    let list = |s: &mut Sampler, n: usize| {
        (0..n)
            .filter(|_| s.below(3) == 0)
            .map(|i| i as i64)
            .collect::<Vec<_>>()
    };
    let ints = |values: &[i64]| dense::from_tensor(&Tensor::ints(values));
    match s.below(3) {
        0 => {
            let block: Vec<usize> = shape.iter().map(|&n| s.divisor(n)).collect();
            let grid: Vec<usize> = shape.iter().zip(&block).map(|(n, b)| n / b).collect();
            let marks: Vec<i128> = (0..count(&grid))
                .map(|_| (s.below(3) == 0).into())
                .collect();
            let entries = marks.iter().filter(|&&m| m != 0).count();
            let single = block.iter().all(|&n| n == 1);
            let values = if single {
                vec![entries]
            } else {
                [&[entries], &block[..]].concat()
            };
            let values = s.term(elem, &values);
            let bits = super::int::pack(marks.into_iter().map(|m| m as u8), 1);
            let marks = super::int::int(ElemType::U8, 1, grid, bits.into());
            Some((vec![("pattern", "bitmap".into())], vec![values, marks]))
        }
        1 if shape.len() == 2 => {
            let width = s.divisor(last);
            let (mut starts, mut columns) = (vec![0i64], vec![]);
            for _ in 0..shape[0] {
                columns.extend(list(s, last / width));
                starts.push(columns.len() as i64);
            }
            let values = if width == 1 {
                vec![columns.len()]
            } else {
                vec![columns.len(), 1, width]
            };
            let values = s.term(elem, &values);
            Some((
                vec![("pattern", "rows".into())],
                vec![values, ints(&starts), ints(&columns)],
            ))
        }
        _ => {
            let m = s.divisor(last);
            let n = s.below(m) + 1;
            let groups = [front, &[last / m, n]].concat();
            let places = (0..count(&groups) / n).flat_map(|_| {
                let mut free: Vec<i128> = (0..m as i128).collect();
                while free.len() > n {
                    free.remove(s.below(free.len()));
                }
                free
            });
            let places = Tensor::from_int(ElemType::U8, groups.clone(), places.collect());
            let values = s.term(elem, &groups);
            let params = vec![("pattern", "nm".into()), ("m", Attr::Int(m as i64))];
            Some((params, vec![values, dense::from_tensor(&places)]))
        }
    }
}
