//! Nodes that talk over loopback. Several nodes share one reactor here; what they say goes through real sockets.

mod bed;
#[cfg(feature = "rdma")]
mod devices;

use std::cell::Cell;
use std::net::TcpListener;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::*;
use crate::ids::{BlockId, BlockNo, PartitionId, RequestId, Scn};

#[cfg(feature = "rdma")]
pub(crate) use bed::on_devices;
use bed::{BLOCK, CLUSTER, Cluster, SMALL, block, on_loopback, small};
pub(super) use bed::{device_for_test, two_addresses};
pub(crate) use bed::{equip, free_addresses, on_soft_devices};

#[test]
fn three_nodes_exchange_small_messages_and_blocks_in_order() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 3);
        let nodes = cluster.start_all().await;
        assert_eq!(nodes[1].net.up_peers(), [NodeId(1), NodeId(3)]);
        let ahead = nodes[2].clock.next(5_000_000);
        for round in 0..100u64 {
            for (from, node) in nodes.iter().enumerate() {
                for to in (1..=3u8).filter(|to| usize::from(*to) != from + 1) {
                    let (message, body) = block(round);
                    let text = vec![round as u8; (round * 700) as usize % BODY_BYTES_MAX];
                    node.net.send(NodeId(to), small(round), Body::Bytes(text)).unwrap();
                    node.net.send(NodeId(to), message, body).unwrap();
                    node.net.send(NodeId(to), small(round), Body::Empty).unwrap();
                }
            }
        }
        for node in &nodes {
            cluster.until("all messages", || node.seen.count.get() == 600).await;
            for sender in node.net.peers() {
                let messages = node.seen.messages.borrow();
                let theirs: Vec<_> = messages.iter().filter(|(from, ..)| *from == sender).collect();
                for (i, (_, header, body)) in theirs.iter().enumerate() {
                    let round = (i / 3) as u64;
                    match (i % 3, body) {
                        (0, Body::Bytes(bytes)) => assert_eq!(*bytes, vec![round as u8; (round * 700) as usize % BODY_BYTES_MAX]),
                        (1, Body::Block(bytes)) => {
                            let (message, Body::Block(sent)) = block(round) else { unreachable!() };
                            assert_eq!((header.block, bytes.as_slice()), (message.block, sent.as_slice()));
                        }
                        (0 | 2, Body::Empty) => {
                            assert_eq!((header.argument, header.mode, header.flags), (round, 3, 0x40));
                        }
                        (_, other) => panic!("message {i} of {sender} has a body of the wrong kind: {other:?}"),
                    }
                }
            }
            assert!(node.clock.latest() >= ahead, "the clock of node 3 has spread");
            let stats = node.net.stats();
            assert_eq!(stats.received[Service::Gcs.index()], Traffic { messages: 200, bytes: 200 * (64 + 8192) });
            assert_eq!(stats.sent[Service::Gcs.index()].messages, 200);
            assert_eq!((stats.dropped, stats.refused), (Drops::default(), Refusals::default()));
        }
        nodes.iter().for_each(|node| node.net.close());
    });
}

#[test]
fn a_block_arrives_in_the_frame_that_the_handler_reserved() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let nodes = cluster.start_all().await;
        let arena: Rc<Vec<Cell<u8>>> = Rc::new(vec![Cell::new(0xee); 3 * BLOCK_SIZE]);
        let frame = NonNull::from(&arena[BLOCK_SIZE]).cast::<u8>();
        // SAFETY: Cells are writable through a shared reference, and the guard owns them.
        let frame = unsafe { IoBuf::from_raw(frame, BLOCK_SIZE, arena.clone()) };
        *nodes[0].seen.frame.borrow_mut() = Some(frame);
        let (message, body) = block(9);
        nodes[1].net.send(NodeId(1), message, body).unwrap();
        cluster.until("the block", || nodes[0].seen.count.get() == 1).await;
        let (_, Body::Block(sent)) = block(9) else { unreachable!() };
        let held: Vec<u8> = arena.iter().map(Cell::get).collect();
        assert_eq!(held[BLOCK_SIZE..2 * BLOCK_SIZE], *sent.as_slice());
        assert!(held[..BLOCK_SIZE].iter().chain(&held[2 * BLOCK_SIZE..]).all(|byte| *byte == 0xee));
        nodes.iter().for_each(|node| node.net.close());
    });
}

