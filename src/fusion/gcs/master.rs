//! The master's side of Cache Fusion: who holds what, who waits, and the one transition in flight for each block.
//!
//! A state machine without I/O, owned by one shard. It promises: no two nodes are granted modes that exclude each other
//! (the next waiter is served only after Done, rule 5); nothing is granted from disk beside a holder or a dirty owner
//! (rule 6); a Wrote clears no more than its version (rule 7). It takes messages of one sender, too, in any order: what
//! may overtake what is told where it is handled. Bounded: see `directory.rs`.

use std::rc::Rc;

use super::directory::{Activities, Activity, Entries, Entry, Leg, LegSource, Transition, Waiter};
use super::message::{DIRTY, KEPT, Kind, Message, requester};
use super::output::Output;
use super::rebuild::Rebuild;
use super::remaster::Moves;
use super::rules::{Rule, Rules};
use crate::cache::Mode;
use crate::fusion::NodeSet;
use crate::fusion::grd::{BlockMap, MastershipMap};
use crate::ids::{BlockId, Epoch, NodeId, RequestId, Scn};
use crate::rules::{DesignRule, kept};

/// How many entries are looked at for one to recall when the directory is full.
const RECALL_CANDIDATES: usize = 64;

/// What a master has done, for the statistics. Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MasterCounters {
    /// Requests received.
    pub requests_total: u64,
    /// Requests that had to wait for another transition of their block.
    pub requests_queued_total: u64,
    /// Requests forwarded to a holder.
    pub forwards_total: u64,
    /// Requests sent to the disk.
    pub disk_grants_total: u64,
    /// Upgrades of a Shared copy.
    pub upgrades_total: u64,
    /// Copies that had to be given up for an Exclusive request.
    pub invalidations_total: u64,
    /// Forwards that found the block gone.
    pub misses_total: u64,
    /// Entries recalled because the directory was full.
    pub recalls_total: u64,
    /// Copies that were not given up for that, because they were dirty: they are written then, and may go the next time.
    pub recalls_kept_total: u64,
    /// Messages of another epoch, dropped.
    pub other_epoch_total: u64,
    /// Blocks whose newest version was made out of a lost node's redo or a past image that had lost its owner.
    pub recoveries_total: u64,
    /// Buckets given to other masters.
    pub remasters_out_total: u64,
    /// Buckets taken over from other masters.
    pub remasters_in_total: u64,
    /// Entries that came with them.
    pub entries_taken_over_total: u64,
    /// Buckets that another member did not take.
    pub remasters_refused_total: u64,
    /// Buckets that stayed because their transitions did not come to an end.
    pub remasters_given_up_total: u64,
    /// Messages that waited for a bucket to be taken over.
    pub parked_total: u64,
    /// Messages passed on to the master that a bucket has by now, the parked ones among them.
    pub relayed_total: u64,
}

/// The directory of the blocks that this shard masters.
#[derive(Clone)]
pub struct MasterCore {
    pub(super) node: NodeId,
    pub(super) epoch: Epoch,
    pub(super) map: Rc<MastershipMap>,
    pub(super) entries: Entries,
    pub(super) activities: Activities,
    pub(super) entries_max: usize,
    pub(super) counters: MasterCounters,
    /// Set from the entry into an epoch until its directory is known.
    pub(super) rebuild: Option<Box<Rebuild>>,
    /// Blocks that the redo of lost nodes has changed, up to this version, and the disk does not have yet.
    pub(super) unwritten: BlockMap<Scn>,
    /// Buckets that change their master.
    pub(super) moves: Moves,
    pub(super) rules: Rules,
}

/// One block's entry and activity, borrowed for the handling of one message.
struct Turn<'a> {
    node: NodeId,
    epoch: Epoch,
    block: BlockId,
    entry: &'a mut Entry,
    activity: &'a mut Activity,
    counters: &'a mut MasterCounters,
    rules: Rules,
    out: &'a mut Vec<Output>,
}

impl MasterCore {
    /// An empty directory of `node` in the epoch of `map`. Beyond `entries_max` entries, cold ones are recalled from their holders;
    /// where there are none, or all are dirty, the directory grows on, bounded by the frames of all caches.
    #[must_use]
    pub fn new(node: NodeId, map: Rc<MastershipMap>, entries_max: usize) -> MasterCore {
        MasterCore {
            node,
            epoch: map.epoch(),
            map,
            entries: Entries::default(),
            activities: Activities::default(),
            entries_max,
            counters: MasterCounters::default(),
            rebuild: None,
            unwritten: BlockMap::default(),
            moves: Moves::default(),
            rules: Rules::default(),
        }
    }

