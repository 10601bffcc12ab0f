//! A shard's log, open for appending: what is appended gets its final LSN, is written by group commit ([`writer`]), and takes
//! its space ([`space`]) until a checkpoint says that the blocks on disk have it.
//!
//! Owned by the shard's thread; clones of a [`Log`] share it. Bounded on disk by the ring, in memory by
//! [`UNFLUSHED_MAX`](super::UNFLUSHED_MAX) and the reservations that are out. A record's LSN is final when it is appended,
//! because a batch's place is known when it is begun.

mod space;
mod writer;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;

use self::space::RECORD_OVERHEAD;
pub use self::space::Reservation;
pub use self::writer::FlushTo;
use self::writer::OpenBatch;
use super::FIRST_LSN;
use super::area::{Checkpoint, Ring};
use super::batch::{BATCH_HEADER, Batch, framed, put_record};
use super::error::LogError;
use super::redo::RecordKind;
use super::scan::LogScan;
use super::stats::LogStats;
use crate::ids::{Incarnation, Lsn, Scn};
use crate::reactor::sync::{Notify, Semaphore};
use crate::reactor::{FileId, IoBuf, Reactor};
use crate::volume::{RedoArea, SECTOR};

/// A shard's log. Clones share it.
#[derive(Clone)]
pub struct Log(Rc<Inner>);

struct Inner {
    reactor: Reactor,
    file: FileId,
    ring: Ring,
    incarnation: Incarnation,
    state: RefCell<State>,
    /// Read on hot paths.
    durable: Cell<Lsn>,
    /// No checkpoint goes beyond this: Raft's records from here on are needed. [`Lsn`]'s maximum when none are.
    retained: Cell<Lsn>,
    /// Something was freed, or the log was poisoned.
    space: Notify,
    /// Serves the reservations in their order.
    turn: Semaphore,
    /// A checkpoint is wanted, or somebody waits for space.
    pressure: Notify,
    /// The log was poisoned.
    poisoned: Notify,
    /// One checkpoint is written at a time.
    checkpointing: Semaphore,
}

struct State {
    open: OpenBatch,
    closed: VecDeque<(Batch, IoBuf)>,
    closed_bytes: usize,
    /// Somebody waits until this is durable.
    requested: Lsn,
    writing: bool,
    poison: Option<LogError>,
    checkpoint: Checkpoint,
    /// Where the batches from the checkpoint on begin, with their sequences and the lives that wrote them.
    batches: VecDeque<(Lsn, u64, Incarnation)>,
    /// Bytes promised to reservations.
    reserved: u64,
    spare: Vec<IoBuf>,
    waiters: BTreeMap<(Lsn, u64), Waker>,
    next_waiter: u64,
    stats: LogStats,
}

impl Log {
    /// Opens the log of an area for appending: reads it to its end, and marks the beginning of this life with a first write
    /// behind it, so that a node that can't write its log does not start. What stands before the end stays until a
    /// checkpoint frees it.
    ///
    /// # Errors
    /// See [`LogScan::next`]; [`LogError::OlderIncarnation`]; the device's.
    pub async fn open(reactor: &Reactor, file: FileId, area: RedoArea, incarnation: Incarnation) -> Result<Log, LogError> {
        let mut scan = LogScan::open(reactor, file, area).await?;
        let checkpoint = *scan.checkpoint();
        let mut batches = VecDeque::new();
        let mut retained = Lsn(u64::MAX);
        while let Some(batch) = scan.next_batch().await? {
            batches.push_back((batch.start, batch.sequence, batch.incarnation));
            if scan.has_kind(&batch, RecordKind::Raft) {
                retained = retained.min(batch.start);
            }
        }
        let end = scan.end();
        if incarnation < end.incarnation {
            let (node, shard) = (area.node, area.shard);
            return Err(LogError::OlderIncarnation { node, shard, ours: incarnation, found: end.incarnation });
        }
        batches.push_back((end.lsn, end.batch_sequence, incarnation));
        let ring = Ring::new(area);
        let buffer = reactor.steady_buffer(ring.batch_max());
        let open = OpenBatch::new(end.lsn, end.batch_sequence, buffer);
        let log = Log(Rc::new(Inner {
            reactor: reactor.clone(),
            file,
            ring,
            incarnation,
            state: RefCell::new(State {
                open,
                closed: VecDeque::new(),
                closed_bytes: 0,
                requested: end.lsn,
                writing: false,
                poison: None,
                checkpoint,
                batches,
                reserved: 0,
                spare: Vec::new(),
                waiters: BTreeMap::new(),
                next_waiter: 0,
                stats: LogStats::default(),
            }),
            durable: Cell::new(end.lsn),
            retained: Cell::new(retained),
            space: Notify::new(),
            turn: Semaphore::new(1),
            pressure: Notify::new(),
            poisoned: Notify::new(),
            checkpointing: Semaphore::new(1),
        }));
        let beginning = {
            let mut state = log.0.state.borrow_mut();
            // A ring that is full to the last sector is left as it is: the checkpoint after the recovery comes first then.
            if log.used(&state) + 2 * SECTOR as u64 <= ring.bytes() {
                state.open.used = BATCH_HEADER;
                log.close_open(&mut state, SECTOR as u64);
            }
            state.open.start
        };
        log.flush_to(beginning).await?;
        Ok(log)
    }

