//! Records that are read while their node writes them.

use super::faults::Cluster;
use super::*;
use crate::ids::Scn;
use crate::interconnect::rdma::Record;
use crate::reactor::Class;

const CELL: u16 = 3;

fn record(value: u64) -> Record {
    [value, value.wrapping_mul(0x9E37_79B9_7F4A_7C15)]
}

/// What has come of a read.
type Answer = Rc<Cell<Option<Option<Record>>>>;

fn begin_read(node: &Node, of: u8, cell: u16) -> Answer {
    let answer: Answer = Rc::default();
    let (net, slot) = (node.net.clone(), answer.clone());
    node.net.reactor().spawn(Class::Normal, "test", async move { slot.set(Some(net.read_published(NodeId(of), cell).await)) });
    answer
}

impl Cluster {
    fn read(&self, node: usize, of: u8, cell: u16) -> Option<Record> {
        let answer = begin_read(&self.nodes[node], of, cell);
        self.until("an answer", || answer.get().is_some());
        answer.get().unwrap()
    }
}

/// One node publishes, the other reads, lanes fail. Whether each answer was a record that stood there between the question and
/// the answer; and how many there were.
fn reads_are_whole(seed: u64) -> (bool, usize) {
    let cluster = Cluster::with_lanes_of(2, seed);
    cluster.network.slow_reads();
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    let mut state = seed;
    let (mut published, mut sound, mut answers) = (0, true, 0);
    let mut open: Vec<(u64, Answer)> = Vec::new();
    for step in 0..3_000 {
        let choice = split_mix(&mut state);
        match choice % 8 {
            0..=2 => {
                published += 1;
                one.net.publish(CELL, record(published));
                one.net.publish(CELL + 1, record(published + 1_000_000));
            }
            3 if open.len() < 6 => open.push((published, begin_read(two, 1, CELL))),
            4 if step % 97 == 0 => cluster.network.pairs().into_iter().take(1).for_each(|pair| cluster.network.fail(pair)),
            5 if step % 5 == 0 => two.send(1, 100),
            _ => _ = cluster.world.step(),
        }
        open.retain(|(before, answer)| {
            if let Some(Some(read)) = answer.get() {
                answers += 1;
                sound &= read == record(read[0]) && (*before..=published).contains(&read[0]) && read[0] > 0;
            }
            answer.get().is_none()
        });
    }
    cluster.until("all answers", || open.iter().all(|(_, answer)| answer.get().is_some()));
    cluster.until("all messages", || one.heard.small.borrow().len() as u64 == two.sent.get());
    assert_eq!(cluster.network.not_ready(), 0);
    (sound && cluster.network.torn() > 0, answers)
}

#[test]
fn a_read_brings_a_whole_record_or_none() {
    let mut answers = 0;
    for seed in 1..=20 {
        let (sound, came) = reads_are_whole(seed);
        assert!(sound, "seed {seed}");
        answers += came;
    }
    assert!(answers > 100, "only {answers} reads had an answer");
    let noticed = (1..=20).any(|seed| !without(DesignRule::TornCellsNoticed, || reads_are_whole(seed)).0);
    assert!(noticed, "without checksums nobody notices anything");
}

#[test]
fn a_record_is_of_its_cell_and_of_the_present_life() {
    let mut cluster = Cluster::with_lanes_of(2, 1);
    assert_eq!(cluster.read(0, 2, CELL), None, "nothing is published");
    cluster.nodes[1].net.publish(CELL, record(5));
    assert_eq!(cluster.read(0, 2, CELL), Some(record(5)));
    assert_eq!(cluster.read(0, 2, CELL + 1), None);
    assert_eq!(cluster.nodes[0].net.stats().rdma.unwrap().reads_answered, 1);
    // While a read is on its way the other side dies: no answer, and none of the former life afterwards.
    cluster.network.hold(true);
    let answer = begin_read(&cluster.nodes[0], 2, CELL);
    cluster.world.run_for(Duration::from_millis(5));
    cluster.nodes[1].net.close();
    cluster.world.crash(crate::reactor::driver::sim::HostId(2));
    cluster.until("the end of the read", || answer.get().is_some());
    assert_eq!(answer.get().unwrap(), None);
    cluster.network.hold(false);
    assert_eq!(cluster.read(0, 2, CELL), None, "it is not there");
    cluster.nodes[1] = cluster.start(2, 2, 2, Epoch(1));
    cluster.nodes[1].register().unwrap();
    cluster.until_by_rdma();
    assert_eq!(cluster.read(0, 2, CELL), None);
    cluster.nodes[1].net.publish(CELL, record(6));
    assert_eq!(cluster.read(0, 2, CELL), Some(record(6)));
    let reads = cluster.nodes[0].net.stats().rdma.unwrap().reads;
    for _ in 0..100 {
        assert_eq!(cluster.read(0, 2, CELL), Some(record(6)));
    }
    assert_eq!(cluster.nodes[0].net.stats().rdma.unwrap().reads, reads + 100);
}