    /// The directory of `node` in the first view that it enters: waits for the claims of its members, as after
    /// [`MasterCore::enter`].
    #[must_use]
    pub fn new_rebuilding(node: NodeId, map: Rc<MastershipMap>, entries_max: usize) -> MasterCore {
        let mut master = MasterCore::new(node, map, entries_max);
        master.begin_rebuild();
        master
    }

    /// Takes a message for the master of its block from `from` (which may be this node).
    pub fn on_message(&mut self, from: NodeId, message: &Message, out: &mut Vec<Output>) {
        if message.epoch != self.epoch && self.rules.hold(Rule::EpochsMatch) && kept(DesignRule::OlderEpochsDropped) {
            self.counters.other_epoch_total += 1;
            return;
        }
        if message.kind.is_of_remastering() {
            return self.on_remastering(from, message, out);
        }
        let Some(from) = self.addressee(from, message, out) else { return };
        let block = message.block;
        match message.kind {
            Kind::Request => self.on_request(from, message, out),
            Kind::Done => {
                self.turn(block, out, |turn| turn.on_done(from, message));
                self.settle(block, out);
            }
            Kind::Miss => {
                self.turn(block, out, |turn| turn.on_miss(from, message));
                self.settle(block, out);
            }
            Kind::InvalidateAck => {
                self.turn(block, out, |turn| turn.on_invalidate_ack(from, message));
                self.settle(block, out);
            }
            Kind::Drop => self.on_drop(from, message, out),
            Kind::Wrote => self.on_wrote(message, out),
            Kind::WriteWanted => self.on_write_wanted(from, message, out),
            Kind::Place => self.on_place(message),
            _ => panic!("{message:?} from {from} is not for a master"),
        }
    }

    fn on_request(&mut self, from: NodeId, message: &Message, out: &mut Vec<Output>) {
        assert_eq!(requester(message.request), from, "{from} opened a request in another node's name");
        assert!(matches!(message.mode, Mode::Shared | Mode::Exclusive), "{message:?} from {from}");
        self.counters.requests_total += 1;
        if self.entries.len() >= self.entries_max && self.rebuild.is_none() && !self.entries.contains(message.block) {
            self.recall_a_cold_entry(out);
            // Not every recall makes room: what is above the bound is caught up with.
            if self.entries.len() > self.entries_max {
                self.recall_a_cold_entry(out);
            }
        }
        self.moves.note_entry(message.block);
        let entry = self.entries.of(message.block);
        let activity = self.activities.open(entry);
        if activity.transition != Transition::None {
            self.counters.requests_queued_total += 1;
        }
        let twice = activity.waiters.iter().any(|waiter| requester(waiter.request) == from);
        assert!(!twice || !self.rules.hold(Rule::DropBeforeRequest), "{from} has two requests for {}", message.block);
        activity.waiters.push_back(Waiter { request: message.request, place: message.scn, mode: message.mode });
        self.settle(message.block, out);
    }

    /// A request that waits has a frame for the block. A hint: where the request is not in line (it is being served, or has
    /// been put off with its bucket), the block comes with its message.
    fn on_place(&mut self, message: &Message) {
        let activity = self.entries.get_mut(message.block).and_then(|entry| self.activities.get_mut(entry));
        let waiter = activity.and_then(|activity| activity.waiters.iter_mut().find(|waiter| waiter.request == message.request));
        if let Some(waiter) = waiter {
            waiter.place = message.scn;
        }
    }

    /// The holder's clean copy is gone. May overtake a Miss or InvalidateAck of the holder's (they say the same), a Wrote
    /// (then the past images wait for that) and a Done: then the holder's request is still being served and the drop
    /// counts after it.
    fn on_drop(&mut self, from: NodeId, message: &Message, out: &mut Vec<Output>) {
        let block = message.block;
        self.note_drop(block, from);
        if let Some(entry) = self.entries.get_mut(block) {
            let leg = self
                .activities
                .get_mut(entry)
                .and_then(|activity| activity.legs.iter_mut().find(|leg| requester(leg.request) == from));
            if let Some(leg) = leg {
                leg.dropped = true;
                return;
            }
            entry.forget_holder(from);
        }
        out.push(send(self.epoch, from, Kind::DropAck, block));
        self.settle(block, out);
    }

