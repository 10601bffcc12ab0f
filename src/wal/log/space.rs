//! Space in the log: who may have how much of the ring before the next checkpoint, and who waits for it.
//!
//! In the shard's thread. Of the ring a batch and a headroom stay free, the latter for the records that checkpoints
//! themselves write and, up to a quarter of it, for Raft's; in memory lie at most [`UNFLUSHED_MAX`] and the reservations that
//! are out. Whoever finds no room waits, first come, first served; Raft's and the urgent ones don't queue behind the others.

use super::{Log, State};
use crate::volume::SECTOR;
use crate::wal::batch::{BATCH_HEADER, framed};
use crate::wal::{LogError, UNFLUSHED_MAX};

/// What a record may cost beside its own bytes: the header of a batch and padding to a sector.
pub(super) const RECORD_OVERHEAD: u64 = (BATCH_HEADER + SECTOR) as u64;

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

/// Space in the log for one or more records. Gives back what it did not use when dropped.
#[must_use]
pub struct Reservation {
    pub(super) log: Log,
    pub(super) framed_left: u64,
    pub(super) charge: u64,
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

    pub(super) fn used(&self, state: &State) -> u64 {
        let end = state.open.start.0 + state.open.used.next_multiple_of(SECTOR) as u64;
        end - state.checkpoint.lsn.0
    }

    pub(super) fn due(&self, state: &State) -> bool {
        self.used(state) + state.reserved > self.capacity() / 2 || self.0.turn.available() == 0
    }
}
