//! Nodes are lost and come back while all of them change blocks: whole nodes in the simulated world, at random moments.
//! The view itself is the test's decision.

use std::cell::RefCell;

use super::*;
use crate::fusion::gcs::message::request_id;
use crate::interconnect::{Handler, Header};

/// Counts of one life of a node, by block.
#[derive(Default)]
struct Made {
    begun: Vec<u64>,
    /// Finished in memory.
    done: Vec<u64>,
    /// And flushed.
    durable: Vec<u64>,
}

impl Made {
    fn new() -> Rc<RefCell<Made>> {
        let none = || vec![0; BLOCKS as usize];
        Rc::new(RefCell::new(Made { begun: none(), done: none(), durable: none() }))
    }
}

/// A cluster whose membership changes.
struct Changing {
    seed: u64,
    random: u64,
    cluster: Simulated,
    config: CacheConfig,
    epoch: u64,
    lives: u64,
    /// Of each node, if it lives.
    made: Vec<Option<Rc<RefCell<Made>>>>,
    /// What the lost ones leave: so many changes of each block at least, and at most.
    left: Vec<(u64, u64)>,
    /// Nodes whose redo is not recovered.
    lost: Vec<usize>,
    /// Blocks that were behind on the disk, and past images that came from other nodes: what recovery met in this life.
    met: (u64, u64),
    tasks: Vec<TaskHandle>,
    stop: Rc<Cell<bool>>,
}

