use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::leaving::Gate;
use super::link::{Link, LinkError, greeted, pair};
use super::ring::Memory;
use super::*;

type Rows = BTreeMap<i64, Vec<Value>>;

/// A server that keeps one table of rows by number; transactions are copies.
struct Table {
    committed: Arc<Mutex<Rows>>,
    own: Option<Rows>,
    failed: bool,
    /// How many transactions were given up by a handler's end.
    given_up: Arc<AtomicUsize>,
}

/// A handler's life at one end of a connection.
fn converse(link: &mut Link, handler: &mut dyn Handler) -> Result<(), LinkError> {
    serve::converse(link, handler, &Gate::default(), &AtomicBool::new(false))
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.own.is_some() {
            self.given_up.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn number(values: &[Value]) -> i64 {
    match values.first() {
        Some(Value::Int(number)) => *number,
        other => panic!("{other:?} is no key of this table"),
    }
}

impl Handler for Table {
    fn too_long(&mut self, bytes: usize) -> Reply {
        self.failed = self.own.is_some();
        Reply::Refused { sqlstate: "54000".into(), message: format!("{bytes} bytes") }
    }

    fn in_transaction(&self) -> bool {
        self.own.is_some()
    }

    fn interrupter(&self) -> Interrupter {
        Box::new(|_, _| ())
    }

    fn answer(&mut self, request: Request) -> Reply {
        if self.failed && request != Request::Rollback {
            return Reply::Refused { sqlstate: "25P02".into(), message: "the transaction has failed".into() };
        }
        self.failed = false;
        let mut all = self.committed.lock().expect("nobody panics");
        let rows = self.own.as_mut().unwrap_or(&mut all);
        match request {
            Request::Begin(_) => {
                self.own = Some(rows.clone());
                Reply::Done(0)
            }
            Request::Commit => {
                *all = self.own.take().expect("begun");
                Reply::Done(0)
            }
            Request::Rollback => {
                self.own = None;
                Reply::Done(0)
            }
            Request::Get { table, .. } if table != "t" => {
                Reply::Refused { sqlstate: "42P01".into(), message: format!("relation {table:?} does not exist") }
            }
            Request::Get { key, .. } => Reply::Row(rows.get(&number(&key)).cloned()),
            Request::Put { row, .. } => {
                rows.insert(number(&row), row);
                Reply::Done(1)
            }
            Request::Delete { key, .. } => Reply::Done(u64::from(rows.remove(&number(&key)).is_some())),
            Request::Scan { lower, limit, .. } => {
                let from = lower.map_or(i64::MIN, |lower| number(&[lower]));
                let found = rows.range(from..).map(|(_, row)| row.clone());
                let rows: Vec<Vec<Value>> = found.take(limit as usize + 1).collect();
                let more = rows.len() > limit as usize;
                Reply::Rows { rows: rows.into_iter().take(limit as usize).collect(), more }
            }
        }
    }
}

struct Served {
    endpoint: Option<Endpoint>,
    socket: PathBuf,
    given_up: Arc<AtomicUsize>,
}

impl Served {
    fn start(clients_max: usize, spin: Duration) -> Served {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rustydb-native-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let socket = std::env::temp_dir().join(name);
        let options = EndpointOptions { socket: Some(socket.clone()), clients_max, spin };
        let tcp = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let (committed, given_up) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let count = given_up.clone();
        let make = move || {
            let table = Table { committed: Arc::clone(&committed), own: None, failed: false, given_up: count.clone() };
            Ok(Box::new(table) as Box<dyn Handler>)
        };
        Served { endpoint: Some(Endpoint::start(options, Some(tcp), make).expect("ports")), socket, given_up }
    }

    fn endpoint(&self) -> &Endpoint {
        self.endpoint.as_ref().expect("it serves")
    }

    fn address(&self) -> std::net::SocketAddr {
        self.endpoint().address().expect("it listens")
    }

    fn clients(&self, options: ClientOptions) -> [Client; 2] {
        [Client::connect_local(&self.socket, options), Client::connect_tcp(self.address(), options)]
            .map(|client| client.expect("let in"))
    }
}

#[test]
fn an_endpoint_ends_though_its_socket_has_gone() {
    let mut served = Served::start(4, Duration::ZERO);
    std::fs::remove_file(&served.socket).expect("somebody tidies up");
    let endpoint = served.endpoint.take();
    let end = std::thread::spawn(move || drop(endpoint));
    until("it has ended", || end.is_finished());
}

#[test]
fn only_a_socket_that_nobody_listens_on_is_replaced() {
    let path = std::env::temp_dir().join(format!("rustydb-native-{}-link", std::process::id()));
    std::os::unix::fs::symlink("/nowhere", &path).expect("a folder of our own");
    let options = EndpointOptions { socket: Some(path.clone()), clients_max: 1, spin: Duration::ZERO };
    let refused = Endpoint::start(options, None, || Err::<Box<dyn Handler>, _>(Refusal::new())).is_err();
    let left = path.symlink_metadata().is_ok();
    std::fs::remove_file(&path).ok();
    assert!(refused && left, "refused: {refused}, left: {left}");
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn both_ways_carry_rows_and_transactions() {
    for spin in [Duration::ZERO, Duration::from_micros(200)] {
        let served = Served::start(8, spin);
        let options = ClientOptions { spin, ..ClientOptions::default() };
        let [mut local, mut tcp] = served.clients(options);
        for (client, base) in [(&mut local, 0), (&mut tcp, 100)] {
            let row =
                |n: i64| vec![Value::Int(n), Value::Text(format!("row {n}")), Value::Null, Value::Float(0.5), Value::Bool(true)];
            (base..base + 10).for_each(|n| client.put("t", &row(n)).expect("put"));
            assert_eq!(client.get("t", &[Value::Int(base + 3)]), Ok(Some(row(base + 3))));
            assert_eq!(client.get("t", &[Value::Int(base + 33)]), Ok(None));
            assert_eq!(client.delete("t", &[Value::Int(base)]), Ok(true));
            assert_eq!(client.delete("t", &[Value::Int(base)]), Ok(false));
            let found = client.scan("t", Some(Value::Int(base)), None, 3).expect("scanned");
            assert_eq!((found.rows, found.more), ((base + 1..base + 4).map(row).collect(), true));
            client.begin(Isolation::RepeatableRead).expect("begun");
            client.put("t", &row(base + 50)).expect("put");
            client.rollback().expect("rolled back");
            assert_eq!(client.get("t", &[Value::Int(base + 50)]), Ok(None));
            client.begin(Isolation::ReadCommitted).expect("begun");
            client.put("t", &row(base + 51)).expect("put");
            client.commit().expect("committed");
            let refused = client.get("nope", &[Value::Int(1)]).expect_err("no such table");
            assert_eq!(refused.sqlstate(), "42P01");
            assert_eq!(client.get("t", &[Value::Int(base + 51)]), Ok(Some(row(base + 51))), "an error ends nothing");
        }
        assert!(tcp.get("t", &[Value::Int(51)]).expect("read").is_some(), "each sees what the other has committed");
    }
}

#[test]
fn long_messages_go_round_the_ring_and_too_long_ones_are_refused() {
    let served = Served::start(2, Duration::ZERO);
    for mut client in served.clients(ClientOptions::default()) {
        for n in 0..20 {
            let row = vec![Value::Int(n), Value::Bytes(vec![n as u8; 150_000 + n as usize * 3333])];
            client.put("t", &row).expect("put");
            assert_eq!(client.get("t", &[Value::Int(n)]), Ok(Some(row)));
        }
        let long = vec![Value::Int(1), Value::Bytes(vec![0; MESSAGE_BYTES_MAX])];
        assert_eq!(client.put("t", &long).expect_err("too long").sqlstate(), "54000");
        // Twenty such rows are no answer, which ends a transaction and nothing else.
        assert_eq!(client.scan("t", None, None, 100).expect_err("too long").sqlstate(), "54000");
        client.begin(Isolation::ReadCommitted).expect("begun");
        assert_eq!(client.scan("t", None, None, 100).expect_err("too long").sqlstate(), "54000");
        assert_eq!(client.get("t", &[Value::Int(1)]).expect_err("it has failed").sqlstate(), "25P02");
        client.rollback().expect("rolled back");
        assert_eq!(client.delete("t", &[Value::Int(19)]), Ok(true));
    }
}

#[test]
fn a_client_that_goes_in_the_middle_gives_its_transaction_up() {
    let served = Served::start(8, Duration::ZERO);
    for (number, mut client) in served.clients(ClientOptions::default()).into_iter().enumerate() {
        client.begin(Isolation::ReadCommitted).expect("begun");
        client.put("t", &[Value::Int(1)]).expect("put");
        drop(client);
        until("the end of its transaction", || served.given_up.load(Ordering::SeqCst) == number + 1);
    }
    let [mut client, _other] = served.clients(ClientOptions::default());
    assert_eq!(client.get("t", &[Value::Int(1)]), Ok(None));
    until("the end of the first two", || served.endpoint().clients() == 2);
}

#[test]
fn a_server_that_ends_is_an_error_with_a_code() {
    let mut served = Served::start(8, Duration::ZERO);
    let mut clients = served.clients(ClientOptions::default());
    clients.iter_mut().for_each(|client| client.put("t", &[Value::Int(1)]).expect("put"));
    served.endpoint = None;
    for client in &mut clients {
        for _ in 0..2 {
            assert_eq!(client.get("t", &[Value::Int(1)]).expect_err("nobody is there").sqlstate(), "08006");
        }
    }
    assert!(!served.socket.exists());
    assert!(Client::connect_local(&served.socket, ClientOptions::default()).is_err());
}

#[test]
fn more_clients_than_allowed_are_told_so() {
    let served = Served::start(1, Duration::ZERO);
    let clients = served.clients(ClientOptions::default());
    let more = [
        Client::connect_local(&served.socket, ClientOptions::default()),
        Client::connect_tcp(served.address(), ClientOptions::default()),
    ];
    for refused in more.map(|more| more.err().expect("there is one already")) {
        assert!(refused.to_string().contains("1 native clients already"), "{refused}");
    }
    drop(clients);
    let empty = || served.endpoint().clients() == 0;
    until("their places", empty);
    drop(served.clients(ClientOptions::default()));
    until("their places", empty);
    // What is no client is told nothing, and takes no place for long.
    let mut stranger = UnixStream::connect(&served.socket).expect("it listens");
    stranger.write_all(b"GET / HTTP/1.0\r\n").expect("written");
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut stranger, &mut answer).ok();
    assert!(answer.is_empty());
}

#[test]
fn who_says_nothing_over_tcp_takes_no_place_of_the_rings() {
    let served = Served::start(2, Duration::ZERO);
    let silent = [0; 2].map(|_| TcpStream::connect(served.address()).expect("it listens"));
    until("both to be noticed", || served.endpoint().clients() == 2);
    let mut client = Client::connect_local(&served.socket, ClientOptions::default()).expect("let in");
    assert_eq!(client.get("t", &[Value::Int(1)]), Ok(None));
    drop(silent);
    until("their places", || served.endpoint().clients() == 1);
}

#[test]
fn a_greeting_that_comes_byte_by_byte_is_not_waited_for() {
    let (mut slow, mut server) = UnixStream::pair().expect("sockets");
    let slow = std::thread::spawn(move || {
        // Each byte within the patience, all of them far beyond it; nobody reads the last ones.
        b"RdbNativ\x02\0\0\0\0\0\0\0".iter().for_each(|byte| {
            std::thread::sleep(Duration::from_millis(40));
            slow.write_all(&[*byte]).ok();
        });
    });
    assert!(matches!(greeted(&mut server, Duration::from_millis(100)), Err(LinkError::TimedOut)));
    drop(server);
    slow.join().expect("it only writes");
}

#[test]
fn clients_are_sent_away_when_their_transactions_have_ended() {
    let served = Served::start(4, Duration::ZERO);
    let (mut idle, mut busy) = (served.clients(ClientOptions::default()), served.clients(ClientOptions::default()));
    let mut stays = served.clients(ClientOptions::default());
    for client in busy.iter_mut().chain(&mut stays) {
        client.begin(Isolation::ReadCommitted).expect("begun");
    }
    served.endpoint().send_away("the node is being drained");
    until("the idle ones to go", || served.endpoint().clients() == 4);
    for client in &mut idle {
        let told = client.put("t", &[Value::Int(1)]).expect_err("sent away");
        let words = "terminating connection because the node is being drained; connect to another node (57P01)";
        assert_eq!(told.to_string(), words);
        assert_eq!(client.get("t", &[Value::Int(1)]).expect_err("it has gone").sqlstate(), "08006");
    }
    for (number, client) in (2..).zip(&mut busy) {
        client.put("t", &[Value::Int(number)]).expect("its transaction goes on");
        client.commit().expect("and is committed");
        assert_eq!(client.get("t", &[Value::Int(number)]).expect_err("sent away").sqlstate(), "57P01");
    }
    for refused in [
        Client::connect_local(&served.socket, ClientOptions::default()),
        Client::connect_tcp(served.address(), ClientOptions::default()),
    ] {
        let refused = refused.err().expect("nobody is let in").to_string();
        assert!(refused.contains("the node is being drained: no connections are accepted"), "{refused}");
    }
    served.endpoint().cut_off();
    until("the others to go", || served.endpoint().clients() == 0);
    assert_eq!(served.given_up.load(Ordering::SeqCst), 2);
    for client in &mut stays {
        assert_eq!(client.commit().expect_err("cut off").sqlstate(), "57P01");
    }
    served.endpoint().welcome_again();
    let [mut client, _] = served.clients(ClientOptions::default());
    assert_eq!(client.get("t", &[Value::Int(1)]), Ok(None), "what was not done was not done");
    assert!(client.get("t", &[Value::Int(3)]).expect("read").is_some(), "the last that was committed");
}

#[test]
fn a_client_that_never_pauses_does_not_outlast_the_end() {
    let mut served = Served::start(1, Duration::ZERO);
    let socket = UnixStream::connect(&served.socket).expect("it listens");
    let mut link = Link::ask_for_rings(socket, Duration::ZERO, Duration::from_secs(5)).expect("let in");
    link.send(&Request::Begin(Isolation::ReadCommitted).encode(), None).expect("sent");
    link.recv(None).expect("begun");
    let get = Request::Get { table: "t".into(), key: vec![Value::Int(1)] }.encode();
    // There is always a request in the ring: its server never comes to wait.
    (0..500).for_each(|_| link.send(&get, None).expect("sent"));
    let ended = Arc::new(AtomicBool::new(false));
    let stop = ended.clone();
    let floods = std::thread::spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            if link.send(&get, None).is_err() || link.recv(None).is_err() {
                break;
            }
        }
    });
    served.endpoint = None;
    let given_up = served.given_up.load(Ordering::SeqCst);
    ended.store(true, Ordering::SeqCst);
    floods.join().expect("it only asks");
    assert_eq!(given_up, 1, "its transaction has ended with the endpoint");
}

