//! SQL over the engine's `store`: catalog, parser, planner, executor, sessions.
//!
//! Runs in tokio tasks (of a runtime with several threads); a [`rustydb::store::Session`] is a client's only way to data.
//! One [`Database`] per node, one [`SqlSession`] per client.

mod access;
pub mod api;
mod casts;
pub mod catalog;
mod context;
pub mod copy;
mod core;
mod cursor;
pub mod database;
mod ddl;
mod decimals;
mod describe;
mod dferror;
mod dml;
pub mod error;
mod execute;
mod expr;
mod fastpath;
mod functions;
pub mod key_codec;
pub mod parse;

mod pgarrays;
mod pgisms;
mod pgtypes;
mod plan;
mod relation_locks;
pub(crate) mod rewrite;
pub mod row_codec;
mod rows;
mod scan;
mod select;
mod sequences;
mod session;
pub mod settings;
pub(crate) mod sqltypes;
#[cfg(test)]
mod tests;
pub mod types;

pub use api::{ColumnDesc, Execution, RowStream, Tag, TransactionStatus};
pub use copy::{CopyIn, CopyOut};
pub use core::Canceler;
pub use database::{Database, Limits};
pub use error::{Severity, SqlError};
pub use parse::ParsedStatement;
pub use session::{Prepared, SqlSession, Startup};
pub use types::{Datum, Interval, Numeric, PgType, Row};
