//! How long a read by key and a replaced row take: through rings (asleep and spinning), by the same messages over TCP, and by
//! prepared statements of PostgreSQL's protocol, in turns within one run.
//!
//! `cargo run --release -p rustydb-tools --example native_latency -- NATIVE_SOCKET NATIVE_ADDRESS PG_ADDRESS [SECONDS]`, against a
//! node that has nothing else to do, for example of `rusty-db-server dev --nodes 1 --native-port 7533`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustydb::histogram::{Histogram, SUB_BITS, UNIT_SHIFT};
use rustydb_shm::native::{Client, ClientOptions, Value};
use rustydb_shm::statistics;

const ROWS: i64 = 1000;
/// Requests of one way before the next has its turn.
const TURN: u32 = 100;

/// One way to the rows.
trait Way {
    fn get(&mut self, id: i64);
    fn put(&mut self, id: i64);
}

impl Way for Client {
    fn get(&mut self, id: i64) {
        assert!(Client::get(self, "native_latency", &[Value::Int(id)]).expect("read").is_some());
    }

    fn put(&mut self, id: i64) {
        Client::put(self, "native_latency", &[Value::Int(id), "a row of some thirty bytes ....".into()]).expect("put");
    }
}

/// Prepared statements `g` and `p`.
struct Sql(TcpStream);

impl Sql {
    fn connect(address: SocketAddr) -> Sql {
        let mut stream = TcpStream::connect(address).expect("it serves");
        stream.set_nodelay(true).expect("a socket");
        let mut startup = vec![0, 3, 0, 0];
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        stream.write_all(&[&(startup.len() as u32 + 4).to_be_bytes()[..], &startup].concat()).expect("sent");
        let mut sql = Sql(stream);
        sql.answer();
        sql
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    fn simple(&mut self, text: &str) {
        self.0.write_all(&Sql::message(b'Q', &[text.as_bytes(), b"\0"].concat())).expect("sent");
        self.answer();
    }

    fn prepare(&mut self, name: &str, text: &str) {
        let parse = Sql::message(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat());
        self.0.write_all(&[parse, Sql::message(b'S', b"")].concat()).expect("sent");
        self.answer();
    }

    fn execute(&mut self, name: &str, id: i64) {
        let id = id.to_string();
        let bind = [b"\0", name.as_bytes(), b"\0\0\0\0\x01", &(id.len() as u32).to_be_bytes(), id.as_bytes(), b"\0\x01\0\x01"];
        let all = [Sql::message(b'B', &bind.concat()), Sql::message(b'E', b"\0\0\0\0\0"), Sql::message(b'S', b"")];
        self.0.write_all(&all.concat()).expect("sent");
        self.answer();
    }

    fn answer(&mut self) {
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head).expect("an answer");
            let mut body = vec![0; u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4];
            self.0.read_exact(&mut body).expect("an answer");
            assert_ne!(head[0], b'E', "{}", String::from_utf8_lossy(&body));
            if head[0] == b'Z' {
                return;
            }
        }
    }
}

impl Way for Sql {
    fn get(&mut self, id: i64) {
        self.execute("g", id);
    }

    fn put(&mut self, id: i64) {
        self.execute("p", id);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, native, pg, rest @ ..] = &arguments[..] else {
        eprintln!("usage: native_latency NATIVE_SOCKET NATIVE_ADDRESS PG_ADDRESS [SECONDS]");
        std::process::exit(2);
    };
    let address = |text: &String| text.parse().expect("ADDRESS:PORT");
    let seconds: u64 = rest.first().map_or(10, |text| text.parse().expect("seconds"));
    let mut sql = Sql::connect(address(pg));
    sql.simple("create table if not exists native_latency (id bigint primary key, filler text)");
    sql.simple(&format!("insert into native_latency select i, 'x' from generate_series(1, {ROWS}) i on conflict do nothing"));
    sql.prepare("g", "select * from native_latency where id = $1");
    let row = "insert into native_latency values ($1, 'a row of some thirty bytes ....') \
               on conflict (id) do update set filler = excluded.filler";
    sql.prepare("p", row);
    let options = |spin_us| ClientOptions { spin: Duration::from_micros(spin_us), ..ClientOptions::default() };
    let path = PathBuf::from(socket);
    let mut ways: Vec<(&str, Box<dyn Way>)> = vec![
        ("rings, asleep", Box::new(Client::connect_local(&path, options(0)).expect("rings"))),
        ("rings, client spins 200 us", Box::new(Client::connect_local(&path, options(200)).expect("rings"))),
        ("the same over TCP", Box::new(Client::connect_tcp(address(native), options(0)).expect("TCP"))),
        ("SQL, prepared", Box::new(sql)),
    ];
    let mut taken = vec![[Histogram::default(), Histogram::default()]; ways.len()];
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut id = 0;
    let mut warm = false;
    while Instant::now() < until {
        for ((_, way), taken) in ways.iter_mut().zip(&mut taken) {
            for turn in 0..TURN {
                id = id % ROWS + 1;
                let writes = turn % 10 == 9;
                let since = Instant::now();
                if writes {
                    way.put(id)
                } else {
                    way.get(id)
                }
                if warm {
                    taken[usize::from(writes)].record_ns(since.elapsed().as_nanos() as u64);
                }
            }
        }
        warm = true;
    }
    println!("{:<28}{:>5}{:>10}{:>10}{:>10}{:>10}", "", "", "count", "p50 us", "p99 us", "mean us");
    for ((name, _), taken) in ways.iter().zip(&taken) {
        for (what, latency) in ["get", "put"].iter().zip(taken) {
            let latency = statistics::Histogram {
                unit_shift: UNIT_SHIFT as u8,
                sub_bits: SUB_BITS as u8,
                buckets: latency.buckets().to_vec(),
                sum: latency.sum_ns(),
                max: latency.max_ns(),
            };
            let us = |quantile| latency.quantile(quantile).unwrap_or(0) as f64 / 1e3;
            let mean = latency.mean().unwrap_or(0.0) / 1e3;
            println!("{name:<28}{what:>5}{:>10}{:>10.1}{:>10.1}{mean:>10.1}", latency.count(), us(0.5), us(0.99));
        }
    }
}