#[test]
fn the_memory_of_rings_is_there_before_it_is_used() {
    use std::os::unix::fs::MetadataExt;
    let (_memory, descriptor) = Memory::create().expect("memory");
    let file = std::fs::File::from(descriptor);
    let there = file.metadata().expect("ours");
    assert!(there.blocks() * 512 >= there.len(), "{} blocks of {} bytes", there.blocks(), there.len());
}

#[test]
fn a_peer_that_never_listens_to_its_bell_keeps_nobody() {
    let (server, _client, _memory) = pair(Duration::ZERO);
    // More than any socket takes.
    (0..100_000).for_each(|_| server.ring());
}

#[test]
fn a_client_that_leaves_its_replies_in_the_ring_stops_nobody() {
    let (mut server, mut client, _memory) = pair(Duration::ZERO);
    let serving = std::thread::spawn(move || {
        let mut table = Table { committed: Arc::default(), own: None, failed: false, given_up: Arc::default() };
        converse(&mut server, &mut table)
    });
    let put = Request::Put { table: "t".into(), row: vec![Value::Int(1), Value::Bytes(vec![7; 100_000])] }.encode();
    client.send(&put, None).expect("sent");
    client.recv(None).expect("done");
    let get = Request::Get { table: "t".into(), key: vec![Value::Int(1)] }.encode();
    // Far more replies than the ring has room for; the requests are short and wait in theirs.
    for _ in 0..40 {
        client.send(&get, None).expect("sent");
    }
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..40 {
        let reply = client.recv(Some(Duration::from_secs(20))).expect("it comes when there is room");
        assert!(matches!(Reply::decode(&reply), Ok(Reply::Row(Some(_)))));
    }
    drop(client);
    assert!(serving.join().expect("no panic").is_ok());
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-1e300..1e300f64).prop_map(Value::Float),
        ".{0,12}".prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let row = || prop::collection::vec(any_value(), 0..6);
    let bound = || prop::option::of(any_value());
    prop_oneof![
        Just(Request::Begin(Isolation::RepeatableRead)),
        Just(Request::Commit),
        Just(Request::Rollback),
        (".{0,20}", row()).prop_map(|(table, key)| Request::Get { table, key }),
        (".{0,20}", row()).prop_map(|(table, row)| Request::Put { table, row }),
        (".{0,20}", row()).prop_map(|(table, key)| Request::Delete { table, key }),
        (".{0,20}", bound(), bound(), any::<u32>()).prop_map(|(table, lower, upper, limit)| Request::Scan {
            table,
            lower,
            upper,
            limit
        }),
    ]
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let row = || prop::collection::vec(any_value(), 0..6);
    prop_oneof![
        any::<u64>().prop_map(Reply::Done),
        prop::option::of(row()).prop_map(Reply::Row),
        (prop::collection::vec(row(), 0..5), any::<bool>()).prop_map(|(rows, more)| Reply::Rows { rows, more }),
        ("[0-9A-Z]{5}", ".{0,30}").prop_map(|(sqlstate, message)| Reply::Refused { sqlstate, message }),
    ]
}