    /// Appends a record in memory, and gives the LSN of its end: it is durable when [`Log::durable_lsn`] has reached that.
    /// Never waits.
    ///
    /// # Panics
    /// When the reservation is too small for it.
    pub fn append(&self, reservation: &mut Reservation, kind: RecordKind, payload: &[&[u8]]) -> Lsn {
        assert!(Rc::ptr_eq(&self.0, &reservation.log.0), "a reservation is used in the log that it was made in");
        let length: usize = payload.iter().map(|part| part.len()).sum();
        let bytes = framed(length);
        assert!(
            bytes as u64 <= reservation.framed_left,
            "a record takes {bytes} bytes of a reservation with {}",
            reservation.framed_left
        );
        let mut state = self.0.state.borrow_mut();
        let state = &mut *state;
        self.make_room(state, bytes);
        if state.open.used == 0 {
            state.open.used = BATCH_HEADER;
        }
        let open = &mut state.open;
        put_record(&mut open.buffer.as_mut_slice()[open.used..open.used + bytes], kind as u8, payload);
        open.used += bytes;
        open.records += 1;
        state.stats.records += 1;
        let end = state.open.end();
        let used = self.used(state);
        assert!(used <= self.0.ring.bytes(), "the log reaches {used} bytes beyond its checkpoint, the ring has fewer");

        let paid = (bytes as u64 + RECORD_OVERHEAD).min(reservation.charge);
        reservation.framed_left -= bytes as u64;
        reservation.charge -= paid;
        state.reserved -= paid;
        if self.0.space.waiting() > 0 {
            self.0.space.notify_all();
        }
        if self.0.pressure.waiting() > 0 && self.due(state) {
            self.0.pressure.notify_all();
        }
        end
    }

    /// Everything that ends at or before this position is on stable storage.
    #[must_use]
    pub fn durable_lsn(&self) -> Lsn {
        self.0.durable.get()
    }

    /// Where the newest record ends.
    #[must_use]
    pub fn append_lsn(&self) -> Lsn {
        self.0.state.borrow().open.end()
    }

