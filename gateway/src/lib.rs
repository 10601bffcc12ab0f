//! What clients speak: HTTP for health, PostgreSQL's wire protocol and SQL. tokio lives here and nowhere below.

pub mod http;
pub mod pg_catalog;
pub mod sql;
pub mod wire;
