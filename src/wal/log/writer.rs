//! The log's way to the disk: the batch that records are appended to, those that are closed, the one that is being written,
//! and who waits for them.
//!
//! In the shard's thread; a task of it writes, as long as something has to be. One durable write is in flight, everything
//! appended meanwhile forms the next, and a lone commit is written at once: nobody waits for company and no timer runs. A
//! batch's place is known when it is begun. A failed write poisons the log: every waiter gets the error, and nothing later is
//! acknowledged.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::{Log, State};
use crate::ids::Lsn;
use crate::reactor::{Class, IoBuf};
use crate::volume::SECTOR;
use crate::wal::LogError;
use crate::wal::batch::{BATCH_HEADER, Batch};

/// Batches' memory kept for the next ones.
const SPARE_BUFFERS: usize = 3;

/// The batch that records are appended to.
pub(super) struct OpenBatch {
    pub(super) start: Lsn,
    sequence: u64,
    pub(super) buffer: IoBuf,
    /// Bytes of header and records; 0 before the first record.
    pub(super) used: usize,
    pub(super) records: u32,
}

impl OpenBatch {
    pub(super) fn new(start: Lsn, sequence: u64, buffer: IoBuf) -> OpenBatch {
        OpenBatch { start, sequence, buffer, used: 0, records: 0 }
    }

    pub(super) fn end(&self) -> Lsn {
        self.start.advance(self.used as u64)
    }
}

impl Log {
    /// Resolves when everything up to `lsn` (an end that [`Log::append`] gave) is on stable storage. The write begins at
    /// once, or as soon as the one in flight is done. Dropping the future does not stop the write.
    pub fn flush_to(&self, lsn: Lsn) -> FlushTo {
        if lsn > self.durable_lsn() {
            let mut state = self.0.state.borrow_mut();
            assert!(lsn <= state.open.end(), "{lsn} was never appended; the log ends at {}", state.open.end());
            state.requested = state.requested.max(lsn);
            self.kick(&mut state);
        }
        FlushTo { log: self.clone(), lsn, waiter: None }
    }

    /// Sees to it that the open batch takes a record of `bytes`.
    pub(super) fn make_room(&self, state: &mut State, bytes: usize) {
        let ring = &self.0.ring;
        let limit = |start: Lsn| ring.to_end(start).min(ring.batch_max() as u64) as usize;
        if state.open.used > 0 && state.open.used + bytes > limit(state.open.start) {
            let to_end = ring.to_end(state.open.start);
            let padded = state.open.used.next_multiple_of(SECTOR) as u64;
            // What is left up to the end of the ring is skipped if this record does not fit there.
            let left = to_end - padded;
            let skip = left < (BATCH_HEADER + bytes) as u64;
            self.close_open(state, if skip { to_end } else { padded });
        }
        if BATCH_HEADER + bytes > limit(state.open.start) {
            let to_end = ring.to_end(state.open.start);
            state.open.used = BATCH_HEADER;
            self.close_open(state, to_end);
        }
    }

    /// Ends the open batch, which reaches up to `extent`, and begins the next.
    pub(super) fn close_open(&self, state: &mut State, extent: u64) {
        let buffer = state.spare.pop().unwrap_or_else(|| self.0.reactor.steady_buffer(self.0.ring.batch_max()));
        let next = OpenBatch::new(state.open.start.advance(extent), state.open.sequence + 1, buffer);
        let OpenBatch { start, sequence, mut buffer, used, records } = std::mem::replace(&mut state.open, next);
        let batch = Batch { start, sequence, incarnation: self.0.incarnation, length: used, extent: extent as usize, records };
        batch.seal(&self.0.ring, buffer.as_mut_slice());
        state.closed_bytes += batch.padded();
        state.closed.push_back((batch, buffer));
        state.batches.push_back((state.open.start, state.open.sequence, self.0.incarnation));
        self.kick(state);
    }

    /// Starts the writer if there is something to write and it does not run.
    fn kick(&self, state: &mut State) {
        let work = !state.closed.is_empty() || (state.open.used > 0 && state.requested > state.open.start);
        if work && !state.writing && state.poison.is_none() {
            state.writing = true;
            self.0.reactor.spawn(Class::High, "log writer", write_batches(self.clone()));
        }
    }

    /// What to write next; `None` ends the writer.
    fn next_write(&self) -> Option<(Batch, IoBuf)> {
        let mut state = self.0.state.borrow_mut();
        if state.closed.is_empty() && state.open.used > 0 && state.requested > state.open.start {
            let padded = state.open.used.next_multiple_of(SECTOR) as u64;
            self.close_open(&mut state, padded);
        }
        let next = if state.poison.is_some() { None } else { state.closed.pop_front() };
        state.writing = next.is_some();
        next
    }

    fn written(&self, batch: &Batch, buffer: IoBuf, result: std::io::Result<usize>, took_ns: u64) {
        let mut state = self.0.state.borrow_mut();
        state.closed_bytes -= batch.padded();
        let woken: Vec<Waker> = match result {
            Ok(bytes) => {
                assert_eq!(bytes, batch.padded(), "a durable write is whole or an error");
                state.stats.flushes += 1;
                state.stats.bytes += bytes as u64;
                state.stats.batch_bytes.record(bytes as u64);
                state.stats.batch_records.record(u64::from(batch.records));
                state.stats.flush_latency.record_ns(took_ns);
                if state.spare.len() < SPARE_BUFFERS {
                    state.spare.push(buffer.whole());
                }
                let durable = batch.next();
                assert!(durable > self.0.durable.get(), "the log's durable end goes back to {durable}");
                self.0.durable.set(durable);
                let later = state.waiters.split_off(&(durable.advance(1), 0));
                std::mem::replace(&mut state.waiters, later).into_values().collect()
            }
            Err(error) => {
                let poison = LogError::io(self.0.ring.area(), "write it", &error);
                tracing::error!("{poison}");
                state.poison = Some(poison);
                std::mem::take(&mut state.waiters).into_values().collect()
            }
        };
        drop(state);
        for waker in woken {
            waker.wake();
        }
        if self.0.space.waiting() > 0 {
            self.0.space.notify_all();
        }
        if self.poison().is_some() {
            self.0.poisoned.notify_all();
        }
    }
}

/// Writes batches, one at a time, until nothing is left that must be written.
async fn write_batches(log: Log) {
    while let Some((batch, buffer)) = log.next_write() {
        let reactor = &log.0.reactor;
        let began = reactor.now();
        let offset = log.0.ring.offset(batch.start);
        let (result, buffer) = reactor.write_durable(log.0.file, offset, buffer.slice(0..batch.padded())).await;
        let took_ns = reactor.now().since(began).as_nanos() as u64;
        log.written(&batch, buffer, result, took_ns);
    }
}

/// See [`Log::flush_to`].
#[must_use]
pub struct FlushTo {
    log: Log,
    lsn: Lsn,
    waiter: Option<u64>,
}

impl Future for FlushTo {
    type Output = Result<(), LogError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.log.durable_lsn() >= self.lsn {
            return Poll::Ready(Ok(()));
        }
        let log = self.log.clone();
        let mut state = log.0.state.borrow_mut();
        if let Some(poison) = &state.poison {
            return Poll::Ready(Err(poison.clone()));
        }
        let waiter = *self.waiter.get_or_insert_with(|| {
            state.next_waiter += 1;
            state.next_waiter
        });
        state.waiters.insert((self.lsn, waiter), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for FlushTo {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter {
            self.log.0.state.borrow_mut().waiters.remove(&(self.lsn, waiter));
        }
    }
}
