//! The holder's side of Cache Fusion: which modes this node has, what it has asked for, and what it is asked to give.
//!
//! A state machine without I/O, owned by one shard. It promises: each local request is answered once; a block that is
//! asked away is given away as soon as the cache has protected it (rules 1 and 8 are kept by the cache's protection);
//! what has been dropped is not asked for again before the master knows (rule 9). Messages may come in any order, as far
//! as the master's serialising allows: it speaks of a block only within a transition, and ends none without our answer.
//! Bounded: an entry for each block that the cache has, keeps a past image of, or has a request open for.

use std::rc::Rc;

use super::master::bare;
use super::message::{CREATE, DIRTY, KEPT, Kind, Message, request_id, requester};
use super::output::Output;
use super::rules::{Rule, Rules};
use crate::cache::{Granted, Mode, Remains, Source};
use crate::fusion::grd::{BlockMap, MastershipMap};
use crate::ids::{BlockId, NodeId, RequestId, Scn};
use crate::interconnect::rdma::Place;
use crate::rules::{DesignRule, kept};

/// What the cache protected: the version that would be shipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct ProtectedImage {
    /// Version of the block.
    pub scn: Scn,
    /// Whether it is newer than the disk and this node is the one that must write it.
    pub dirty: bool,
}

/// What a holder has done, for the statistics. Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HolderCounters {
    /// Requests sent to masters.
    pub requests_total: u64,
    /// Blocks shipped to other nodes.
    pub ships_total: u64,
    /// Of these, dirty ones that left a past image here.
    pub past_images_total: u64,
    /// Exclusive copies that became Shared for a reader elsewhere.
    pub downgrades_total: u64,
    /// Copies given up for another node's Exclusive request.
    pub invalidations_total: u64,
    /// Forwards that found the block gone.
    pub misses_total: u64,
    /// Clean copies dropped.
    pub drops_total: u64,
    /// Messages of another epoch, dropped.
    pub other_epoch_total: u64,
    /// Answers to requests that are not open (any more), dropped.
    pub stray_answers_total: u64,
}

/// What the master wants given away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) struct Demand {
    /// `Null`: nobody gets it, the copy is to go.
    mode: Mode,
    request: RequestId,
    /// Where the block may be written to.
    place: Place,
}

/// The local request that is open for a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) struct Open {
    request: RequestId,
    want: Mode,
    create: bool,
    /// Not before the master has acknowledged our Drop.
    pub(super) held_back: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub(super) struct Held {
    pub(super) mode: Mode,
    /// The cache has been asked to protect it.
    pub(super) protecting: bool,
    pub(super) dropping: bool,
    pub(super) past_image: Option<Scn>,
    pub(super) open: Option<Open>,
    /// Nearly always none or one: more only where several readers are served by one transition.
    demand: Option<Demand>,
    more_demands: Vec<Demand>,
}

/// The blocks that this shard holds, or wants.
#[derive(Clone)]
pub struct HolderCore {
    pub(super) node: NodeId,
    pub(super) map: Rc<MastershipMap>,
    pub(super) blocks: BlockMap<Held>,
    /// Between the entry into an epoch and the word that everybody is in it.
    pub(super) silent: bool,
    requests: u64,
    counters: HolderCounters,
    pub(super) rules: Rules,
}

impl Held {
    fn is_vacant(&self) -> bool {
        self.mode == Mode::Null && !self.protecting && !self.dropping && self.past_image.is_none() && self.open.is_none()
    }

    pub(super) fn take_demands(&mut self) -> impl Iterator<Item = Demand> + use<> {
        self.demand.take().into_iter().chain(std::mem::take(&mut self.more_demands))
    }

    /// Nobody waits for what is to be given up.
    fn is_recalled(&self) -> bool {
        self.demand.is_some_and(|demand| demand.mode == Mode::Null && demand.request == RequestId(0))
    }

    fn add_demand(&mut self, demand: Demand) {
        if self.demand.is_none() {
            self.demand = Some(demand);
        } else {
            self.more_demands.push(demand);
        }
    }
}

impl HolderCore {
    /// A node that holds nothing yet, under the mastership (and epoch) of `map`.
    #[must_use]
    pub fn new(node: NodeId, map: Rc<MastershipMap>) -> HolderCore {
        HolderCore {
            node,
            map,
            blocks: BlockMap::default(),
            silent: false,
            requests: 0,
            counters: HolderCounters::default(),
            rules: Rules::default(),
        }
    }