/// A block that comes in pieces: its bytes lie in the frame as they come, and nobody hears of it before the last. If that
/// never comes, or the epoch ends before, the frame is given back, and what comes behind the block is heard.
#[test]
fn a_block_that_does_not_come_whole_is_nobodys_block() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let one = cluster.start(cluster.settings(1, 1)).await;
        let header = Header {
            kind: BLOCK,
            flags: FLAG_BLOCK,
            mode: 0,
            from: NodeId(2),
            body_len: BLOCK_SIZE as u32,
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            scn: Scn(0),
            block: BlockId::new(PartitionId(7), BlockNo(1)),
            request: RequestId(1),
            argument: 0,
        };
        let next = Header { kind: SMALL, flags: 0, body_len: 0, argument: 77, epoch: Epoch(2), ..header };
        let wire = |header: &Header| header.seal(&[]).as_bytes().to_vec();
        let lend = || {
            let arena: Rc<Vec<Cell<u8>>> = Rc::new(vec![Cell::new(0xee); BLOCK_SIZE]);
            let frame = NonNull::from(&arena[0]).cast::<u8>();
            // SAFETY: Cells are writable through a shared reference, and the guard owns them.
            *one.seen.frame.borrow_mut() = Some(unsafe { IoBuf::from_raw(frame, BLOCK_SIZE, arena.clone()) });
            *one.seen.arena.borrow_mut() = Some(arena.clone());
            arena
        };
        let in_frame = |arena: &Vec<Cell<u8>>| arena.iter().filter(|byte| byte.get() == 0xaa).count();

        // Header alone, a part, the rest with the next message behind it.
        let arena = lend();
        let evil = cluster.stranger(1, 2, None).await;
        cluster.until("the welcome", || one.net.is_up(NodeId(2))).await;
        let send = async |bytes: Vec<u8>| evil.send(IoBuf::from_vec(bytes)).await.0.unwrap();
        send(wire(&header)).await;
        cluster.until("its frame", || one.seen.frame.borrow().is_none()).await;
        send(vec![0xaa; 5000]).await;
        cluster.until("the first part", || in_frame(&arena) == 5000).await;
        assert_eq!(one.seen.count.get(), 0, "not before it is whole");
        send([vec![0xaa; BLOCK_SIZE - 5000], wire(&Header { epoch: Epoch(1), ..next })].concat()).await;
        cluster.until("both messages", || one.seen.count.get() == 2).await;
        assert_eq!(in_frame(&arena), BLOCK_SIZE);
        one.seen.messages.borrow_mut().clear();

        // The epoch ends in the middle.
        let arena = lend();
        send([wire(&header), vec![0xaa; 100]].concat()).await;
        cluster.until("its frame", || in_frame(&arena) == 100).await;
        one.net.set_epoch(Epoch(2));
        send([vec![0xaa; BLOCK_SIZE - 100], wire(&next)].concat()).await;
        cluster.until("the message behind it", || one.seen.count.get() == 3).await;
        assert_eq!(one.seen.messages.borrow()[0].1.argument, 77);
        assert_eq!(one.net.stats().dropped, Drops { epoch: 1, ..Drops::default() });
        assert_eq!(Rc::strong_count(&arena), 2, "the frame is given back");

        // One of the old epoch gets no frame, and is taken from the stream all the same.
        let _arena = lend();
        send(wire(&header)).await;
        reactor.sleep(Duration::from_millis(2)).await;
        send([vec![0xaa; BLOCK_SIZE], wire(&next)].concat()).await;
        cluster.until("the message behind it", || one.seen.count.get() == 4).await;
        assert!(one.seen.frame.borrow().is_some(), "nobody asked for a frame");

        // The connection breaks in the middle: the frame is back before the loss is told.
        let arena = lend();
        send([wire(&Header { epoch: Epoch(2), ..header }), vec![0xaa; 100]].concat()).await;
        cluster.until("its frame", || in_frame(&arena) == 100).await;
        assert_eq!(Rc::strong_count(&arena), 3, "lent");
        evil.shutdown();
        cluster.until("the loss", || !one.seen.downs.borrow().is_empty()).await;
        assert_eq!(one.seen.had_arena_at_down.get(), 2, "it was lent still when the peer's loss was told");
        // The same when it is this side that gives the peer up, with the kernel still receiving.
        let arena = lend();
        let mute = cluster.stranger(1, 2, None).await;
        cluster.until("the welcome", || one.net.is_up(NodeId(2))).await;
        let piece = [wire(&Header { epoch: Epoch(2), ..header }), vec![0xaa; 100]].concat();
        mute.send(IoBuf::from_vec(piece)).await.0.unwrap();
        cluster.until("its frame", || in_frame(&arena) == 100).await;
        let peer = one.net.peer(NodeId(2)).unwrap().clone();
        peer.link.borrow().as_ref().unwrap().fail(DownReason::ClosedHere);
        cluster.until("the loss", || one.seen.downs.borrow().len() == 2).await;
        assert_eq!(one.seen.had_arena_at_down.get(), 2, "it was lent still when the peer's loss was told");
        assert_eq!(one.seen.count.get(), 4);
        one.net.close();
    });
}