    /// Version `scn` is on stable storage. Says nothing but that, so it may come at any time, before the Done that makes
    /// the writer an owner, or after the writer has given the block away.
    fn on_wrote(&mut self, message: &Message, out: &mut Vec<Output>) {
        self.note_on_disk(message.block, message.scn);
        if self.rebuild.is_some() {
            // Its claim may still be under way.
            self.entries.of(message.block);
        }
        let Some(entry) = self.entries.get_mut(message.block) else { return };
        let stale_is_news = !self.rules.hold(Rule::StaleWroteClearsNothing);
        entry.disk_scn = entry.disk_scn.max(message.scn);
        if entry.dirty_scn <= entry.disk_scn || stale_is_news {
            entry.set_dirty_owner(None);
        }
        if entry.past_image_scn <= entry.disk_scn {
            entry.write_wanted = false;
        }
        let up_to = if stale_is_news { Scn::MAX } else { entry.disk_scn };
        // The writer may be among them: it may have given the block away again before this came.
        for keeper in entry.past_images.iter() {
            let message = Message { scn: up_to, ..bare(self.epoch, Kind::PastImageDiscard, message.block) };
            out.push(Output::Send { to: keeper, message });
        }
        if entry.past_image_scn <= up_to {
            entry.past_images = NodeSet::EMPTY;
        }
        self.settle(message.block, out);
    }

    fn on_write_wanted(&mut self, from: NodeId, message: &Message, out: &mut Vec<Output>) {
        let Some(entry) = self.entries.get_mut(message.block) else { return };
        if message.scn <= entry.disk_scn {
            let message = Message { scn: entry.disk_scn, ..bare(self.epoch, Kind::PastImageDiscard, message.block) };
            out.push(Output::Send { to: from, message });
            return;
        }
        // The owner of the moment may be about to give the block away: it is asked once the transition is over.
        entry.write_wanted = true;
        if entry.is_idle() && self.rebuild.is_none() {
            ask_owner_to_write(self.epoch, message.block, entry, out);
        }
    }

    /// Asks the holders of some idle block to give it up, unless it is dirty with them.
    fn recall_a_cold_entry(&mut self, out: &mut Vec<Output>) {
        let moves = &self.moves;
        let cold = |block: BlockId, entry: &Entry| entry.may_be_recalled() && !moves.concern(block);
        if let Some(block) = self.entries.next_that(RECALL_CANDIDATES, cold) {
            self.recall(block, out);
        }
    }

    /// Takes the block out of every cache, so that its entry can go. For an idle block that nobody is known to have to write.
    pub(super) fn recall(&mut self, block: BlockId, out: &mut Vec<Output>) {
        let entry = self.entries.get_mut(block).expect("a recalled block has an entry");
        assert!(entry.may_be_recalled(), "{block} is in use: {entry:?}");
        self.counters.recalls_total += 1;
        let holders = entry.holders;
        let activity = self.activities.open(entry);
        activity.transition = Transition::Recall;
        activity.awaiting = holders;
        for holder in holders.iter() {
            out.push(send(self.epoch, holder, Kind::Invalidate, block));
        }
    }

