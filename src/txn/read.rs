//! Reading rows in a snapshot: at once where the newest version is the one, through undo where it is not.
//!
//! Owned by one shard; holds one block at a time and nothing across a wait. The caller's snapshot is registered
//! ([`super::snapshot`]) until the call returns, so the undo it needs is there.

use crate::btree::overflow::OverflowRef;
use crate::btree::{KeyRange, Tree, Visit};
use crate::ids::{PartitionId, TxnId};

use super::error::TxnError;
use super::manager::{Txns, count};
use super::row::{ROW_HEADER_BYTES, Row};
use super::transaction::Cancel;
use super::visibility::{TxnState, Verdict, View, judge};

/// A look at a row without waiting.
pub enum Glance<R> {
    /// This is what there is to see.
    Seen(R),
    /// It takes waiting: [`Txns::get`].
    NotNow,
}

/// A part of a scan.
#[derive(Debug)]
pub struct Rows {
    /// Keys and rows, in the direction of the scan.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// What is left; `None` at the end.
    pub more: Option<KeyRange>,
}

fn corrupt_row(partition: PartitionId, key: &[u8]) -> TxnError {
    TxnError::Corrupt(format!("the row of {partition} at key {key:02x?} has no version"))
}

impl Txns {
    /// Shows the row that `view` sees to `look`, if that takes no waiting. Copies and allocates nothing.
    ///
    /// # Errors
    /// When a block on the way or the row is damaged.
    #[inline]
    pub fn glance<R>(
        &self,
        tree: &Tree,
        key: &[u8],
        view: View,
        look: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<Glance<R>, TxnError> {
        let seen = tree.try_get(key, |value| {
            let Some(value) = value else { return Ok(Glance::Seen(look(None))) };
            let row = Row::parse(value).ok_or_else(|| corrupt_row(tree.partition(), key))?;
            let mut fault = None;
            let verdict =
                judge(row.version, view, |txn| self.known_state(txn).unwrap_or_else(|error| (fault = Some(error), None).1));
            if let Some(fault) = fault {
                return Err(fault);
            }
            Ok(match verdict {
                Verdict::Visible if row.is_deleted() => Glance::Seen(look(None)),
                Verdict::Visible if !row.is_overflow() => Glance::Seen(look(Some(row.payload))),
                // There never was another: no need to look for it.
                Verdict::Previous if row.undo.is_none() => Glance::Seen(look(None)),
                _ => Glance::NotNow,
            })
        })?;
        match seen {
            None => Ok(Glance::NotNow),
            Some(Err(error)) => Err(error),
            Some(Ok(glance)) => {
                if matches!(glance, Glance::Seen(_)) {
                    count(&self.0.counters.gets);
                }
                Ok(glance)
            }
        }
    }

    /// The row that `view` sees.
    ///
    /// # Errors
    /// [`TxnError::SnapshotTooOld`], [`TxnError::Canceled`] and faults.
    pub async fn get(&self, tree: &Tree, key: &[u8], view: View, cancel: &Cancel) -> Result<Option<Vec<u8>>, TxnError> {
        if let Glance::Seen(row) = self.glance(tree, key, view, |row| row.map(<[u8]>::to_vec))? {
            return Ok(row);
        }
        count(&self.0.counters.gets);
        let Some(newest) = tree.get(key, |value| value.map(<[u8]>::to_vec)).await? else { return Ok(None) };
        self.version_for(tree, key, newest, view, cancel).await
    }

    /// From a row's newest version to the payload of the one that `view` sees.
    async fn version_for(
        &self,
        tree: &Tree,
        key: &[u8],
        newest: Vec<u8>,
        view: View,
        cancel: &Cancel,
    ) -> Result<Option<Vec<u8>>, TxnError> {
        let partition = tree.partition();
        let mut bytes = newest;
        let mut asked: Option<(TxnId, TxnState)> = None;
        loop {
            let row = Row::parse(&bytes).ok_or_else(|| corrupt_row(partition, key))?;
            let known = match row.version {
                super::row::Version::Written(txn) if view.own != Some(txn) => match asked {
                    Some((other, state)) if other == txn => Some(state),
                    _ => self.known_state(txn)?,
                },
                _ => None,
            };
            match judge(row.version, view, |_| known) {
                Verdict::Visible if row.is_deleted() => return Ok(None),
                Verdict::Visible if row.is_overflow() => return self.large_value(tree, key, row.payload).await.map(Some),
                Verdict::Visible => {
                    bytes.drain(..ROW_HEADER_BYTES);
                    return Ok(Some(bytes));
                }
                Verdict::Previous => {
                    count(&self.0.counters.undo_reads);
                    match self.0.undo.before(partition, key, &row).await? {
                        None => return Ok(None),
                        Some(before) => bytes = before,
                    }
                }
                Verdict::TooOld => return Err(TxnError::SnapshotTooOld),
                Verdict::Wait(txn) | Verdict::Ask(txn) => asked = Some((txn, self.settled_state(txn, cancel).await?)),
            }
        }
    }

    pub(super) async fn large_value(&self, tree: &Tree, key: &[u8], reference: &[u8]) -> Result<Vec<u8>, TxnError> {
        let chain = OverflowRef::decode(reference)
            .ok_or_else(|| TxnError::Corrupt(format!("the row of {} at key {key:02x?} refers to no chain", tree.partition())))?;
        Ok(tree.overflow_value(chain).await?)
    }

    /// The next rows of a range that `view` sees: about `bytes_max` of them and at most `rows_max`, but at least one if there
    /// is one.
    ///
    /// # Errors
    /// As [`Txns::get`].
    pub async fn scan(
        &self,
        tree: &Tree,
        range: &KeyRange,
        (bytes_max, rows_max): (usize, usize),
        view: View,
        cancel: &Cancel,
    ) -> Result<Rows, TxnError> {
        /// A row as the leaf showed it.
        enum Met {
            Seen(Vec<u8>),
            Newest(Vec<u8>),
        }
        let partition = tree.partition();
        let (mut rows, mut bytes) = (Vec::new(), 0usize);
        let mut more = Some(range.clone());
        let mut met: Vec<(Vec<u8>, Met)> = Vec::new();
        while let Some(range) = more.take() {
            cancel.check()?;
            let mut fault = None;
            let mut size = 0;
            more = tree
                .scan_leaf(&range, &mut |key, value| {
                    // A row that is not seen after all counts here too: then the next leaf brings more.
                    if !met.is_empty() && (bytes + size > bytes_max || rows.len() + met.len() >= rows_max) {
                        return Visit::StopBefore;
                    }
                    let Some(row) = Row::parse(value) else {
                        fault = Some(corrupt_row(partition, key));
                        return Visit::StopAfter;
                    };
                    let verdict = judge(row.version, view, |txn| {
                        self.known_state(txn).unwrap_or_else(|error| (fault = Some(error), None).1)
                    });
                    match verdict {
                        Verdict::Visible if row.is_deleted() => {}
                        Verdict::Visible if !row.is_overflow() => {
                            size += key.len() + row.payload.len();
                            met.push((key.to_vec(), Met::Seen(row.payload.to_vec())));
                        }
                        Verdict::Previous if row.undo.is_none() => {}
                        _ => {
                            size += key.len() + value.len();
                            met.push((key.to_vec(), Met::Newest(value.to_vec())));
                        }
                    }
                    if fault.is_some() { Visit::StopAfter } else { Visit::Continue }
                })
                .await?;
            if let Some(fault) = fault {
                return Err(fault);
            }
            for (key, met) in met.drain(..) {
                let row = match met {
                    Met::Seen(row) => Some(row),
                    Met::Newest(newest) => self.version_for(tree, &key, newest, view, cancel).await?,
                };
                if let Some(row) = row {
                    bytes += key.len() + row.len();
                    rows.push((key, row));
                }
            }
            if !rows.is_empty() && (bytes >= bytes_max || rows.len() >= rows_max) {
                break;
            }
        }
        let counter = &self.0.counters.rows_scanned;
        counter.set(counter.get() + rows.len() as u64);
        Ok(Rows { rows, more })
    }
}
