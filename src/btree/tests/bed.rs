//! What the tests of this folder stand on: a shard with a cache that is much smaller than the trees.

use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use super::*;
use crate::cache::{Cache, CacheConfig, CacheParts, FRAMES_MIN, LocalCoherence};
use crate::clock::ScnClock;
use crate::ids::{BlockId, Incarnation, ShardId};
use crate::reactor::{Class, Reactor, ReactorOptions};
use crate::volume::{FormatOptions, Volume};
use crate::wal::Log;

/// Random numbers from a seed.
pub struct Dice(Cell<u64>);

impl Dice {
    pub fn below(&self, bound: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

/// How large the volume is.
#[derive(Clone, Copy)]
pub enum Size {
    Roomy,
    /// Room for the longest values.
    Large,
    /// Full before long.
    Small,
}

#[derive(Clone)]
pub struct Bed {
    pub dice: Rc<Dice>,
    pub cache: Cache,
    pub service: Rc<SpaceManager>,
    pub space: BlockAllocator,
    pub extents_first: BlockNo,
    reactor: Reactor,
    /// Keeps its file open.
    _volume: Rc<Volume>,
}

static VOLUMES: AtomicU32 = AtomicU32::new(0);

/// Runs a test in shard 0 of node 1, on a new volume.
pub fn run<F: Future<Output = ()> + 'static>(seed: u64, size: Size, body: impl FnOnce(Bed) -> F + 'static) {
    let reactor = Reactor::new(ReactorOptions::default()).expect("a reactor");
    let inside = reactor.clone();
    reactor.run(async move {
        let bed = Bed::new(&inside, seed, size).await;
        body(bed).await;
    });
}

impl Bed {
    async fn new(reactor: &Reactor, seed: u64, size: Size) -> Bed {
        let number = VOLUMES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rustydb-btree-{}-{number}", std::process::id()));
        let (volume_bytes, redo_area_bytes) = match size {
            Size::Roomy => (96 << 20, Some(16 << 20)),
            Size::Large => (120 << 20, Some(4 << 20)),
            Size::Small => (28 << 20, Some(8 << 20)),
        };
        let options = FormatOptions { nodes_max: 2, volume_bytes, redo_area_bytes, ..FormatOptions::new("test") };
        let volume = Volume::format(reactor, &path, &options, &mut |_| {}).await.expect("the temporary folder has room");
        // The file goes with the last handle to it.
        std::fs::remove_file(&path).expect("it was created just now");
        let geometry = *volume.geometry();
        let node = NodeId(1);
        let log =
            Log::open(reactor, volume.file(), geometry.redo_area(node, ShardId(0)), Incarnation(1)).await.expect("the log opens");
        let config = CacheConfig { frames: FRAMES_MIN, ..CacheConfig::default() };
        let coherence = Rc::new(LocalCoherence);
        let parts = CacheParts { reactor: reactor.clone(), file: volume.file(), log, clock: ScnClock::new(), coherence, config };
        let cache = Cache::new(parts).expect("memory for a few frames");
        let service = Rc::new(SpaceManager::open(&cache, node, &geometry).await.expect("a new volume has space"));
        let extents_first = geometry.extents_first;
        let space = BlockAllocator::new(&cache, service.clone(), node, extents_first);
        let dice = Rc::new(Dice(Cell::new(seed.wrapping_mul(77) | 1)));
        Bed { dice, cache, service, space, extents_first, reactor: reactor.clone(), _volume: Rc::new(volume) }
    }

    /// Runs tasks side by side until all have ended.
    pub async fn run_all(&self, tasks: Vec<Pin<Box<dyn Future<Output = ()>>>>) {
        let handles: Vec<_> = tasks.into_iter().map(|task| self.reactor.spawn(Class::Normal, "test", task)).collect();
        for handle in handles {
            handle.join().await;
        }
    }

    /// Runs a task and gives up after it has waited this often. True when it came to its end.
    pub async fn run_for_a_while(&self, task: impl Future<Output = ()>, waits: u64) -> bool {
        let (mut task, mut left) = (std::pin::pin!(task), waits);
        std::future::poll_fn(|context| match task.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        })
        .await
    }

    /// Lets others go first, now and then.
    pub async fn pause(&self) {
        for _ in 0..self.dice.below(3) {
            self.reactor.yield_now().await;
        }
    }

    pub async fn tree(&self) -> Tree {
        let request = SpaceRequest::PreparePartition { partition: None, urgency: Urgency::Normal };
        let Ok(SpaceReply::Home(home)) = self.service.request(request).await else { panic!("no partition") };
        let tree = Tree::create(&self.cache, &self.space, home).await.unwrap();
        self.service.request(SpaceRequest::PublishPartition(home)).await.unwrap();
        tree
    }

    pub async fn drop_tree(&self, tree: &Tree) {
        let extents = self.space.extents_of(tree.home()).await.unwrap();
        self.service.request(SpaceRequest::RemovePartition(tree.home())).await.unwrap();
        self.space.forget(tree.partition());
        self.cache.let_go(tree.partition()).await.unwrap();
        self.service.request(SpaceRequest::FreeExtents(extents)).await.unwrap();
    }

    pub async fn usage(&self) -> space::SpaceUsage {
        let Ok(SpaceReply::Usage(usage)) = self.service.request(SpaceRequest::Usage).await else { panic!("no usage") };
        usage
    }

    /// How many levels the tree has.
    pub async fn levels(&self, tree: &Tree) -> u8 {
        Node::new(&self.cache.read(tree.home().root()).await.unwrap()).unwrap().level() + 1
    }

    /// The blocks that the partition's extent headers say are in use, the headers left out.
    pub async fn used_blocks(&self, tree: &Tree) -> BTreeSet<BlockNo> {
        let mut used = BTreeSet::new();
        for extent in self.space.extents_of(tree.home()).await.unwrap() {
            let bits = self.space.used_in(tree.partition(), extent).await.unwrap();
            used.extend((1..32).filter(|bit| bits & (1 << bit) != 0).map(|bit| BlockNo(extent.0 + bit)));
        }
        used
    }

    /// The blocks in use are those that the tree and the chains reach: none is lost, none is used unmarked.
    pub async fn check_space(&self, tree: &Tree, chains: &[OverflowRef]) {
        let mut reached = BTreeSet::from([tree.home().root().block]);
        let mut todo = vec![tree.home().root().block];
        while let Some(block) = todo.pop() {
            let guard = self.cache.read(BlockId::new(tree.partition(), block)).await.unwrap();
            let node = Node::new(&guard).unwrap();
            let children = (FIRST..node.end()).filter(|_| node.level() > 0).map(|slot| node.child(slot).unwrap());
            for next in children.chain(node.right()) {
                if reached.insert(next) {
                    todo.push(next);
                }
            }
        }
        for chain in chains {
            let blocks = tree.overflow_blocks(*chain).await.unwrap();
            assert!(blocks.into_iter().all(|block| reached.insert(block)), "a block of two owners");
        }
        assert_eq!(self.used_blocks(tree).await, reached);
    }
}
