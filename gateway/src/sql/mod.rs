//! SQL over the engine's `store`: catalog, parser, planner, executor, sessions.
//!
//! Runs in tokio tasks; a [`rustydb::store::Session`] is a client's only way to data. One `Database` per node,
//! one `SqlSession` per client.

pub mod api;
pub mod catalog;
pub mod error;
pub mod key_codec;
pub mod row_codec;
pub mod types;

pub use api::{ColumnDesc, Execution, RowStream, Tag, TransactionStatus};
pub use error::{Severity, SqlError};
pub use types::{Datum, Interval, Numeric, PgType, Row};