#[test]
fn a_peer_is_lost_and_comes_back_in_another_life() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let nodes = cluster.start_all().await;
        nodes[1].net.close();
        cluster.until("the loss", || nodes[0].seen.downs.borrow().len() == 1).await;
        assert!(!nodes[0].net.is_up(NodeId(2)));
        let refused = nodes[0].net.send(NodeId(2), small(0), Body::Empty).unwrap_err();
        assert_eq!(refused.node, NodeId(2));
        assert!(nodes[1].net.send(NodeId(1), small(0), Body::Empty).is_err());

        let again = cluster.start(cluster.settings(2, 2)).await;
        again.net.all_up().await;
        cluster.until("the return", || nodes[0].seen.ups.borrow().len() == 2).await;
        assert_eq!(nodes[0].net.incarnation_of(NodeId(2)), Incarnation(2));
        again.net.send(NodeId(1), small(5), Body::Empty).unwrap();
        cluster.until("its message", || nodes[0].seen.count.get() == 1).await;

        // The first life wakes up and knocks: refused, and the second one is left alone.
        let old = Cluster { reactor: reactor.clone(), addresses: vec![cluster.addresses[0], free_addresses(1)[0]] };
        let old = old.start(old.settings(2, 1)).await;
        cluster.until("its refusal", || old.net.stats().refused.greeting > 0).await;
        assert!(nodes[0].net.stats().refused.greeting > 0);
        assert_eq!((nodes[0].seen.downs.borrow().len(), old.seen.ups.borrow().len()), (1, 0));
        [&nodes[0], &again, &old].iter().for_each(|node| node.net.close());
    });
}

