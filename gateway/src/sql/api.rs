//! What the wire layer sees of a statement: its columns, its rows, COPY's two directions.
//!
//! Values of one client's session; a [`RowStream`] or [`CopyIn`] is drained before the session's next statement.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use futures::StreamExt as _;

use super::error::SqlError;
use super::types::{PgType, Row};

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDesc {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: PgType,
    /// The type's modifier, -1 for none.
    pub typmod: i32,
    /// Oid of the table that it comes from unchanged, or 0.
    pub table: u32,
    /// Its number in that table, or 0.
    pub number: i16,
}

impl ColumnDesc {
    /// A computed column without a modifier.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: PgType) -> ColumnDesc {
        ColumnDesc { name: name.into(), kind, typmod: -1, table: 0, number: 0 }
    }
}

/// What ReadyForQuery says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// `I`
    Idle,
    /// `T`
    InBlock,
    /// `E`
    Failed,
}

/// What a statement gave.
pub enum Execution {
    /// Rows; the tag comes from [`RowStream::tag`] when they are through.
    Rows(RowStream),
    /// Nothing but a command tag.
    Command {
        /// `CREATE TABLE`, `INSERT 0 3`, ...
        tag: String,
    },
    /// The client shall send data.
    CopyIn(super::copy::CopyIn),
    /// Data for the client.
    CopyOut(super::copy::CopyOut),
    /// The statement was empty.
    Empty,
}

/// A stream of batches of rows.
pub type RowBatches = Pin<Box<dyn Stream<Item = Result<Vec<Row>, SqlError>> + Send>>;

/// Rows of a result, batch by batch. Dropping it before its end ends the statement.
pub struct RowStream {
    columns: Arc<[ColumnDesc]>,
    batches: RowBatches,
    tag: Tag,
    rows: u64,
}

/// How the command tag of rows is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    /// The word and the number of rows that went out (`SELECT 3`).
    Counted(&'static str),
    /// As it stands (`INSERT 0 3`, `SHOW`).
    Fixed(String),
}

impl RowStream {
    /// Over batches that come as they are made.
    #[must_use]
    pub fn new(columns: Arc<[ColumnDesc]>, tag: Tag, batches: RowBatches) -> RowStream {
        RowStream { columns, batches, tag, rows: 0 }
    }

    /// Over rows that are there already.
    #[must_use]
    pub fn ready(columns: Arc<[ColumnDesc]>, tag: Tag, rows: Vec<Row>) -> RowStream {
        RowStream::new(columns, tag, Box::pin(futures::stream::once(async move { Ok(rows) })))
    }

    /// The columns.
    #[must_use]
    pub fn columns(&self) -> &Arc<[ColumnDesc]> {
        &self.columns
    }

    /// The next rows (possibly none of them); `None` at the end. For a statement outside a transaction the end is also
    /// its commit.
    ///
    /// # Errors
    /// Those of the statement; the stream has ended then.
    pub async fn next(&mut self) -> Result<Option<Vec<Row>>, SqlError> {
        match self.batches.next().await {
            None => Ok(None),
            Some(Ok(rows)) => {
                self.rows += rows.len() as u64;
                Ok(Some(rows))
            }
            Some(Err(fault)) => Err(fault),
        }
    }

    /// The command tag, of the rows so far.
    #[must_use]
    pub fn tag(&self) -> String {
        match &self.tag {
            Tag::Counted(word) => format!("{word} {}", self.rows),
            Tag::Fixed(tag) => tag.clone(),
        }
    }

    /// All rows at once.
    ///
    /// # Errors
    /// As [`RowStream::next`].
    pub async fn collect(&mut self) -> Result<Vec<Row>, SqlError> {
        let mut all = Vec::new();
        while let Some(rows) = self.next().await? {
            all.extend(rows);
        }
        Ok(all)
    }
}
