//! The engine's inner loops, one by one: `cargo bench -p rustydb-bench --bench inner_loops`.
//!
//! They run in a shard with a real volume (in the temporary folder), because the inner loops belong to a shard's thread;
//! criterion's own thread only says how often.

use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use rustydb::ids::{BLOCK_SIZE, BlockId, BlockNo, PartitionId};
use rustydb::volume::InitZero;
use rustydb::volume::block::BlockKind;
use rustydb::volume::change::Change;
use rustydb::wal::RecordKind;
use rustydb_bench::Outcome;
use rustydb_bench::node::{BenchNode, Options, Parts, key};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: u64 = 50_000;
/// Records appended before they are written: far below what the log holds back.
const APPENDS: u64 = 1_000;

fn node() -> BenchNode {
    let options = Options {
        folder: std::env::temp_dir(),
        volume_bytes: 512 << 20,
        cache_bytes: 128 << 20,
        pin: false,
        overprovisioned: true,
        init_zero: InitZero::All,
    };
    BenchNode::start(&options).expect("the temporary folder has room for a small volume")
}

fn in_shard<F, Fut>(node: &BenchNode, criterion: &mut Criterion, name: &str, work: F)
where
    F: Fn(Rc<Parts>, u64) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = Outcome<Duration>> + 'static,
{
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|times| node.run(move |parts| work(parts, times)).expect("the shard does it"));
    });
}

async fn read_rows(parts: Rc<Parts>, partition: PartitionId, times: u64) -> Outcome<Duration> {
    let began = Instant::now();
    for time in 0..times {
        let row = time.wrapping_mul(7919) % ROWS;
        black_box(parts.engine.get_with(partition, &key(row), |value| value.map(<[u8]>::len))?);
    }
    Ok(began.elapsed())
}

async fn append(parts: Rc<Parts>, times: u64) -> Outcome<Duration> {
    let mut took = Duration::ZERO;
    let payload = [0x5A; 200];
    let mut left = times;
    while left > 0 {
        let records = left.min(APPENDS);
        left -= records;
        let mut end = parts.log.append_lsn();
        let began = Instant::now();
        for _ in 0..records {
            let mut reservation = parts.log.reserve(payload.len()).await?;
            // A kind that recovery passes over.
            end = parts.log.append(&mut reservation, RecordKind::Raft, &[&payload]);
        }
        took += began.elapsed();
        parts.log.flush_to(end).await?;
    }
    Ok(took)
}

/// A change of a cached block, from the mini-transaction's begin to its end.
async fn change(parts: Rc<Parts>, times: u64) -> Outcome<Duration> {
    // A block that no table can have: a partition of its own, far up.
    let block = BlockId::new(PartitionId(1 << 20), BlockNo(50_000));
    let mut took = Duration::ZERO;
    let mut mtr = parts.cache.begin_mtr(BLOCK_SIZE).await?;
    let mut guard = parts.cache.create(block).await?;
    mtr.change(&mut guard, &Change::Format { kind: BlockKind::TreeLeaf, user_len: 0, user_header: &[] });
    mtr.change(&mut guard, &Change::InsertCell { slot: 0, key: b"row", value: &[0; 100] });
    parts.log.flush_to(mtr.finish()).await?;
    drop(guard);
    let mut left = times;
    while left > 0 {
        let changes = left.min(APPENDS);
        left -= changes;
        let mut end = parts.log.append_lsn();
        let began = Instant::now();
        for _ in 0..changes {
            let mut mtr = parts.cache.begin_mtr(BLOCK_SIZE).await?;
            let mut guard = parts.cache.write(block).await?;
            mtr.change(&mut guard, &Change::ReplaceValue { slot: 0, value: &[1; 100] });
            end = mtr.finish();
        }
        took += began.elapsed();
        parts.log.flush_to(end).await?;
    }
    parts.cache.drop_partition(block.partition).await?;
    Ok(took)
}

async fn yield_to_others(parts: Rc<Parts>, times: u64) -> Outcome<Duration> {
    let began = Instant::now();
    for _ in 0..times {
        parts.reactor.yield_now().await;
    }
    Ok(began.elapsed())
}

fn inner_loops(criterion: &mut Criterion) {
    let node = node();
    let partition = node.load(ROWS).expect("the volume has room");
    in_shard(&node, criterion, "store: point read, cached", move |parts, times| read_rows(parts, partition, times));
    in_shard(&node, criterion, "wal: append 200 bytes", append);
    in_shard(&node, criterion, "cache: mini-transaction of one change", change);
    in_shard(&node, criterion, "reactor: yield", yield_to_others);

    let mut empty = vec![0; BLOCK_SIZE];
    let format = Change::Format { kind: BlockKind::TreeLeaf, user_len: 0, user_header: &[] };
    format.apply(&mut empty).expect("a block can be formatted");
    let (mut block, mut filled, mut next) = (empty.clone(), 0u16, 0u64);
    criterion.bench_function("page: insert a row of 100 bytes", |bencher| {
        bencher.iter(|| {
            if filled == 60 {
                block.copy_from_slice(&empty);
                filled = 0;
            }
            // In no order: slots in the middle have to make way.
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let slot = ((next >> 33) % (u64::from(filled) + 1)) as u16;
            filled += 1;
            Change::InsertCell { slot, key: &next.to_be_bytes(), value: &[7; 92] }.apply(&mut block).expect("sixty rows fit");
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = inner_loops
}
criterion_main!(benches);
