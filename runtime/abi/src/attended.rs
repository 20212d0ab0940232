//! What a program whose caches may lose tokens keeps beside each layer's keys and values: how much attention every cached token
//! got, and what is added to its scores.
//!
//! ```text
//! f32 [batch][kv head][TOTAL, LOCAL, QUERIES, BIAS][capacity]
//! ```
//! A program writes the first three rows and reads the last one, which is whoever's who takes tokens away. Behind the tokens
//! of a sequence all rows are zero.

/// The end of the state's name.
pub const SUFFIX: &str = ".attended";

/// The input that counts the tokens which a sequence has had, `i64[batch]`: its caches hold fewer.
pub const POSITION: &str = "position";

/// Rows of a head.
pub const ROWS: usize = 4;

/// Probabilities of attention, added up over all queries so far, those of all heads that share the keys.
pub const TOTAL: usize = 0;

/// The same, where each query counts [`DECAY`] times as much as the next one.
pub const LOCAL: usize = 1;

/// Queries that could see the token.
pub const QUERIES: usize = 2;

/// Added to the scores of the token: the logarithm of how many it stands for.
pub const BIAS: usize = 3;

/// A window of about 32 queries, without an edge: so no probabilities are kept to be taken away again.
pub const DECAY: f32 = 1.0 - 1.0 / 32.0;
