//! Rows and index entries of a table: encoding, decoding, what a change of a row means for its indexes.
//!
//! Pure functions over a [`Table`]. A [`Row`] here has a value for each column that the table ever had, by number.

use rustydb::ids::PartitionId;
use rustydb::store::{OnConflict, WriteOp};

use super::catalog::{Column, Index, Table};
use super::error::{SqlError, code};
use super::key_codec;
use super::row_codec::{self, Cell, RowReader};
use super::types::{Datum, Row};

/// Reads a stored row.
///
/// # Errors
/// `XX001`.
pub fn decode(table: &Table, bytes: &[u8]) -> Result<Row, SqlError> {
    let mut reader = RowReader::new(bytes)?;
    table
        .columns
        .iter()
        .map(|column| {
            Ok(match reader.read(column.kind)? {
                Cell::Value(_) if column.dropped => None,
                Cell::Value(value) => Some(value),
                Cell::Null => None,
                Cell::Missing => Table::missing_value(column),
            })
        })
        .collect()
}

/// The stored form of a row.
#[must_use]
pub fn encode(row: &Row) -> Vec<u8> {
    row_codec::encode(row.iter().map(Option::as_ref))
}

/// The key of a row by its primary key.
///
/// # Errors
/// `54000` when it is too long.
pub fn primary_key(index: &Index, row: &Row) -> Result<Vec<u8>, SqlError> {
    let mut key = Vec::with_capacity(16);
    for column in &index.columns {
        key_codec::put(&mut key, row[column.number as usize - 1].as_ref(), column.descending);
    }
    key_codec::check_length(&key, &index.name)?;
    Ok(key)
}

/// An index's entry for a row: key and value.
///
/// # Errors
/// `54000` when it is too long.
pub fn index_entry(index: &Index, row: &Row, row_key: &[u8]) -> Result<(Vec<u8>, Vec<u8>), SqlError> {
    let mut key = Vec::with_capacity(32);
    let mut null = false;
    for column in &index.columns {
        let value = row[column.number as usize - 1].as_ref();
        null |= value.is_none();
        key_codec::put(&mut key, value, column.descending);
    }
    if !index.unique || null {
        key.extend_from_slice(row_key);
    }
    key_codec::check_length(&key, &index.name)?;
    Ok((key, row_key.to_vec()))
}

/// The writes that add a row and its index entries, the row first, then the indexes in the table's order.
///
/// # Errors
/// `54000` when a key is too long.
pub fn insert_ops(table: &Table, key: &[u8], row: &Row, out: &mut Vec<WriteOp>) -> Result<(), SqlError> {
    out.push(WriteOp::Insert {
        partition: PartitionId(table.partition),
        key: key.to_vec(),
        value: encode(row),
        on_conflict: OnConflict::Error,
    });
    for index in table.secondary_indexes() {
        let (entry, value) = index_entry(index, row, key)?;
        out.push(WriteOp::Insert { partition: PartitionId(index.partition), key: entry, value, on_conflict: OnConflict::Error });
    }
    Ok(())
}

/// `23505` for a row that an index has already.
#[must_use]
pub fn unique_violation(table: &Table, schema: &str, index: &Index, row: &Row) -> SqlError {
    SqlError::new(code::UNIQUE_VIOLATION, format!("duplicate key value violates unique constraint \"{}\"", index.name))
        .with_detail(format!("Key {} already exists.", key_text(table, index.columns.iter().map(|c| c.number), row)))
        .on_table(schema, &table.name)
        .on_constraint(&index.name)
}

/// `(a, b)=(1, x)`.
pub fn key_text(table: &Table, columns: impl Iterator<Item = i16> + Clone, row: &Row) -> String {
    let names: Vec<&str> = columns.clone().map(|c| table.column_by_number(c).name.as_str()).collect();
    let values: Vec<String> = columns.map(|c| show(table.column_by_number(c), row)).collect();
    format!("({})=({})", names.join(", "), values.join(", "))
}

fn show(column: &Column, row: &Row) -> String {
    match &row[column.number as usize - 1] {
        Some(value) => value.to_text(column.kind, column.typmod),
        None => "null".to_owned(),
    }
}

/// A row as error details show it.
#[must_use]
pub fn failing_row(table: &Table, row: &Row) -> String {
    let values: Vec<String> = table
        .live_columns()
        .map(|column| {
            let text = show(column, row);
            if text.chars().count() > 64 { text.chars().take(64).collect::<String>() + "..." } else { text }
        })
        .collect();
    format!("Failing row contains ({}).", values.join(", "))
}

/// Checks NOT NULL.
///
/// # Errors
/// `23502`.
pub fn check_not_null(table: &Table, schema: &str, row: &Row) -> Result<(), SqlError> {
    for column in table.live_columns() {
        if column.not_null && row[column.number as usize - 1].is_none() {
            return Err(SqlError::new(
                code::NOT_NULL_VIOLATION,
                format!("null value in column \"{}\" of relation \"{}\" violates not-null constraint", column.name, table.name),
            )
            .with_detail(failing_row(table, row))
            .on_table(schema, &table.name)
            .on_column(&column.name));
        }
    }
    Ok(())
}

/// A value as it is stored in a column.
///
/// # Errors
/// Those of the cast; `42804` where there is none.
pub fn assign(column: &Column, value: Option<Datum>) -> Result<Option<Datum>, SqlError> {
    let Some(value) = value else { return Ok(None) };
    let from = value.natural_type();
    match value.cast(column.kind, column.typmod) {
        Ok(value) => Ok(Some(value)),
        Err(fault) if fault.code() == code::CANNOT_COERCE => Err(SqlError::new(
            code::DATATYPE_MISMATCH,
            format!(
                "column \"{}\" is of type {} but expression is of type {}",
                column.name,
                column.kind.sql_name(),
                from.sql_name()
            ),
        )
        .with_hint("You will need to rewrite or cast the expression.")),
        Err(fault) => Err(fault),
    }
}