#[test]
fn nodes_come_into_a_running_cluster_and_leave_it_for_good() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 3);
        let knowing = |node: u8, known: &[u8]| {
            let mut settings = cluster.settings(node, 1);
            settings.peers.retain(|(peer, _)| known.contains(&peer.0));
            settings
        };
        // One that the others don't know, of a higher number: it connects, they refuse until they have heard of it.
        let two = cluster.start(knowing(2, &[])).await;
        let three = cluster.start(knowing(3, &[2])).await;
        cluster.until("the refusal", || two.net.stats().refused.greeting > 0).await;
        two.net.add_peer(NodeId(3), cluster.addresses[2]);
        cluster.until("the connection", || two.net.is_up(NodeId(3)) && three.net.is_up(NodeId(2))).await;
        // One of a lower number: it is connected to.
        let one = cluster.start(knowing(1, &[2, 3])).await;
        two.net.add_peer(NodeId(1), cluster.addresses[0]);
        three.net.add_peer(NodeId(1), cluster.addresses[0]);
        one.net.all_up().await;
        one.net.send(NodeId(3), small(5), Body::Empty).unwrap();
        cluster.until("its message", || three.seen.count.get() == 1).await;

        // Node 3 leaves: those who know it refuse it, and tell it why. To remove one that is no peer is nothing.
        let before = three.net.stats().refused.greeting;
        for node in [&one, &two] {
            node.net.remove_peer(NodeId(3));
            node.net.remove_peer(NodeId(9));
        }
        cluster.until("the losses", || three.seen.downs.borrow().len() == 2).await;
        cluster.until("its refusals", || three.net.stats().refused.greeting >= before + 2).await;
        assert!(three.net.up_peers().is_empty());
        assert_eq!((one.net.up_peers(), two.net.up_peers()), (vec![NodeId(2)], vec![NodeId(1)]));
        assert_eq!(one.net.peers().collect::<Vec<_>>(), [NodeId(2)]);
        assert_eq!(one.seen.downs.borrow().len(), 1, "the handlers hear of it as of any loss");
        one.net.all_up().await;
        [&one, &two, &three].iter().for_each(|node| node.net.close());
    });
}

#[test]
fn a_node_of_another_cluster_is_refused_by_name() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 3);
        let one = cluster.start(cluster.settings(1, 1)).await;
        let two = cluster.start(cluster.settings(2, 1)).await;
        let three = cluster.start(Settings { cluster_id: 0xbad, ..cluster.settings(3, 1) }).await;
        cluster.until("the others' connection", || one.net.is_up(NodeId(2))).await;
        cluster.until("the refusals", || three.net.stats().refused.greeting >= 2).await;
        assert!(one.net.stats().refused.greeting > 0 && two.net.stats().refused.greeting > 0);
        assert_eq!(one.net.up_peers(), [NodeId(2)]);
        assert!(three.net.up_peers().is_empty());
        [&one, &two, &three].iter().for_each(|node| node.net.close());
    });
}

#[test]
fn garbage_closes_its_own_connection_and_no_other() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 3);
        let one = cluster.start(cluster.settings(1, 1)).await;
        let two = cluster.start(cluster.settings(2, 1)).await;
        cluster.until("the connection", || one.net.is_up(NodeId(2))).await;

        let browser = reactor.connect(cluster.addresses[0]).await.unwrap();
        let (_, _) = browser.send(IoBuf::from_vec(b"GET / HTTP/1.1\r\n".repeat(8))).await;
        let (end, _) = browser.recv(IoBuf::from_vec(vec![0; 10])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "a stranger hears nothing: {end:?}");
        assert_eq!(one.net.stats().refused.not_a_node, 1);

        // A peer that greets well and then claims more bytes than a message may have.
        let header = Header {
            kind: SMALL,
            flags: 0,
            mode: 0,
            from: NodeId(3),
            body_len: u32::MAX,
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            scn: Scn(0),
            block: BlockId::default(),
            request: RequestId(0),
            argument: 0,
        };
        let forged = |header: Header, body: &[u8]| IoBuf::from_vec([header.seal(body).as_bytes(), body].concat());
        let damaged = |which: u8| {
            let mut bytes = forged(Header { body_len: 3, ..header }, b"abc").into_vec();
            bytes[usize::from(which)] ^= 1;
            IoBuf::from_vec(bytes)
        };
        let cases = [
            forged(header, b""),
            forged(Header { body_len: 0, from: NodeId(2), ..header }, b""),
            forged(Header { body_len: 0, scn: Scn::MAX, ..header }, b""),
            damaged(40),
            damaged(66),
        ];
        for (i, bytes) in cases.into_iter().enumerate() {
            let evil = cluster.stranger(1, 3, None).await;
            cluster.until("its welcome", || one.net.is_up(NodeId(3))).await;
            let (_, _) = evil.send(bytes).await;
            cluster.until("its end", || one.seen.downs.borrow().len() == i + 1).await;
            let status = one.net.stats().peers[1].clone();
            assert!(matches!(status.down_reason, DownReason::Damaged(_)), "case {i}: {}", status.down_reason);
            assert_eq!(one.net.stats().refused.damaged, i as u64 + 1);
        }
        two.net.send(NodeId(1), small(1), Body::Empty).unwrap();
        cluster.until("a message of the peer that behaves", || one.seen.count.get() == 1).await;
        assert!(one.seen.downs.borrow().iter().all(|node| *node == NodeId(3)));
        [&one, &two].iter().for_each(|node| node.net.close());
    });
}

