//! Buckets change their masters while whole nodes work, in the simulated world: at random, and because somebody asks most.

use super::*;
use crate::fusion::grd::Bucket;

impl Node {
    /// Begins to give the bucket of some block that is mastered here to some member.
    pub(super) fn remaster_at_random(&self) -> bool {
        let map = self.gcs.map();
        let block = id(self.reactor.random() % BLOCKS);
        let to = map.members()[(self.reactor.random() % map.members().len() as u64) as usize];
        map.master(block) == self.interconnect.node() && self.gcs.remaster(Bucket::of(block), to)
    }

    /// Does so again and again.
    pub(super) fn remaster_all_the_time(self: &Rc<Node>, stop: &Rc<Cell<bool>>) -> TaskHandle {
        let (node, stop) = (self.clone(), stop.clone());
        self.reactor.spawn(Class::Normal, "moves", async move {
            while !stop.get() {
                node.reactor.sleep(Duration::from_micros(node.reactor.random() % 1_000)).await;
                node.remaster_at_random();
            }
        })
    }
}

/// Contention while buckets go to and fro; what the masters have counted.
fn contention_with_moves(seed: u64) -> super::super::MasterCounters {
    let cluster = Simulated::start(seed, busy());
    cluster.on(0, async |node| {
        for n in 0..BLOCKS {
            node.create(id(n)).await;
        }
    });
    let (made, stop) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let movers: Vec<_> = cluster.nodes.iter().map(|node| node.remaster_all_the_time(&stop)).collect();
    let tasks = contend(&cluster.nodes, 3, 60, &made);
    cluster.world.run_until(|| tasks.iter().all(TaskHandle::is_finished)).unwrap();
    stop.set(true);
    cluster.world.run_until(|| movers.iter().all(TaskHandle::is_finished)).unwrap();
    for node in 0..NODES {
        assert_eq!(cluster.on(node, async |node| node.sum().await), made.get(), "seed {seed}: changes are lost or made twice");
    }
    for node in 0..NODES {
        cluster.on(node, async |node| node.cache.let_go(PARTITION).await.unwrap());
    }
    for node in 0..NODES {
        let clean = cluster.on(node, async |node| node.cache.checkpoint_fully(Duration::from_secs(30)).await.unwrap());
        assert!(clean, "seed {seed}: past images remain");
    }
    cluster.messages(&mut 0);
    let mut all = super::super::MasterCounters::default();
    for node in 0..NODES {
        let stats = cluster.stats(node);
        let left = (stats.grd_entries, stats.blocks_held, stats.requests_parked, stats.malformed_total);
        assert_eq!(left, (0, 0, 0, 0), "seed {seed}: {stats:?}");
        assert_eq!(*cluster.nodes[node].gcs.map(), *cluster.nodes[0].gcs.map(), "seed {seed}: two nodes know different masters");
        all.remasters_out_total += stats.master.remasters_out_total;
        all.remasters_in_total += stats.master.remasters_in_total;
        all.entries_taken_over_total += stats.master.entries_taken_over_total;
        all.parked_total += stats.master.parked_total;
        all.relayed_total += stats.master.relayed_total;
    }
    assert_eq!(all.remasters_out_total, all.remasters_in_total, "seed {seed}: a bucket was lost on its way");
    all
}

#[test]
fn every_change_is_kept_while_buckets_change_their_masters() {
    let (mut moves, mut entries, mut parked, mut relayed) = (0, 0, 0, 0);
    for seed in 1..=8 {
        let all = contention_with_moves(seed);
        (moves, entries) = (moves + all.remasters_in_total, entries + all.entries_taken_over_total);
        (parked, relayed) = (parked + all.parked_total, relayed + all.relayed_total);
    }
    assert!(moves > 40 && entries > 500, "{moves} moves of {entries} entries");
    assert!(parked > 20 && relayed > parked, "{parked} messages parked, {relayed} relayed");
}

