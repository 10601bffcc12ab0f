use ratatui::Terminal;
use ratatui::backend::TestBackend;
use rustydb_shm::statistics::{Description, Kind, Liveness, Metric, NodeState, Scope, Snapshot, Stage, create_unnamed};

use super::super::watched::Unread;
use super::columns::Sort;
use super::figures::Row;
use super::terminal::Key;
use super::view::Screen;
use super::{Watch, Watched};

const LATENCY: Kind = Kind::Histogram { unit_shift: 8, sub_bits: 3, buckets: 208 };

/// The statistics of a node that has done so much, through a real file's layout.
fn snapshot(node: u16, heartbeat_ms: u64, done: u64) -> Snapshot {
    let metric = |scope, kind, name: &str, labels: &str| Metric {
        name: format!("rustydb_{name}"),
        labels: labels.into(),
        unit: if kind == LATENCY { "ns".into() } else { String::new() },
        help: "As named".into(),
        scope,
        kind,
    };
    let metrics = [
        metric(Scope::Node, Kind::Gauge, "sessions", ""),
        metric(Scope::Node, LATENCY, "statement_seconds", ""),
        metric(Scope::Shard, Kind::Counter, "cache_hits_total", ""),
        metric(Scope::Shard, Kind::Counter, "cache_misses_total", ""),
        metric(Scope::Shard, Kind::Counter, "block_transfers_total", ""),
        metric(Scope::Shard, LATENCY, "block_request_seconds", "path=\"two_way\",mode=\"x\""),
        metric(Scope::Shard, Kind::Counter, "log_flushes_total", ""),
        metric(Scope::Shard, Kind::Gauge, "interconnect_peers_up", ""),
        metric(Scope::Shard, Kind::Gauge, "rdma_lanes", ""),
        metric(Scope::Shard, Kind::Counter, "interconnect_blocks_received_total", "transport=\"tcp\""),
        metric(Scope::Shard, Kind::Counter, "interconnect_blocks_received_total", "transport=\"rdma\""),
        metric(Scope::Shard, Kind::Counter, "row_lock_waits_total", ""),
        metric(Scope::Shard, Kind::Counter, "latch_waits_total", ""),
        metric(Scope::Shard, LATENCY, "row_lock_wait_seconds", ""),
    ];
    let description = Description {
        cluster: "tested".into(),
        cluster_id: 7,
        node,
        incarnation: 3,
        shards: 2,
        interval_ms: 250,
        program_version: "0".into(),
    };
    let mut writers = create_unnamed(&description, &metrics).expect("memory");
    let stage_since_ms = heartbeat_ms;
    let state = NodeState { heartbeat_ms, stage: Stage::Open, stage_since_ms, epoch: 4, members: 0b1110, ..NodeState::default() };
    writers.state.publish(&state);
    let latency = |count: u64, ns: u64| {
        let mut buckets = [0; 208];
        buckets[rustydb::histogram::bucket_of(ns)] = count;
        (count, count * ns, if count > 0 { ns } else { 0 }, buckets)
    };
    writers.node.publish(heartbeat_ms, heartbeat_ms * 1_000_000, |slots| {
        slots.put(5);
        let (count, sum, max, buckets) = latency(done * 10, 250_000);
        slots.put_histogram(count, sum, max, &buckets);
    });
    for shard in &mut writers.shards {
        shard.publish(heartbeat_ms, heartbeat_ms * 1_000_000, |slots| {
            [done * 99, done, done * 2].into_iter().for_each(|value| slots.put(value));
            let (count, sum, max, buckets) = latency(done * 2, 80_000);
            slots.put_histogram(count, sum, max, &buckets);
            slots.put(done * 3);
            // Three nodes, of which one is reached by TCP only.
            [3, 2, done, done * 4].into_iter().for_each(|value| slots.put(value));
            [done * 2, done * 6].into_iter().for_each(|value| slots.put(value));
            let (count, sum, max, buckets) = latency(done * 2, 640_000);
            slots.put_histogram(count, sum, max, &buckets);
        });
    }
    writers.reader.snapshot().expect("whole")
}

fn rows() -> Vec<Row> {
    let row = |node, liveness, done: u64| {
        let (before, now) = (snapshot(node, 10_000, 100), snapshot(node, 12_000, 100 + done));
        Row::of(&format!("node{node}.stats"), &now, liveness, Some(&before))
    };
    let mut rows = vec![row(1, Liveness::Running, 50), row(2, Liveness::Dead(12_345), 0), row(3, Liveness::Running, 500)];
    // Told by the clock otherwise.
    (rows[0].since_ms, rows[2].since_ms) = (60_000, 300_000);
    rows
}

