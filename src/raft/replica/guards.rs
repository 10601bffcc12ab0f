//! What raft-rs 0.7 lacks, or takes for granted.

use raft::eraftpb::{Entry, Message};
use raft::{ProgressState, SnapshotStatus, StateRole};

use super::Replica;
use crate::raft::types::ConfigurationChange;
use crate::reactor::split_mix;

impl Replica {
    /// Whether raft-rs would fail if this replica stood for election now. It lets the only voter lead at once, and insists
    /// that its log is durable by then; and it looks for changes of the members behind the last applied entry, which are
    /// gone while a leader's snapshot is on its way to the disk.
    pub(super) fn must_not_stand(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        let alone = self.configuration().is_only_voter(self.config.node);
        (alone && !self.waiting.is_empty()) || log.applied + 1 < log.first_index()
    }

    /// Whether a rejection comes from before the follower confirmed what it has confirmed. raft-rs 0.7 would probe from
    /// there, from an entry at or before one that is known to match (its issue #555, mended by #557 after the release), and then
    /// send entries again that the follower may have compacted.
    pub(super) fn stale_rejection(&mut self, message: &Message) -> bool {
        let raft = &mut self.raw.raft;
        if raft.state != StateRole::Leader || message.term != raft.term {
            return false;
        }
        let hint = match message.log_term {
            0 => message.reject_hint,
            term => raft.raft_log.find_conflict_by_term(message.reject_hint, term).0,
        };
        let Some(progress) = raft.mut_prs().get_mut(message.from) else { return false };
        let stale = message.index <= progress.matched || hint < progress.matched;
        if stale {
            progress.recent_active = true;
        }
        stale
    }

    /// Draws an election timeout from our own numbers whenever raft-rs may have drawn one from the thread's. Its own is never
    /// looked at: ours is set before every tick.
    pub(super) fn redraw(&mut self) {
        let raft = &self.raw.raft;
        let state = (raft.term, raft.state, raft.leader_id, self.campaigns);
        if state != self.drawn_for {
            self.drawn_for = state;
            let (low, high) = self.config.election_ticks;
            self.timeout = low + (split_mix(&mut self.random) % u64::from(high - low + 1)) as u32;
        }
    }

    /// A snapshot is not confirmed but by what follows it; one that gets lost would leave the follower waiting for ever.
    pub(super) fn resend_snapshots(&mut self) {
        let patience = 2 * self.config.election_ticks.1;
        let leads = self.raw.raft.state == StateRole::Leader;
        let mut lost = Vec::new();
        let raft = &self.raw.raft;
        self.snapshots.retain(|id, ticks| {
            let waits = leads && raft.prs().get(*id).is_some_and(|progress| progress.state == ProgressState::Snapshot);
            *ticks += 1;
            if waits && *ticks > patience {
                lost.push(*id);
            }
            waits && *ticks <= patience
        });
        for id in lost {
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    /// raft-rs proposes to leave a joint configuration when the leader applies its entry; a leader that came later does it here.
    pub(super) fn leave_joint(&mut self) {
        let configuration = *self.configuration();
        let raft = &self.raw.raft;
        let due = configuration.is_joint()
            && configuration.auto_leave
            && raft.state == StateRole::Leader
            && !raft.has_pending_conf()
            && raft.lead_transferee.is_none();
        if due {
            // Refused only for reasons that pass; the next tick tries again.
            let _ = self.raw.propose_conf_change(Vec::new(), ConfigurationChange::default().to_raft());
        }
    }

    /// raft-rs adds what was just proposed to what it takes from the log, without counting: such messages become two.
    pub(super) fn split_appends(&mut self) {
        let most = self.config.entries_per_append_max;
        if self.outputs.messages.iter().all(|message| message.entries.len() <= most) {
            return;
        }
        let mut split = Vec::with_capacity(self.outputs.messages.len() + 1);
        for mut message in std::mem::take(&mut self.outputs.messages) {
            while message.entries.len() > most {
                let mut later: Vec<Entry> = message.take_entries().into();
                let first: Vec<Entry> = later.drain(..most).collect();
                let (index, term) = first.last().map(|entry| (entry.index, entry.term)).expect("at least one fits");
                let mut next = message.clone();
                message.set_entries(first.into());
                split.push(message);
                next.index = index;
                next.log_term = term;
                next.set_entries(later.into());
                message = next;
            }
            split.push(message);
        }
        self.outputs.messages = split;
    }
}
