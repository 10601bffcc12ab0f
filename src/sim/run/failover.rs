//! What the death of one node costs the others, with few nodes and with many: the same work is lost each time, and the
//! virtual times and what each survivor did are measured.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::supervisor::host;
use super::{Run, begin};
use crate::cluster::RecoveryTimes;
use crate::ids::PartitionId;
use crate::reactor::Class;
use crate::reactor::driver::sim::{SimOptions, Traffic};
use crate::sim::plan::Plan;
use crate::sim::{Failure, Options};
use crate::store::{Modify, Placement, Store, StoreError, WriteOp};

/// Rows that the dead node had changed, and how often it had changed one of them.
const ROWS: u64 = 400;
const CHANGES: u64 = 2_000;
/// Bytes of a row.
const ROW_BYTES: usize = 200;
/// Clients of the node that dies, and tasks that look whether all can be written again.
const CLIENTS: u64 = 8;
/// How closely times are looked at.
const LOOK: Duration = Duration::from_micros(100);
/// Virtual time after which a recovery has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one death cost.
#[derive(Clone, Debug)]
pub struct Failover {
    /// Of how many nodes one died.
    pub nodes: u8,
    /// From the death until a survivor asked for the fence.
    pub detect: Duration,
    /// From the death until all survivors were in the next view: fenced, a new epoch begun, the former left.
    pub view: Duration,
    /// The parts of the recovery, of the slowest survivor each.
    pub recovery: RecoveryTimes,
    /// From the death until every row had been changed by a survivor.
    pub writable: Duration,
    /// From the death until the dead node's redo was needed by nobody any more.
    pub recovered: Duration,
    /// What the busiest survivor did from the death to the end of the recovery, piece by piece.
    pub busiest: Traffic,
}

/// Lets one of `nodes` nodes die under load and measures what that costs.
///
/// # Errors
/// What did not go on.
pub fn failover(seed: u64, nodes: u8) -> Result<Failover, Failure> {
    let options = Options { nodes: Some(nodes), shards: Some(1), calm: true, ..Options::new(seed) };
    let plan = Plan {
        volume_bytes: 2 << 30,
        redo_area_bytes: 4 << 20,
        cache_bytes: 4 << 20,
        heartbeat_interval_ms: 1_000,
        heartbeat_timeout_ms: 5_000,
        checkpoint_interval_s: 3_600,
        world: SimOptions { slow_per_mille: 0, durable_us: (200, 400), network_us: (30, 60), ..SimOptions::default() },
        clock_skew_ms: 0,
        fills_volume: false,
        faults: Vec::new(),
        ..Plan::draw(&options)
    };
    begin(&options, plan, |run| run.fail_over()).0
}

fn key(row: u64) -> Vec<u8> {
    row.to_be_bytes().to_vec()
}

async fn change(store: &Store, table: PartitionId, row: u64) -> Result<(), StoreError> {
    let next = |row: Option<&[u8]>| match row {
        Some(row) => Modify::Put(row.iter().map(|byte| byte.wrapping_add(1)).collect()),
        None => Modify::Keep,
    };
    store.session().modify(table, &key(row), next).await.map(|_| ())
}