fn screen(rows: Vec<Row>) -> Screen {
    Screen {
        rows,
        unread: Vec::new(),
        selected: 0,
        drilled: false,
        help: false,
        paused: false,
        sort: Sort::Node,
        colour: true,
        clock: "12:34:56".into(),
        interval_s: 2.0,
    }
}

fn drawn(screen: &Screen, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a buffer");
    terminal.draw(|frame| screen.draw(frame)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

#[test]
fn nodes_are_shown_with_what_they_did_between_two_looks() {
    let lines = drawn(&screen(rows()), 170, 10);
    assert_eq!(lines[0], "tested: 2 of 3 nodes serve   epoch 4   12:34:56   every 2 s   by node");
    assert!(lines[1].starts_with("NODE    STATUS             CPU%  SESS   STMT/S       P99"), "{lines:#?}");
    let cells: Vec<&str> = lines[2].split_whitespace().collect();
    // 500 statements in 2 s, of 250 us; 99 % of the accesses hit; 200 blocks came, of 80 us; 300 flushes; 200 waits for rows, of
    // 640 us, and more for latches, which have no latency and are not among them.
    let expected = "node1 serving 60 s 0.0 5 250 250.0 us 0 - 99.0 100 80.0 us 80.0 us 4/6 150 - 100 640.0 us 0";
    assert_eq!(cells.join(" "), expected, "{lines:#?}");
    assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>()[..4], ["node2", "down", "12", "s"], "{lines:#?}");
    assert_eq!(lines[6], "node2 down for 12 s: was serving");
    assert_eq!(lines[9], "q quit  Enter detail  s sort  p pause  h help");
}

#[test]
fn a_small_terminal_shows_what_matters_most() {
    let lines = drawn(&screen(rows()), 44, 4);
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["NODE", "STATUS", "STMT/S", "XFER/S"], "{lines:#?}");
    assert!(lines[3].starts_with("node2   down 12 s"), "{lines:#?}");
    for (width, height) in [(1, 1), (10, 2), (30, 1), (3, 40), (66, 14)] {
        let mut all = screen(rows());
        drawn(&all, width, height);
        (all.help, all.drilled) = (true, true);
        drawn(&all, width, height);
    }
    assert!(drawn(&screen(Vec::new()), 80, 5)[1].contains("No node publishes statistics here"));
}

#[test]
fn keys_sort_choose_and_drill_down() {
    let mut all = screen(rows());
    assert!(all.press(Key::Char('s')) && all.sort == Sort::Statements);
    let order: Vec<u16> = all.rows.iter().map(|row| row.node).collect();
    assert_eq!((order, all.selected), (vec![3, 1, 2], 1), "the busiest first, and the cursor stays on node1");
    assert!(all.press(Key::Up) && all.press(Key::Up) && all.press(Key::Enter));
    let lines = drawn(&all, 120, 24);
    assert!(
        lines[3].starts_with("4 of 6 connections to other nodes by RDMA, and 80.0 % of the blocks from them   node3"),
        "{lines:#?}"
    );
    assert!(lines[1].starts_with("node3 of tested   serving for 5 min"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("SHARD") && line.contains("SHIP/S")), "{lines:#?}");
    // Each shard's own: rates first, then latencies.
    let of_shard: Vec<Vec<&str>> =
        lines.iter().filter(|line| line.starts_with("1 ")).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(of_shard[0][7..9], ["500", "1500"], "waits for rows and locks, then for latches: {lines:#?}");
    assert_eq!(of_shard[1].join(" "), "1 - 80.0 us 80.0 us - - 640.0 us 2/3", "{lines:#?}");
    let transfers = lines.iter().find(|line| line.starts_with("block_request path=two_way,mode=x")).expect("its latencies");
    assert_eq!(transfers.split_whitespace().collect::<Vec<_>>()[2..], ["1000", "80.0", "us", "80.0", "us", "80.0", "us"]);
    assert!(all.press(Key::Escape) && !all.drilled);
    assert!(all.press(Key::Char('h')) && all.help);
    assert!(all.press(Key::Char('q')));
    assert!(!all.help, "q leaves the help first");
    assert!(all.press(Key::Char('p')) && drawn(&all, 160, 5)[0].ends_with("PAUSED"));
    assert!(!all.press(Key::Char('q')));
}

