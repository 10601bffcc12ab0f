//! What a shard's cache asks of the cluster: the seam between the cache and Cache Fusion.
//!
//! Owned by one shard on each side; nothing here is shared between threads. The cache keeps at most one [`Acquire`] in
//! flight per block, and as many releases as its evictor has frames in hand, so the number of open requests is bounded by
//! the number of frames. [`LocalCoherence`] is the whole protocol of a node that has no peers.
//!
//! **Answers come synchronously.** [`Acquire::granted`] puts the new mode into the frame before it returns. It must be
//! called while the message that grants is handled, before any later message about the block is looked at: otherwise an
//! invalidation that was sent after the grant could overtake it, and the frame would keep a mode that the master has
//! taken back. (The first sketch of this seam had `acquire` return a future; its resolution is seen one task switch
//! later, which is exactly that gap.)

use std::future::Future;
use std::pin::Pin;
use std::rc::Weak;

use super::error::CacheError;
use crate::ids::{BlockId, Scn};

/// A future that stays in its shard.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// What a node may do with a block that it caches. The order is the order of rights, up to `Exclusive`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Nothing: the frame is empty, or reserved for an answer under way.
    #[default]
    Null = 0,
    /// Reading; other nodes may read too.
    Shared = 1,
    /// Reading and changing; no other node has it in any mode.
    Exclusive = 2,
    /// Being given away: nothing local may start, the block is about to be shipped.
    Protected = 3,
}

/// Where the bytes of a granted block are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// In the frame already: an upgrade of a mode that was never lost.
    Held,
    /// On the volume, in their newest version; the cache reads them (unless the block is being created).
    Disk,
    /// In the frame: another node has shipped them into it.
    Received,
}

/// The answer to an [`Acquire`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granted {
    /// `Shared` or `Exclusive`, at least what was wanted. More is fine: a node without peers grants `Exclusive` always.
    pub mode: Mode,
    /// Where the bytes are.
    pub source: Source,
    /// The block is newer than the volume and this node is now the one that must write it (rule 6: one dirty owner).
    pub dirty_owner: bool,
}

/// A request for a block, to be answered exactly once by [`Acquire::granted`] or [`Acquire::failed`]. Dropping it counts
/// as `failed` with [`CacheError::Unavailable`].
pub struct Acquire {
    /// The block.
    pub block: BlockId,
    /// `Shared` or `Exclusive`.
    pub want: Mode,
    /// The mode that this node had when it asked: `Null`, or `Shared` for an upgrade. An invalidation may take it away
    /// while the request is under way.
    pub have: Mode,
    /// The block is about to be formatted anew: its present content is of no interest and must not be shipped or read.
    pub create: bool,
    pub(super) reply: Option<Weak<dyn GrantSink>>,
}

/// The side of the cache that takes an answer.
pub(super) trait GrantSink {
    fn on_answer(&self, block: BlockId, answer: Result<Granted, CacheError>);
    fn on_void(&self, block: BlockId);
}

impl Acquire {
    /// The block is granted. On return the frame has the mode; where the source is `Disk`, it is being read, and
    /// whatever is asked of the block meanwhile (protect, invalidate) waits for that.
    pub fn granted(mut self, granted: Granted) {
        assert!(matches!(granted.mode, Mode::Shared | Mode::Exclusive), "{}: granted {:?}", self.block, granted.mode);
        assert!(granted.mode >= self.want, "{}: wanted {:?}, granted only {:?}", self.block, self.want, granted.mode);
        self.answer(Ok(granted));
    }

    /// The block cannot be had; everyone who waits for it gets `error`.
    pub fn failed(mut self, error: CacheError) {
        self.answer(Err(error));
    }

    /// The request is void, but whoever waits for the block still wants it: the cache asks again, for another frame where
    /// this one is still being received into. For a change of the membership, which ends what was under way.
    pub fn again(mut self) {
        let reply = self.reply.take().expect("an acquire is answered once");
        if let Some(cache) = reply.upgrade() {
            cache.on_void(self.block);
        }
    }

    fn answer(&mut self, answer: Result<Granted, CacheError>) {
        let reply = self.reply.take().expect("an acquire is answered once");
        if let Some(cache) = reply.upgrade() {
            cache.on_answer(self.block, answer);
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if self.reply.is_some() && !std::thread::panicking() {
            let block = self.block;
            self.answer(Err(CacheError::Unavailable { block, reason: "the request was dropped by the cluster's side" }));
        }
    }
}

impl std::fmt::Debug for Acquire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "acquire {:?} (have {:?}{}) of {}", self.want, self.have, if self.create { ", create" } else { "" }, self.block)
    }
}

/// What the cache asks of the cluster. Implemented by Cache Fusion's agent, and by [`LocalCoherence`].
pub trait Coherence {
    /// Asks for a block. Answered through the request, at once or later; at most one is in flight per block.
    fn acquire(&self, request: Acquire);

    /// A clean block is leaving the cache. Resolves once the master has acknowledged: until then the cache sends no new
    /// request for the block (rule 9). While it runs, `protect` answers `None` and `invalidate` returns at once.
    fn release(&self, block: BlockId, mode: Mode) -> LocalFuture<()>;

    /// The version `scn` of a block is on stable storage; called after the write has completed, never before (rule 4).
    fn wrote(&self, block: BlockId, scn: Scn);

    /// A past image kept here stands in the way, of the log's checkpoint or of frames: ask the block's owner to write it.
    /// May be called again and again for the same block; a hint, not a promise.
    fn request_write(&self, block: BlockId);
}

/// The coherence of a node without peers: every block is granted `Exclusive` from disk, at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalCoherence;

impl Coherence for LocalCoherence {
    fn acquire(&self, request: Acquire) {
        let source = if request.have == Mode::Null { Source::Disk } else { Source::Held };
        request.granted(Granted { mode: Mode::Exclusive, source, dirty_owner: false });
    }

    fn release(&self, _block: BlockId, _mode: Mode) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn wrote(&self, _block: BlockId, _scn: Scn) {}

    fn request_write(&self, _block: BlockId) {}
}