    /// Says that everything before `lsn` is in the blocks on disk. Makes that durable in the area's header, rounded down
    /// to a batch that is durable, and only then frees the space. `scn` is the clock's; a restarted node begins above it.
    ///
    /// # Errors
    /// The device's, or the error that poisoned the log; nothing is freed then.
    pub async fn checkpoint(&self, lsn: Lsn, scn: Scn) -> Result<Lsn, LogError> {
        let _one = self.0.checkpointing.acquire(1).await;
        let mut next = {
            let state = self.0.state.borrow();
            if let Some(poison) = &state.poison {
                return Err(poison.clone());
            }
            assert!(lsn <= state.open.end(), "a checkpoint at {lsn}, beyond the log's end at {}", state.open.end());
            let lsn = lsn.min(self.durable_lsn()).min(self.retained_from());
            let after = state.batches.partition_point(|(start, ..)| *start <= lsn);
            let Some((start, sequence, incarnation)) = after.checked_sub(1).map(|at| state.batches[at]) else {
                return Ok(state.checkpoint.lsn);
            };
            if start <= state.checkpoint.lsn && scn <= state.checkpoint.scn {
                return Ok(state.checkpoint.lsn);
            }
            Checkpoint {
                lsn: start,
                batch_sequence: sequence,
                // Not this one where it is held back in a former life's batches: those would read as damaged.
                incarnation,
                scn: scn.max(state.checkpoint.scn),
                generation: state.checkpoint.generation,
            }
        };
        next.write(&self.0.reactor, self.0.file, self.0.ring.area()).await?;
        let mut state = self.0.state.borrow_mut();
        state.checkpoint = next;
        while state.batches.front().is_some_and(|(start, ..)| *start < next.lsn) {
            state.batches.pop_front();
        }
        state.stats.checkpoints += 1;
        drop(state);
        self.0.space.notify_all();
        Ok(next.lsn)
    }

    /// Writes the area's header once more, as it is: shows that a write to the area goes through.
    ///
    /// # Errors
    /// The device's, or the error that poisoned the log.
    pub async fn touch(&self) -> Result<(), LogError> {
        let _one = self.0.checkpointing.acquire(1).await;
        let mut next = {
            let state = self.0.state.borrow();
            if let Some(poison) = &state.poison {
                return Err(poison.clone());
            }
            state.checkpoint
        };
        next.write(&self.0.reactor, self.0.file, self.0.ring.area()).await?;
        self.0.state.borrow_mut().checkpoint = next;
        Ok(())
    }

    /// Says from where on Raft's records are needed: no checkpoint goes beyond it. After [`Log::open`] that is where the
    /// first of them stands, until whoever has read them says otherwise. `None` when none are needed.
    pub fn retain_from(&self, lsn: Option<Lsn>) {
        let lsn = lsn.unwrap_or(Lsn(u64::MAX));
        assert!(lsn >= self.checkpoint_lsn(), "{lsn} can't be retained: the log begins at {}", self.checkpoint_lsn());
        self.0.retained.set(lsn);
        if self.0.pressure.waiting() > 0 && self.checkpoint_due() {
            self.0.pressure.notify_all();
        }
    }

    /// See [`Log::retain_from`]; the maximum when nothing is retained.
    #[must_use]
    pub fn retained_from(&self) -> Lsn {
        self.0.retained.get()
    }

    /// Where the space in use begins.
    #[must_use]
    pub fn checkpoint_lsn(&self) -> Lsn {
        self.0.state.borrow().checkpoint.lsn
    }

    /// Whether a checkpoint should be taken now: more than half of the space is in use, or somebody waits for some.
    #[must_use]
    pub fn checkpoint_due(&self) -> bool {
        self.due(&self.0.state.borrow())
    }

    /// Resolves when a checkpoint should be taken, see [`Log::checkpoint_due`].
    pub async fn checkpoint_wanted(&self) {
        loop {
            let pressed = self.0.pressure.notified();
            if self.checkpoint_due() {
                return;
            }
            pressed.await;
        }
    }

    /// The error that poisoned the log, if one did.
    #[must_use]
    pub fn poison(&self) -> Option<LogError> {
        self.0.state.borrow().poison.clone()
    }

    /// Resolves when the log is poisoned: the node can't make anything durable any more and has to end.
    pub async fn poisoned(&self) -> LogError {
        loop {
            let poisoned = self.0.poisoned.notified();
            if let Some(poison) = self.poison() {
                return poison;
            }
            poisoned.await;
        }
    }

    /// The area that the log lies in.
    #[must_use]
    pub fn area(&self) -> RedoArea {
        *self.0.ring.area()
    }

    /// What the log has done since it was opened.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.0.state.borrow().stats.clone()
    }
}

const _: () = assert!(FIRST_LSN.0.is_multiple_of(SECTOR as u64));
