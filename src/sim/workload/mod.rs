//! The clients: tasks on a machine of their own, which reach the nodes' stores by mail, as the gateway's threads do. They
//! outlive the nodes, choose any that is open, and give up on one that does not answer. What they do and are told is
//! recorded for the checkers.
//!
//! Bounded by the clients of the plan, one transaction each at a time, and by [`TRANSACTIONS_MAX`] of each kind.

mod bank;
mod lists;
mod tables;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

pub(super) use bank::{ACCOUNT_AT_FIRST, audit};

use super::dice::Dice;
use super::events::Events;
use super::history::{ListTransaction, Outcome, Transfer};
use super::plan::Plan;
use crate::ids::PartitionId;
use crate::reactor::{Class, Reactor};
use crate::store::{Placement, Session, Store, StoreError};

/// Most transactions of one kind in a run: what the checkers and the journal bear. Later ones are not begun.
pub(super) const TRANSACTIONS_MAX: usize = 20_000;

/// The tables.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) accounts: PartitionId,
    pub(super) journal: PartitionId,
    /// A list lives in one of them, by its number.
    pub(super) lists: [PartitionId; 2],
}

/// What the clients and the supervisor share.
pub(super) struct Clients {
    pub(super) reactor: Reactor,
    pub(super) plan: Rc<Plan>,
    pub(super) events: Rc<Events>,
    /// By node, those that are open.
    pub(super) stores: RefCell<Vec<Option<Store>>>,
    pub(super) tables: RefCell<Option<Tables>>,
    pub(super) transfers: RefCell<Vec<Transfer>>,
    pub(super) lists: RefCell<Vec<ListTransaction>>,
    /// Lists in use, each with the number of its appends.
    hot: RefCell<Vec<(u32, u32)>>,
    lists_made: Cell<u32>,
    elements: Cell<u32>,
    /// Partitions that a client has made and nobody has dropped yet.
    pub(super) scratch: RefCell<Vec<PartitionId>>,
    /// Clients end after their present transaction.
    pub(super) stopping: Cell<bool>,
    /// Clients that have not ended.
    pub(super) running: Cell<u64>,
    /// Promises broken, seen so far.
    pub(super) broken: RefCell<Vec<String>>,
    /// How transactions ended.
    pub(super) ends: RefCell<BTreeMap<&'static str, u64>>,
}

/// Why an operation gave no result.
#[derive(Debug)]
enum Trouble {
    Store(StoreError),
    /// The client hung up.
    NoAnswer,
}

impl Trouble {
    fn word(&self) -> &'static str {
        match self {
            Trouble::Store(error) => error.sqlstate(),
            Trouble::NoAnswer => "no answer",
        }
    }

    /// Whether a commit that failed so may have happened. Everything else is a promise that it has not.
    fn is_unknown(&self) -> bool {
        matches!(self, Trouble::NoAnswer | Trouble::Store(StoreError::CommitUnknown { .. } | StoreError::ShardGone(_)))
    }
}

impl Clients {
    pub(super) fn new(reactor: Reactor, plan: Rc<Plan>, events: Rc<Events>) -> Rc<Clients> {
        Rc::new(Clients {
            reactor,
            stores: RefCell::new((0..plan.nodes + plan.spare_nodes).map(|_| None).collect()),
            plan,
            events,
            tables: RefCell::default(),
            transfers: RefCell::default(),
            lists: RefCell::default(),
            hot: RefCell::default(),
            lists_made: Cell::new(0),
            elements: Cell::new(0),
            scratch: RefCell::default(),
            stopping: Cell::new(false),
            running: Cell::new(0),
            broken: RefCell::default(),
            ends: RefCell::default(),
        })
    }

    /// Makes the tables and their first rows.
    pub(super) async fn set_up(self: Rc<Self>) -> Result<(), StoreError> {
        let store = self.store(0).expect("all nodes are open");
        let accounts = store.create_partition(Placement::Any).await?;
        let journal = store.create_partition(Placement::Any).await?;
        let lists = [store.create_partition(Placement::Any).await?, store.create_partition(Placement::With(journal)).await?];
        bank::set_up(&store, accounts, self.plan.accounts).await?;
        self.tables.replace(Some(Tables { accounts, journal, lists }));
        for _ in 0..self.plan.lists {
            let list = self.new_list();
            self.hot.borrow_mut().push((list, 0));
        }
        Ok(())
    }

