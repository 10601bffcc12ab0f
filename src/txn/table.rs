//! The transaction table in memory: which transactions of this shard run, how the finished ones ended, which slots are
//! free again.
//!
//! Owned by one shard; a state machine without I/O. Bounded by [`SLOTS_MAX`] and [`FORMER_MAX`]. What it promises: a
//! transaction's id is never given out twice; the outcome of every transaction is known for as long as a snapshot is in
//! use that is not younger than its end. So an id of which nothing is known any more can only be that of a transaction that
//! everybody sees as committed (rolled back transactions have left no trace by then, see [`Table::state`]).
//!
//! Slots are reused in the order of the ends. Where an old snapshot (a long report) would hold them all, the outcomes of
//! their former users are kept in memory instead, and the slot notes that. With this node's life they are lost, while other
//! nodes' snapshots go on: of such ids it is only known afterwards that they committed before the table was loaded.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::ids::{NodeId, Scn, ShardId, TxnId};

use super::row::UndoPtr;
use super::slot::{SLOTS_MAX, ShardSet, Slot, SlotState};
use super::visibility::TxnState;

/// Most outcomes kept in memory of transactions whose slots have been reused.
pub const FORMER_MAX: usize = 1 << 20;

/// What is remembered of a slot's transaction.
#[derive(Clone, Copy, Debug)]
struct Entry {
    wrap: u32,
    state: State,
    begun: Scn,
    undo_head: UndoPtr,
    sequence: u32,
    /// See [`Slot::former_needed`].
    former_needed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Active,
    Committing(Option<Scn>),
    Committed(Scn),
    /// To be rolled back, or being rolled back.
    Aborted,
    RolledBack(Scn),
}

/// A transaction found unfinished when the table was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfinished {
    /// Which.
    pub txn: TxnId,
    /// As what.
    pub left: Left,
}

/// How a crash left a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Running: it is dead.
    Dead,
    /// A branch that has promised to follow this one.
    Branch {
        /// The transaction in whose slot the outcome stands.
        home: TxnId,
    },
    /// A home that is committed if all its branches have promised.
    Home {
        /// The commit's SCN.
        scn: Scn,
        /// Where its branches are.
        parts: ShardSet,
    },
}

/// A shard's transaction table.
#[derive(Debug)]
pub struct Table {
    node: NodeId,
    shard: ShardId,
    entries: Vec<Entry>,
    /// Never used since the start, and free.
    free: Vec<u16>,
    /// Ended, in the order of their ends: SCN of the end, slot.
    ended: VecDeque<(Scn, u16)>,
    /// Neither committed nor fully rolled back, by begin.
    unfinished: BTreeSet<(Scn, u16)>,
    /// Outcomes, by slot and wrap, of transactions whose slots were reused while a snapshot could still ask for them.
    former: HashMap<(u16, u32), TxnState>,
    /// The same in the order of their ends.
    former_ends: VecDeque<(Scn, (u16, u32))>,
    /// Committed, but their slots on the volume are still needed for what the slots of other shards say.
    held: BTreeSet<u16>,
    /// Slots that were loaded with a note that a former outcome was needed, and the wrap that they had.
    outcomes_lost: HashMap<u16, u32>,
    /// A clock reading from when the table was loaded.
    loaded: Scn,
}

impl Table {
    /// A table of free slots.
    #[must_use]
    pub fn new(node: NodeId, shard: ShardId) -> Table {
        let entry =
            Entry { wrap: 0, state: State::Free, begun: Scn::ZERO, undo_head: UndoPtr::NONE, sequence: 0, former_needed: false };
        Table {
            node,
            shard,
            entries: vec![entry; SLOTS_MAX],
            free: (0..SLOTS_MAX as u16).rev().collect(),
            ended: VecDeque::new(),
            unfinished: BTreeSet::new(),
            former: HashMap::new(),
            former_ends: VecDeque::new(),
            held: BTreeSet::new(),
            outcomes_lost: HashMap::new(),
            loaded: Scn::ZERO,
        }
    }

