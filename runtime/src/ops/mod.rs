//! The library operations: what compiled programs call instead of generating code.
//!
//! An operation takes whole values and gives whole values; it is named, and means, as the graph op of that
//! name (ONNX, newest version). Here are those whose shape depends on data, those on strings, sequences
//! and optionals, random generators, and the rare ones that are not worth a kernel. They are written
//! for clarity: the hot path is compiled.

use crate::error::RunError;
use crate::value::Value;

pub mod call;
mod cast;
mod encode;
mod fill;
mod grams;
mod matrix;
pub mod moves;
pub mod number;
mod pad;
mod parts;
mod random;
mod resize;
mod search;
mod sequence;
mod shape;
mod strings;
mod trees;

pub use call::Call;

/// An operation.
pub type Function = fn(&Call) -> Result<Vec<Value>, RunError>;

/// Every operation, by name.
pub const TABLE: &[(&str, Function)] = &[
    ("identity", shape::identity),
    ("shape", shape::shape),
    ("size", shape::size),
    ("reshape", shape::reshape),
    ("squeeze", shape::squeeze),
    ("unsqueeze", shape::unsqueeze),
    ("flatten", shape::flatten),
    ("transpose", shape::transpose),
    ("expand", shape::expand),
    ("tile", shape::tile),
    ("gather", parts::gather),
    ("gather_elements", parts::gather_elements),
    ("gather_nd", parts::gather_nd),
    ("slice", parts::slice),
    ("concat", parts::concat),
    ("split", parts::split),
    ("pad", pad::pad),
    ("compress", parts::compress),
    ("rans_decode", encode::rans_decode),
    ("one_hot", parts::one_hot),
    ("where", parts::where_),
    ("reverse_sequence", parts::reverse_sequence),
    ("array_feature_extractor", parts::array_feature_extractor),
    ("non_zero", parts::non_zero),
    ("range", fill::range),
    ("constant_of_shape", fill::constant_of_shape),
    ("cast", cast::cast),
    ("cast_like", cast::cast_like),
    ("resize", resize::resize),
    ("det", matrix::det),
    ("label_encoder", encode::label_encoder),
    ("tree_ensemble", trees::tree_ensemble),
    ("equal", search::equal),
    ("top_k", search::top_k),
    ("unique", search::unique),
    ("non_max_suppression", search::non_max_suppression),
    ("sequence_construct", sequence::sequence_construct),
    ("sequence_empty", sequence::sequence_empty),
    ("sequence_at", sequence::sequence_at),
    ("sequence_insert", sequence::sequence_insert),
    ("sequence_erase", sequence::sequence_erase),
    ("sequence_length", sequence::sequence_length),
    ("split_to_sequence", sequence::split_to_sequence),
    ("concat_from_sequence", sequence::concat_from_sequence),
    ("optional", sequence::optional),
    ("optional_get_element", sequence::optional_get_element),
    ("optional_has_element", sequence::optional_has_element),
    ("string_concat", strings::string_concat),
    ("string_split", strings::string_split),
    ("string_normalizer", strings::string_normalizer),
    ("regex_full_match", strings::regex_full_match),
    ("tf_idf_vectorizer", grams::tf_idf_vectorizer),
    ("random_normal", random::normal),
    ("random_normal_like", random::normal),
    ("random_uniform", random::uniform),
    ("random_uniform_like", random::uniform),
    ("bernoulli", random::bernoulli),
    ("multinomial", random::multinomial),
    ("dropout", random::dropout),
];

/// The operation of this name.
pub fn find(name: &str) -> Option<Function> {
    TABLE.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
}