impl Changing {
    fn start(seed: u64, config: CacheConfig) -> Changing {
        let cluster = Simulated::start(seed, config.clone());
        cluster.on(0, async |node| {
            for n in 0..BLOCKS {
                node.create(id(n)).await;
            }
            node.cache.log().flush_to(node.cache.log().append_lsn()).await.unwrap();
        });
        let made = (0..NODES).map(|_| Some(Made::new())).collect();
        let left = vec![(0, 0); BLOCKS as usize];
        let (tasks, stop) = (Vec::new(), Rc::default());
        Changing {
            seed,
            random: seed,
            cluster,
            config,
            epoch: 1,
            lives: 1,
            made,
            left,
            lost: Vec::new(),
            met: (0, 0),
            tasks,
            stop,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        crate::reactor::split_mix(&mut self.random) % below
    }

    /// Lets some time go by, up to so many microseconds.
    fn wait(&mut self, us: u64) {
        let us = self.random(us);
        self.cluster.world.run_for(Duration::from_micros(us));
    }

    fn alive(&self) -> Vec<usize> {
        (0..NODES).filter(|&node| self.made[node].is_some()).collect()
    }

    /// Tasks on every node that lives, until [`Changing::rest`].
    fn work(&mut self) {
        self.stop = Rc::default();
        for index in self.alive() {
            let moves = self.cluster.nodes[index].remaster_all_the_time(&self.stop);
            self.tasks.push(moves);
            for _ in 0..4 {
                let (node, stop) = (self.cluster.nodes[index].clone(), self.stop.clone());
                let made = self.made[index].clone().expect("it lives");
                let reactor = node.reactor.clone();
                self.tasks.push(reactor.spawn(Class::Normal, "changes", async move {
                    while !stop.get() {
                        let choice = node.reactor.random();
                        let n = ((choice >> 8) % if choice & 1 == 0 { HOT } else { BLOCKS }) as usize;
                        let block = id(n as u64);
                        if choice & 6 == 0 {
                            node.count(block).await;
                            continue;
                        }
                        made.borrow_mut().begun[n] += 1;
                        let lsn = node.increment(block).await;
                        made.borrow_mut().done[n] += 1;
                        if choice & 8 == 0 && node.cache.log().flush_to(lsn).await.is_ok() {
                            made.borrow_mut().durable[n] += 1;
                        }
                    }
                }));
            }
        }
    }

    /// Ends the work; everything begun on the living is done then.
    fn rest(&mut self) {
        self.stop.set(true);
        let tasks = std::mem::take(&mut self.tasks);
        self.cluster.world.run_until(|| tasks.iter().all(TaskHandle::is_finished)).unwrap();
    }

    fn crash(&mut self, node: usize) {
        self.cluster.world.crash(HostId(node as u32));
        let made = self.made[node].take().expect("it lives");
        for (left, (durable, begun)) in self.left.iter_mut().zip(made.borrow().durable.iter().zip(&made.borrow().begun)) {
            *left = (left.0 + durable, left.1 + begun);
        }
        self.lost.push(node);
    }

    fn map(&self) -> Rc<MastershipMap> {
        let alive: Vec<NodeId> = self.alive().into_iter().map(|node| members()[node]).collect();
        map_of(self.epoch, &alive)
    }

    /// Those who live enter a new epoch, one after the other.
    fn enter(&mut self) {
        self.epoch += 1;
        let map = self.map();
        for node in self.alive() {
            let map = map.clone();
            self.cluster.on(node, async move |node| {
                let epoch = map.epoch();
                node.gcs.enter(map).await;
                node.interconnect.set_epoch(epoch);
            });
            self.wait(500);
        }
    }

    fn go(&mut self) {
        let areas: Vec<RedoArea> = self.lost.iter().map(|&node| redo_area(node)).collect();
        for node in self.alive() {
            let areas = areas.clone();
            self.cluster.on(node, async move |node| node.gcs.go(areas, node.file));
            self.wait(500);
        }
    }

    /// Waits until all have recovered: the redo of the lost is not looked at any more from here on.
    fn recovered(&mut self) {
        for node in self.alive() {
            self.cluster.on(node, async |node| node.gcs.recovered().await).unwrap_or_else(|fault| panic!("{fault}"));
            let progress = self.cluster.nodes[node].gcs.recovery_progress();
            assert_eq!((progress.phase, progress.blocks_done), (RecoveryPhase::Idle, progress.blocks_total));
            let stats = self.cluster.stats(node);
            self.met = (self.met.0 + stats.blocks_rewritten_total, self.met.1 + stats.past_images_fetched_total);
        }
        self.lost.clear();
    }

    /// A lost node comes back with nothing in its memory; its redo has been recovered.
    fn join(&mut self, index: usize) {
        assert!(self.lost.is_empty());
        let scn = self.cluster.nodes[self.alive()[0]].cache.clock().latest();
        self.made[index] = Some(Made::new());
        (self.epoch, self.lives) = (self.epoch + 1, self.lives + 1);
        let map = self.map();
        let reactor = self.cluster.world.reactor(HostId(index as u32));
        let beginning = Beginning { life: self.lives, map: map.clone(), scn };
        let (addresses, config, inside) = (self.cluster.addresses.clone(), self.config.clone(), reactor.clone());
        let begin = async move {
            let volume = std::path::Path::new("volume");
            Rc::new(Node::begin(inside, index, volume, &addresses, config, beginning, Gcs::new_entering).await)
        };
        self.cluster.nodes[index] = self.cluster.world.block_on(&reactor, begin);
        for node in self.alive() {
            let up = self.alive().len() - 1;
            self.cluster.on(node, async move |node| {
                while node.interconnect.up_peers().len() < up {
                    node.reactor.sleep(Duration::from_millis(1)).await;
                }
            });
        }
        for node in self.alive().into_iter().filter(|&node| node != index) {
            let map = map.clone();
            self.cluster.on(node, async move |node| {
                let epoch = map.epoch();
                node.gcs.enter(map).await;
                node.interconnect.set_epoch(epoch);
            });
        }
    }

    /// Whether these are the counters of all blocks that there may be.
    fn check(&self, counters: &[u64], who: &str, in_memory: bool) {
        for (n, &counter) in counters.iter().enumerate() {
            let (mut least, mut most) = self.left[n];
            for made in self.made.iter().flatten() {
                let made = made.borrow();
                least += if in_memory { made.done[n] } else { made.durable[n] };
                most += made.begun[n];
            }
            assert!(
                (least..=most).contains(&counter),
                "seed {}: {who}: block {n} counts {counter}, of {least} that must be and {most} that may be",
                self.seed
            );
        }
    }

    /// At rest: all see the same, nothing is missing, and the directories say what the caches say.
    fn check_rest(&mut self) {
        let mut seen = None;
        for node in self.alive() {
            let counters = self.cluster.on(node, async |node| {
                let mut counters = Vec::new();
                for n in 0..BLOCKS {
                    counters.push(node.count(id(n)).await);
                }
                counters
            });
            self.check(&counters, &format!("node {}", node + 1), true);
            assert_eq!(*seen.get_or_insert_with(|| counters.clone()), counters, "seed {}: two nodes differ", self.seed);
        }
        for node in self.alive() {
            self.cluster.on(node, async |node| node.cache.let_go(PARTITION).await.unwrap());
        }
        for node in self.alive() {
            let clean = self.cluster.on(node, async |node| node.cache.checkpoint_fully(Duration::from_secs(30)).await.unwrap());
            assert!(clean, "seed {}: past images remain", self.seed);
        }
        self.cluster.world.run_for(Duration::from_millis(200));
        for node in self.alive() {
            let gcs = &self.cluster.nodes[node].gcs;
            gcs.invariants();
            let stats = gcs.stats();
            let left = (stats.outstanding_requests, stats.transitions_in_flight, stats.grd_entries, stats.blocks_held);
            assert_eq!(stats.requests_parked, 0, "seed {}: {stats:?}", self.seed);
            assert_eq!(left, (0, 0, 0, 0), "seed {}: {stats:?}", self.seed);
            assert_eq!(stats.malformed_total, 0, "seed {}: {stats:?}", self.seed);
        }
    }

    /// Everybody loses power at once; a restart reads the volume and the redo of those who lived or are not recovered.
    fn check_power_loss(&self) {
        let logs: Vec<usize> = (0..NODES).filter(|&node| self.made[node].is_some() || self.lost.contains(&node)).collect();
        self.cluster.world.power_loss();
        let reactor = self.cluster.world.reactor(HostId(0));
        let inside = reactor.clone();
        let counters = self.cluster.world.block_on(&reactor, async move { recovered(&inside, &logs).await });
        self.check(&counters, "the volume", false);
    }
}

/// A node is lost under contention; the others go on with everything that it had made durable. Sometimes the view changes
/// once more before it is entered, or while it is being recovered. Then it comes back.
fn one_is_lost(seed: u64) -> (u64, (u64, u64)) {
    let mut changing = Changing::start(seed, busy());
    changing.work();
    changing.wait(60_000);
    let dead = changing.random(NODES as u64) as usize;
    changing.crash(dead);
    changing.wait(2_000);
    changing.enter();
    match changing.random(4) {
        0 => changing.enter(),
        1 => {
            changing.go();
            changing.wait(4_000);
            changing.enter();
        }
        _ => {}
    }
    changing.go();
    changing.recovered();
    if seed.is_multiple_of(6) {
        changing.wait(20_000);
    }
    if seed.is_multiple_of(3) {
        changing.check_power_loss();
        return (changing.cluster.world.trace(), changing.met);
    }
    changing.join(dead);
    changing.go();
    changing.recovered();
    changing.rest();
    changing.work();
    changing.cluster.world.run_for(Duration::from_millis(10));
    changing.rest();
    let stats = changing.cluster.stats(dead);
    assert!(
        stats.claims_received_total > 0 && stats.total_transfers > 0,
        "seed {seed}: the returned node takes no part: {stats:?}"
    );
    changing.check_rest();
    (changing.cluster.world.trace(), changing.met)
}

#[test]
fn survivors_go_on_with_all_that_a_lost_node_had_made_durable_and_it_comes_back() {
    let mut met = (0, 0);
    for seed in 1..=24 {
        let (_, (rewritten, fetched)) = one_is_lost(seed);
        met = (met.0 + rewritten, met.1 + fetched);
    }
    assert!(met.0 > 100 && met.1 > 5, "{met:?}: hardly anything was recovered");
    assert_eq!(one_is_lost(1), one_is_lost(1), "the same seed gives the same run");
}

/// A second node is lost before, while or after the first is recovered; the last one has the redo of both to read.
fn two_are_lost(seed: u64) {
    let mut changing = Changing::start(seed, busy());
    changing.work();
    changing.wait(60_000);
    changing.crash(2);
    changing.wait(1_000);
    changing.enter();
    let goes = !changing.random(6).is_multiple_of(6);
    if goes {
        changing.go();
    }
    changing.wait(6_000);
    changing.crash(1);
    changing.wait(1_000);
    changing.enter();
    changing.go();
    changing.recovered();
    changing.wait(10_000);
    if seed.is_multiple_of(2) {
        changing.check_power_loss();
    } else {
        changing.rest();
        changing.check_rest();
    }
}

/// Some lives of either kind, for another transport.
pub(super) fn run_all() {
    for seed in 1..=6 {
        one_is_lost(seed);
        two_are_lost(seed);
    }
}

#[test]
fn the_last_node_recovers_two_that_were_lost_one_after_the_other() {
    (1..=24).for_each(two_are_lost);
}

/// What node 1 (counted from 0, the one that will be lost) and the others have done with a block before.
#[derive(Clone, Copy, Debug)]
enum Before {
    /// It alone has it: nothing but its redo.
    Alone,
    /// A survivor has read it since, and has a copy: clean, and newer than the disk.
    Read,
    /// A survivor has made it and keeps a past image; it has changed it since.
    ChangedThere,
    /// A survivor has made it and keeps a past image; it has taken it over, and has no redo of it.
    TakenThere,
    /// It has made it, a survivor has changed it since and owns it.
    ChangedHere,
    /// A survivor has made it, it has changed it, another survivor has taken it over.
    ThroughIt,
}

impl Before {
    const LOST: usize = 1;