    /// The table as the volume has it, with the transactions that the shard's former life left unfinished: each counts as
    /// aborted, but for those over several shards, whose outcome is still to be found. `now` is a reading of the clock.
    #[must_use]
    pub fn load(
        node: NodeId,
        shard: ShardId,
        slots: impl IntoIterator<Item = (u16, Slot)>,
        now: Scn,
    ) -> (Table, Vec<Unfinished>) {
        let mut table = Table::new(node, shard);
        table.loaded = now;
        let (mut ended, mut left) = (Vec::new(), Vec::new());
        table.free.clear();
        for (number, slot) in slots {
            let entry = &mut table.entries[usize::from(number)];
            entry.wrap = slot.wrap;
            entry.undo_head = slot.undo_head;
            entry.former_needed = slot.former_needed;
            if slot.former_needed {
                table.outcomes_lost.insert(number, slot.wrap);
            }
            entry.state = match slot.state {
                SlotState::Free => State::Free,
                SlotState::Committed(scn) => State::Committed(scn),
                SlotState::RolledBack(scn) => State::RolledBack(scn),
                SlotState::Active => State::Aborted,
                // Whoever asks must not be told anything before the outcome is known.
                SlotState::Prepared { .. } | SlotState::Deciding { .. } => State::Committing(None),
            };
            match slot.state {
                SlotState::Free => table.free.push(number),
                SlotState::Committed(scn) | SlotState::RolledBack(scn) => ended.push((scn, number)),
                SlotState::Active | SlotState::Prepared { .. } | SlotState::Deciding { .. } => {
                    table.unfinished.insert((Scn::ZERO, number));
                    let how = match slot.state {
                        SlotState::Prepared { home } => Left::Branch { home },
                        SlotState::Deciding { scn, parts } => Left::Home { scn, parts },
                        _ => Left::Dead,
                    };
                    left.push(Unfinished { txn: TxnId::new(node, shard, number, slot.wrap), left: how });
                }
            }
        }
        table.free.reverse();
        ended.sort_unstable();
        table.ended = ended.into();
        (table, left)
    }

    /// Begins a transaction; `None` while all slots are needed. `now` is a reading of the clock, `oldest` the cluster's
    /// oldest snapshot.
    pub fn begin(&mut self, now: Scn, oldest: Scn) -> Option<TxnId> {
        while self.former_ends.front().is_some_and(|&(end, _)| end < oldest) {
            let (_, former) = self.former_ends.pop_front().expect("looked at it");
            self.former.remove(&former);
        }
        let (number, former_needed) = match (self.ended.front(), self.free.last()) {
            // Never-used slots last: a small busy part of the table stays in the caches.
            (Some(&(end, _)), None) if end >= oldest && self.former.len() < FORMER_MAX => (self.keep_outcome(), true),
            (Some(&(end, _)), _) if end < oldest => (self.ended.pop_front().expect("looked at it").1, false),
            _ => (self.free.pop()?, false),
        };
        let entry = &mut self.entries[usize::from(number)];
        assert!(
            matches!(entry.state, State::Free | State::Committed(_) | State::RolledBack(_)),
            "slot {number} is in use: {entry:?}"
        );
        let wrap = entry.wrap.checked_add(1).expect("a slot is used at most 2^32 times");
        *entry = Entry { wrap, state: State::Active, begun: now, undo_head: UndoPtr::NONE, sequence: 0, former_needed };
        self.unfinished.insert((now, number));
        Some(TxnId::new(self.node, self.shard, number, wrap))
    }

    /// Frees the slot of the transaction that ended first, and keeps its outcome.
    fn keep_outcome(&mut self) -> u16 {
        let (end, number) = self.ended.pop_front().expect("a transaction has ended");
        let entry = &self.entries[usize::from(number)];
        let outcome = match entry.state {
            State::Committed(scn) => TxnState::Committed(scn),
            State::RolledBack(_) => TxnState::Aborted,
            _ => unreachable!("slot {number} is among those that have ended: {entry:?}"),
        };
        self.former.insert((number, entry.wrap), outcome);
        self.former_ends.push_back((end, (number, entry.wrap)));
        number
    }