/// Answers everything, and remembers nothing.
struct Echo;

impl Handler for Echo {
    fn too_long(&mut self, bytes: usize) -> Reply {
        Reply::Refused { sqlstate: "54000".into(), message: format!("{bytes} bytes") }
    }

    fn in_transaction(&self) -> bool {
        false
    }

    fn interrupter(&self) -> Interrupter {
        Box::new(|_, _| ())
    }

    fn answer(&mut self, request: Request) -> Reply {
        Reply::Refused { sqlstate: "XX000".into(), message: format!("{request:?}") }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn messages_come_back_as_they_went(request in any_request(), reply in any_reply()) {
        prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        request in any_request(), place in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let _ = (Request::decode(&bytes), Reply::decode(&bytes));
        let mut spoiled = request.encode();
        let place = place.index(spoiled.len());
        spoiled[place] = value;
        let _ = Request::decode(&spoiled);
        let _ = Request::decode(&spoiled[..place]);
    }

    #[test]
    fn whatever_a_client_writes_into_the_memory_hurts_nobody_but_itself(
        lies in prop::collection::vec((0usize..60, prop_oneof![any::<u64>(), 0u64..5000]), 1..30),
        requests in prop::collection::vec(any_request(), 1..10),
    ) {
        let (mut server, mut client, memory) = pair(Duration::ZERO);
        let serving = std::thread::spawn(move || converse(&mut server, &mut Echo).is_ok());
        let mut lies = lies.into_iter();
        for request in requests {
            // Both sides take what the other tells for a lie: neither falls over, and a wait ends.
            if client.send(&request.encode(), Some(Duration::from_millis(20))).is_err() {
                break;
            }
            for (word, value) in lies.by_ref().take(3) {
                // The words of the first ring and its first data; of the second ring, which lies behind them.
                memory.scribble(word, value);
                memory.scribble(8 + 32 + ring::RING_BYTES / 8 + word, value);
            }
            if client.recv(Some(Duration::from_millis(5))).is_err() {
                break;
            }
        }
        drop(client);
        let end = Instant::now() + Duration::from_secs(20);
        while !serving.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        prop_assert!(serving.is_finished(), "the server's thread does not come back");
        prop_assert!(serving.join().is_ok(), "the server's thread has panicked");
    }
}
