//! Recovery of the whole volume, by the coordinator, before a new epoch begins: reads the redo of all nodes and shards
//! from their checkpoints, brings every block that it changed up to date on disk, and makes that durable.
//!
//! Runs in the first shard's thread of the coordinator while no node serves anything, so it has the volume for itself.
//! Bounded: the redo areas in memory, [`IN_FLIGHT`] blocks in flight. It can be interrupted anywhere and run again, by
//! any node: nothing is forgotten (the logs' checkpoints move only when each node takes its own, afterwards), and a block
//! that is up to date already is left alone.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use crate::fusion::recovery::{Replay, ReplayError, Replayed, read_place, write_place};
use crate::ids::{BLOCK_SIZE, BlockNo, Lsn, NodeId, Scn, ShardId};
use crate::reactor::{Class, IoBuf, Reactor};
use crate::volume::{Volume, VolumeError};
use crate::wal::redo::{BlocksForgotten, CheckpointMark, RecordKind};
use crate::wal::{LogError, LogScan};

/// Blocks read, replayed and written at once.
pub const IN_FLIGHT: usize = 64;

/// What recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Redo groups found behind the checkpoints.
    pub groups: u64,
    /// Blocks that they change.
    pub blocks: u64,
    /// Blocks that were behind on disk and have been written.
    pub written: u64,
    /// Above every SCN found anywhere.
    pub scn: Scn,
}

/// Why the volume can't be recovered. It has not been made worse; the same recovery can be tried again.
#[derive(Debug)]
pub enum RecoveryError {
    /// A log can't be read.
    Log(LogError),
    /// The volume can't be read or written.
    Volume(VolumeError),
    /// The redo does not fit the volume.
    Replay(ReplayError),
    /// A device error on one block.
    Block {
        /// Which.
        block: BlockNo,
        /// Reading or writing.
        doing: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// A record's content can't be understood.
    Record {
        /// Whose log.
        node: NodeId,
        /// Which of its logs.
        shard: ShardId,
        /// Where.
        lsn: Lsn,
        /// What is wrong.
        message: String,
    },
}

impl fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the volume can't be recovered from its redo: ")?;
        match self {
            RecoveryError::Log(error) => write!(f, "{error}"),
            RecoveryError::Volume(error) => write!(f, "{error}"),
            RecoveryError::Replay(error) => write!(f, "{error}"),
            RecoveryError::Block { block, doing, error } => write!(f, "can't {doing} {block}: {error}"),
            RecoveryError::Record { node, shard, lsn, message } => {
                write!(f, "record at {lsn} of the log of {node} {shard}: {message}")
            }
        }?;
        write!(f, ". Nothing was lost by trying; repair or restore what is named and start again")
    }
}

impl std::error::Error for RecoveryError {}

impl From<LogError> for RecoveryError {
    fn from(error: LogError) -> Self {
        RecoveryError::Log(error)
    }
}

impl From<VolumeError> for RecoveryError {
    fn from(error: VolumeError) -> Self {
        RecoveryError::Volume(error)
    }
}

impl From<ReplayError> for RecoveryError {
    fn from(error: ReplayError) -> Self {
        RecoveryError::Replay(error)
    }
}

/// Told how far recovery is: blocks done, blocks in all.
pub type Progress = Rc<dyn Fn(u64, u64)>;