    /// Starts the clients of the plan.
    pub(super) fn start(self: &Rc<Self>) {
        for number in 0..self.plan.clients + 1 {
            let clients = self.clone();
            let dice = Dice::new(self.plan.seed, 1_000 + number);
            let makes_tables = number == self.plan.clients;
            self.running.set(self.running.get() + 1);
            self.reactor.spawn(Class::Normal, "client", async move {
                while !clients.stopping.get() {
                    clients.reactor.sleep(dice.around(clients.plan.think)).await;
                    match number % 2 {
                        _ if makes_tables => tables::turn(&clients, &dice).await,
                        0 => bank::turn(&clients, &dice).await,
                        _ => lists::turn(&clients, &dice).await,
                    }
                }
                clients.running.set(clients.running.get() - 1);
            });
        }
    }

    pub(super) fn tables(&self) -> Tables {
        self.tables.borrow().clone().expect("they are set up first")
    }

    pub(super) fn store(&self, node: usize) -> Option<Store> {
        self.stores.borrow()[node].clone()
    }

    /// Any node that is open.
    fn any_store(&self, dice: &Dice) -> Option<(u8, Store)> {
        let stores = self.stores.borrow();
        let open: Vec<_> = stores.iter().enumerate().filter_map(|(node, store)| Some((node as u8 + 1, store.clone()?))).collect();
        (!open.is_empty()).then(|| open[dice.below(open.len() as u64) as usize].clone())
    }

    fn now_ns(&self) -> u64 {
        self.reactor.now().as_ns()
    }

    /// Waits for an answer as long as this client likes to.
    async fn answer<T>(&self, dice: &Dice, asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, Trouble> {
        // Most are patient; some hang up in the middle.
        let patience = if dice.chance(self.plan.hangs_up_per_cent) { dice.spread_ms(1, 200) } else { Duration::from_secs(60) };
        match self.reactor.timeout(patience, asked).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Trouble::Store(error)),
            Err(_) => Err(Trouble::NoAnswer),
        }
    }

    /// Gives a transaction up, as a client would that goes on with its session.
    async fn give_up(&self, dice: &Dice, session: &mut Session) {
        if session.in_transaction() && dice.chance(80) {
            let _ = self.answer(dice, session.rollback()).await;
        }
    }

    fn count(&self, end: &'static str) {
        *self.ends.borrow_mut().entry(end).or_default() += 1;
    }

    /// The promises that were broken since the last call.
    pub(super) fn take_broken(&self) -> Vec<String> {
        self.broken.take()
    }

    /// What a client knows after a commit was answered so.
    fn judge<T>(&self, answer: &Result<T, Trouble>) -> Outcome {
        match answer {
            Ok(_) => {
                self.count("committed");
                Outcome::Committed(self.now_ns())
            }
            Err(trouble) => {
                self.count(trouble.word());
                // With damage on the disk a commit may fail at its very last step.
                let damaged = self.plan.damages && matches!(trouble, Trouble::Store(StoreError::Corrupt { .. }));
                if trouble.is_unknown() || damaged { Outcome::Unknown } else { Outcome::Aborted }
            }
        }
    }

    fn new_list(&self) -> u32 {
        self.lists_made.set(self.lists_made.get() + 1);
        self.lists_made.get()
    }

    /// All lists that there ever were.
    pub(super) fn all_lists(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.lists_made.get()
    }

    /// The lists as a node shows them.
    pub(super) async fn read_lists(&self, store: &Store) -> Result<BTreeMap<u32, Vec<u32>>, StoreError> {
        lists::read_all(store, &self.tables().lists).await
    }

    /// Changes every row once, outside of any other transaction, and so finds a lock that nobody gives up.
    pub(super) async fn touch_everything(&self, store: &Store) -> Result<(), StoreError> {
        let tables = self.tables();
        bank::touch(store, tables.accounts).await?;
        for list in self.all_lists() {
            lists::touch(store, &tables.lists, list).await?;
        }
        Ok(())
    }

    /// Drops the tables that a client has left behind.
    pub(super) async fn drop_scratch(&self, store: &Store) -> Result<(), StoreError> {
        let scratch = self.scratch.borrow().clone();
        for partition in scratch {
            store.drop_partition(partition).await?;
        }
        self.scratch.borrow_mut().clear();
        Ok(())
    }
}