    /// A node that holds nothing yet and says nothing before [`HolderCore::go`]: for the first view that it enters.
    #[must_use]
    pub fn new_silent(node: NodeId, map: Rc<MastershipMap>) -> HolderCore {
        HolderCore { silent: true, ..HolderCore::new(node, map) }
    }

    /// The cache wants `block` in `want` and has it in less. Answered by [`Output::Granted`]. One request for a block at a
    /// time. Returns the name of the request.
    pub fn acquire(&mut self, block: BlockId, want: Mode, create: bool, out: &mut Vec<Output>) -> RequestId {
        assert!(matches!(want, Mode::Shared | Mode::Exclusive), "{block} cannot be asked for in {want:?}");
        let held = self.blocks.entry(block).or_default();
        assert!(held.open.is_none(), "{block} has a request open already");
        assert!(held.mode < want, "{block} is asked for in {want:?}, but held in {:?}", held.mode);
        self.requests += 1;
        let request = request_id(self.node, self.requests);
        let held_back = held.dropping && self.rules.hold(Rule::DropBeforeRequest);
        held.open = Some(Open { request, want, create, held_back });
        if !held_back && !self.silent {
            self.send_request(block, out);
        }
        request
    }

    pub(super) fn send_request(&mut self, block: BlockId, out: &mut Vec<Output>) {
        let open = self.blocks[&block].open.expect("a request is open");
        let flags = if open.create { CREATE } else { 0 };
        let message = Message { mode: open.want, flags, request: open.request, ..self.message(Kind::Request, block) };
        self.counters.requests_total += 1;
        self.to_master(message, out);
    }

    /// The cache lets go of its clean copy of `block`; the frame's mode is Null already. Answered by [`Output::Released`].
    pub fn release(&mut self, block: BlockId, out: &mut Vec<Output>) {
        let Some(held) = self.blocks.get_mut(&block).filter(|held| held.mode != Mode::Null) else {
            // It has been given away in the meantime.
            out.push(Output::Released { block });
            return;
        };
        assert!(held.open.is_none(), "{block} is dropped while a request for it is open");
        held.mode = Mode::Null;
        // In silence nobody has to be told: the claims will not name it.
        held.dropping = !self.silent;
        if std::mem::take(&mut held.protecting) {
            out.push(Output::CancelProtect { block });
        }
        self.counters.drops_total += 1;
        if self.silent {
            out.push(Output::Released { block });
            self.tidy(block);
            return;
        }
        self.refuse_demands(block, out);
        let message = self.message(Kind::Drop, block);
        self.to_master(message, out);
    }

    /// The cache has completed a write of version `scn` of `block`.
    pub fn wrote(&mut self, block: BlockId, scn: Scn, out: &mut Vec<Output>) {
        if let Some(held) = self.blocks.get_mut(&block) {
            held.past_image = held.past_image.filter(|&image| image > scn);
            self.tidy(block);
        }
        let message = Message { scn, ..self.message(Kind::Wrote, block) };
        self.to_master(message, out);
    }

    /// A past image of `block` holds the log up: have the block written, wherever its owner is.
    pub fn want_written(&mut self, block: BlockId, out: &mut Vec<Output>) {
        if let Some(scn) = self.blocks.get(&block).and_then(|held| held.past_image) {
            let message = Message { scn, ..self.message(Kind::WriteWanted, block) };
            self.to_master(message, out);
        }
    }

    /// Takes a message for a holder or requester from `from` (which may be this node). A Data's block is in the frame of
    /// the request by now.
    pub fn on_message(&mut self, from: NodeId, message: &Message, out: &mut Vec<Output>) {
        if message.epoch != self.map.epoch() && self.rules.hold(Rule::EpochsMatch) && kept(DesignRule::OlderEpochsDropped) {
            self.counters.other_epoch_total += 1;
            return;
        }
        let block = message.block;
        match message.kind {
            Kind::Forward => self.on_demand(
                from,
                block,
                {
                    let Message { mode, request, scn, .. } = *message;
                    Demand { mode, request, place: Place(scn.0) }
                },
                out,
            ),
            Kind::Invalidate => {
                self.on_demand(from, block, Demand { mode: Mode::Null, request: message.request, place: Place::NONE }, out)
            }
            Kind::Data => self.on_granted(message, Source::Received, out),
            Kind::GrantDisk => self.on_granted(message, Source::Disk, out),
            Kind::Grant => self.on_granted(message, Source::Held, out),
            Kind::DropAck => self.on_drop_ack(block, out),
            Kind::PastImageDiscard => {
                if let Some(held) = self.blocks.get_mut(&block) {
                    held.past_image = held.past_image.filter(|&image| image > message.scn);
                    self.tidy(block);
                }
                out.push(Output::DiscardPastImage { block, up_to: message.scn });
            }
            Kind::WriteRequest => {
                if self.blocks.get(&block).is_some_and(|held| held.mode != Mode::Null) {
                    out.push(Output::RequestWrite { block });
                }
            }
            _ => panic!("{message:?} from {from} is not for a holder"),
        }
    }