    /// What is known of a transaction of this shard. `None`: its id is from the future, which no honest block contains.
    #[must_use]
    #[inline]
    pub fn state(&self, txn: TxnId) -> Option<TxnState> {
        let entry = self.entries.get(usize::from(txn.slot()))?;
        if txn.wrap() != entry.wrap {
            let forgotten = || match self.outcomes_lost.get(&txn.slot()) {
                Some(&wrap) if txn.wrap() < wrap => TxnState::CommittedBy(self.loaded),
                _ => TxnState::Committed(Scn::ZERO),
            };
            let former = || self.former.get(&(txn.slot(), txn.wrap())).copied().unwrap_or_else(forgotten);
            return (txn.wrap() < entry.wrap).then(former);
        }
        match entry.state {
            State::Free => None,
            State::Active => Some(TxnState::Active),
            State::Committing(scn) => Some(TxnState::Committing(scn)),
            State::Committed(scn) => Some(TxnState::Committed(scn)),
            State::Aborted | State::RolledBack(_) => Some(TxnState::Aborted),
        }
    }

    /// Whether the transaction has written since it began.
    #[must_use]
    pub fn has_written(&self, txn: TxnId) -> bool {
        self.entry(txn).sequence > 0
    }

    /// The transaction's slot as it is to be written.
    #[must_use]
    pub fn slot(&self, txn: TxnId, state: SlotState, undo_head: UndoPtr) -> Slot {
        Slot { wrap: txn.wrap(), state, undo_head, former_needed: self.entry(txn).former_needed }
    }

    /// Newest undo record, and how many there are.
    #[must_use]
    pub fn position(&self, txn: TxnId) -> (UndoPtr, u32) {
        let entry = self.entry(txn);
        (entry.undo_head, entry.sequence)
    }

    /// The transaction has written an undo record, or rolled back to this one.
    pub fn set_position(&mut self, txn: TxnId, head: UndoPtr, sequence: u32) {
        let entry = self.entry_mut(txn);
        assert!(matches!(entry.state, State::Active | State::Aborted), "{txn} changes its undo in {entry:?}");
        entry.undo_head = head;
        entry.sequence = sequence;
    }

    /// The commit is on its way; `None` while its SCN is not drawn yet.
    pub fn committing(&mut self, txn: TxnId, scn: Option<Scn>) {
        let entry = self.entry_mut(txn);
        assert!(matches!(entry.state, State::Active | State::Committing(None)), "{txn} commits in {entry:?}");
        entry.state = State::Committing(scn);
    }

    /// The commit is durable and known to all.
    pub fn committed(&mut self, txn: TxnId, scn: Scn) {
        self.end(txn, State::Committed(scn), scn);
    }

    /// As [`Table::committed`], but the slot is not used again before [`Table::release`].
    pub fn committed_and_held(&mut self, txn: TxnId, scn: Scn) {
        self.end(txn, State::Committed(scn), scn);
        self.ended.pop_back();
        self.held.insert(txn.slot());
    }

    /// Whether it is committed and its slot held.
    #[must_use]
    pub fn is_held(&self, txn: TxnId) -> bool {
        self.held.contains(&txn.slot()) && self.entries[usize::from(txn.slot())].wrap == txn.wrap()
    }

    /// A held slot may be used again; harmless if it is not held any more.
    pub fn release(&mut self, txn: TxnId) {
        if self.is_held(txn) {
            let State::Committed(scn) = self.entry(txn).state else { unreachable!("{txn} is held, so it is committed") };
            self.held.remove(&txn.slot());
            self.ended.push_back((scn, txn.slot()));
        }
    }

    /// The transaction gives up: its rows count as their predecessors from now on.
    pub fn abort(&mut self, txn: TxnId) {
        let entry = self.entry_mut(txn);
        assert!(matches!(entry.state, State::Active | State::Aborted | State::Committing(None)), "{txn} aborts in {entry:?}");
        entry.state = State::Aborted;
    }

    /// All its rows have been put back; `scn` was drawn after the last of them.
    pub fn rolled_back(&mut self, txn: TxnId, scn: Scn) {
        self.end(txn, State::RolledBack(scn), scn);
    }

    fn end(&mut self, txn: TxnId, state: State, scn: Scn) {
        let entry = self.entry_mut(txn);
        assert!(!matches!(entry.state, State::Free | State::Committed(_) | State::RolledBack(_)), "{txn} ends twice: {entry:?}");
        entry.state = state;
        let begun = entry.begun;
        assert!(self.unfinished.remove(&(begun, txn.slot())), "{txn} was not known as unfinished");
        // Ends come nearly in order; a slot that waits behind a slightly later one loses nothing.
        self.ended.push_back((scn, txn.slot()));
    }

