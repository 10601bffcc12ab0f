//! pg_catalog and information_schema: what psql, drivers and ORMs ask a PostgreSQL server about itself.
//!
//! Made anew from a [`Catalog`] snapshot for each statement that names one of the tables; pure functions without state.
//! Bounded by the catalog. The tables have PostgreSQL 15's columns in its order (those that programs read), so that
//! `SELECT *` and column numbers are right; a column that RustyDB has no use for holds what PostgreSQL has there for an
//! object without that feature.

mod definitions;
mod deparse;
mod functions;
mod information_schema;
mod rows;
mod specs;
mod types;

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use crate::sql::catalog::Catalog;
use crate::sql::error::SqlError;
use crate::sql::types::arrow::{ColumnBuilder, arrow_field};
use crate::sql::types::{Datum, PgType, Row};

pub use self::definitions::{check_definition, foreign_key_definition, index_definition};
pub use self::functions::functions;

/// What the tables show of the session that asks.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The catalog.
    pub catalog: Arc<Catalog>,
    /// The session's user.
    pub user: String,
    /// The session's database.
    pub database: String,
    /// Schemas that unqualified names are looked up in, `pg_catalog` aside.
    pub search_path: Vec<String>,
    /// The session's settings: name, value, description.
    pub settings: Vec<(String, String, String)>,
}

/// A system table's columns: name, type, and what a row has there that does not say.
pub(crate) struct Spec {
    columns: Vec<(String, PgType, Option<Datum>)>,
}

impl Spec {
    /// From `name:type` or `name:type=value` words.
    fn parse(text: &str) -> Spec {
        let column = |word: &str| {
            let (name, rest) = word.split_once(':').expect("name:type");
            let (kind, value) = rest.split_once('=').map_or((rest, None), |(kind, value)| (kind, Some(value)));
            let kind = PgType::from_name(kind).unwrap_or_else(|| panic!("no type {kind}"));
            let value = value.map(|text| Datum::parse(kind, -1, text).expect("a value of the column's type"));
            (name.to_owned(), kind, value)
        };
        Spec { columns: text.split_whitespace().map(column).collect() }
    }

    fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(|(name, kind, _)| arrow_field(name, *kind, -1, true)).collect::<Vec<_>>()))
    }

    fn row(&self, cells: &[(&str, Option<Datum>)]) -> Row {
        let mut row: Row = self.columns.iter().map(|(_, _, value)| value.clone()).collect();
        for (name, value) in cells {
            let at = self.columns.iter().position(|(column, _, _)| column == name).unwrap_or_else(|| panic!("no column {name}"));
            row[at].clone_from(value);
        }
        row
    }

    fn batch(&self, rows: &[Row]) -> Result<RecordBatch, SqlError> {
        let columns = self.columns.iter().enumerate().map(|(at, (_, kind, _))| {
            let mut builder = ColumnBuilder::new(*kind, -1, rows.len());
            rows.iter().for_each(|row| builder.push(row[at].as_ref()));
            builder.finish()
        });
        RecordBatch::try_new(self.schema(), columns.collect()).map_err(|error| SqlError::internal(error.to_string()))
    }
}

/// Whether there is a system table of that name.
#[must_use]
pub fn is_table(schema: &str, name: &str) -> bool {
    specs::spec(schema, name).is_some()
}

/// The system table of that name as of now; `None` if there is none.
///
/// # Errors
/// A fault of ours.
pub fn table(asker: &Asker, schema: &str, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
    let Some(text) = specs::spec(schema, name) else { return Ok(None) };
    let spec = Spec::parse(text);
    let rows = if schema == "information_schema" {
        information_schema::rows(asker, name, &spec)
    } else {
        rows::rows(asker, name, &spec)
    };
    let batch = spec.batch(&rows)?;
    let table = MemTable::try_new(spec.schema(), vec![vec![batch]]).map_err(|error| SqlError::internal(error.to_string()))?;
    Ok(Some(Arc::new(table)))
}

/// The columns of a system table, for statements that are only described.
#[must_use]
pub fn columns(schema: &str, name: &str) -> Option<Vec<(String, PgType)>> {
    let spec = Spec::parse(specs::spec(schema, name)?);
    Some(spec.columns.into_iter().map(|(name, kind, _)| (name, kind)).collect())
}

fn text(value: impl Into<String>) -> Option<Datum> {
    Some(Datum::Text(value.into()))
}

fn oid(value: u32) -> Option<Datum> {
    Some(Datum::Oid(value))
}

fn yes(value: bool) -> Option<Datum> {
    Some(Datum::Bool(value))
}

fn int2(value: i16) -> Option<Datum> {
    Some(Datum::Int2(value))
}

fn int4(value: i32) -> Option<Datum> {
    Some(Datum::Int4(value))
}

fn int8(value: i64) -> Option<Datum> {
    Some(Datum::Int8(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_can_be_made_of_an_empty_catalog() {
        let asker = Asker {
            catalog: Arc::new(Catalog::empty()),
            user: "postgres".into(),
            database: "postgres".into(),
            search_path: vec!["public".into()],
            settings: vec![("application_name".into(), String::new(), "who".into())],
        };
        for (schema, name) in specs::names() {
            let table = table(&asker, schema, name).unwrap().unwrap();
            assert!(!table.schema().fields().is_empty(), "{schema}.{name}");
        }
    }
}