    fn on_demand(&mut self, from: NodeId, block: BlockId, demand: Demand, out: &mut Vec<Output>) {
        assert_eq!(from, self.map.master(block), "{from} disposes of {block}, which it does not master");
        if let Some(held) = self.blocks.get_mut(&block).filter(|held| held.mode != Mode::Null) {
            held.add_demand(demand);
            if !held.protecting {
                held.protecting = true;
                out.push(Output::Protect { block });
            }
        } else {
            self.refuse(block, demand, out);
        }
    }

    /// The copy is gone: there is nothing to ship, and nothing left to give up.
    fn refuse(&mut self, block: BlockId, demand: Demand, out: &mut Vec<Output>) {
        let kind = if demand.mode == Mode::Null { Kind::InvalidateAck } else { Kind::Miss };
        self.counters.misses_total += u64::from(kind == Kind::Miss);
        let message = Message { request: demand.request, ..self.message(kind, block) };
        self.to_master(message, out);
    }

    fn refuse_demands(&mut self, block: BlockId, out: &mut Vec<Output>) {
        let Some(held) = self.blocks.get_mut(&block) else { return };
        for demand in held.take_demands() {
            self.refuse(block, demand, out);
        }
    }

    /// The answer to [`Output::Protect`]: nothing local touches the block, its redo is durable and no write of it is under
    /// way; or the cache has it no more.
    pub fn on_protected(&mut self, block: BlockId, image: Option<ProtectedImage>, out: &mut Vec<Output>) {
        let held = self.blocks.get_mut(&block).filter(|held| held.protecting).expect("the cache was asked to protect the block");
        held.protecting = false;
        let Some(image) = image else {
            // The block could not be read.
            held.mode = Mode::Null;
            self.refuse_demands(block, out);
            self.tidy(block);
            return;
        };
        if image.dirty && held.is_recalled() {
            held.take_demands().for_each(drop);
            let message = Message { flags: KEPT, ..self.message(Kind::InvalidateAck, block) };
            self.to_master(message, out);
            out.push(Output::Unprotect { block });
            return;
        }
        let was_exclusive = held.mode == Mode::Exclusive;
        let goes = held.demand.iter().chain(&held.more_demands).any(|demand| demand.mode != Mode::Shared);
        if goes && held.open.is_some() {
            out.push(Output::MakeWay { block });
        }
        for demand in held.take_demands() {
            let flags = if image.dirty { DIRTY } else { 0 };
            let answer = Message { flags, request: demand.request, scn: image.scn, ..bare(self.map.epoch(), Kind::Data, block) };
            if demand.mode == Mode::Null {
                self.counters.invalidations_total += 1;
                out.push(Output::Send { to: self.map.master(block), message: Message { kind: Kind::InvalidateAck, ..answer } });
            } else {
                self.counters.ships_total += 1;
                let message = Message { mode: demand.mode, ..answer };
                out.push(Output::Ship { to: requester(demand.request), message, place: demand.place });
            }
        }
        let held = self.blocks.get_mut(&block).expect("still known");
        let remains = match (goes, image.dirty) {
            (false, _) => {
                self.counters.downgrades_total += u64::from(was_exclusive);
                held.mode = Mode::Shared;
                Remains::KeepShared
            }
            (true, true) => {
                self.counters.past_images_total += 1;
                held.mode = Mode::Null;
                held.past_image = Some(image.scn);
                Remains::BecomePastImage
            }
            (true, false) => {
                held.mode = Mode::Null;
                Remains::Dropped
            }
        };
        out.push(Output::Finish { block, remains });
        self.tidy(block);
    }