/// Recovers the volume. Nobody else may write to it meanwhile.
///
/// # Errors
/// [`RecoveryError`].
pub async fn recover(reactor: &Reactor, volume: &Volume, progress: Progress) -> Result<Report, RecoveryError> {
    let mut report = Report::default();
    let mut replay = Replay::new();
    for node in volume.geometry().nodes() {
        let slot = volume.read_node_slot(node).await?;
        replay.observe(slot.scn);
    }
    replay.observe(volume.read_control().await?.scn);
    read_logs(reactor, volume, &mut replay).await?;
    report.groups = replay.groups();
    report.scn = replay.highest_scn();

    let blocks = replay.blocks();
    report.blocks = blocks.len() as u64;
    let work = Rc::new(Work {
        reactor: reactor.clone(),
        volume: volume.clone(),
        replay: RefCell::new(replay),
        next: RefCell::new(blocks.into_iter()),
        done: std::cell::Cell::new(0),
        written: std::cell::Cell::new(0),
        failed: RefCell::new(None),
        total: report.blocks,
        progress,
    });
    let tasks: Vec<_> = (0..IN_FLIGHT.min(report.blocks as usize))
        .map(|_| reactor.spawn(Class::Critical, "recovery", work.clone().run()))
        .collect();
    for task in tasks {
        task.join().await;
    }
    if let Some(error) = work.failed.borrow_mut().take() {
        return Err(error);
    }
    volume.sync().await?;
    report.written = work.written.get();
    Ok(report)
}

async fn read_logs(reactor: &Reactor, volume: &Volume, replay: &mut Replay) -> Result<(), RecoveryError> {
    for area in volume.geometry().redo_areas() {
        let mut scan = LogScan::open(reactor, volume.file(), area).await?;
        replay.observe(scan.checkpoint().scn);
        while let Some(record) = scan.next().await? {
            let bad = |message: String| RecoveryError::Record { node: area.node, shard: area.shard, lsn: record.start, message };
            match record.kind {
                RecordKind::RedoGroup => replay.add_group(area.node, record.payload)?,
                RecordKind::CheckpointMark => {
                    let mark = CheckpointMark::decode(record.payload).map_err(|fault| bad(fault.to_string()))?;
                    replay.observe(mark.scn);
                }
                RecordKind::BlocksForgotten => {
                    let forgotten = BlocksForgotten::decode(record.payload).map_err(|fault| bad(fault.to_string()))?;
                    replay.note_forgotten(forgotten);
                }
                // What was written is seen on the disk itself; Raft's entries belong to Raft.
                RecordKind::BlockWritten | RecordKind::Raft => {}
            }
        }
    }
    Ok(())
}

struct Work {
    reactor: Reactor,
    volume: Volume,
    replay: RefCell<Replay>,
    next: RefCell<std::vec::IntoIter<BlockNo>>,
    done: std::cell::Cell<u64>,
    written: std::cell::Cell<u64>,
    failed: RefCell<Option<RecoveryError>>,
    total: u64,
    progress: Progress,
}

impl Work {
    async fn run(self: Rc<Self>) {
        let mut buffer = IoBuf::aligned(BLOCK_SIZE);
        loop {
            if self.failed.borrow().is_some() {
                return;
            }
            let Some(block) = self.next.borrow_mut().next() else { return };
            match self.block(block, buffer).await {
                Ok(returned) => buffer = returned,
                Err(error) => {
                    self.failed.borrow_mut().get_or_insert(error);
                    return;
                }
            }
            self.done.set(self.done.get() + 1);
            (self.progress)(self.done.get(), self.total);
        }
    }

    async fn block(&self, block: BlockNo, buffer: IoBuf) -> Result<IoBuf, RecoveryError> {
        let file = self.volume.file();
        let whole = |result: std::io::Result<usize>, doing: &'static str| {
            let result = result.and_then(|bytes| {
                if bytes == BLOCK_SIZE {
                    Ok(())
                } else {
                    Err(std::io::Error::other(format!("only {bytes} bytes of {BLOCK_SIZE}")))
                }
            });
            result.map_err(|error| RecoveryError::Block { block, doing, error })
        };
        let (read, mut buffer) = read_place(&self.reactor, file, block, buffer).await;
        whole(read, "read")?;
        let outcome = self.replay.borrow_mut().replay(block, buffer.as_mut_slice())?;
        if let Replayed::Changed { .. } = outcome {
            let (written, returned) = write_place(&self.reactor, file, block, buffer).await;
            whole(written, "write")?;
            buffer = returned;
            self.written.set(self.written.get() + 1);
        }
        Ok(buffer)
    }
}
