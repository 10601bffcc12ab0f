//! When a shard looks for completions, and when it sleeps.

use super::*;

const POLL: Duration = Duration::from_millis(20);

#[test]
fn whoever_looks_for_completions_does_so_from_his_message_on() {
    run(|reactor| async move {
        let network = SoftNetwork::new(1);
        let start = |node| Node::start_with(&reactor, &network, node, false, POLL, Duration::from_secs(1));
        let nodes = [start(1).await, start(2).await];
        nodes.iter().for_each(|node| node.register().unwrap());
        until(&reactor, "both lanes", || nodes.iter().all(Node::is_by_rdma)).await;
        // On a busy machine the message may take longer than the time for looking.
        for round in 1..=20 {
            reactor.sleep(4 * POLL).await;
            let before = network.arms();
            nodes[0].send(2, 0);
            until(&reactor, "the message", || nodes[1].heard.small.borrow().len() == round).await;
            if network.arms() == before {
                return nodes.iter().for_each(|node| node.net.close());
            }
        }
        panic!("it was about to sleep before the message had come");
    });
}

#[test]
fn what_goes_over_tcp_does_not_wake_the_device() {
    run(|reactor| async move {
        let network = SoftNetwork::new(1);
        network.limit_memory(Some(1));
        let nodes = [Node::start(&reactor, &network, 1, false).await, Node::start(&reactor, &network, 2, false).await];
        nodes.iter().for_each(|node| _ = node.register().unwrap_err());
        nodes[0].net.all_up().await;
        reactor.sleep(Duration::from_millis(20)).await;
        let before = network.arms();
        for round in 1..=20 {
            nodes[0].send(2, 100);
            until(&reactor, "the message", || nodes[1].heard.small.borrow().len() == round).await;
        }
        assert_eq!(network.arms(), before);
        nodes.iter().for_each(|node| node.net.close());
    });
}
