//! Results as the protocol carries them: column descriptions, rows in text or binary, errors and notices.
//!
//! Pure functions that append to a connection's output; a row is written straight into it, without a copy of its own.

use bytes::{BufMut, BytesMut};
use pgwire::messages::data::{FieldDescription, RowDescription};
use pgwire::messages::response::{ErrorResponse, NoticeResponse};

use crate::sql::error::SqlError;
use crate::sql::types::{Datum, PgType};

/// A column of a result, as clients are told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As a person reads it.
    Text,
    /// As PostgreSQL's binary send functions write it.
    Binary,
}

impl Format {
    /// The protocol's number.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }

    /// The format of item `index` under the protocol's rule: no codes mean text, one code is for all.
    #[must_use]
    pub fn of(codes: &[i16], index: usize) -> Format {
        let code = if codes.len() == 1 { codes[0] } else { codes.get(index).copied().unwrap_or(0) };
        if code == 1 { Format::Binary } else { Format::Text }
    }
}

/// Describes one column.
#[must_use]
pub fn field(name: &str, table: u32, column: i16, kind: PgType, typmod: i32, format: Format) -> FieldDescription {
    FieldDescription::new(name.to_owned(), table as i32, column, kind.oid(), kind.length(), typmod, format.code())
}

/// Describes all columns.
#[must_use]
pub fn description(fields: Vec<FieldDescription>) -> RowDescription {
    RowDescription::new(fields)
}

/// How one column's cells are written.
#[derive(Clone, Copy, Debug)]
pub struct CellFormat {
    /// The column's type.
    pub kind: PgType,
    /// Its modifier.
    pub typmod: i32,
    /// Text or binary.
    pub format: Format,
}

/// Reused between rows, so that a value costs no allocation.
#[derive(Debug, Default)]
pub struct Scratch {
    text: String,
    bytes: Vec<u8>,
}

/// Appends a DataRow message.
pub fn put_row(out: &mut BytesMut, row: &[Option<Datum>], formats: &[CellFormat], scratch: &mut Scratch) {
    assert_eq!(row.len(), formats.len(), "a row has a cell for each described column");
    out.put_u8(b'D');
    let length_at = out.len();
    out.put_u32(0);
    out.put_u16(row.len() as u16);
    for (cell, format) in row.iter().zip(formats) {
        let Some(datum) = cell else {
            out.put_i32(-1);
            continue;
        };
        let bytes = match format.format {
            Format::Text => {
                scratch.text.clear();
                datum.write_text(format.kind, format.typmod, &mut scratch.text);
                scratch.text.as_bytes()
            }
            Format::Binary => {
                scratch.bytes.clear();
                datum.write_binary(format.kind, format.typmod, &mut scratch.bytes);
                &scratch.bytes
            }
        };
        out.put_i32(i32::try_from(bytes.len()).expect("a value is below 2 GiB"));
        out.put_slice(bytes);
    }
    let length = (out.len() - length_at) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// An error as the client gets it.
#[must_use]
pub fn error(error: &SqlError) -> ErrorResponse {
    ErrorResponse::new(report(error, error.fields().severity.as_str()))
}

/// An error that ends the connection, as the client gets it.
#[must_use]
pub fn fatal(error: &SqlError) -> ErrorResponse {
    ErrorResponse::new(report(error, "FATAL"))
}

/// A notice as the client gets it.
#[must_use]
pub fn notice(notice: &SqlError) -> NoticeResponse {
    NoticeResponse::new(report(notice, notice.fields().severity.as_str()))
}

fn report(error: &SqlError, severity: &str) -> Vec<(u8, String)> {
    let fields = error.fields();
    let mut report = vec![
        (b'S', severity.to_owned()),
        (b'V', severity.to_owned()),
        (b'C', fields.code.to_owned()),
        (b'M', fields.message.clone()),
    ];
    let position = fields.position.map(|position| position.to_string());
    let optional = [
        (b'D', &fields.detail),
        (b'H', &fields.hint),
        (b'W', &fields.context),
        (b'P', &position),
        (b's', &fields.schema),
        (b't', &fields.table),
        (b'c', &fields.column),
        (b'n', &fields.constraint),
    ];
    report.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    report
}
