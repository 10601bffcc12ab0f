//! A shard's log, open for appending: group commit, space, checkpoints.
//!
//! Owned by the shard's thread; clones of a [`Log`] share it. One durable write is in flight, everything appended meanwhile
//! forms the next, and a lone commit is written at once: nobody waits for company and no timer runs.
//!
//! Bounds: on disk by the ring, of which a batch and a headroom stay free, the latter for the records that checkpoints
//! themselves write and, up to a quarter of it, for Raft's; in memory by [`UNFLUSHED_MAX`] and the reservations that are out. Whoever finds no room waits, first come,
//! first served. A record's LSN is final when it is appended, because a batch's place is known when it is begun.
//!
//! A failed write poisons the log: every waiter gets the error, and nothing later is acknowledged.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::area::{Checkpoint, Ring};
use super::batch::{BATCH_HEADER, Batch, framed, put_record};
use super::error::LogError;
use super::redo::RecordKind;
use super::scan::LogScan;
use super::stats::LogStats;
use super::{FIRST_LSN, UNFLUSHED_MAX};
use crate::ids::{Incarnation, Lsn, Scn};
use crate::reactor::sync::{Notify, Semaphore};
use crate::reactor::{Class, FileId, IoBuf, Reactor};
use crate::volume::{RedoArea, SECTOR};

/// Batches' memory kept for the next ones.
const SPARE_BUFFERS: usize = 3;

/// What a record may cost beside its own bytes: the header of a batch and padding to a sector.
const RECORD_OVERHEAD: u64 = (BATCH_HEADER + SECTOR) as u64;

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

/// The batch that records are appended to.
struct OpenBatch {
    start: Lsn,
    sequence: u64,
    buffer: IoBuf,
    /// Bytes of header and records; 0 before the first record.
    used: usize,
    records: u32,
}

/// Whose need for space it is: how near to the end of the ring it may go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Leaves the headroom to the others.
    Ordinary,
    /// Raft's appends: a quarter of the headroom. The members must be able to agree on what to do about a full log.
    Raft,
    /// Whatever helps to free space: all of it.
    Urgent,
}

impl OpenBatch {
    fn end(&self) -> Lsn {
        self.start.advance(self.used as u64)
    }
}

