//! Blocks come and go: the frame that one is received into, and what makes one ready to leave.
//!
//! Owned by the shard. Bounded by the open requests (a frame each) and one protection for each block. Promises: a block that is
//! asked for is written by its holder straight into the frame of its request, where there is RDMA; nobody is told of a frame that is still read.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::Inner;
use crate::cache::{CacheError, ProtectedBlock};
use crate::fusion::gcs::master::bare;
use crate::fusion::gcs::message::{CREATE, Kind, Message};
use crate::fusion::gcs::{Output, ProtectedImage};
use crate::ids::{BlockId, NodeId, Scn};
use crate::interconnect::Header;
use crate::interconnect::rdma::Place;
use crate::reactor::{Class, IoBuf};

impl Inner {
    /// Asks the cache to protect the block. Mostly nothing stands in the way: then it is done without a task.
    pub(super) fn protect(&self, block: BlockId) {
        let Some(cache) = self.cache() else { return };
        let mut protection: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move { cache.protect(block).await });
        match protection.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => self.protected(block, answer),
            Poll::Pending => {
                let this = self.this.clone();
                let task = self.reactor.spawn(Class::High, "protect a block", async move {
                    let answer = protection.await;
                    if let Some(inner) = this.upgrade() {
                        inner.tables.borrow_mut().protecting.remove(&block);
                        inner.protected(block, answer);
                    }
                });
                self.tables.borrow_mut().protecting.insert(block, task);
            }
        }
    }

    pub(super) fn protected(&self, block: BlockId, answer: Result<Option<ProtectedBlock>, CacheError>) {
        match answer {
            Ok(protected) => {
                if !self.cores.borrow().holder.is_protecting(block) {
                    return;
                }
                let image = protected.as_ref().map(|block| ProtectedImage { scn: block.scn(), dirty: block.dirty() });
                if let Some(protected) = protected {
                    self.tables.borrow_mut().protected.insert(block, protected);
                }
                self.feed(|cores, out| cores.holder.on_protected(block, image, out));
            }
            Err(error) => {
                tracing::error!(%block, %error, "the block cannot be given to another node; this node has to stop");
                self.failure.borrow_mut().get_or_insert(error);
                self.failed.notify_all();
            }
        }
    }

    /// This node's copy goes before its request for Exclusive is served. The request gets another frame, and its master hears
    /// where that is, before it hears anything that lets it serve the request.
    pub(super) fn make_way(&self, block: BlockId) {
        let moved = self.tables.borrow_mut().protected.get_mut(&block).expect("only a protected block goes").make_way();
        let request = self.tables.borrow().pending.get(&block).map(|pending| pending.request);
        let (true, Some(request)) = (moved, request) else { return };
        let message = Message { request, ..bare(self.epoch(), Kind::Place, block) };
        let place = self.expose(&message);
        if place != Place::NONE {
            let message = Message { scn: Scn(place.0), ..message };
            self.perform(Output::Send { to: self.master(block), message });
        }
    }

    /// Lets the block that this request asks for be written into the request's frame, where there is RDMA. Not where the frame
    /// holds a Shared copy that is being read: that is made up for if the copy is taken away ([`Inner::make_way`]).
    pub(super) fn expose(&self, request: &Message) -> Place {
        if !self.interconnect.could_expose() || request.flags & CREATE != 0 {
            return Place::NONE;
        }
        let mut tables = self.tables.borrow_mut();
        let pending = tables.pending.get_mut(&request.block).filter(|pending| pending.request == request.request);
        let Some(pending) = pending else { return Place::NONE };
        let Some(buffer) = self.cache().and_then(|cache| cache.receive_buffer(request.block)) else { return Place::NONE };
        pending.in_place = true;
        drop(tables);
        let place = self.interconnect.expose(request.request, buffer);
        if place.is_none()
            && let Some(pending) = self.tables.borrow_mut().pending.get_mut(&request.block)
        {
            pending.in_place = false;
        }
        place.unwrap_or(Place::NONE)
    }

    /// Puts a received block into the frame that its request has reserved, unless it was received there. Whether the
    /// request is open and the block is where it belongs.
    pub(super) fn take_in(&self, from: NodeId, message: &Message, bytes: IoBuf) -> bool {
        let in_place = {
            let mut tables = self.tables.borrow_mut();
            let pending = tables.pending.get_mut(&message.block).filter(|pending| pending.request == message.request);
            let Some(pending) = pending else { return false };
            pending.answered_by = from;
            pending.in_place
        };
        if in_place {
            return true;
        }
        let buffer = self.cache().and_then(|cache| cache.receive_buffer(message.block));
        let Some(mut buffer) = buffer else { return false };
        buffer.as_mut_slice().copy_from_slice(bytes.as_slice());
        true
    }

    /// The frame that the request of a Data message has reserved, if the block is to be received into it.
    pub(super) fn frame_for(&self, header: &Header) -> Option<IoBuf> {
        if Kind::from_wire(header.kind) != Some(Kind::Data) || header.epoch != self.epoch() {
            return None;
        }
        let mut tables = self.tables.borrow_mut();
        let pending = tables.pending.get_mut(&header.block).filter(|pending| pending.request == header.request)?;
        // An earlier try may have ended half-way.
        pending.in_place = false;
        let buffer = self.cache()?.receive_buffer(header.block)?;
        pending.in_place = true;
        Some(buffer)
    }
}