    /// Runs `work` on an entry that must be in an activity: only a transition in flight draws these messages.
    fn turn(&mut self, block: BlockId, out: &mut Vec<Output>, work: impl FnOnce(&mut Turn<'_>)) {
        let entry = self.entries.get_mut(block);
        let Some((entry, activity)) = entry.and_then(|entry| self.activities.get_mut(entry).map(|activity| (entry, activity)))
        else {
            assert!(!self.rules.hold(Rule::ServeAfterDone), "{block} has no transition in flight for an answer that came");
            return;
        };
        let (node, epoch, rules) = (self.node, self.epoch, self.rules);
        work(&mut Turn { node, epoch, block, entry, activity, counters: &mut self.counters, rules, out });
    }

    /// Starts what can start, and tidies up when nothing can.
    pub(super) fn settle(&mut self, block: BlockId, out: &mut Vec<Output>) {
        if self.rebuild.is_some() || self.moves.is_settling(block) {
            return;
        }
        let Some(entry) = self.entries.get_mut(block) else { return };
        if let Some(activity) = self.activities.get_mut(entry) {
            let (node, epoch, rules) = (self.node, self.epoch, self.rules);
            let mut turn = Turn { node, epoch, block, entry, activity, counters: &mut self.counters, rules, out };
            if turn.serve_waiters() {
                return;
            }
            self.activities.close(entry);
            ask_owner_to_write(self.epoch, block, entry, out);
        }
        if entry.is_vacant() {
            self.entries.remove(block);
        }
        self.drained(block, out);
    }

    /// How many blocks have an entry.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of memory that the entries take.
    #[must_use]
    pub fn entries_bytes(&self) -> usize {
        self.entries.bytes()
    }

    /// How many blocks have a transition in flight.
    #[must_use]
    pub fn transitions_in_flight(&self) -> usize {
        self.activities.open_count()
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> MasterCounters {
        self.counters
    }

    /// Asserts what must hold between any two messages.
    pub fn invariants(&self) {
        if self.rebuild.is_some() {
            return;
        }
        let mut open = 0;
        for (block, entry) in self.entries.iter() {
            assert!(!entry.is_vacant() || self.moves.is_settling(block), "{block}: an entry that nobody needs");
            if let Some(holder) = entry.exclusive() {
                assert_eq!(entry.holders, NodeSet::of(holder), "{block}: {holder} holds Exclusive, but not alone");
                assert_eq!(entry.dirty_owner(), None, "{block}: a dirty owner beside the Exclusive holder");
            }
            if let Some(owner) = entry.dirty_owner() {
                assert!(entry.holders.contains(owner), "{block}: its dirty owner {owner} has no copy");
                assert!(entry.dirty_scn > entry.disk_scn, "{block}: a dirty owner of a version that is on the disk");
            }
            assert_eq!(self.map.master(block), self.node, "{block}: an entry of another master's");
            let Some(activity) = self.activities.get(entry) else { continue };
            open += 1;
            if self.moves.is_settling(block) {
                continue;
            }
            assert!(!activity.is_over(), "{block}: nothing is in flight, yet its waiters wait: {activity:?}");
            let without_legs = matches!(activity.transition, Transition::Recall | Transition::Recover);
            assert_eq!(without_legs, activity.legs.is_empty(), "{block}: {activity:?}");
            assert!(activity.transition != Transition::Exclusive || activity.legs.len() == 1, "{block}: {activity:?}");
            assert!(activity.transition != Transition::Shared || activity.awaiting.is_empty(), "{block}: {activity:?}");
        }
        assert_eq!(open, self.activities.open_count(), "an activity without a block");
    }

    /// The entry of a block and its activity.
    #[cfg(test)]
    pub(super) fn entry(&self, block: BlockId) -> Option<(&Entry, Option<&Activity>)> {
        self.entries.get(block).map(|entry| (entry, self.activities.get(entry)))
    }
}

impl Turn<'_> {
    /// Starts the next transition if none is in flight, and lets Shared requests join a Shared one. Whether anything is
    /// in flight then.
    fn serve_waiters(&mut self) -> bool {
        loop {
            let in_flight = !self.activity.is_over();
            let Some(&next) = self.activity.waiters.front() else { return in_flight };
            let joins = next.mode == Mode::Shared && self.activity.transition == Transition::Shared && !self.is_source(next);
            if in_flight && !joins {
                return true;
            }
            self.activity.waiters.pop_front();
            self.activity.inherited = None;
            self.start(next);
            if !self.rules.hold(Rule::ServeAfterDone) {
                self.break_rule_5(next);
            }
        }
    }

    /// Whether the waiter's node is to ship the block to someone. If it asks itself, it has dropped its copy, and a Miss of
    /// it may be under way, which would be taken for a loss of the copy that it asks for now.
    fn is_source(&self, waiter: Waiter) -> bool {
        let node = requester(waiter.request);
        self.activity.legs.iter().any(|leg| leg.source == LegSource::Holder(node))
    }

    fn start(&mut self, waiter: Waiter) {
        let requester = requester(waiter.request);
        let Waiter { request, place, .. } = waiter;
        self.activity.legs.push(Leg { request, place, source: LegSource::Undecided, dropped: false });
        let leg = self.activity.legs.len() - 1;
        if waiter.mode == Mode::Shared {
            self.activity.transition = Transition::Shared;
            self.provide(leg, Mode::Shared);
            return;
        }
        self.activity.transition = Transition::Exclusive;
        assert!(
            self.entry.exclusive() != Some(requester) || !self.rules.all_hold(),
            "{requester} asks for {} that it holds Exclusive",
            self.block
        );
        // All copies go but the one that will be shipped: the requester's own, or the owner's, or anyone's.
        let stays =
            if self.entry.holders.contains(requester) { Some(requester) } else { self.entry.owner().or(self.any_holder()) };
        let sharers = stays.map_or(self.entry.holders, |stays| self.entry.holders.without(stays));
        if sharers.is_empty() {
            self.provide(leg, Mode::Exclusive);
            return;
        }
        self.activity.awaiting = sharers;
        for sharer in sharers.iter() {
            self.counters.invalidations_total += 1;
            self.send(sharer, Kind::Invalidate, Mode::Null, waiter.request);
        }
    }

    /// Sees to it that the leg's requester gets the block in `mode`; nothing stands in the way any more.
    fn provide(&mut self, leg: usize, mode: Mode) {
        let Leg { request, place, .. } = self.activity.legs[leg];
        let requester = requester(request);
        let source = if mode == Mode::Exclusive && self.entry.holders.contains(requester) {
            self.counters.upgrades_total += 1;
            let scn = self.activity.inherited.unwrap_or_default();
            let flags = if self.activity.inherited.is_some() { DIRTY } else { 0 };
            let message = Message { mode, flags, request, scn, ..bare(self.epoch, Kind::Grant, self.block) };
            self.out.push(Output::Send { to: requester, message });
            LegSource::Held
        } else if let Some(holder) = self.source_for(mode) {
            assert!(
                holder != requester || !self.rules.all_hold(),
                "{requester} asks for {} in {mode:?}, but holds it: {:?}",
                self.block,
                self.entry
            );
            self.counters.forwards_total += 1;
            let message = Message { mode, request, scn: place, ..bare(self.epoch, Kind::Forward, self.block) };
            self.out.push(Output::Send { to: holder, message });
            LegSource::Holder(holder)
        } else {
            assert!(
                self.entry.owner().is_none() || !self.rules.all_hold(),
                "{} is granted from disk beside its owner",
                self.block
            );
            self.counters.disk_grants_total += 1;
            // A reader who is alone with the block gets it in Exclusive: that costs nobody anything (the next reader's
            // request is forwarded either way), and spares the upgrade if it goes on to write.
            let alone = self.entry.holders.is_empty() && self.activity.legs.len() == 1 && self.activity.waiters.is_empty();
            if mode == Mode::Shared && alone {
                self.activity.transition = Transition::Exclusive;
            }
            let granted = if alone { Mode::Exclusive } else { mode };
            self.send(requester, Kind::GrantDisk, granted, request);
            LegSource::Disk
        };
        self.activity.legs[leg].source = source;
    }

    fn source_for(&self, mode: Mode) -> Option<NodeId> {
        if mode == Mode::Shared && self.entry.exclusive().is_none() && !self.rules.hold(Rule::OneDirtyOwner) {
            return None;
        }
        self.entry.owner().filter(|_| mode == Mode::Exclusive || self.entry.exclusive().is_some()).or(self.any_holder())
    }

    /// Some holder: this node if it is one (that saves a message), else the dirty owner, else the first.
    fn any_holder(&self) -> Option<NodeId> {
        if self.entry.holders.contains(self.node) {
            return Some(self.node);
        }
        self.entry.owner().or_else(|| self.entry.holders.iter().next())
    }

    fn on_done(&mut self, from: NodeId, message: &Message) {
        let Some(index) = self.activity.leg_of(message.request) else {
            assert!(!self.rules.hold(Rule::ServeAfterDone), "{message:?} from {from}, but nothing was granted");
            return;
        };
        let leg = self.activity.legs.swap_remove(index);
        self.served(leg, from, message.is_dirty(), message.scn);
        if leg.dropped {
            self.entry.forget_holder(from);
            self.send(from, Kind::DropAck, Mode::Null, RequestId(0));
        }
    }

    /// Writes into the entry what the requester has now, and what its source has kept.
    fn served(&mut self, leg: Leg, requester: NodeId, dirty: bool, scn: Scn) {
        if self.activity.transition == Transition::Shared {
            if let LegSource::Holder(source) = leg.source {
                if self.entry.exclusive() == Some(source) {
                    self.entry.set_exclusive(None);
                }
                // A source that has dropped its copy meanwhile had written it: eviction is of clean blocks only (rule 9).
                if dirty && self.entry.holders.contains(source) && scn > self.entry.disk_scn {
                    self.entry.set_dirty_owner(Some(source));
                    self.entry.dirty_scn = self.entry.dirty_scn.max(scn);
                }
            }
            self.entry.holders.insert(requester);
            return;
        }
        if let LegSource::Holder(source) = leg.source {
            self.entry.forget_holder(source);
            if dirty {
                self.keep_past_image(source, scn);
            }
        }
        assert!(
            self.entry.holders.without(requester).is_empty() || !self.rules.all_hold(),
            "{} goes to {requester} in Exclusive, but others hold it: {:?}",
            self.block,
            self.entry
        );
        self.entry.holders = NodeSet::of(requester);
        self.entry.set_exclusive(Some(requester));
        self.entry.set_dirty_owner(None);
    }

    fn keep_past_image(&mut self, keeper: NodeId, scn: Scn) {
        if scn <= self.entry.disk_scn {
            // The new owner's Wrote has overtaken the Done.
            let message = Message { scn: self.entry.disk_scn, ..bare(self.epoch, Kind::PastImageDiscard, self.block) };
            self.out.push(Output::Send { to: keeper, message });
        } else {
            self.entry.past_images.insert(keeper);
            self.entry.past_image_scn = self.entry.past_image_scn.max(scn);
        }
    }

    /// The source has the block no more: its clean copy has left the cache, and its Drop is under way or was here.
    fn on_miss(&mut self, from: NodeId, message: &Message) {
        self.counters.misses_total += 1;
        let Some(index) = self.activity.leg_of(message.request) else {
            assert!(!self.rules.hold(Rule::ServeAfterDone), "{message:?} from {from}, but nothing was forwarded");
            return;
        };
        assert!(
            self.activity.legs[index].source == LegSource::Holder(from) || !self.rules.all_hold(),
            "{message:?} from {from}, which is not the source of {:?}",
            self.activity.legs[index]
        );
        self.entry.forget_holder(from);
        let mode = if self.activity.transition == Transition::Shared { Mode::Shared } else { Mode::Exclusive };
        self.provide(index, mode);
    }

    fn on_invalidate_ack(&mut self, from: NodeId, message: &Message) {
        assert!(self.activity.awaiting.remove(from) || !self.rules.all_hold(), "{message:?} from {from} was not awaited");
        if message.flags & KEPT != 0 {
            self.counters.recalls_kept_total += 1;
            self.send(from, Kind::WriteRequest, Mode::Null, RequestId(0));
            return;
        }
        if message.is_dirty() {
            // What is on the disk already may be dirty with hints that no redo tells of: nobody has to write those.
            if message.scn > self.entry.disk_scn {
                assert!(
                    self.entry.dirty_owner() == Some(from) || !self.rules.all_hold(),
                    "{from} gave up {} dirty, but its owner is {:?}",
                    self.block,
                    self.entry.dirty_owner()
                );
                self.activity.inherited = Some(message.scn);
            }
            self.keep_past_image(from, message.scn);
        }
        self.entry.forget_holder(from);
        if self.activity.awaiting.is_empty() && !self.activity.legs.is_empty() {
            self.provide(0, Mode::Exclusive);
        }
    }

    fn send(&mut self, to: NodeId, kind: Kind, mode: Mode, request: RequestId) {
        self.out.push(Output::Send { to, message: Message { mode, request, ..bare(self.epoch, kind, self.block) } });
    }

    /// Rule 5 broken: the request counts as served as soon as it is on its way.
    fn break_rule_5(&mut self, waiter: Waiter) {
        if self.activity.awaiting.is_empty()
            && let Some(index) = self.activity.leg_of(waiter.request)
        {
            let leg = self.activity.legs.swap_remove(index);
            self.served(leg, requester(waiter.request), false, Scn::ZERO);
        }
    }
}

/// A message with nothing but its kind and block.
pub(super) fn bare(epoch: Epoch, kind: Kind, block: BlockId) -> Message {
    Message { kind, flags: 0, mode: Mode::Null, epoch, block, request: RequestId(0), scn: Scn::ZERO }
}

/// Passes a past image keeper's wish on to the owner, if there is a wish and an owner.
fn ask_owner_to_write(epoch: Epoch, block: BlockId, entry: &Entry, out: &mut Vec<Output>) {
    if let (true, Some(owner)) = (entry.write_wanted, entry.owner()) {
        out.push(send(epoch, owner, Kind::WriteRequest, block));
    }
}

fn send(epoch: Epoch, to: NodeId, kind: Kind, block: BlockId) -> Output {
    Output::Send { to, message: bare(epoch, kind, block) }
}