/// Space in the log for one or more records. Gives back what it did not use when dropped.
#[must_use]
pub struct Reservation {
    log: Log,
    framed_left: u64,
    charge: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.log.0.state.borrow_mut().reserved -= self.charge;
        if self.charge > 0 && self.log.0.space.waiting() > 0 {
            self.log.0.space.notify_all();
        }
    }
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
        let open = OpenBatch { start: end.lsn, sequence: end.batch_sequence, buffer, used: 0, records: 0 };
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

    /// Reserves space for one record with a payload of `bytes`; waits while the log is full.
    ///
    /// # Errors
    /// [`LogError::RecordTooLarge`], or the error that poisoned the log.
    pub async fn reserve(&self, bytes: usize) -> Result<Reservation, LogError> {
        self.reserve_records(bytes, 1).await
    }

    /// Reserves space for `records` records whose payloads have `bytes` together, and none more than
    /// [`Log::payload_max`]; waits while the log is full.
    ///
    /// # Errors
    /// [`LogError::RecordTooLarge`], or the error that poisoned the log.
    pub async fn reserve_records(&self, bytes: usize, records: usize) -> Result<Reservation, LogError> {
        let (framed_left, charge) = self.cost(bytes, records)?;
        if self.0.turn.available() > 0 && self.fits(charge, Room::Ordinary)? {
            return Ok(self.take(framed_left, charge));
        }
        let began = self.0.reactor.now();
        let _turn = self.0.turn.acquire(1).await;
        loop {
            let freed = self.0.space.notified();
            if self.fits(charge, Room::Ordinary)? {
                break;
            }
            self.0.pressure.notify_all();
            freed.await;
        }
        let mut state = self.0.state.borrow_mut();
        state.stats.space_waits += 1;
        state.stats.space_wait += self.0.reactor.now().since(began);
        drop(state);
        Ok(self.take(framed_left, charge))
    }

    /// Reserves space at once, or says that there is none (or somebody waits already).
    ///
    /// # Errors
    /// [`LogError::RecordTooLarge`], or the error that poisoned the log.
    pub fn try_reserve(&self, bytes: usize) -> Result<Option<Reservation>, LogError> {
        let (framed_left, charge) = self.cost(bytes, 1)?;
        let fits = self.0.turn.available() > 0 && self.fits(charge, Room::Ordinary)?;
        Ok(fits.then(|| self.take(framed_left, charge)))
    }

    /// Reserves space for a record that helps to free space (what checkpoints and block writes record): may use the
    /// headroom that others leave, and does not queue behind them.
    ///
    /// # Errors
    /// [`LogError::RecordTooLarge`], or the error that poisoned the log.
    pub async fn reserve_urgent(&self, bytes: usize) -> Result<Reservation, LogError> {
        self.reserve_ahead(bytes, 1, Room::Urgent).await
    }

    /// As [`Log::reserve_urgent`], for several records: Raft's images, which let the log forget what stands before them.
    ///
    /// # Errors
    /// [`LogError::RecordTooLarge`], or the error that poisoned the log.
    pub async fn reserve_image(&self, bytes: usize, records: usize) -> Result<Reservation, LogError> {
        self.reserve_ahead(bytes, records, Room::Urgent).await
    }

    /// Reserves space for what Raft appends, ahead of those who wait: may use a quarter of the headroom that others leave.
    ///
    /// # Errors
    /// [`LogError::RecordTooLarge`], or the error that poisoned the log.
    pub async fn reserve_raft(&self, bytes: usize, records: usize) -> Result<Reservation, LogError> {
        self.reserve_ahead(bytes, records, Room::Raft).await
    }

    /// As [`Log::reserve_raft`], at once or not at all.
    ///
    /// # Errors
    /// [`LogError::RecordTooLarge`], or the error that poisoned the log.
    pub fn try_reserve_raft(&self, bytes: usize, records: usize) -> Result<Option<Reservation>, LogError> {
        let (framed_left, charge) = self.cost(bytes, records)?;
        Ok(self.fits(charge, Room::Raft)?.then(|| self.take(framed_left, charge)))
    }

    /// Reserves space without queueing behind those who wait.
    async fn reserve_ahead(&self, bytes: usize, records: usize, room: Room) -> Result<Reservation, LogError> {
        let (framed_left, charge) = self.cost(bytes, records)?;
        loop {
            let freed = self.0.space.notified();
            if self.fits(charge, room)? {
                return Ok(self.take(framed_left, charge));
            }
            self.0.pressure.notify_all();
            freed.await;
        }
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

    /// Bytes between the checkpoint and the end.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used(&self.0.state.borrow())
    }

    /// Bytes that may still be appended before writers wait.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let state = self.0.state.borrow();
        self.capacity().saturating_sub(self.used(&state) + state.reserved)
    }

    /// Bytes that may lie between the checkpoint and the end before writers wait.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.limit(Room::Ordinary)
    }

    /// Bytes at the end of the space that ordinary records leave free: what urgent ones may use.
    #[must_use]
    pub fn headroom(&self) -> u64 {
        self.limit(Room::Urgent) - self.limit(Room::Ordinary)
    }

    /// Largest payload of one record.
    #[must_use]
    pub fn payload_max(&self) -> usize {
        self.0.ring.batch_max() - framed(0) - BATCH_HEADER
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

    fn cost(&self, bytes: usize, records: usize) -> Result<(u64, u64), LogError> {
        assert!(records > 0, "a reservation is for at least one record");
        let maximum = self.payload_max();
        // Each record but the first may need up to 7 bytes of padding and a header more than `framed` of the sum says.
        let framed_left = framed(bytes) as u64 + (records as u64 - 1) * framed(8) as u64;
        let charge = framed_left + records as u64 * RECORD_OVERHEAD;
        if bytes > maximum && records == 1 || charge > self.capacity() {
            return Err(LogError::RecordTooLarge { bytes, maximum });
        }
        Ok((framed_left, charge))
    }

    fn take(&self, framed_left: u64, charge: u64) -> Reservation {
        self.0.state.borrow_mut().reserved += charge;
        Reservation { log: self.clone(), framed_left, charge }
    }

    /// Most bytes in use: a batch stays free for what may be skipped at the end of the ring, and for others than the
    /// urgent a headroom beside that.
    fn limit(&self, room: Room) -> u64 {
        let usable = self.0.ring.bytes() - self.0.ring.batch_max() as u64;
        let headroom = self.0.ring.bytes() / 8;
        match room {
            Room::Ordinary => usable - headroom,
            Room::Raft => usable - headroom / 4 * 3,
            Room::Urgent => usable,
        }
    }

    fn fits(&self, charge: u64, room: Room) -> Result<bool, LogError> {
        let state = self.0.state.borrow();
        if let Some(poison) = &state.poison {
            return Err(poison.clone());
        }
        let space = self.used(&state) + state.reserved + charge <= self.limit(room);
        Ok(space && state.closed_bytes + state.open.used < UNFLUSHED_MAX)
    }

    fn used(&self, state: &State) -> u64 {
        let end = state.open.start.0 + state.open.used.next_multiple_of(SECTOR) as u64;
        end - state.checkpoint.lsn.0
    }

    fn due(&self, state: &State) -> bool {
        self.used(state) + state.reserved > self.capacity() / 2 || self.0.turn.available() == 0
    }

    /// Sees to it that the open batch takes a record of `bytes`.
    fn make_room(&self, state: &mut State, bytes: usize) {
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
    fn close_open(&self, state: &mut State, extent: u64) {
        let buffer = state.spare.pop().unwrap_or_else(|| self.0.reactor.steady_buffer(self.0.ring.batch_max()));
        let next =
            OpenBatch { start: state.open.start.advance(extent), sequence: state.open.sequence + 1, buffer, used: 0, records: 0 };
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

const _: () = assert!(FIRST_LSN.0.is_multiple_of(SECTOR as u64));