    /// A reading of the clock from before the oldest unfinished transaction began; `None` if there is none.
    #[must_use]
    pub fn oldest_begin(&self) -> Option<Scn> {
        self.unfinished.first().map(|&(begun, _)| begun)
    }

    /// A reading of the clock from when a transaction of this shard began; zero for one that is no longer known.
    #[must_use]
    pub fn begun(&self, txn: TxnId) -> Scn {
        let entry = self.entries.get(usize::from(txn.slot()));
        entry.filter(|entry| entry.wrap == txn.wrap()).map_or(Scn::ZERO, |entry| entry.begun)
    }

    /// The unfinished transactions.
    #[must_use]
    pub fn unfinished_ids(&self) -> Vec<TxnId> {
        let id = |&(_, slot): &(Scn, u16)| TxnId::new(self.node, self.shard, slot, self.entries[usize::from(slot)].wrap);
        self.unfinished.iter().map(id).collect()
    }

    /// How many transactions are unfinished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// The highest SCN in the table: the clock must start above it.
    #[must_use]
    pub fn highest_scn(&self) -> Scn {
        self.ended.iter().map(|&(scn, _)| scn).max().unwrap_or(Scn::ZERO)
    }

    fn entry(&self, txn: TxnId) -> &Entry {
        let entry = &self.entries[usize::from(txn.slot())];
        assert_eq!((txn.node(), txn.shard(), txn.wrap()), (self.node, self.shard, entry.wrap), "{txn} is not the slot's");
        entry
    }

    fn entry_mut(&mut self, txn: TxnId) -> &mut Entry {
        let entry = &mut self.entries[usize::from(txn.slot())];
        assert_eq!((txn.node(), txn.shard(), txn.wrap()), (self.node, self.shard, entry.wrap), "{txn} is not the slot's");
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::new(NodeId(1), ShardId(0))
    }

    #[test]
    fn a_slot_is_reused_only_below_the_oldest_snapshot() {
        let mut table = table();
        let first = table.begin(Scn(10), Scn(0)).unwrap();
        table.committing(first, Some(Scn(20)));
        table.committed(first, Scn(20));
        let second = table.begin(Scn(21), Scn(20)).unwrap();
        assert_ne!(second.slot(), first.slot(), "a snapshot at 20 may still ask when the first committed");
        assert_eq!(table.state(first), Some(TxnState::Committed(Scn(20))));
        let third = table.begin(Scn(22), Scn(21)).unwrap();
        assert_eq!((third.slot(), third.wrap()), (first.slot(), first.wrap() + 1));
        assert_eq!(table.state(first), Some(TxnState::Committed(Scn::ZERO)), "everybody sees it");
        assert_eq!(table.state(TxnId::new(NodeId(1), ShardId(0), third.slot(), third.wrap() + 1)), None);
    }

    #[test]
    fn a_slot_that_others_lean_on_is_not_reused() {
        let mut table = table();
        let home = table.begin(Scn(10), Scn(0)).unwrap();
        table.committing(home, Some(Scn(20)));
        table.committed_and_held(home, Scn(20));
        assert_eq!((table.state(home), table.oldest_begin()), (Some(TxnState::Committed(Scn(20))), None));
        let next = table.begin(Scn(30), Scn(25)).unwrap();
        assert_ne!(next.slot(), home.slot());
        table.release(home);
        table.release(home);
        assert_eq!(table.begin(Scn(31), Scn(25)).map(|txn| (txn.slot(), txn.wrap())), Some((home.slot(), home.wrap() + 1)));
        assert!(!table.is_held(home));
    }