#[test]
fn without_colour_what_is_down_is_bold() {
    let mut all = screen(rows());
    all.colour = false;
    let mut terminal = Terminal::new(TestBackend::new(100, 8)).expect("a buffer");
    terminal.draw(|frame| all.draw(frame)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let coloured = buffer.content().iter().filter(|cell| cell.fg != ratatui::style::Color::Reset).count();
    assert_eq!(coloured, 0);
    assert!(buffer[(0, 3)].modifier.contains(ratatui::style::Modifier::BOLD));
}

#[test]
fn a_node_that_does_not_answer_any_more_is_shown_as_it_was_and_leftovers_are_not() {
    let mut watch = Watch::default();
    let found = |node, done, liveness| Ok((snapshot(node, 10_000 + done, done), liveness));
    let mut other = snapshot(9, 10_000, 1);
    other.header.cluster_id = 8;
    let look = |source: &str, found| Watched { source: source.into(), found };
    let leftover = || look("old", Ok((other.clone(), Liveness::Dead(1_000_000))));
    watch.look(vec![look("a", found(1, 1, Liveness::Running)), look("b", found(2, 1, Liveness::Running)), leftover()]);
    let unread = watch.look(vec![
        look("a", found(1, 2, Liveness::Running)),
        look("b", Err(Unread::Because("connection refused".into()))),
        leftover(),
        look("c", Err(Unread::Because("not whole".into()))),
    ]);
    assert_eq!(unread, [("c".to_owned(), "not whole".to_owned())]);
    let rows = watch.rows();
    let seen: Vec<(u16, &str, bool)> = rows.iter().map(|row| (row.node, row.status, row.alive)).collect();
    assert_eq!(seen, [(1, "serving", true), (2, "no answer", false)]);
    assert_eq!(rows[1].detail, "connection refused");
    let mut dead = Watch::default();
    dead.look(vec![leftover()]);
    assert_eq!(dead.rows().len(), 1, "nothing else is there");
}

#[test]
fn a_node_whose_file_was_removed_is_gone_until_it_is_there_again() {
    let mut watch = Watch::default();
    let look = |source: &str, done| {
        let snapshot = snapshot(source.parse().expect("its number"), 10_000 + done, done);
        Watched { source: source.into(), found: Ok((snapshot, Liveness::Running)) }
    };
    let status = |watch: &Watch| watch.rows().iter().map(|row| (row.node, row.status)).collect::<Vec<_>>();
    watch.look(vec![look("1", 1), look("2", 1)]);
    // Named by the operator, or found in the folder no more.
    watch.look(vec![look("1", 2), Watched { source: "2".into(), found: Err(Unread::Gone) }]);
    assert_eq!(status(&watch), [(1, "serving"), (2, "gone")]);
    watch.look(vec![look("2", 3)]);
    assert_eq!(status(&watch), [(1, "gone"), (2, "serving")]);
    assert!(drawn(&screen(watch.rows()), 160, 8)[0].starts_with("tested: 1 of 2 nodes serve"));
}

#[test]
fn rates_do_not_flicker_when_looks_come_faster_than_publications() {
    let mut watch = Watch::default();
    let mut look = |heartbeat_ms, done| {
        watch.look(vec![Watched { source: "1".into(), found: Ok((snapshot(1, heartbeat_ms, done), Liveness::Running)) }]);
        watch.rows()[0].all.transfers_per_s
    };
    look(10_000, 100);
    // Two shards, two blocks each for what was done: 50 in a quarter of a second.
    let rates = [(10_250, 150), (10_250, 150), (10_250, 150), (10_500, 200), (10_500, 200)].map(|(at, done)| look(at, done));
    assert_eq!(rates, [800.0; 5]);
}

#[test]
fn a_shard_that_has_not_published_yet_is_counted_with_the_others() {
    let mut watch = Watch::default();
    let mut look = |heartbeat_ms, done, late: Option<Snapshot>| {
        let mut now = snapshot(1, heartbeat_ms, done);
        if let Some(before) = late {
            now.groups[2] = before.groups[2].clone();
        }
        watch.look(vec![Watched { source: "1".into(), found: Ok((now, Liveness::Running)) }]);
        watch.rows()[0].shards.iter().map(|shard| shard.transfers_per_s).collect::<Vec<_>>()
    };
    look(10_000, 100, None);
    look(10_250, 150, None);
    let half = look(10_500, 200, Some(snapshot(1, 10_250, 150)));
    assert_eq!(half, [400.0, 400.0], "the first shard's of half a second, the second's of the quarter that is known");
    assert_eq!(look(10_500, 200, None), [400.0, 400.0]);
}