impl Run {
    fn fail_over(&mut self) -> Result<Failover, Failure> {
        let nodes = self.members.len();
        self.format();
        (0..nodes).for_each(|node| self.start(node));
        self.schedule(super::LOOK_EVERY, super::Due::Look);
        self.wait_until_open("at first")?;
        let failed = |error: StoreError| Failure::NoProgress(format!("the load: {error}"));

        // The dead node's rows and, beside them, rows that the survivors work on.
        let store = self.store(0)?;
        let tables = self.ask("make the tables", async move {
            let (lost, other) = (store.create_partition(Placement::Any).await?, store.create_partition(Placement::Any).await?);
            for table in [lost, other] {
                let row = |row| WriteOp::Put { partition: table, key: key(row), value: vec![0; ROW_BYTES] };
                store.session().write((0..ROWS).map(row).collect()).await?;
            }
            Ok((lost, other))
        })?;
        let (lost, other) = tables.map_err(failed)?;
        let loaders = self.load_survivors(other)?;
        let store = self.store(0)?;
        let done = Rc::new(Cell::new(0));
        for client in 0..CLIENTS {
            let (store, done) = (store.clone(), done.clone());
            self.clients.reactor.spawn(Class::Normal, "client of the dying", async move {
                for number in 0..CHANGES / CLIENTS {
                    change(&store, lost, (number * CLIENTS + client) % ROWS).await.expect("nothing disturbs it");
                }
                done.set(done.get() + 1);
            });
        }
        drop(store);
        self.run_until("the node does its work", PATIENCE, move |_| done.get() == CLIENTS)?;

        let epoch = self.epoch_of(1);
        let before: Vec<Traffic> = (1..nodes).map(|node| self.world.traffic(host(node))).collect();
        let died = self.world.now();
        let fenced_before = self.fences.asked();
        self.supervised = false;
        self.kill(0, "dies");
        let (mut detect, mut view, mut recovered) = (None, None, None);
        let mut busiest = Traffic::default();
        // Clients of one survivor change the dead node's rows, each once.
        let writable = Rc::new(Cell::new(None));
        self.write_all(lost, &writable)?;
        while view.is_none() || recovered.is_none() || writable.get().is_none() {
            let now = self.world.now();
            let since = now.since(died);
            if since > PATIENCE {
                let states: Vec<String> = self.members.iter().map(super::Member::describe).collect();
                return Err(Failure::NoProgress(format!("no recovery within {PATIENCE:?}: {}", states.join("; "))));
            }
            while self.world.step_within(now + LOOK) {}
            self.world.rest_until(now + LOOK);
            let since = self.world.now().since(died);
            if detect.is_none() && self.fences.asked() > fenced_before {
                detect = Some(since);
            }
            if view.is_none() && (1..nodes).all(|node| self.epoch_of(node) > epoch) {
                view = Some(since);
            }
            if recovered.is_none() && (1..nodes).all(|node| self.times_of(node).is_some()) {
                recovered = Some(since);
                for (node, before) in (1..nodes).zip(&before) {
                    let now = self.world.traffic(host(node));
                    busiest.read_bytes = busiest.read_bytes.max(now.read_bytes - before.read_bytes);
                    busiest.written_bytes = busiest.written_bytes.max(now.written_bytes - before.written_bytes);
                    busiest.sends = busiest.sends.max(now.sends - before.sends);
                    busiest.sent_bytes = busiest.sent_bytes.max(now.sent_bytes - before.sent_bytes);
                }
            }
        }
        loaders.set(true);
        let times = (1..nodes).filter_map(|node| self.times_of(node));
        let recovery = times.fold(RecoveryTimes::default(), |all, one| RecoveryTimes {
            claims_us: all.claims_us.max(one.claims_us),
            pass1_us: all.pass1_us.max(one.pass1_us),
            pass2_us: all.pass2_us.max(one.pass2_us),
            total_us: all.total_us.max(one.total_us),
            blocks: all.blocks + one.blocks,
        });
        let known = |time: Option<Duration>| time.expect("the loop has ended");
        Ok(Failover {
            nodes: nodes as u8,
            detect: detect.unwrap_or_default(),
            view: known(view),
            recovery,
            writable: known(writable.get()),
            recovered: known(recovered),
            busiest,
        })
    }

    fn epoch_of(&self, node: usize) -> u64 {
        self.members[node].hosted.as_ref().map_or(0, |hosted| hosted.status().get().epoch.0)
    }

    fn times_of(&self, node: usize) -> Option<RecoveryTimes> {
        self.members[node].hosted.as_ref()?.status().get().last_recovery
    }

    /// Two survivors work on rows of their own, until the flag that is returned is set.
    fn load_survivors(&mut self, table: PartitionId) -> Result<Rc<Cell<bool>>, Failure> {
        let stop = Rc::new(Cell::new(false));
        for survivor in 1..self.members.len().min(3) {
            let (store, stop, reactor) = (self.store(survivor)?, stop.clone(), self.clients.reactor.clone());
            self.clients.reactor.spawn(Class::Normal, "client of a survivor", async move {
                let mut row = survivor as u64;
                while !stop.get() {
                    change(&store, table, row % ROWS).await.expect("a survivor's clients see no error");
                    row += 2;
                    reactor.sleep(Duration::from_millis(1)).await;
                }
            });
        }
        Ok(stop)
    }

    /// Clients of a survivor change every row of the table once; `writable` is the time from now to the last.
    fn write_all(&mut self, table: PartitionId, writable: &Rc<Cell<Option<Duration>>>) -> Result<(), Failure> {
        let (left, rows) = (Rc::new(Cell::new(CLIENTS)), Rc::new(RefCell::new(0..ROWS)));
        let began = self.world.now();
        for _ in 0..CLIENTS {
            let store = self.store(1)?;
            let (left, rows, writable, reactor) = (left.clone(), rows.clone(), writable.clone(), self.clients.reactor.clone());
            self.clients.reactor.spawn(Class::Normal, "client after the death", async move {
                loop {
                    let Some(row) = rows.borrow_mut().next() else { break };
                    change(&store, table, row).await.expect("a survivor's clients see no error");
                }
                left.set(left.get() - 1);
                if left.get() == 0 {
                    writable.set(Some(reactor.now().since(began)));
                }
            });
        }
        Ok(())
    }
}
