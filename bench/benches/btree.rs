//! Trees in a cache, in one shard: what a point read and a scan cost before SQL, transactions and network.

use std::path::Path;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustydb::btree::space::{BlockAllocator, SpaceManager, SpaceReply, SpaceRequest, SpaceService, Urgency};
use rustydb::btree::{KeyRange, NeedRoom, Tree, Visit};
use rustydb::cache::{Cache, CacheConfig, CacheParts, LocalCoherence};
use rustydb::clock::ScnClock;
use rustydb::ids::{Incarnation, NodeId, ShardId};
use rustydb::reactor::{Reactor, ReactorOptions};
use rustydb::volume::{FormatOptions, Volume};
use rustydb::wal::Log;

const ROWS: u64 = 200_000;
const NODE: NodeId = NodeId(1);

/// A tree of `ROWS` rows with 8-byte keys and 100-byte values, all of it cached.
async fn loaded_tree(reactor: &Reactor, path: &Path) -> (Volume, Tree) {
    let options = FormatOptions { nodes_max: 1, volume_bytes: 256 << 20, force: true, ..FormatOptions::new("bench") };
    let volume = Volume::format(reactor, path, &options, &mut |_| {}).await.expect("the temporary folder has room");
    let geometry = *volume.geometry();
    let area = geometry.redo_area(NODE, ShardId(0));
    let log = Log::open(reactor, volume.file(), area, Incarnation(1)).await.expect("a new log opens");
    let coherence = Rc::new(LocalCoherence);
    let (reactor, file, clock, config) = (reactor.clone(), volume.file(), ScnClock::new(), CacheConfig::default());
    let cache = Cache::new(CacheParts { reactor, file, log, clock, coherence, config }).expect("64 MiB of memory");
    let service = Rc::new(SpaceManager::open(&cache, NODE, &geometry).await.expect("a new volume has space"));
    let space = BlockAllocator::new(&cache, service.clone(), NODE, geometry.extents_first);
    let request = SpaceRequest::PreparePartition { partition: None, urgency: Urgency::Normal };
    let Ok(SpaceReply::Home(home)) = service.request(request).await else { panic!("a new volume has room for a partition") };
    let tree = Tree::create(&cache, &space, home).await.expect("a new volume has room for a tree");
    for number in 0..ROWS {
        put(&tree, &number.to_be_bytes(), &[7; 100]).await;
    }
    (volume, tree)
}

async fn put(tree: &Tree, key: &[u8], value: &[u8]) {
    let need = NeedRoom { value_len: value.len(), redo_bytes: 1024, urgency: Urgency::Normal, dead: &|_, _| false };
    let (mut leaf, mut mtr) = tree.seek_write(key, need).await.expect("the volume is large enough");
    leaf.put(&mut mtr, value);
    mtr.finish();
}

fn key(turn: u64) -> [u8; 8] {
    (turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) % ROWS).to_be_bytes()
}

/// A future that has all it needs in the cache.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("everything is cached: nothing to wait for"),
    }
}

fn measure(criterion: &mut Criterion, tree: &Tree) {
    let mut group = criterion.benchmark_group("btree");
    let mut turn = 0;
    group.throughput(Throughput::Elements(1));
    group.bench_function("point read, cached", |bencher| {
        bencher.iter(|| {
            turn += 1;
            let value = tree.try_get(&key(turn), |value| value.map(<[u8]>::len)).expect("a sound tree");
            assert_eq!(value, Some(Some(100)));
        });
    });
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("scan of all rows, cached", |bencher| {
        bencher.iter(|| {
            let (mut seen, mut more) = (0, Some(KeyRange::all()));
            while let Some(range) = more {
                let mut count = |_: &[u8], _: &[u8]| {
                    seen += 1;
                    Visit::Continue
                };
                more = at_once(tree.scan_leaf(&range, &mut count)).expect("a sound tree");
            }
            assert_eq!(seen, ROWS);
        });
    });
    group.finish();
}

/// All of it runs in the shard's own thread, as the engine does.
fn benches(_: &mut Criterion) {
    let reactor = Reactor::new(ReactorOptions::default()).expect("a reactor");
    let inside = reactor.clone();
    reactor.run(async move {
        let path = std::env::temp_dir().join(format!("rustydb-bench-{}", std::process::id()));
        let (volume, tree) = loaded_tree(&inside, &path).await;
        measure(&mut Criterion::default().configure_from_args(), &tree);
        drop(volume);
        std::fs::remove_file(&path).expect("the volume is there");
    });
}

criterion_group!(all, benches);
criterion_main!(all);
