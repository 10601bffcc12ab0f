//! SQL over an in-memory double of the store's backend.

mod double;
mod statements;