#[test]
fn who_holds_one_block_and_asks_for_its_neighbour_is_not_locked_out_by_a_move() {
    let cluster = Simulated::start(7, quiet());
    let first = mastered_by(0);
    let second = BlockId::new(PARTITION, BlockNo(first.block.0 ^ 1));
    let bucket = Bucket::of(first);
    assert_eq!(bucket, Bucket::of(second));
    cluster.on(0, async move |node| {
        node.create(first).await;
        node.create(second).await;
    });
    let (held, asks) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let (is_held, may_ask) = (held.clone(), asks.clone());
    let node = cluster.nodes[1].clone();
    let reactor = node.reactor.clone();
    let both = reactor.spawn(Class::Normal, "both", async move {
        let guard = node.cache.read(first).await.unwrap();
        is_held.set(true);
        while !may_ask.get() {
            node.reactor.sleep(Duration::from_millis(1)).await;
        }
        node.count(second).await;
        drop(guard);
    });
    cluster.world.run_until(|| held.get()).unwrap();
    // It has to give the first block up, and does not, as long as it has not got the second.
    let node = cluster.nodes[2].clone();
    let reactor = node.reactor.clone();
    let taken = reactor.spawn(Class::Normal, "take", async move {
        node.increment(first).await;
    });
    cluster.world.run_for(Duration::from_millis(5));
    assert!(cluster.nodes[0].gcs.remaster(bucket, NodeId(2)));
    cluster.world.run_for(Duration::from_millis(5));
    assert_eq!(cluster.stats(0).master.remasters_out_total, 0);
    asks.set(true);
    cluster.world.run_until(|| both.is_finished() && taken.is_finished()).unwrap();
    let counted = cluster.stats(0).master;
    assert_eq!((counted.remasters_given_up_total, counted.remasters_out_total, counted.parked_total), (1, 0, 1));
    assert!(cluster.nodes[0].gcs.remaster(bucket, NodeId(2)), "it is over");
    cluster.world.run_for(Duration::from_millis(5));
    assert_eq!(cluster.stats(0).master.remasters_out_total, 1);
    assert_eq!(cluster.on(0, async move |node| node.count(first).await), 1);
}

impl Simulated {
    /// Requests of the node (counted from 0) so far that it could answer itself, and all that went to a disk.
    fn disk_requests(&self, node: usize) -> (u64, u64) {
        let stats = self.stats(node);
        let local = stats.latency_of(Path::DiskLocal).count();
        (local, local + stats.latency_of(Path::DiskRemote).count())
    }

    fn remasters(&self) -> u64 {
        self.nodes.iter().map(|node| node.gcs.stats().master.remasters_in_total).sum()
    }

    /// These nodes (counted from 0) change all blocks, one after the other, for so many seconds.
    fn change_all(&self, nodes: &[usize], seconds: u64) {
        let stop = Rc::new(Cell::new(false));
        for &index in nodes {
            let (node, stop) = (self.nodes[index].clone(), stop.clone());
            let reactor = node.reactor.clone();
            reactor.spawn(Class::Normal, "changes", async move {
                for n in (0..BLOCKS).cycle() {
                    if stop.get() {
                        return;
                    }
                    node.increment(id(n)).await;
                    node.reactor.sleep(Duration::from_micros(500)).await;
                }
            });
        }
        self.world.run_for(Duration::from_secs(seconds));
        stop.set(true);
        self.world.run_for(Duration::from_millis(500));
    }
}

#[test]
fn the_buckets_of_a_node_that_works_alone_come_to_it() {
    let cluster = Simulated::start(5, busy());
    cluster.on(0, async |node| {
        for n in 0..BLOCKS {
            node.create(id(n)).await;
        }
        node.cache.let_go(PARTITION).await.unwrap();
    });
    let user = (0..NODES).min_by_key(|&node| (0..BLOCKS).filter(|&n| map().master(id(n)) == members()[node]).count()).unwrap();
    let share = |before: (u64, u64), after: (u64, u64)| (after.0 - before.0) as f64 / (after.1 - before.1) as f64;
    let start = cluster.disk_requests(user);
    cluster.change_all(&[user], 1);
    let first = cluster.disk_requests(user);
    cluster.change_all(&[user], 5);
    let warm = cluster.disk_requests(user);
    let mut sent = 0;
    cluster.messages(&mut sent);
    cluster.change_all(&[user], 2);
    let last = cluster.disk_requests(user);
    let (before, after) = (share(start, first), share(warm, last));
    println!("requests answered by the node itself: {before:.2} at first, {after:.2} in the end");
    assert!(before < 0.5 && after == 1.0, "{before} of the requests stayed at home at first, {after} in the end");
    assert_eq!(cluster.messages(&mut sent), 0, "who works alone needs nobody");
    let here = (0..BLOCKS).filter(|&n| cluster.nodes[user].gcs.map().master(id(n)) == members()[user]).count();
    assert_eq!(here as u64, BLOCKS);
    let stats = cluster.stats(user);
    assert!(stats.master.remasters_in_total > 0 && stats.buckets_overridden == stats.master.remasters_in_total, "{stats:?}");
}

#[test]
fn buckets_that_two_nodes_want_stay_where_they_are() {
    let cluster = Simulated::start(6, busy());
    cluster.on(0, async |node| {
        for n in 0..BLOCKS {
            node.create(id(n)).await;
        }
    });
    let before = cluster.remasters();
    cluster.change_all(&[1, 2], 8);
    assert_eq!(cluster.remasters() - before, 0, "they thrash");
    assert!(cluster.stats(1).total_transfers > 1_000, "they had hardly anything to do with each other");
}