    #[test]
    fn an_old_snapshot_does_not_use_the_table_up() {
        let mut table = table();
        let all: Vec<_> = std::iter::from_fn(|| table.begin(Scn(5), Scn(0))).collect();
        assert_eq!(all.len(), SLOTS_MAX);
        table.abort(all[7]);
        assert_eq!(table.state(all[7]), Some(TxnState::Aborted));
        assert_eq!(table.begin(Scn(9), Scn(100)), None, "being rolled back, its slot is needed");
        table.rolled_back(all[7], Scn(8));
        table.committing(all[9], Some(Scn(9)));
        table.committed(all[9], Scn(9));
        // The oldest snapshot stands at 8: both outcomes may be asked for.
        for (round, old) in [7, 9].into_iter().enumerate() {
            let new = table.begin(Scn(10 + round as u64), Scn(8)).unwrap();
            assert_eq!((new.slot(), new.wrap()), (all[old].slot(), all[old].wrap() + 1));
        }
        assert_eq!(table.begin(Scn(12), Scn(8)), None, "now all are running");
        assert_eq!((table.state(all[7]), table.state(all[9])), (Some(TxnState::Aborted), Some(TxnState::Committed(Scn(9)))));
        assert_eq!(table.begin(Scn(12), Scn(10)), None);
        assert_eq!(table.state(all[9]), Some(TxnState::Committed(Scn::ZERO)), "forgotten below the oldest snapshot");
        assert!(table.former.is_empty());
    }

    #[test]
    fn a_restart_takes_the_unfinished_for_dead_and_goes_on_counting() {
        let (node, shard) = (NodeId(1), ShardId(0));
        let slot = |wrap, state| Slot { wrap, state, undo_head: UndoPtr::NONE, former_needed: false };
        let home = TxnId::new(node, ShardId(1), 3, 3);
        let slots = [
            (0, slot(4, SlotState::Active)),
            (1, slot(2, SlotState::Committed(Scn(50)))),
            (2, slot(6, SlotState::Prepared { home })),
            (3, slot(0, SlotState::Free)),
            (4, slot(9, SlotState::Deciding { scn: Scn(60), parts: [ShardId(1)].into_iter().collect() })),
        ];
        let (mut table, left) = Table::load(node, shard, slots, Scn(65));
        let (dead, branch) = (TxnId::new(node, shard, 0, 4), TxnId::new(node, shard, 2, 6));
        let deciding = TxnId::new(node, shard, 4, 9);
        assert_eq!(
            left,
            [
                Unfinished { txn: dead, left: Left::Dead },
                Unfinished { txn: branch, left: Left::Branch { home } },
                Unfinished { txn: deciding, left: Left::Home { scn: Scn(60), parts: [ShardId(1)].into_iter().collect() } },
            ]
        );
        assert_eq!(table.state(deciding), Some(TxnState::Committing(None)));
        table.abort(deciding);
        table.rolled_back(deciding, Scn(56));
        assert_eq!(table.state(dead), Some(TxnState::Aborted));
        assert_eq!(table.state(branch), Some(TxnState::Committing(None)), "nobody may be told before the home is asked");
        table.committing(branch, Some(Scn(60)));
        table.committed(branch, Scn(60));
        assert_eq!(table.highest_scn(), Scn(60));
        assert_eq!(table.begin(Scn(70), Scn(55)), Some(TxnId::new(node, shard, 1, 3)));
        assert_eq!(table.oldest_begin(), Some(Scn::ZERO));
        table.rolled_back(dead, Scn(71));
        assert_eq!(table.oldest_begin(), Some(Scn(70)));
    }

    #[test]
    fn an_outcome_that_only_the_former_life_knew_is_given_to_nobody_who_could_tell() {
        let mut before = Table::new(NodeId(1), ShardId(0));
        let all: Vec<_> = std::iter::from_fn(|| before.begin(Scn(5), Scn(0))).collect();
        for (txn, end) in [(all[7], 8), (all[9], 9)] {
            before.committing(txn, Some(Scn(end)));
            before.committed(txn, Scn(end));
        }
        // A snapshot at 8 needs the outcome of the one at 9, and a new one needs its slot.
        let plain = before.begin(Scn(10), Scn(9)).unwrap();
        let kept = before.begin(Scn(11), Scn(8)).unwrap();
        assert_eq!((plain.slot(), kept.slot()), (all[7].slot(), all[9].slot()));
        let slots = [plain, kept].map(|txn| (txn.slot(), before.slot(txn, SlotState::Committed(Scn(12)), UndoPtr::NONE)));
        let (after, _) = Table::load(NodeId(1), ShardId(0), slots, Scn(20));
        assert_eq!(after.state(all[7]), Some(TxnState::Committed(Scn::ZERO)));
        assert_eq!(after.state(all[9]), Some(TxnState::CommittedBy(Scn(20))));
        assert_eq!(after.state(kept), Some(TxnState::Committed(Scn(12))));
    }
}
