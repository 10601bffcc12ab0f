//! A bucket goes from one master to another while everybody works: its directory's entries are handed over, and from a
//! certain moment on every member asks the next master.
//!
//! ```text
//! former master              next master                    every member
//!     │── remaster_offer ────────>│
//!     │<──────── remaster_accept ─│   (or remaster_refuse: it stays)
//!     │ gathers; freezes: new requests are parked
//!     │ drains: every transition runs to its Done   (or takes too long: remaster_withdraw, it stays)
//!     │── remaster_entries, end ─>│   from here on all that comes for the bucket is parked
//!     │                           │── remastered ───────────────>│ sends to the next master from now on
//!     │ passes the parked on ────>│<────────── remastered_ack ───│
//!     │ and all that comes later  │ all have answered: serves
//! ```
//!
//! Why nothing is lost or done twice: while transitions are drained nobody else's answer can be under way. What may still
//! come to a former master are the four messages that a holder sends by itself (request, drop, wrote, write_wanted), and
//! each of these may be as late as it likes (see `master.rs`), so it is passed on, in its sender's name. Nobody hears of a
//! block from a master that he does not know, because the next master says nothing before all have answered.
//!
//! Owned by the shard of its [`MasterCore`], which gives one bucket away at a time, and takes one in. A view that is
//! entered ends every move: the directory is rebuilt from claims then, by the map of the view. Bounded by the bucket's
//! entries and by what the members may have under way for it.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::directory::Entry;
use super::master::{MasterCore, bare};
use super::message::{Kind, Message, RELAYED, bucket_of, name_of_bucket, request_id, requester};
use super::output::Output;
use super::rules::Rule;
use crate::fusion::NodeSet;
use crate::fusion::grd::{Bucket, MastershipMap};
use crate::ids::{BlockId, Epoch, NodeId, RequestId};

/// Places of the directory that are looked at in one go for entries of the bucket that leaves.
const GATHER_PLACES: usize = 16_384;

/// One entry of a bucket that changes its master.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MovedEntry {
    pub(super) block: BlockId,
    pub(super) entry: Entry,
}

/// How far a bucket is that leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    /// The next master has been asked.
    Offered,
    /// Its entries are looked for, from this place of the directory on. Everything is served.
    Gathering(usize),
    /// Requests are parked; what is in flight comes to its end.
    Draining,
    /// The next master is being told: everything is parked.
    HandedOver,
}

#[derive(Clone, Hash, Debug)]
struct Leaving {
    bucket: Bucket,
    to: NodeId,
    stage: Stage,
    blocks: BTreeSet<BlockId>,
    /// Of these, those with a transition in flight, from the freeze on.
    busy: BTreeSet<BlockId>,
    parked: Vec<(NodeId, Message)>,
    shipment: Vec<MovedEntry>,
}

#[derive(Clone, Hash, Debug)]
struct Arriving {
    bucket: Bucket,
    from: NodeId,
    entries: Vec<MovedEntry>,
    /// How many they are, once that is known.
    count: Option<u64>,
}

/// A bucket that has arrived, and of which not everybody knows it. Nothing is started for it.
#[derive(Clone, Hash, Debug)]
struct Settling {
    bucket: Bucket,
    awaiting: NodeSet,
    blocks: BTreeSet<BlockId>,
}

/// The moves that a master takes part in.
#[derive(Clone, Default, Hash, Debug)]
pub(super) struct Moves {
    leaving: Option<Leaving>,
    arriving: Option<Arriving>,
    settling: Option<Settling>,
}

impl Leaving {
    fn keeps_back(&self, kind: Kind) -> bool {
        match self.stage {
            Stage::Offered | Stage::Gathering(_) => false,
            Stage::Draining => kind == Kind::Request,
            Stage::HandedOver => true,
        }
    }
}

impl Moves {
    /// Whether nothing may be started for the block before everybody knows its new master.
    pub(super) fn is_settling(&self, block: BlockId) -> bool {
        self.settling.as_ref().is_some_and(|settling| settling.bucket == Bucket::of(block))
    }

    /// Whether the block's bucket changes its master.
    pub(super) fn concern(&self, block: BlockId) -> bool {
        self.leaving.as_ref().is_some_and(|leaving| leaving.bucket == Bucket::of(block)) || self.is_settling(block)
    }

    /// The block has an entry, maybe for the first time.
    pub(super) fn note_entry(&mut self, block: BlockId) {
        if let Some(leaving) = &mut self.leaving
            && matches!(leaving.stage, Stage::Gathering(_))
            && leaving.bucket == Bucket::of(block)
        {
            leaving.blocks.insert(block);
        }
        if let Some(settling) = &mut self.settling
            && settling.bucket == Bucket::of(block)
        {
            settling.blocks.insert(block);
        }
    }
}

