//! What can go wrong with a log, in words that tell an operator what happened, to what, and what to do now.

use std::fmt;
use std::io;

use crate::ids::{Incarnation, Lsn, NodeId, ShardId};
use crate::volume::sector::SectorFault;
use crate::volume::{RedoArea, Refusal};

/// Why a log can't be read, written or waited for. Cheap enough to clone: each waiter gets its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogError {
    /// The device refused. After a failed write nothing later is acknowledged: what the device holds is unknown.
    Io {
        /// Whose log.
        node: NodeId,
        /// Which of its shards.
        shard: ShardId,
        /// What was tried.
        doing: String,
        /// What the device said.
        message: String,
    },
    /// This life of the node may write no more.
    Refused {
        /// Whose log.
        node: NodeId,
        /// Which of its shards.
        shard: ShardId,
        /// What ended it.
        why: Refusal,
    },
    /// A record that can never fit.
    RecordTooLarge {
        /// Bytes of its payload.
        bytes: usize,
        /// Most bytes of a payload in this log.
        maximum: usize,
    },
    /// Neither copy of the area's header is usable.
    HeaderDamaged {
        /// Whose log.
        node: NodeId,
        /// Which of its shards.
        shard: ShardId,
        /// What is wrong with either copy.
        faults: [SectorFault; 2],
    },
    /// A part of the log is damaged, and it is not its end: later, valid parts follow, that were written only after the
    /// damaged part was safe on disk.
    CorruptMiddle {
        /// Whose log.
        node: NodeId,
        /// Which of its shards.
        shard: ShardId,
        /// Where the damage begins.
        lsn: Lsn,
        /// Where the log goes on.
        later: Lsn,
    },
    /// Where the checkpoint says the log begins stands something newer: the header on disk is out of date.
    Overwritten {
        /// Whose log.
        node: NodeId,
        /// Which of its shards.
        shard: ShardId,
        /// Where reading should have gone on.
        lsn: Lsn,
        /// What stands there.
        found: Lsn,
    },
    /// A valid batch holds a record that this version can't read.
    UnknownRecord {
        /// Whose log.
        node: NodeId,
        /// Which of its shards.
        shard: ShardId,
        /// The record.
        lsn: Lsn,
        /// Its kind.
        kind: u8,
    },
    /// The log was written by a later life of the node than the one that wants to write it now.
    OlderIncarnation {
        /// Whose log.
        node: NodeId,
        /// Which of its shards.
        shard: ShardId,
        /// The life that wants to write.
        ours: Incarnation,
        /// The life that wrote.
        found: Incarnation,
    },
}

impl LogError {
    /// From what the device said.
    #[must_use]
    pub fn io(area: &RedoArea, doing: &str, error: &io::Error) -> LogError {
        let (node, shard) = (area.node, area.shard);
        match Refusal::of(error) {
            Some(why) => LogError::Refused { node, shard, why },
            None => LogError::Io { node, shard, doing: doing.to_owned(), message: error.to_string() },
        }
    }
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Io { node, shard, doing, message } => write!(
                f,
                "log of {node} {shard}: can't {doing}: {message}; the node can't promise anything durable: check the device, then \
                 restart the node"
            ),
            LogError::Refused { node, shard, why } => write!(f, "log of {node} {shard}: {why}"),
            LogError::RecordTooLarge { bytes, maximum } => {
                write!(f, "a log record of {bytes} bytes; the redo area takes at most {maximum}")
            }
            LogError::HeaderDamaged { node, shard, faults: [first, second] } => write!(
                f,
                "log of {node} {shard}: both copies of the redo area's header are unusable (first: {first}; second: {second}); \
                 check the device, restore from a backup"
            ),
            LogError::CorruptMiddle { node, shard, lsn, later } => write!(
                f,
                "log of {node} {shard}: damaged at {lsn}, and valid again at {later}: this is not the end that a crash leaves. \
                 Committed changes would be lost: nothing is replayed. Check the device, restore from a backup"
            ),
            LogError::Overwritten { node, shard, lsn, found } => write!(
                f,
                "log of {node} {shard}: {lsn} was overwritten by {found}: the header of the redo area is older than the log. Check the \
                 device, restore from a backup"
            ),
            LogError::UnknownRecord { node, shard, lsn, kind } => write!(
                f,
                "log of {node} {shard}: the record at {lsn} (kind {kind}) can't be read by this version; start the newer \
                 rusty-db-server"
            ),
            LogError::OlderIncarnation { node, shard, ours, found } => write!(
                f,
                "log of {node} {shard}: {found} has written it, and this is {ours}: another process runs as {node}, or the node slot \
                 was restored from an old copy. Stop the other process"
            ),
        }
    }
}

impl std::error::Error for LogError {}
