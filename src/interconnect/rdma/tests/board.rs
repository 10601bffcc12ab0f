//! Records that are read while their node writes them.

use super::faults::Cluster;
use super::*;
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