    /// Does it; the counter in the end.
    fn happen(self, cluster: &Simulated, block: BlockId) -> u64 {
        let create = |node| cluster.on(node, async move |node| node.create(block).await);
        let change = |node| {
            cluster.on(node, async move |node| {
                node.increment(block).await;
            });
        };
        let lost = Before::LOST;
        match self {
            Before::Alone => {
                create(lost);
                change(lost);
                1
            }
            Before::Read => {
                create(lost);
                change(lost);
                assert_eq!(cluster.on(0, async move |node| node.count(block).await), 1);
                1
            }
            Before::ChangedThere => {
                create(0);
                change(0);
                change(lost);
                2
            }
            Before::TakenThere => {
                create(2);
                change(2);
                cluster.on(lost, async move |node| drop(node.cache.write(block).await.unwrap()));
                1
            }
            Before::ChangedHere => {
                create(lost);
                change(lost);
                change(2);
                2
            }
            Before::ThroughIt => {
                create(0);
                change(lost);
                cluster.on(2, async move |node| drop(node.cache.write(block).await.unwrap()));
                1
            }
        }
    }
}

/// Each situation, with each node as the master. Then the survivors see everything, and the volume has all that the lost
/// node's redo was needed for: it is not looked at any more.
fn each_situation(situations: &[Before]) {
    for power_loss in [false, true] {
        let cluster = Simulated::start(7, quiet());
        let mut blocks = Vec::new();
        for master in members() {
            let mastered = (0..BLOCKS).map(id).filter(|&block| map().master(block) == master);
            for (&situation, block) in situations.iter().zip(mastered) {
                blocks.push((situation, block, situation.happen(&cluster, block)));
            }
        }
        for node in 0..NODES {
            cluster.on(node, async |node| node.cache.log().flush_to(node.cache.log().append_lsn()).await.unwrap());
        }
        cluster.world.crash(HostId(Before::LOST as u32));
        let survivors = [0, 2];
        let map = map_of(2, &survivors.map(|node| members()[node]));
        for node in survivors {
            let map = map.clone();
            cluster.on(node, async move |node| {
                node.gcs.enter(map).await;
                node.interconnect.set_epoch(Epoch(2));
            });
        }
        for node in survivors {
            cluster.on(node, async |node| node.gcs.go(vec![redo_area(Before::LOST)], node.file));
        }
        for node in survivors {
            cluster.on(node, async |node| node.gcs.recovered().await.unwrap());
        }
        if power_loss {
            cluster.world.power_loss();
            let reactor = cluster.world.reactor(HostId(0));
            let inside = reactor.clone();
            let counters = cluster.world.block_on(&reactor, async move { recovered_of(&inside, &[0, 2]).await });
            for (situation, block, count) in blocks {
                let found = counters[(block.block.0 - FIRST) as usize];
                assert_eq!(found, Some(count), "{situation:?}: {block} on the volume");
            }
            continue;
        }
        for (situation, block, count) in blocks {
            for node in [2, 0] {
                let found = cluster.on(node, async move |node| node.count(block).await);
                assert_eq!(found, count, "{situation:?}: {block} on node {}", node + 1);
            }
        }
        cluster.messages(&mut 0);
    }
}

#[test]
fn whatever_a_lost_node_had_of_a_block_the_block_is_recovered_durably() {
    use Before::*;
    each_situation(&[Alone, Read, ChangedThere, TakenThere, ChangedHere, ThroughIt]);
    // Nobody else's write makes these durable.
    each_situation(&[Alone, Read]);
}

/// A block that the former epoch's owner was sending may go on coming into the frame of a request that the new epoch
/// answers otherwise.
#[test]
fn a_block_that_is_still_being_received_does_not_meet_the_new_epochs_answer() {
    let cluster = Simulated::start(5, quiet());
    let block = mastered_by(0);
    cluster.on(0, async move |node| node.create(block).await);
    cluster.world.pause(HostId(0));
    let (node, done) = (cluster.nodes[1].clone(), Rc::new(Cell::new(false)));
    let (inside, seen) = (node.clone(), done.clone());
    node.reactor.spawn(Class::Normal, "increment", async move {
        inside.increment(block).await;
        seen.set(true);
    });
    cluster.world.run_for(Duration::from_millis(5));
    // What the interconnect does when the block's header has come, and the rest of it has not.
    let header = |request| Header {
        kind: Kind::Data as u8,
        flags: 0,
        mode: 2,
        from: NodeId(1),
        body_len: BLOCK_SIZE as u32,
        epoch: Epoch(1),
        incarnation: Incarnation(1),
        scn: Scn::ZERO,
        block,
        request: request_id(NodeId(2), request),
        argument: 0,
    };
    let late = (1..10).find_map(|request| node.gcs.frame_for(&header(request))).expect("a request is open");
    let map = map_of(2, &members());
    for index in [1, 2, 0] {
        if index == 0 {
            cluster.world.resume(HostId(0));
        }
        let map = map.clone();
        cluster.on(index, async move |node| {
            node.gcs.enter(map).await;
            node.interconnect.set_epoch(Epoch(2));
        });
    }
    for index in 0..NODES {
        cluster.on(index, async |node| node.gcs.go(Vec::new(), node.file));
    }
    cluster.world.run_until(|| done.get()).unwrap();
    drop(late);
    assert_eq!(cluster.on(2, async move |node| node.count(block).await), 1);
    cluster.messages(&mut 0);
}
