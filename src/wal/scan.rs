//! Reading a log after a crash: every record from the checkpoint to the log's end, in order.
//!
//! Owned by the task that recovers; any node may read any area. Holds one buffer of [`BATCH_MAX`] bytes. It promises to give
//! exactly the records of whole batches that follow each other without a gap, and to tell the end that a crash leaves (at
//! most one write was under way, so nothing valid follows it) from damage in the middle, which is an error.

use super::BATCH_MAX;
use super::area::{Checkpoint, Ring};
use super::batch::{BATCH_HEADER, Batch, take_record};
use super::error::LogError;
use super::redo::RecordKind;
use crate::ids::{Incarnation, Lsn};
use crate::reactor::{FileId, IoBuf, Reactor};
use crate::volume::{RedoArea, SECTOR};

/// A record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends: what [`super::Log::append`] returned for it.
    pub end: Lsn,
    /// What it is.
    pub kind: RecordKind,
    /// Its content.
    pub payload: &'a [u8],
}

/// Where a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Where the next batch will begin.
    pub lsn: Lsn,
    /// The sequence that it will have.
    pub batch_sequence: u64,
    /// The newest life of the node that wrote to the log.
    pub incarnation: Incarnation,
}

/// A log being read.
pub struct LogScan {
    reactor: Reactor,
    file: FileId,
    ring: Ring,
    checkpoint: Checkpoint,
    /// What is expected next.
    end: LogEnd,
    finished: bool,
    /// The batch being given out, and how far it is.
    current: Option<(Batch, usize)>,
    buffer: Window,
}

/// A part of the ring in memory.
struct Window {
    bytes: Option<IoBuf>,
    start: Lsn,
    len: usize,
}

/// Reads of the place where the log seems to end.
const LOADS_AT_END: u32 = 3;

impl Window {
    fn get(&self, at: Lsn) -> &[u8] {
        let bytes = self.bytes.as_ref().expect("the buffer is here between two reads").as_slice();
        match at.0.checked_sub(self.start.0) {
            Some(skip) if skip < self.len as u64 => &bytes[skip as usize..self.len],
            _ => &[],
        }
    }
}

impl LogScan {
    /// Begins to read the log of an area at its checkpoint.
    ///
    /// # Errors
    /// [`LogError::HeaderDamaged`], or the device's.
    pub async fn open(reactor: &Reactor, file: FileId, area: RedoArea) -> Result<LogScan, LogError> {
        let checkpoint = Checkpoint::read(reactor, file, &area).await?;
        let end = LogEnd { lsn: checkpoint.lsn, batch_sequence: checkpoint.batch_sequence, incarnation: checkpoint.incarnation };
        Ok(LogScan {
            reactor: reactor.clone(),
            file,
            ring: Ring::new(area),
            checkpoint,
            end,
            finished: false,
            current: None,
            buffer: Window { bytes: Some(IoBuf::aligned(BATCH_MAX)), start: checkpoint.lsn, len: 0 },
        })
    }

