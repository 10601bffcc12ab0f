//! A shard with a cache, and a cluster that does what a test says.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::cache::*;
use crate::clock::ScnClock;
use crate::ids::*;
use crate::reactor::driver::sim::{HostId, SimWorld};
use crate::reactor::{FileId, IoBuf, OpenOptions, Reactor};
use crate::volume::block::BlockKind;
use crate::volume::change::Change;
use crate::volume::page::Page;
use crate::volume::{RedoArea, block_offset};
use crate::wal::Log;

/// The other nodes and the masters. Grants from disk at once unless told to hold its answers back.
#[derive(Default)]
pub(super) struct Peers {
    pub(super) hold_answers: Cell<bool>,
    pub(super) hold_releases: Cell<bool>,
    pub(super) asked: RefCell<VecDeque<Acquire>>,
    pub(super) asked_total: Cell<usize>,
    pub(super) released: RefCell<Vec<(BlockId, Mode)>>,
    pub(super) wrote: RefCell<Vec<(BlockId, Scn)>>,
    pub(super) write_requests: RefCell<Vec<BlockId>>,
}

impl Peers {
    /// The oldest request that was not answered yet.
    pub(super) fn next(&self) -> Acquire {
        self.asked.borrow_mut().pop_front().expect("the cache has asked for something")
    }
}

pub(super) struct Cluster(pub(super) Rc<Peers>);

impl Coherence for Cluster {
    fn acquire(&self, request: Acquire) {
        self.0.asked_total.set(self.0.asked_total.get() + 1);
        if self.0.hold_answers.get() {
            self.0.asked.borrow_mut().push_back(request);
        } else {
            LocalCoherence.acquire(request);
        }
    }

    fn release(&self, block: BlockId, mode: Mode) -> LocalFuture<()> {
        self.0.released.borrow_mut().push((block, mode));
        let peers = self.0.clone();
        Box::pin(std::future::poll_fn(move |context| {
            if peers.hold_releases.get() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        }))
    }

    fn wrote(&self, block: BlockId, scn: Scn) {
        self.0.wrote.borrow_mut().push((block, scn));
    }

    fn request_write(&self, block: BlockId) {
        self.0.write_requests.borrow_mut().push(block);
    }
}

pub(super) struct World {
    pub(super) reactor: Reactor,
    pub(super) file: FileId,
    pub(super) peers: Rc<Peers>,
    pub(super) cache: Cache,
}

/// Runs a test in a shard with a cache, on virtual time.
pub(super) fn run<F: Future<Output = ()> + 'static>(config: CacheConfig, body: impl FnOnce(World) -> F + 'static) {
    let sim = SimWorld::new(1);
    let reactor = sim.reactor(HOST);
    let inside = reactor.clone();
    sim.block_on(&reactor, async move {
        let file = volume(&inside, REDO).await;
        let world = World::open(&inside, file, REDO, Incarnation(1), ScnClock::new(), config).await;
        body(world).await;
    });
}

/// A small cache that writes only when it is told to.
pub(super) fn small() -> CacheConfig {
    CacheConfig { frames: FRAMES_MIN, dirty_percent_max: 90, checkpoint_interval_ms: 3_600_000, ..CacheConfig::default() }
}

/// Blocks from here on are data; what lies before belongs to the log.
pub(super) const FIRST: u64 = 1024;

/// Data blocks of the volume.
pub(super) const BLOCKS: u64 = 2048;

pub(super) const PARTITION: PartitionId = PartitionId(70);

/// The n-th data block.
pub(super) fn id(n: u64) -> BlockId {
    BlockId::new(PARTITION, BlockNo(FIRST + n))
}

pub(super) const FORMAT: Change<'static> = Change::Format { kind: BlockKind::TreeLeaf, user_len: 0, user_header: &[] };

/// The value of the only cell of a block.
pub(super) fn value(block: &[u8]) -> Vec<u8> {
    Page::new(block).value(0).to_vec()
}

/// The redo area: what lies before the data.
pub(super) const REDO: RedoArea =
    RedoArea { node: NodeId(1), shard: ShardId(0), offset: 0, bytes: FIRST * BLOCK_SIZE as u64, stamp: 7 };

/// The only machine.
pub(super) const HOST: HostId = HostId(1);

