//! What clients speak: HTTP for health, PostgreSQL's wire protocol and SQL. tokio lives here and nowhere below.

pub mod http;
pub mod sql;
pub mod pg_catalog;