    fn on_granted(&mut self, message: &Message, source: Source, out: &mut Vec<Output>) {
        let block = message.block;
        let open = self.blocks.get_mut(&block).and_then(|held| held.open.take_if(|open| open.request == message.request));
        let Some(open) = open else {
            self.counters.stray_answers_total += 1;
            return;
        };
        assert!(message.mode >= open.want, "{block}: wanted {:?}, got {:?}", open.want, message.mode);
        let held = self.blocks.get_mut(&block).expect("its request was open");
        assert!(
            (source == Source::Held) == (held.mode != Mode::Null) || !self.rules.all_hold(),
            "{block} comes from {source:?}, while it is held in {:?}",
            held.mode
        );
        held.mode = message.mode;
        let dirty_owner = message.is_dirty() && message.mode == Mode::Exclusive;
        let granted = Granted { mode: message.mode, source, dirty_owner };
        out.push(Output::Granted { block, request: open.request, granted });
        let done = Message { kind: Kind::Done, epoch: self.map.epoch(), ..*message };
        self.to_master(done, out);
    }

    fn on_drop_ack(&mut self, block: BlockId, out: &mut Vec<Output>) {
        let held = self.blocks.get_mut(&block).expect("a block that is being dropped is known");
        assert!(held.dropping, "{block} was not being dropped");
        held.dropping = false;
        out.push(Output::Released { block });
        let waits = held.open.as_mut().filter(|open| open.held_back);
        if let Some(open) = waits {
            open.held_back = false;
            self.send_request(block, out);
        } else {
            self.tidy(block);
        }
    }

    fn message(&self, kind: Kind, block: BlockId) -> Message {
        bare(self.map.epoch(), kind, block)
    }

    /// In silence nothing is said: the claims will tell what is here by then.
    fn to_master(&self, message: Message, out: &mut Vec<Output>) {
        if self.silent {
            return;
        }
        out.push(Output::Send { to: self.map.master(message.block), message });
    }

    pub(super) fn tidy(&mut self, block: BlockId) {
        if self.blocks.get(&block).is_some_and(Held::is_vacant) {
            self.blocks.remove(&block);
        }
    }

    /// The mode that this node has `block` in.
    #[must_use]
    pub fn mode(&self, block: BlockId) -> Mode {
        self.blocks.get(&block).map_or(Mode::Null, |held| held.mode)
    }

    /// Whether the cache is to protect `block`.
    #[must_use]
    pub fn is_protecting(&self, block: BlockId) -> bool {
        self.blocks.get(&block).is_some_and(|held| held.protecting)
    }

    /// The newest version of `block` that this node has to keep a past image (or at least the redo) of.
    #[must_use]
    pub fn past_image(&self, block: BlockId) -> Option<Scn> {
        self.blocks.get(&block).and_then(|held| held.past_image)
    }

    /// The open request for `block`, if there is one.
    #[must_use]
    pub fn open_request(&self, block: BlockId) -> Option<RequestId> {
        self.blocks.get(&block).and_then(|held| held.open).map(|open| open.request)
    }

    /// How many blocks are known here.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> HolderCounters {
        self.counters
    }

    /// Asserts what must hold between any two events.
    pub fn invariants(&self) {
        for (block, held) in &self.blocks {
            assert!(!held.is_vacant(), "{block}: kept for nothing");
            assert!(held.mode != Mode::Protected, "{block}: Protected is the cache's mode only");
            let demanded = held.demand.is_some();
            assert!(demanded || held.more_demands.is_empty(), "{block}: demands out of order: {held:?}");
            assert!(demanded == held.protecting, "{block}: a demand without protection, or the reverse: {held:?}");
            assert!(!held.dropping || held.mode == Mode::Null, "{block}: held in {:?} while it is being dropped", held.mode);
            if let Some(open) = held.open {
                assert!(held.mode < open.want, "{block}: {held:?} has what it asks for");
                assert!(!open.held_back || held.dropping, "{block}: a request that waits for nothing: {held:?}");
            }
            let shared = held.more_demands.iter().chain(&held.demand).all(|demand| demand.mode == Mode::Shared);
            assert!(held.more_demands.is_empty() || shared, "{block}: several demands, not all Shared: {held:?}");
        }
    }

    /// Feeds the state of `block` to a hasher, for the explorer's table of states seen.
    #[cfg(test)]
    pub(super) fn fingerprint(&self, block: BlockId, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        self.blocks.get(&block).hash(hasher);
        self.requests.hash(hasher);
    }
}