/// A new volume: zeros. Or the one that is there already.
pub(super) async fn volume(reactor: &Reactor, redo: RedoArea) -> FileId {
    let file = reactor.open(Path::new("/volume"), OpenOptions::CREATE).await.expect("the simulator makes files");
    if reactor.file_bytes(file).await.expect("it is open") == 0 {
        // The rest reads as zeros.
        reactor.write_zeros(file, redo.offset, redo.bytes).await.expect("the disk has room");
        reactor.write_zeros(file, (FIRST + BLOCKS - 1) * BLOCK_SIZE as u64, BLOCK_SIZE as u64).await.expect("the disk has room");
    }
    file
}

impl World {
    /// One life of the node on a volume.
    pub(super) async fn open(
        reactor: &Reactor,
        file: FileId,
        redo: RedoArea,
        life: Incarnation,
        clock: ScnClock,
        config: CacheConfig,
    ) -> World {
        let log = Log::open(reactor, file, redo, life).await.expect("the log opens");
        let peers = Rc::new(Peers::default());
        let coherence = Rc::new(Cluster(peers.clone()));
        let parts = CacheParts { reactor: reactor.clone(), file, log, clock, coherence, config };
        let cache = Cache::new(parts).expect("memory for a few frames");
        World { reactor: reactor.clone(), file, peers, cache }
    }

    /// What the volume has of a block.
    pub(super) async fn read_raw(&self, block: BlockId) -> IoBuf {
        let (read, bytes) = self.reactor.read(self.file, block_offset(block.block), IoBuf::aligned(BLOCK_SIZE)).await;
        assert_eq!(read.unwrap(), BLOCK_SIZE);
        bytes
    }

    /// Flips a bit of a block on disk.
    pub(super) async fn damage(&self, block: BlockId) {
        let mut bytes = self.read_raw(block).await;
        bytes.as_mut_slice()[4321] ^= 4;
        self.reactor.write(self.file, block_offset(block.block), bytes).await.0.unwrap();
    }

    /// Puts the bytes of one block where another belongs.
    pub(super) async fn copy_on_disk(&self, from: BlockId, to: BlockId) {
        let bytes = self.read_raw(from).await;
        self.reactor.write(self.file, block_offset(to.block), bytes).await.0.unwrap();
    }

    pub(super) async fn update_or_create(&self, block: BlockId, value: &[u8]) {
        let exists = self.cache.read(block).await.is_ok();
        if exists {
            self.update(block, value).await
        } else {
            self.create(block, value).await
        };
    }

    /// Formats a block that says `value`.
    pub(super) async fn create(&self, block: BlockId, value: &[u8]) -> Lsn {
        let mut mtr = self.cache.begin_mtr(1000).await.unwrap();
        let mut guard = self.cache.create(block).await.unwrap();
        mtr.change(&mut guard, &FORMAT);
        mtr.change(&mut guard, &Change::InsertCell { slot: 0, key: b"key", value });
        mtr.finish()
    }

    /// Changes what a block says.
    pub(super) async fn update(&self, block: BlockId, value: &[u8]) -> Lsn {
        let mut mtr = self.cache.begin_mtr(1000).await.unwrap();
        let mut guard = self.cache.write(block).await.unwrap();
        mtr.change(&mut guard, &Change::ReplaceValue { slot: 0, value });
        mtr.finish()
    }

    pub(super) async fn value(&self, block: BlockId) -> Vec<u8> {
        value(&self.cache.read(block).await.unwrap())
    }

    /// Lets every other task run until it waits for something.
    pub(super) async fn settle(&self) {
        for _ in 0..20 {
            self.reactor.yield_now().await;
        }
    }

    /// Writes everything dirty, then makes the cache forget all it has.
    pub(super) async fn forget_all(&self) {
        assert!(self.cache.checkpoint_fully(std::time::Duration::ZERO).await.unwrap());
        self.cache.let_go(PARTITION).await.unwrap();
    }
}

/// A future that a test starts and looks at.
pub(super) struct Started<T>(Pin<Box<dyn Future<Output = T>>>);

/// Polls a future for the first time.
pub(super) fn start<T: 'static>(future: impl Future<Output = T> + 'static) -> Started<T> {
    let mut started = Started(Box::pin(future));
    assert!(started.poll().is_none(), "it had not to wait");
    started
}

impl<T> Started<T> {
    /// Its output, if it is ready.
    pub(super) fn poll(&mut self) -> Option<T> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// Waits for it.
    pub(super) async fn end(self) -> T {
        self.0.await
    }
}
