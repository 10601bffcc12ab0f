//! What an interconnect can do where there is RDMA, besides sending messages: have a block written into the frame that waits for
//! it, publish records that others read, read theirs, and make another node's clock stand at or above an SCN, all without the
//! other side's taking part.
//!
//! In the shard's thread, on the shard's one device ([`rdma`]). Without a device, or without a lane to the node in question,
//! each of these says so, and a message does its work.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::rdma::{self, Place, Purpose, Rdma};
use super::{Body, Interconnect, Message, PeerDown};
use crate::ids::{NodeId, RequestId, Scn};
use crate::reactor::IoBuf;

impl Interconnect {
    /// Has a device for RDMA: peers that have one too are reached by it. `required`: no peer is connected otherwise. `poll`:
    /// how long to look for completions before sleeping, each time. Before [`start`](Interconnect::start).
    pub fn use_rdma(&self, verbs: Rc<dyn rdma::verbs::Verbs>, required: bool, poll: Duration) {
        assert!(!self.0.started.get(), "the transports are named before the interconnect starts");
        let before = self.0.rdma.set(Rdma::new(verbs, &self.0.clock, required, poll));
        assert!(before.is_ok(), "one device a shard");
    }

    /// Opens the RDMA device of the interface with this address, for so many peers and a few more, and uses it
    /// ([`use_rdma`](Self::use_rdma)). Gives its name.
    ///
    /// # Errors
    /// Why there is none, in an operator's words.
    pub fn use_device(&self, address: SocketAddr, peers: usize, required: bool, poll: Duration) -> Result<String, String> {
        if self.0.reactor.driver_name() == "sim" {
            return Err("the simulation has no devices".into());
        }
        rdma::open_device(&self.0.reactor, address, peers).map(|verbs| {
            let name = verbs.name();
            self.use_rdma(verbs, required, poll);
            name
        })
    }

    /// Registers the memory of this shard's frames, that blocks may be written there and sent from there by RDMA. Does nothing
    /// without RDMA.
    ///
    /// # Errors
    /// The device's. Everything goes over TCP then; the caller knows whether that will do.
    ///
    /// # Safety
    /// The memory stays mapped until the process ends.
    pub unsafe fn register_frames(&self, start: *mut u8, bytes: usize) -> Result<(), rdma::verbs::VerbsFault> {
        match self.0.rdma() {
            // SAFETY: the caller's promise. Who writes into the frames goes by what is exposed.
            Some(rdma) => unsafe { rdma.register(&self.0, start, bytes) },
            None => Ok(()),
        }
    }

    /// Lets a peer write the block that a request asks for into this frame, where there is RDMA; the request has to carry the
    /// place. The frame comes back with the block ([`Handler::on_message`](super::Handler::on_message)), whichever way that
    /// comes, or goes with [`answered`](Self::answered) or [`abandon_frames`](Self::abandon_frames). `None`: it can't be
    /// exposed, and is dropped.
    #[must_use]
    pub fn expose(&self, request: RequestId, frame: IoBuf) -> Option<Place> {
        self.0.rdma()?.expose(&self.0, request, frame)
    }

    /// Whether there is a device for RDMA.
    #[must_use]
    pub fn has_rdma(&self) -> bool {
        self.0.rdma().is_some()
    }

    /// Whether [`expose`](Self::expose) could have a use now.
    #[must_use]
    pub fn could_expose(&self) -> bool {
        self.0.rdma().is_some_and(|rdma| rdma.has_lanes())
    }

    /// The request is answered without a block; nobody is going to write into its frame.
    pub fn answered(&self, request: RequestId) {
        drop(self.0.rdma().and_then(|rdma| rdma.take_exposed(request)));
    }

    /// No request of now will be answered, because their epoch ends. Their frames are dropped when nobody can write into them any
    /// more; docs/rdma.md tells when that is.
    pub fn abandon_frames(&self) {
        if let Some(rdma) = self.0.rdma() {
            rdma.abandon(&self.0);
        }
    }

    /// As [`send`](Interconnect::send), of a block that goes into the frame at `place` of the receiver's memory, where that can
    /// be.
    ///
    /// # Errors
    /// As `send`.
    pub fn send_block(&self, to: NodeId, message: Message, block: IoBuf, place: Place) -> Result<(), PeerDown> {
        self.send_to_place(to, message, Body::Block(block), place)
    }

    /// Lets the other nodes read a record, in place of the one that was in this cell. Does nothing without RDMA.
    pub fn publish(&self, cell: u16, record: rdma::Record) {
        if let Some(rdma) = self.0.rdma() {
            rdma.publish(&self.0, cell, record);
        }
    }

    /// Reads what another node's present life has published in a cell, without its taking part. `None`: there is nothing, or it
    /// was being written, or there is no RDMA to that node now; then it has to be asked. What is read *was* published, at some
    /// time before this returns; no message tells anything with it, neither the other side of this node's clock nor this one of
    /// its epoch.
    pub async fn read_published(&self, node: NodeId, cell: u16) -> Option<rdma::Record> {
        self.0.rdma()?.begin_read(&self.0, node, Purpose::Cell(cell))?.await.ok()?
    }

    /// These nodes, and no others, may [`tell`](Self::tell) this one from now on: whoever is not among them and had told nothing
    /// before this was called has told nothing afterwards. Nobody may at first.
    pub fn let_tell(&self, nodes: &BTreeSet<NodeId>) {
        if let Some(rdma) = self.0.rdma() {
            rdma.set_tellers(&self.0, nodes);
        }
    }

    /// Begins to make another node's clock stand at or above `scn`, without its taking part. `None` where that can't be done,
    /// now or at all: then a message has to tell it. What is returned resolves to whether it has been done: from then on every
    /// look at that clock shows it. Of a tell that was not done nobody knows; a message does no harm.
    #[must_use]
    pub fn tell(&self, node: NodeId, scn: Scn) -> Option<impl Future<Output = bool> + 'static> {
        let told = self.0.rdma()?.begin_read(&self.0, node, Purpose::Tell(scn))?;
        Some(async move { matches!(told.await, Ok(Some(_))) })
    }
}
