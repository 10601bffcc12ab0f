//! What a group's log is applied to.

use super::types::{Configuration, Leadership, LogIndex};

/// Most bytes of an answer to a proposal: it goes back to the proposer's node in one frame.
pub const ANSWER_BYTES_MAX: usize = 32 * 1024;

/// The state that the members of a group agree on. One on each of them, called on the shard's thread, never from within a call to
/// [`super::Group`]. Whatever it becomes follows from its snapshot and the proposals alone: no clock, no chance, no
/// settings of the node.
pub trait StateMachine {
    /// Takes a committed proposal. Each exactly once since the snapshot, in the order of the log. The answer, at most
    /// [`ANSWER_BYTES_MAX`] bytes, goes to the proposer.
    fn apply(&self, index: LogIndex, proposal: &[u8]) -> Vec<u8>;

    /// The whole state as bytes, no more than [`super::GroupStatus::snapshot_bytes_max`].
    fn snapshot(&self) -> Vec<u8>;

    /// Replaces the state by that of a snapshot.
    ///
    /// # Errors
    /// When the bytes can't be understood: a newer version has written them. The group stops on this node then.
    fn restore(&self, index: LogIndex, snapshot: &[u8]) -> Result<(), String>;

    /// The group's members have changed. After a restart they are told again.
    fn members_changed(&self, configuration: &Configuration) {
        let _ = configuration;
    }

    /// Who leads has changed, as this node sees it.
    fn leadership_changed(&self, leadership: Leadership) {
        let _ = leadership;
    }
}