#[test]
fn messages_of_another_epoch_are_dropped_but_for_the_clusters_own() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let nodes = cluster.start_all().await;
        let founding = Message { kind: Service::Cluster.base() + 2, argument: 1, ..Message::default() };
        nodes[0].net.set_epoch(Epoch(2));
        nodes[1].net.send(NodeId(1), small(1), Body::Empty).unwrap();
        let (stale, body) = block(1);
        nodes[1].net.send(NodeId(1), stale, body).unwrap();
        nodes[1].net.send(NodeId(1), founding, Body::Empty).unwrap();
        nodes[1].net.set_epoch(Epoch(2));
        nodes[1].net.send(NodeId(1), small(2), Body::Empty).unwrap();
        cluster.until("both messages", || nodes[0].seen.count.get() == 2).await;
        let arguments: Vec<u64> = nodes[0].seen.messages.borrow().iter().map(|(_, header, _)| header.argument).collect();
        assert_eq!(arguments, [1, 2]);
        assert_eq!(nodes[0].seen.messages.borrow()[0].1.kind, founding.kind);
        assert_eq!(nodes[0].net.stats().dropped, Drops { epoch: 2, ..Drops::default() });
        nodes.iter().for_each(|node| node.net.close());
    });
}

#[test]
fn a_peer_that_falls_too_far_behind_is_lost_and_a_silent_one_too() {
    on_loopback(|reactor| async move {
        let cluster = Cluster::new(&reactor, 2);
        let mut settings = cluster.settings(1, 1);
        settings.send_queue_bytes_max = 1_000_000;
        settings.heartbeat_timeout = Duration::from_millis(100);
        let one = cluster.start(settings).await;
        let _slow = cluster.stranger(1, 2, None).await;
        cluster.until("the welcome", || one.net.is_up(NodeId(2))).await;
        let sent = (0..1_000u64).map(|i| one.net.send(NodeId(2), small(i), Body::Bytes(vec![0; 10_000])));
        let refused = sent.filter_map(Result::err).next().expect("the queue is bounded");
        assert!(matches!(refused.reason, DownReason::QueueFull { bytes } if bytes <= 1_020_000), "{refused}");
        assert!(one.seen.downs.borrow().is_empty(), "handlers are not called from within send");
        cluster.until("the loss", || one.seen.downs.borrow().len() == 1).await;

        let _mute = cluster.stranger(1, 2, None).await;
        cluster.until("the welcome", || one.seen.ups.borrow().len() == 2).await;
        cluster.until("the loss", || one.seen.downs.borrow().len() == 2).await;
        assert!(matches!(one.net.stats().peers[0].down_reason, DownReason::Silent(_)));
        one.net.close();
    });
}

#[test]
fn a_port_in_use_is_named() {
    on_loopback(|reactor| async move {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let settings = Settings::new(CLUSTER, NodeId(1), Incarnation(1), ShardId(0), 1, address);
        let net = Interconnect::new(&reactor, &ScnClock::new(), settings);
        let error = net.start().await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("another process"), "{error}");
    });
}
