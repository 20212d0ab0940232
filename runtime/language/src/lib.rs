//! What turns a compiled language model into a program that writes text, or gives embeddings of texts.
//!
//! A model that was compiled step by step takes tokens and keeps their keys and values ([`session`]). Around it: its
//! tokenizer ([`vocabulary`]), the choice of the next token ([`sampling`]), the loop of the two for several texts at a time
//! ([`engine`], [`writing`]), what is asked of it ([`generate`]), templates of conversations ([`chat`]), caches within a budget
//! ([`evict`]), what the model's files say of all these ([`settings`]), and the command line of an executable ([`options`], [`cli`]).
//! Of an encoder there is less: texts go in, vectors come out ([`embed`]); [`Program`] is either. Models of no language carry none of
//! it: this crate has a stub of its own.

mod batch;
pub mod chat;
pub mod cli;
pub mod embed;
mod embed_command;
pub mod engine;
mod error;
pub mod evict;
pub mod generate;
pub mod options;
pub mod program;
mod prompt_cache;
pub mod sampling;
pub mod session;
pub mod settings;
mod speculate;
mod text;
pub mod vocabulary;
pub mod writing;

pub use embed::Embedder;
pub use error::Error;
pub use generate::Generator;
pub use program::Program;
pub use session::Session;
pub use speculate::Draft;
