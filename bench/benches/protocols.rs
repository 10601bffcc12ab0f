//! The inner loops of what travels and what is written, without a shard: `cargo bench -p rustydb-bench --bench protocols`.

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustydb::cache::Mode;
use rustydb::fusion::gcs::message::{Kind, Message};
use rustydb::fusion::gcs::{HolderCore, MasterCore, Output, ProtectedImage};
use rustydb::fusion::grd::{MastershipMap, VIRTUAL_NODES};
use rustydb::ids::{BLOCK_SIZE, BlockId, BlockNo, Epoch, Incarnation, Lsn, NodeId, PartitionId, RequestId, Scn, ShardId};
use rustydb::interconnect::Header;
use rustydb::volume::block::{BlockKind, format_block, seal, verify};
use rustydb::volume::{RedoArea, SECTOR};
use rustydb::wal::area::Ring;
use rustydb::wal::batch::{BATCH_HEADER, Batch, framed, put_record};

const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
/// Records of a batch, and bytes of each: what sixteen committers write together.
const RECORDS: usize = 16;
const RECORD_BYTES: usize = 400;

fn block(number: u64) -> BlockId {
    BlockId::new(PartitionId(70), BlockNo(number))
}

fn headers(criterion: &mut Criterion) {
    let header = Header {
        kind: Kind::Request as u8,
        flags: 0,
        mode: 2,
        from: NodeId(1),
        body_len: 0,
        epoch: Epoch(7),
        incarnation: Incarnation(3),
        scn: Scn(1 << 40),
        block: block(5),
        request: RequestId(9),
        argument: 0,
    };
    criterion.bench_function("interconnect: seal a header", |bencher| bencher.iter(|| black_box(header).seal(&[])));
    let wire = header.seal(&[]);
    criterion.bench_function("interconnect: open and verify a header", |bencher| {
        bencher.iter(|| {
            let wire = black_box(&wire);
            wire.verify(&[]).expect("it was sealed");
            wire.open().expect("it was sealed")
        });
    });
}

fn blocks(criterion: &mut Criterion) {
    let mut bytes = vec![0u8; BLOCK_SIZE];
    format_block(&mut bytes, block(5), BlockKind::TreeLeaf);
    let mut group = criterion.benchmark_group("volume");
    group.throughput(Throughput::Bytes(BLOCK_SIZE as u64));
    group.bench_function("seal a block", |bencher| bencher.iter(|| seal(black_box(&mut bytes))));
    seal(&mut bytes);
    group
        .bench_function("verify a block", |bencher| bencher.iter(|| verify(black_box(&bytes), block(5)).expect("it was sealed")));
    group.finish();
}

fn log_batch(criterion: &mut Criterion) {
    let ring = Ring::new(RedoArea { node: NodeId(1), shard: ShardId(0), offset: 0, bytes: 64 << 20, stamp: 1 });
    let length = BATCH_HEADER + RECORDS * framed(RECORD_BYTES);
    let extent = length.next_multiple_of(SECTOR);
    let (mut bytes, payload) = (vec![0u8; extent], [0x5A; RECORD_BYTES]);
    let batch = Batch { start: Lsn(0), sequence: 1, incarnation: Incarnation(1), length, extent, records: RECORDS as u32 };
    let mut group = criterion.benchmark_group("wal");
    group.throughput(Throughput::Bytes(length as u64));
    group.bench_function("encode and seal a batch of 16 records", |bencher| {
        bencher.iter(|| {
            let mut at = BATCH_HEADER;
            for _ in 0..RECORDS {
                put_record(&mut bytes[at..at + framed(RECORD_BYTES)], 1, &[&payload]);
                at += framed(RECORD_BYTES);
            }
            batch.seal(&ring, black_box(&mut bytes));
        });
    });
    group.finish();
}

/// Both nodes' cores, with nothing between them but a queue.
struct Cores {
    masters: Vec<MasterCore>,
    holders: Vec<HolderCore>,
    letters: VecDeque<(NodeId, NodeId, Message)>,
    out: Vec<Output>,
    steps: u64,
}

impl Cores {
    fn new() -> Cores {
        let map = MastershipMap::new(Epoch(1), &NODES, VIRTUAL_NODES, BTreeMap::new()).expect("two nodes");
        let map = Rc::new(map);
        Cores {
            masters: NODES.iter().map(|node| MasterCore::new(*node, map.clone(), 1_000_000)).collect(),
            holders: NODES.iter().map(|node| HolderCore::new(*node, map.clone())).collect(),
            letters: VecDeque::new(),
            out: Vec::new(),
            steps: 0,
        }
    }

    /// Does what a node's cores want.
    fn perform(&mut self, node: usize) {
        while !self.out.is_empty() {
            for output in std::mem::take(&mut self.out) {
                match output {
                    Output::Send { to, message } | Output::Ship { to, message, .. } => {
                        self.letters.push_back((NODES[node], to, message));
                    }
                    Output::Protect { block } => {
                        let image = ProtectedImage { scn: Scn(1), dirty: false };
                        self.holders[node].on_protected(block, Some(image), &mut self.out);
                    }
                    _ => {}
                }
            }
        }
    }

    /// The node gets the block Exclusive, wherever it is.
    fn take(&mut self, node: usize, block: BlockId) {
        self.holders[node].acquire(block, Mode::Exclusive, false, &mut self.out);
        self.perform(node);
        while let Some((from, to, message)) = self.letters.pop_front() {
            let to = usize::from(to.0) - 1;
            self.steps += 1;
            if message.kind.is_for_master() {
                self.masters[to].on_message(from, &message, &mut self.out);
            } else {
                self.holders[to].on_message(from, &message, &mut self.out);
            }
            self.perform(to);
        }
        assert_eq!(self.holders[node].mode(block), Mode::Exclusive, "{block} has come");
    }
}

fn cores(criterion: &mut Criterion) {
    let mut cores = Cores::new();
    let mut next = 0u64;
    // A thousand blocks go to and fro: all steps of master, giver and taker.
    criterion.bench_function("gcs: a clean block from node to node, all steps of all cores", |bencher| {
        bencher.iter(|| {
            let turn = next / 1_000;
            cores.take((turn % 2) as usize, block(next % 1_000));
            next += 1;
        });
    });
    assert!(cores.steps > next, "several steps each");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = headers, blocks, log_batch, cores
}
criterion_main!(benches);
