//! Pass 1 of a survivor's recovery: what the log of a lost node says about the blocks that this shard masters.
//!
//! Runs in the shard's thread. Holds one buffer of the log beside the [`Replay`] that it fills, which is bounded by the
//! log's area.

use super::{RecoveryFault, Replay, ReplayError};
use crate::ids::BlockId;
use crate::reactor::{FileId, Reactor};
use crate::volume::RedoArea;
use crate::wal::LogScan;
use crate::wal::redo::{BlocksForgotten, BlocksWritten, CheckpointMark, RecordKind};

/// Reads the log of `area` from its checkpoint to its end, while `go_on` says so. Nobody writes to it any more: its node
/// is fenced.
///
/// # Errors
/// When the log can't be read or understood.
pub async fn read_redo(
    reactor: &Reactor,
    file: FileId,
    area: RedoArea,
    replay: &mut Replay,
    wanted: impl Fn(BlockId) -> bool,
    go_on: impl Fn() -> bool,
) -> Result<(), RecoveryFault> {
    let from = area.node;
    let not_understood = |fault| ReplayError::Record { from, fault };
    let mut scan = LogScan::open(reactor, file, area).await?;
    replay.observe(scan.checkpoint().scn);
    while let Some(record) = scan.next().await? {
        if !go_on() {
            break;
        }
        match record.kind {
            RecordKind::RedoGroup => replay.add_group_of(from, record.payload, &wanted)?,
            RecordKind::CheckpointMark => {
                replay.observe(CheckpointMark::decode(record.payload).map_err(not_understood)?.scn);
            }
            RecordKind::BlockWritten => {
                let written = BlocksWritten::decode(record.payload).map_err(not_understood)?;
                written.filter(|(block, _)| wanted(*block)).for_each(|(block, scn)| replay.note_written(block, scn));
            }
            RecordKind::BlocksForgotten => {
                replay.note_forgotten(BlocksForgotten::decode(record.payload).map_err(not_understood)?);
            }
            // Raft's entries belong to Raft.
            RecordKind::Raft => {}
        }
    }
    Ok(())
}
