//! Native clients against a real node, by rings and over TCP, beside a PostgreSQL client that sees the same rows.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustydb_shm::native::{Client, ClientOptions, Isolation, Value};
use rustydb_tools::http;

/// A development cluster of one node.
struct Cluster {
    supervisor: Child,
    folder: PathBuf,
    pg: SocketAddr,
    native: SocketAddr,
    http: SocketAddr,
}

impl Cluster {
    fn start() -> Cluster {
        let folder = std::env::temp_dir().join(format!("rustydb-native-test-{}", std::process::id()));
        std::fs::remove_dir_all(&folder).ok();
        // All held at once, so that they differ.
        let held = [0; 4].map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
        let [pg, http, interconnect, native] = held.each_ref().map(|held| held.local_addr().expect("bound"));
        drop(held);
        let port = |address: SocketAddr| address.port().to_string();
        let supervisor = Command::new(env!("CARGO_BIN_EXE_rusty-db-server"))
            .args(["dev", "--nodes", "1", "--volume-size", "256MiB", "--cache-size", "16MiB", "--data-dir"])
            .arg(&folder)
            .args(["--pg-port", &port(pg), "--http-port", &port(http)])
            .args(["--interconnect-port", &port(interconnect), "--native-port", &port(native)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server's program");
        let cluster = Cluster { supervisor, folder, pg, native, http };
        cluster.wait_healthy();
        cluster
    }

    fn wait_healthy(&self) {
        let until = Instant::now() + Duration::from_secs(120);
        while !http::health(self.http, Duration::from_secs(1)).is_ok_and(|health| health.status == "healthy") {
            assert!(Instant::now() < until, "the node does not come to serve: see {}", self.folder.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn clients(&self) -> [Client; 2] {
        let options = ClientOptions { patience: Some(Duration::from_secs(60)), ..ClientOptions::default() };
        let local = Client::connect_local(&self.folder.join("node1.native"), options).expect("let in");
        [local, Client::connect_tcp(self.native, options).expect("let in")]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not yet waited for.
        unsafe { libc::kill(self.supervisor.id() as libc::pid_t, libc::SIGTERM) };
        self.supervisor.wait().ok();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// What PostgreSQL's protocol needs to run a statement and see its rows as text.
struct Sql(TcpStream);

impl Sql {
    fn connect(address: SocketAddr) -> Sql {
        let mut stream = TcpStream::connect(address).expect("it serves");
        let mut startup = vec![0, 3, 0, 0];
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        let length = (startup.len() as u32 + 4).to_be_bytes();
        stream.write_all(&[&length[..], &startup].concat()).expect("sent");
        let mut sql = Sql(stream);
        sql.answer();
        sql
    }

    fn run(&mut self, text: &str) -> Vec<String> {
        let length = (text.len() as u32 + 5).to_be_bytes();
        self.0.write_all(&[b"Q", &length[..], text.as_bytes(), b"\0"].concat()).expect("sent");
        self.answer()
    }

    /// Rows up to ReadyForQuery, their columns joined by bars; an error as its own row.
    fn answer(&mut self) -> Vec<String> {
        let mut rows = Vec::new();
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head).expect("an answer");
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).expect("an answer");
            match head[0] {
                b'D' => {
                    let mut rest = &body[2..];
                    let mut cells = Vec::new();
                    while let Some((length, after)) = rest.split_at_checked(4) {
                        let length = i32::from_be_bytes(length.try_into().expect("four")).max(0) as usize;
                        cells.push(String::from_utf8_lossy(&after[..length]).into_owned());
                        rest = &after[length..];
                    }
                    rows.push(cells.join("|"));
                }
                b'E' => rows.push(format!("error {}", String::from_utf8_lossy(&body).replace('\0', " "))),
                b'Z' => return rows,
                _ => {}
            }
        }
    }
}

#[test]
fn native_clients_and_sql_see_the_same_rows() {
    let cluster = Cluster::start();
    let mut sql = Sql::connect(cluster.pg);
    let made = "create table accounts (id int primary key, owner text not null, balance numeric(12,2), opened date, \
                check (balance >= 0)); create index on accounts (owner); \
                create table pairs (a int, b text, c bytea, primary key (a, b)); create table heap (n int)";
    assert_eq!(sql.run(made), [""; 0]);
    let clients = cluster.clients();
    for (mut client, base) in clients.into_iter().zip([0, 1000]) {
        let row = |n: i64, balance: &str| vec![Value::Int(n), "Ada".into(), balance.into(), "2026-11-21".into()];
        let key = |n: i64| [Value::Int(n)];
        // Each sees the other's.
        (base..base + 20).for_each(|n| client.put("accounts", &row(n, "10.50")).expect("put"));
        let count = format!("select count(*) from accounts where owner = 'Ada' and id between {base} and {}", base + 99);
        assert_eq!(sql.run(&count), ["20"], "by the index, too");
        assert_eq!(sql.run(&format!("update accounts set balance = 7 where id = {base}")), [""; 0]);
        assert_eq!(client.get("accounts", &key(base)), Ok(Some(row(base, "7.00"))));
        assert_eq!(client.get("accounts", &key(base + 500)), Ok(None));
        client.put("accounts", &row(base, "8.25")).expect("replaced");
        assert_eq!(sql.run(&format!("select balance from accounts where id = {base}")), ["8.25"]);
        assert_eq!(client.delete("accounts", &key(base)), Ok(true));
        assert_eq!(client.delete("accounts", &key(base)), Ok(false));
        // Ranges.
        let found = client.scan("accounts", Some(Value::Int(base + 5)), Some(Value::Int(base + 10)), 100).expect("scanned");
        assert_eq!((found.rows, found.more), ((base + 5..base + 10).map(|n| row(n, "10.50")).collect(), false));
        let found = client.scan("accounts", Some(Value::Int(base)), None, 3).expect("scanned");
        assert_eq!((found.rows.len(), found.rows[0][0].clone(), found.more), (3, Value::Int(base + 1), true));
        // A key of two columns, bytes, NULL.
        let pair = vec![Value::Int(base), "it's".into(), Value::Bytes(vec![0, 255])];
        client.put("public.pairs", &pair).expect("put");
        assert_eq!(client.get("pairs", &pair[..2]), Ok(Some(pair.clone())));
        client.put("pairs", &[Value::Int(base), "none".into(), Value::Null]).expect("put");
        assert_eq!(sql.run(&format!("select b, c is null from pairs where a = {base} order by b")), ["it's|f", "none|t"]);
        // What SQL refuses is refused, with SQL's codes, and the connection goes on.
        let code = |error: Result<(), rustydb_shm::native::ClientError>| error.expect_err("refused").sqlstate().to_owned();
        assert_eq!(code(client.put("accounts", &row(base, "-1"))), "23514");
        assert_eq!(code(client.put("accounts", &[Value::Int(base), Value::Null, Value::Null, Value::Null])), "23502");
        assert_eq!(code(client.put("accounts", &[Value::Int(1 << 40), Value::Null, Value::Null, Value::Null])), "22003");
        assert_eq!(code(client.put("accounts", &[Value::Int(1)])), "22023");
        assert_eq!(code(client.put("nowhere", &[Value::Int(1)])), "42P01");
        assert_eq!(code(client.put("heap", &[Value::Int(1)])), "0A000");
        // Transactions.
        client.begin(Isolation::ReadCommitted).expect("begun");
        client.put("accounts", &row(base + 50, "1")).expect("put");
        assert_eq!(client.get("accounts", &key(base + 50)), Ok(Some(row(base + 50, "1.00"))));
        assert_eq!(sql.run(&format!("select id from accounts where id = {}", base + 50)), [""; 0]);
        client.rollback().expect("rolled back");
        assert_eq!(client.get("accounts", &key(base + 50)), Ok(None));
        client.begin(Isolation::RepeatableRead).expect("begun");
        assert_eq!(client.get("accounts", &key(base + 1)), Ok(Some(row(base + 1, "10.50"))));
        assert_eq!(sql.run(&format!("update accounts set balance = 3 where id = {}", base + 1)), [""; 0]);
        assert_eq!(client.get("accounts", &key(base + 1)), Ok(Some(row(base + 1, "10.50"))), "its snapshot");
        assert_eq!(code(client.put("accounts", &row(base + 1, "4"))), "40001");
        assert_eq!(code(client.put("accounts", &row(base + 2, "4"))), "25P02", "it has failed");
        client.rollback().expect("rolled back");
        client.begin(Isolation::ReadCommitted).expect("begun");
        client.put("accounts", &row(base + 51, "2")).expect("put");
        client.commit().expect("committed");
        assert_eq!(sql.run(&format!("select balance from accounts where id = {}", base + 51)), ["2.00"]);
        // A table that changes meanwhile.
        assert_eq!(sql.run("alter table pairs add column d int default 5"), [""; 0]);
        assert_eq!(client.get("pairs", &pair[..2]).expect("read").expect("there")[3], Value::Int(5));
        assert_eq!(sql.run("alter table pairs drop column d"), [""; 0]);
        assert_eq!(client.get("pairs", &pair[..2]), Ok(Some(pair.clone())));
        // One that goes in the middle leaves nothing behind, no lock either.
        client.begin(Isolation::ReadCommitted).expect("begun");
        client.put("accounts", &row(base + 3, "99")).expect("put");
        drop(client);
        assert_eq!(sql.run(&format!("update accounts set balance = 5 where id = {} returning balance", base + 3)), ["5.00"]);
    }

    // A row that is longer than a message is an error of its statement, and of the transaction.
    assert_eq!(sql.run("create table wide (id int primary key, t text)"), [""; 0]);
    assert_eq!(sql.run("insert into wide values (1, repeat('x', 300000)), (2, 'short')"), [""; 0]);
    let wide = |client: &mut Client, id| client.get("wide", &[Value::Int(id)]).map_err(|error| error.sqlstate().to_owned());
    for client in &mut cluster.clients() {
        assert_eq!(wide(client, 1), Err("54000".into()));
        assert!(wide(client, 2).is_ok_and(|row| row.is_some()), "outside of a transaction nothing else has failed");
        client.begin(Isolation::ReadCommitted).expect("begun");
        assert_eq!(wide(client, 1), Err("54000".into()));
        assert_eq!(wide(client, 2), Err("25P02".into()));
        assert_eq!(client.commit().expect_err("it has failed").sqlstate(), "25P02");
        assert!(wide(client, 2).is_ok_and(|row| row.is_some()));
    }

    // Drained, the node waits for who has a transaction, cuts off who waits for a lock when the time is over, and is healthy again.
    let [mut idle, mut waits] = cluster.clients();
    let [mut holds, mut commits] = cluster.clients();
    let row = |n: i64| [Value::Int(n), "Ada".into(), "1".into(), Value::Null];
    holds.begin(Isolation::ReadCommitted).expect("begun");
    holds.put("accounts", &row(4)).expect("locked");
    commits.begin(Isolation::ReadCommitted).expect("begun");
    commits.put("accounts", &row(5)).expect("put");
    waits.begin(Isolation::ReadCommitted).expect("begun");
    let waiting = std::thread::spawn(move || waits.put("accounts", &[Value::Int(4), "Bob".into(), "2".into(), Value::Null]));
    let health = || http::health(cluster.http, Duration::from_secs(5)).expect("it answers");
    http::order(cluster.http, Duration::from_secs(5), "/api/v1/node/drain/3").expect("it is drained");
    assert_eq!(idle.get("accounts", &[Value::Int(1)]).expect_err("sent away").sqlstate(), "57P01");
    commits.commit().expect("there was time");
    let now = health();
    assert!(now.status == "draining" && now.detail.ends_with("left"), "{now:?}");
    // The SQL session of this test is idle: it has gone.
    let until = Instant::now() + Duration::from_secs(60);
    while health().status != "drained" {
        assert!(Instant::now() < until, "{:?}", health());
        std::thread::sleep(Duration::from_millis(20));
    }
    // It may have got the lock of the other, which was cut off at the same time.
    if let Err(told) = waiting.join().expect("no panic") {
        assert_eq!(told.sqlstate(), "57P01", "{told}");
    }
    assert_eq!(holds.commit().expect_err("cut off").sqlstate(), "57P01");
    assert!(Client::connect_tcp(cluster.native, ClientOptions::default()).is_err(), "nobody is let in");
    http::order(cluster.http, Duration::from_secs(5), "/api/v1/node/undrain").expect("it serves again");
    let mut sql = Sql::connect(cluster.pg);
    let owners = sql.run("select id, balance from accounts where id in (4, 5) order by id");
    assert_eq!(owners, ["4|10.50", "5|1.00"], "what was cut off has not happened");
    drop(sql);

    // The node dies: both hear of it by a code, and find the next life where this one was.
    let mut clients = cluster.clients();
    let pid = http::health(cluster.http, Duration::from_secs(5)).expect("it serves").pid;
    // SAFETY: the node that we have started.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
    for client in &mut clients {
        let lost = client.get("accounts", &[Value::Int(3)]).expect_err("nobody is there");
        assert_eq!(lost.sqlstate(), "08006", "{lost}");
    }
    let until = Instant::now() + Duration::from_secs(60);
    while http::health(cluster.http, Duration::from_secs(1)).map_or(pid, |health| health.pid) == pid {
        assert!(Instant::now() < until, "the node is not started again");
        std::thread::sleep(Duration::from_millis(20));
    }
    cluster.wait_healthy();
    for mut client in cluster.clients() {
        assert!(client.get("accounts", &[Value::Int(3)]).expect("it serves again").is_some());
    }
}