#[test]
fn what_a_node_was_told_its_clock_shows_at_once() {
    for seed in 1..=8 {
        let cluster = Cluster::with_lanes_of(2, seed);
        let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
        let (done, open) = (Rc::new(Cell::new(0u64)), Rc::new(Cell::new(0)));
        let mut state = seed;
        for number in 1..=200 {
            let choice = split_mix(&mut state);
            // Beyond what the heartbeats carry.
            let scn = Scn(1 << 40 | number << 8);
            if let Some(told) = one.net.tell(NodeId(2), scn) {
                let (clock, done, open) = (two.net.clock().clone(), done.clone(), open.clone());
                open.set(open.get() + 1);
                one.net.reactor().spawn(Class::Normal, "test", async move {
                    if told.await {
                        assert!(clock.latest() >= scn, "told, and not shown");
                        done.set(done.get() + 1);
                    }
                    open.set(open.get() - 1);
                });
            }
            if choice.is_multiple_of(40) {
                cluster.network.pairs().into_iter().take(1).for_each(|pair| cluster.network.fail(pair));
            }
            (0..choice >> 8 & 7).for_each(|_| _ = cluster.world.step());
        }
        cluster.until("all answers", || open.get() == 0);
        assert!(done.get() > 20, "{} of 200 were told", done.get());
    }
}

#[test]
fn a_node_that_takes_nothing_has_not_been_told() {
    let (cluster, answer) = telling_who_takes_nothing();
    assert!(answer.get().is_none() && cluster.nodes[1].net.clock().latest() < Scn(1 << 40));
    cluster.until("the end of the lane", || answer.get().is_some());
    assert_eq!(answer.get(), Some(false));
}

/// Whether a node was told, once that is known.
type Told = Rc<Cell<Option<bool>>>;

/// Two nodes of which the first tells the other something, for a while and in vain.
fn telling_who_takes_nothing() -> (Cluster, Told) {
    let cluster = Cluster::with_lanes_of(2, 1);
    cluster.network.hold(true);
    let answer = begin_tell(&cluster.nodes[0], Scn(1 << 40)).unwrap();
    cluster.world.run_for(Duration::from_millis(100));
    (cluster, answer)
}

fn begin_tell(node: &Node, scn: Scn) -> Option<Told> {
    let told = node.net.tell(NodeId(2), scn)?;
    let answer = Rc::new(Cell::new(None));
    let slot = answer.clone();
    node.net.reactor().spawn(Class::Normal, "test", async move { slot.set(Some(told.await)) });
    Some(answer)
}

#[test]
fn who_has_left_tells_nothing_any_more() {
    let (cluster, answer) = telling_who_takes_nothing();
    let [one, two] = [&cluster.nodes[0], &cluster.nodes[1]];
    two.net.let_tell(&[].into());
    // It is written still, perhaps; but the writer does not get to think so.
    cluster.network.hold(false);
    cluster.until("the end", || answer.get().is_some());
    assert_eq!(answer.get(), Some(false));
    cluster.until_by_rdma();
    assert!(begin_tell(one, Scn(1 << 41)).is_none(), "there is a lane, and no word");
    two.net.let_tell(&[NodeId(1)].into());
    cluster.world.run_for(Duration::from_millis(100));
    let answer = begin_tell(one, Scn(1 << 42)).unwrap();
    cluster.until("the word", || answer.get().is_some());
    assert!(answer.get() == Some(true) && two.net.clock().latest() >= Scn(1 << 42));
}

#[test]
fn what_is_published_is_read_and_what_is_told_is_shown_whatever_the_device() {
    run(read_and_tell);
    #[cfg(feature = "rdma")]
    crate::interconnect::tests::on_devices(|| run(read_and_tell));
}

async fn read_and_tell(reactor: Reactor) {
    let network = SoftNetwork::new(1);
    let [one, two] = two(&reactor, &network).await;
    assert_eq!(one.net.read_published(NodeId(2), CELL).await, None, "nothing is published");
    for value in 1..=200 {
        two.net.publish(CELL, record(value));
        assert_eq!(one.net.read_published(NodeId(2), CELL).await, Some(record(value)));
        let scn = Scn(two.net.clock().latest().0.max(1 << 40) + 1);
        let told = one.net.tell(NodeId(2), scn).expect("nothing else is under way");
        assert!(told.await, "told");
        assert!(two.net.clock().latest() >= scn);
    }
    // More at a time than a device works on: some have to be asked by messages, the others are answered.
    let answers: Rc<RefCell<Vec<Option<Record>>>> = Rc::default();
    for _ in 0..20 {
        let (net, answers) = (one.net.clone(), answers.clone());
        reactor.spawn(Class::Normal, "test", async move {
            let answer = net.read_published(NodeId(2), CELL).await;
            answers.borrow_mut().push(answer);
        });
    }
    until(&reactor, "all answers", || answers.borrow().len() == 20).await;
    let answered = answers.borrow().iter().flatten().count();
    assert!(answered >= 4 && answers.borrow().iter().flatten().all(|read| *read == record(200)), "{answered}");
    one.net.close();
    two.net.close();
}
