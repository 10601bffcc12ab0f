//! Cursors: DECLARE, FETCH, MOVE, CLOSE.
//!
//! A cursor's rows are computed when it is declared, from the snapshot of that moment, and kept in memory; so it moves in
//! both directions. At most [`CURSORS_MAX`] in a session.

use std::sync::Arc;

use super::api::{ColumnDesc, Execution, RowStream, Tag};
use super::error::{SqlError, code};
use super::parse::FetchHow;
use super::session::{SqlSession, State};
use super::types::Row;

/// Most open cursors of a session.
pub const CURSORS_MAX: usize = 1000;

/// See the module.
pub struct Cursor {
    columns: Arc<[ColumnDesc]>,
    rows: Vec<Row>,
    /// 0: before the first; n: on the nth; length + 1: after the last.
    position: usize,
    /// Survives its transaction.
    pub(super) hold: bool,
}

impl Cursor {
    /// Its columns.
    #[must_use]
    pub fn columns(&self) -> Arc<[ColumnDesc]> {
        Arc::clone(&self.columns)
    }

    /// Moves and returns the rows passed over, in that order.
    fn go(&mut self, how: FetchHow) -> Vec<Row> {
        let end = self.rows.len() + 1;
        let to = |position: &mut usize, target: i64| *position = target.clamp(0, end as i64) as usize;
        match how {
            FetchHow::Forward(0) | FetchHow::Relative(0) | FetchHow::Backward(0) => self.current(),
            FetchHow::Forward(count) => {
                let start = self.position;
                let last = start.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
                self.position = last.min(end);
                self.rows[start.min(end - 1)..last.min(end - 1)].to_vec()
            }
            FetchHow::All => {
                let start = self.position.min(end - 1);
                self.position = end;
                self.rows[start..].to_vec()
            }
            FetchHow::Backward(count) => {
                let start = self.position;
                let last = start.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
                self.position = last;
                let (low, high) = (last.max(1), start.max(1));
                self.rows[low - 1..high - 1].iter().rev().cloned().collect()
            }
            FetchHow::Absolute(n) => {
                let target = if n < 0 { end as i64 + n } else { n };
                to(&mut self.position, target);
                self.current()
            }
            FetchHow::Relative(n) => {
                let target = (self.position as i64).saturating_add(n);
                to(&mut self.position, target);
                self.current()
            }
        }
    }

    fn current(&self) -> Vec<Row> {
        self.position.checked_sub(1).and_then(|at| self.rows.get(at)).map(|row| vec![row.clone()]).unwrap_or_default()
    }
}

impl SqlSession {
    pub(super) async fn declare(&mut self, name: &str, hold: bool, mut rows: RowStream) -> Result<Execution, SqlError> {
        if !hold && self.transaction.state == State::Single {
            return Err(SqlError::new(code::NO_ACTIVE_SQL_TRANSACTION, "DECLARE CURSOR can only be used in transaction blocks"));
        }
        if self.cursors.contains_key(name) {
            return Err(SqlError::new(code::DUPLICATE_CURSOR, format!("cursor \"{name}\" already exists")));
        }
        if self.cursors.len() >= CURSORS_MAX {
            return Err(SqlError::new("53000", format!("a session may have {CURSORS_MAX} cursors")).with_hint("Close some."));
        }
        let columns = Arc::clone(rows.columns());
        let rows = rows.collect().await?;
        self.cursors.insert(name.to_owned(), Cursor { columns, rows, position: 0, hold });
        Ok(Execution::Command { tag: "DECLARE CURSOR".to_owned() })
    }

    pub(super) fn fetch(&mut self, name: &str, how: FetchHow, only_move: bool) -> Result<Execution, SqlError> {
        let Some(cursor) = self.cursors.get_mut(name) else { return Err(no_cursor(name)) };
        let rows = cursor.go(how);
        if only_move {
            return Ok(Execution::Command { tag: format!("MOVE {}", rows.len()) });
        }
        Ok(Execution::Rows(RowStream::ready(cursor.columns(), Tag::Counted("FETCH"), rows)))
    }

    pub(super) fn close_cursor(&mut self, name: Option<&str>) -> Result<(), SqlError> {
        match name {
            None => self.cursors.clear(),
            Some(name) => {
                self.cursors.remove(name).ok_or_else(|| no_cursor(name))?;
            }
        }
        Ok(())
    }
}

fn no_cursor(name: &str) -> SqlError {
    SqlError::new(code::INVALID_CURSOR_NAME, format!("cursor \"{name}\" does not exist"))
}