    /// The checkpoint that the reading began at.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The next record; `None` at the end of the log.
    ///
    /// # Errors
    /// [`LogError::CorruptMiddle`], [`LogError::Overwritten`], [`LogError::UnknownRecord`], or the device's. The log must not be
    /// used then.
    pub async fn next(&mut self) -> Result<Option<Record<'_>>, LogError> {
        let (batch, at) = loop {
            match self.current {
                Some((batch, at)) if at < batch.length => break (batch, at),
                _ => {}
            }
            self.current = self.next_batch().await?.map(|batch| (batch, BATCH_HEADER));
            if self.current.is_none() {
                return Ok(None);
            }
        };
        let start = batch.start.advance(at as u64);
        let unknown = |kind| {
            let area = self.ring.area();
            LogError::UnknownRecord { node: area.node, shard: area.shard, lsn: start, kind }
        };
        let bytes = &self.buffer.get(batch.start)[at..batch.length];
        let (kind, payload, whole) = take_record(bytes).ok_or_else(|| unknown(0))?;
        let kind = RecordKind::from_u8(kind).ok_or_else(|| unknown(kind))?;
        self.current = Some((batch, at + whole));
        Ok(Some(Record { start, end: start.advance(whole as u64), kind, payload }))
    }

    /// Where the log ends. Only known after [`LogScan::next`] gave `None`.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        assert!(self.finished, "the end of a log is known when it was read to its end");
        self.end
    }

    /// The next whole batch, which is in the buffer afterwards; `None` at the end.
    pub(super) async fn next_batch(&mut self) -> Result<Option<Batch>, LogError> {
        if self.finished {
            return Ok(None);
        }
        let at = self.end.lsn;
        let mut found = Batch::parse(&self.ring, at, self.buffer.get(at));
        let mut loads = 0;
        let found = loop {
            let whole = found.filter(|batch| batch.is_whole(self.buffer.get(at)));
            if let Some(batch) = whole
                && batch.start == at
                && batch.sequence == self.end.batch_sequence
                && batch.incarnation >= self.end.incarnation
            {
                self.end = LogEnd { lsn: batch.next(), batch_sequence: batch.sequence + 1, incarnation: batch.incarnation };
                return Ok(Some(batch));
            }
            // What was never written stays so; what was only damaged on its way from the disk does not, and would be
            // taken for the end: what was acknowledged last would be lost.
            if loads == LOADS_AT_END {
                break whole;
            }
            self.load(at).await?;
            loads += 1;
            found = Batch::parse(&self.ring, at, self.buffer.get(at));
        };
        self.check_end(at, found).await?;
        self.finished = true;
        Ok(None)
    }

    /// Whether the batch that [`LogScan::next_batch`] has just given holds a record of this kind.
    pub(super) fn has_kind(&self, batch: &Batch, kind: RecordKind) -> bool {
        let mut rest = &self.buffer.get(batch.start)[BATCH_HEADER..batch.length];
        while let Some((found, _, whole)) = take_record(rest) {
            if found == kind as u8 {
                return true;
            }
            rest = &rest[whole..];
        }
        false
    }

    /// Whether the log may end at `at`, where no batch continues it.
    async fn check_end(&mut self, at: Lsn, found: Option<Batch>) -> Result<(), LogError> {
        let (node, shard) = (self.ring.area().node, self.ring.area().shard);
        if let Some(newer) = found.filter(|batch| batch.start > at) {
            return Err(LogError::Overwritten { node, shard, lsn: at, found: newer.start });
        }
        // One write may have been under way, and it began at `at`. The write after it would have begun after this one was
        // durable: if that one is here, `at` was durable, and was damaged later.
        let batch_max = self.ring.batch_max() as u64;
        let to_end = self.ring.to_end(at);
        let reach = if to_end <= 2 * batch_max { to_end } else { batch_max };
        let limit = self.checkpoint.lsn.0 + self.ring.bytes();
        let mut candidate = at.advance(SECTOR as u64);
        while candidate.0 <= at.0 + reach && candidate.0 < limit {
            if self.buffer.get(candidate).is_empty() {
                self.load(candidate).await?;
            }
            if let Some(batch) = Batch::parse(&self.ring, candidate, self.buffer.get(candidate))
                && batch.start == candidate
                && batch.sequence > self.end.batch_sequence
                && batch.incarnation >= self.end.incarnation
            {
                if self.buffer.get(candidate).len() < batch.length {
                    self.load(candidate).await?;
                }
                if batch.is_whole(self.buffer.get(candidate)) {
                    return Err(LogError::CorruptMiddle { node, shard, lsn: at, later: candidate });
                }
            }
            candidate = candidate.advance(SECTOR as u64);
        }
        Ok(())
    }

    /// Reads the ring from `at` on, as far as the buffer and the ring go.
    async fn load(&mut self, at: Lsn) -> Result<(), LogError> {
        let mut bytes = self.buffer.bytes.take().unwrap_or_else(|| IoBuf::aligned(BATCH_MAX)).whole();
        let want = self.ring.to_end(at).min(bytes.len() as u64) as usize;
        bytes.truncate(want);
        let (result, bytes) = self.reactor.read(self.file, self.ring.offset(at), bytes).await;
        self.buffer = Window { bytes: Some(bytes.whole()), start: at, len: 0 };
        let read = result.map_err(|error| LogError::io(self.ring.area(), "read it", &error))?;
        if read < want {
            let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(LogError::io(self.ring.area(), "read it", &error));
        }
        self.buffer.len = read;
        Ok(())
    }
}