impl MasterCore {
    /// Who masters what, as far as this node knows.
    #[must_use]
    pub fn map(&self) -> &Rc<MastershipMap> {
        &self.map
    }

    /// Whether a bucket may be offered to another member now: none is under way, and nothing is being recovered here.
    #[must_use]
    pub fn may_offer(&self) -> bool {
        self.moves.leaving.is_none() && self.rebuild.is_none() && self.unwritten.is_empty()
    }

    /// The bucket that is given away, if its requests wait for that.
    #[must_use]
    pub fn frozen(&self) -> Option<Bucket> {
        let leaving = self.moves.leaving.as_ref();
        leaving.filter(|leaving| leaving.keeps_back(Kind::Request)).map(|leaving| leaving.bucket)
    }

    /// Messages that wait for a bucket to be taken over.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.moves.leaving.as_ref().map_or(0, |leaving| leaving.parked.len())
    }

    /// Begins to give `bucket` to another member, where that is possible now. Ends with [`Output::Remapped`] or
    /// [`Output::StaysHere`], or with the epoch.
    pub fn offer(&mut self, bucket: Bucket, to: NodeId, out: &mut Vec<Output>) -> bool {
        let settles = self.moves.settling.as_ref().is_some_and(|settling| settling.bucket == bucket);
        let mine = self.map.master_of_bucket(bucket) == self.node;
        if !self.may_offer() || settles || !mine || to == self.node || !self.map.members().contains(&to) {
            return false;
        }
        self.moves.leaving = Some(Leaving {
            bucket,
            to,
            stage: Stage::Offered,
            blocks: BTreeSet::new(),
            busy: BTreeSet::new(),
            parked: Vec::new(),
            shipment: Vec::new(),
        });
        self.say(to, Kind::RemasterOffer, bucket, out);
        true
    }

    fn say(&self, to: NodeId, kind: Kind, bucket: Bucket, out: &mut Vec<Output>) {
        let message = Message { scn: name_of_bucket(bucket), ..bare(self.epoch, kind, BlockId::default()) };
        out.push(Output::Send { to, message });
    }

    /// Whether a message about a block is for this master to apply, and in whose name. Otherwise it has been parked, or
    /// passed on.
    pub(super) fn addressee(&mut self, from: NodeId, message: &Message, out: &mut Vec<Output>) -> Option<NodeId> {
        let from = if message.flags & RELAYED == 0 { from } else { requester(message.request) };
        if !self.rules.hold(Rule::OnlyTheMasterApplies) {
            return Some(from);
        }
        let bucket = Bucket::of(message.block);
        if let Some(leaving) = &mut self.moves.leaving
            && leaving.bucket == bucket
            && leaving.keeps_back(message.kind)
        {
            assert!(may_straggle(message.kind) || !self.rules.all_hold(), "{message:?} from {from} comes after its transition");
            self.counters.parked_total += 1;
            leaving.parked.push((from, *message));
            return None;
        }
        let master = self.map.master_of_bucket(bucket);
        if master == self.node {
            return Some(from);
        }
        assert!(may_straggle(message.kind) || !self.rules.all_hold(), "{message:?} from {from} is for {master}");
        self.relay(from, message, master, out);
        None
    }

    fn relay(&mut self, from: NodeId, message: &Message, to: NodeId, out: &mut Vec<Output>) {
        if !self.rules.hold(Rule::StragglersAreRelayed) {
            return;
        }
        self.counters.relayed_total += 1;
        let names_its_own = matches!(message.kind, Kind::Request | Kind::Place);
        let request = if names_its_own { message.request } else { in_the_name_of(from) };
        out.push(Output::Send { to, message: Message { request, flags: message.flags | RELAYED, ..*message } });
    }

    pub(super) fn on_remastering(&mut self, from: NodeId, message: &Message, out: &mut Vec<Output>) {
        let bucket = bucket_of(message).unwrap_or_else(|| panic!("{message:?} from {from} names no bucket"));
        match message.kind {
            Kind::RemasterOffer => self.on_offer(from, bucket, out),
            Kind::RemasterAccept => {
                let leaving = self.moves.leaving.as_mut().filter(|leaving| (leaving.bucket, leaving.to) == (bucket, from));
                let leaving = leaving.expect("an offer is answered once");
                assert_eq!(leaving.stage, Stage::Offered, "{bucket:?} is accepted twice by {from}");
                leaving.stage = Stage::Gathering(0);
                self.gather(out);
            }
            Kind::RemasterRefuse => {
                let leaving = self.moves.leaving.take_if(|leaving| (leaving.bucket, leaving.to) == (bucket, from));
                assert_eq!(leaving.expect("an offer is answered once").stage, Stage::Offered);
                self.counters.remasters_refused_total += 1;
                out.push(Output::StaysHere { bucket });
            }
            Kind::RemasterWithdraw => {
                let arriving = self.moves.arriving.take_if(|arriving| (arriving.bucket, arriving.from) == (bucket, from));
                assert!(arriving.is_some(), "{from} withdraws {bucket:?}, which was not accepted");
            }
            Kind::RemasterEnd => self.on_handed_over(from, bucket, Vec::new(), Some(message.request.0), out),
            Kind::Remastered => self.on_remastered(from, bucket, out),
            Kind::RemasteredAck => {
                let settling = self.moves.settling.as_mut().filter(|settling| settling.bucket == bucket);
                let Some(settling) = settling else {
                    assert!(!self.rules.all_hold(), "{from} has noted a change of master that is over");
                    return;
                };
                assert!(settling.awaiting.remove(from), "{from} has noted the same change of master twice");
                if settling.awaiting.is_empty() {
                    self.settled(out);
                }
            }
            _ => panic!("{message:?} from {from} has a body"),
        }
    }

    fn on_offer(&mut self, from: NodeId, bucket: Bucket, out: &mut Vec<Output>) {
        assert_eq!(from, self.map.master_of_bucket(bucket), "{from} offers {bucket:?}, which it does not master");
        let has_room = self.entries.len() < self.entries_max;
        if self.rebuild.is_some() || self.moves.arriving.is_some() || self.moves.settling.is_some() || !has_room {
            return self.say(from, Kind::RemasterRefuse, bucket, out);
        }
        self.moves.arriving = Some(Arriving { bucket, from, entries: Vec::new(), count: None });
        self.say(from, Kind::RemasterAccept, bucket, out);
    }

    /// Goes on looking for the entries of the bucket that leaves; having looked at all, freezes it.
    pub fn gather(&mut self, out: &mut Vec<Output>) {
        let Some(leaving) = &mut self.moves.leaving else { return };
        let Stage::Gathering(place) = leaving.stage else { return };
        let bucket = leaving.bucket;
        let next = self.entries.scan(place, GATHER_PLACES, |block| {
            if Bucket::of(block) == bucket {
                leaving.blocks.insert(block);
            }
        });
        if let Some(place) = next {
            leaving.stage = Stage::Gathering(place);
            out.push(Output::Gather);
            return;
        }
        leaving.stage = Stage::Draining;
        let in_flight = |block: &&BlockId| self.entries.get(**block).is_some_and(|entry| !entry.is_idle());
        leaving.busy = leaving.blocks.iter().filter(in_flight).copied().collect();
        if leaving.busy.is_empty() || !self.rules.hold(Rule::DrainBeforeHandOver) {
            self.hand_over(out);
        }
    }

    /// The block's last transition has ended.
    pub(super) fn drained(&mut self, block: BlockId, out: &mut Vec<Output>) {
        if let Some(leaving) = &mut self.moves.leaving
            && leaving.stage == Stage::Draining
            && leaving.busy.remove(&block)
            && leaving.busy.is_empty()
        {
            self.hand_over(out);
        }
    }

    fn hand_over(&mut self, out: &mut Vec<Output>) {
        let leaving = self.moves.leaving.as_mut().expect("a bucket leaves");
        leaving.stage = Stage::HandedOver;
        for block in std::mem::take(&mut leaving.blocks) {
            // Some have left all caches since they were found.
            if let Some(entry) = self.entries.take(block) {
                assert!(entry.is_idle() || !self.rules.all_hold(), "{block} is handed over in the middle of {entry:?}");
                leaving.shipment.push(MovedEntry { block, entry });
            }
        }
        out.push(Output::HandOver { to: leaving.to, bucket: leaving.bucket });
    }

    /// Whether a bucket is frozen and waits for its transitions to end.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.moves.leaving.as_ref().is_some_and(|leaving| leaving.stage == Stage::Draining)
    }

    /// Draining takes too long: serves what was parked, and keeps the bucket. It may have waited for itself: whoever has
    /// to give up one of its blocks may ask for another of them first.
    pub fn give_up_draining(&mut self, out: &mut Vec<Output>) {
        let Some(leaving) = self.moves.leaving.take_if(|leaving| leaving.stage == Stage::Draining) else { return };
        self.counters.remasters_given_up_total += 1;
        self.say(leaving.to, Kind::RemasterWithdraw, leaving.bucket, out);
        for (from, message) in leaving.parked {
            self.on_message(from, &message, out);
        }
        out.push(Output::StaysHere { bucket: leaving.bucket });
    }

    /// The entries that [`Output::HandOver`] is about.
    #[must_use]
    pub fn take_shipment(&mut self) -> Vec<MovedEntry> {
        self.moves.leaving.as_mut().map(|leaving| std::mem::take(&mut leaving.shipment)).unwrap_or_default()
    }

    /// Takes entries of a bucket that is handed over to this node.
    pub fn on_entries(&mut self, from: NodeId, epoch: Epoch, bucket: Bucket, entries: Vec<MovedEntry>, out: &mut Vec<Output>) {
        if epoch != self.epoch {
            self.counters.other_epoch_total += 1;
            return;
        }
        self.on_handed_over(from, bucket, entries, None, out);
    }

    fn on_handed_over(
        &mut self,
        from: NodeId,
        bucket: Bucket,
        entries: Vec<MovedEntry>,
        count: Option<u64>,
        out: &mut Vec<Output>,
    ) {
        let arriving = self.moves.arriving.as_mut().filter(|arriving| (arriving.bucket, arriving.from) == (bucket, from));
        let Some(arriving) = arriving else {
            assert!(!self.rules.hold(Rule::EntriesBeforeServe), "{from} hands over {bucket:?}, which was not accepted");
            return;
        };
        arriving.entries.extend(entries);
        arriving.count = arriving.count.or(count);
        let come = arriving.entries.len() as u64;
        assert!(arriving.count.is_none_or(|count| come <= count), "{from} hands over more of {bucket:?} than it says");
        if arriving.count == Some(come) || count.is_some() && !self.rules.hold(Rule::EntriesBeforeServe) {
            self.arrived(out);
        }
    }

    fn arrived(&mut self, out: &mut Vec<Output>) {
        let Arriving { bucket, from, entries, .. } = self.moves.arriving.take().expect("a bucket arrives");
        self.map = Rc::new(self.map.moved(bucket, self.node));
        self.counters.remasters_in_total += 1;
        self.counters.entries_taken_over_total += entries.len() as u64;
        let blocks = entries.iter().map(|moved| moved.block).collect();
        for moved in entries {
            assert_eq!(Bucket::of(moved.block), bucket, "{from} hands over a block of another bucket");
            self.entries.of(moved.block).take_over(&moved.entry);
        }
        let awaiting: NodeSet = self.map.members().iter().copied().filter(|&member| member != self.node).collect();
        self.moves.settling = Some(Settling { bucket, awaiting, blocks });
        out.push(Output::Remapped { bucket, from, to: self.node });
        for member in awaiting.iter() {
            self.say(member, Kind::Remastered, bucket, out);
        }
        if !self.rules.hold(Rule::AllKnowBeforeServe) {
            self.settled(out);
        }
    }

    /// Everybody knows: begins to serve.
    fn settled(&mut self, out: &mut Vec<Output>) {
        let settling = self.moves.settling.take().expect("a bucket has arrived");
        for block in settling.blocks {
            self.settle(block, out);
        }
    }

    /// Somebody has taken the bucket over.
    fn on_remastered(&mut self, from: NodeId, bucket: Bucket, out: &mut Vec<Output>) {
        let former = self.map.master_of_bucket(bucket);
        self.map = Rc::new(self.map.moved(bucket, from));
        out.push(Output::Remapped { bucket, from: former, to: from });
        self.say(from, Kind::RemasteredAck, bucket, out);
        if former == self.node {
            let leaving = self.moves.leaving.take_if(|leaving| (leaving.bucket, leaving.to) == (bucket, from));
            let leaving = leaving.unwrap_or_else(|| panic!("{from} has taken {bucket:?} without being asked to"));
            assert_eq!(leaving.stage, Stage::HandedOver);
            self.counters.remasters_out_total += 1;
            for (sender, message) in leaving.parked {
                self.relay(sender, &message, from, out);
            }
        }
    }

    /// Whether this node applies what comes for the block.
    #[cfg(test)]
    pub(super) fn masters(&self, block: BlockId) -> bool {
        let handed_over = |leaving: &Leaving| leaving.bucket == Bucket::of(block) && leaving.stage == Stage::HandedOver;
        self.map.master(block) == self.node && !self.moves.leaving.as_ref().is_some_and(handed_over)
    }

    /// Whether a bucket is under way, from or to this node.
    pub(super) fn is_remastering(&self) -> bool {
        let Moves { leaving, arriving, settling } = &self.moves;
        leaving.is_some() || arriving.is_some() || settling.is_some()
    }
}

/// Whether a holder sends it by itself; everything else answers a transition, and can't be late.
fn may_straggle(kind: Kind) -> bool {
    matches!(kind, Kind::Request | Kind::Place | Kind::Drop | Kind::Wrote | Kind::WriteWanted)
}

/// A request that is none, but has a sender.
fn in_the_name_of(node: NodeId) -> RequestId {
    request_id(node, 0)
}
