//! Transactions of a few appends to lists and reads of them, in both isolation levels.

use std::collections::BTreeMap;

use super::{Clients, TRANSACTIONS_MAX, Trouble};
use crate::ids::PartitionId;
use crate::sim::dice::Dice;
use crate::sim::history::{ListOperation, ListTransaction, Outcome};
use crate::store::{
    Isolation, LockStrength, LockedRow, Modified, Modify, ScanLimit, ScanRange, Session, Store, StoreError, WaitPolicy, WriteOp,
};

/// Appends to a list before another takes its place.
const APPENDS_MAX: u32 = 80;

fn key(list: u32) -> Vec<u8> {
    list.to_be_bytes().to_vec()
}

fn home(partitions: &[PartitionId; 2], list: u32) -> PartitionId {
    partitions[list as usize % 2]
}

fn decode(row: Option<&[u8]>) -> Vec<u32> {
    let element = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    row.unwrap_or_default().chunks_exact(4).map(element).collect()
}

fn with(row: Option<&[u8]>, element: u32) -> Vec<u8> {
    [row.unwrap_or_default(), &element.to_le_bytes()].concat()
}

pub(super) async fn read_all(store: &Store, partitions: &[PartitionId; 2]) -> Result<BTreeMap<u32, Vec<u32>>, StoreError> {
    let mut lists = BTreeMap::new();
    let mut session = store.session();
    for partition in partitions {
        let mut range = Some(ScanRange::all());
        while let Some(next) = range {
            let chunk = session.scan(*partition, next, ScanLimit::default()).await?;
            for (key, row) in &chunk.rows {
                lists.insert(u32::from_be_bytes(key[..].try_into().expect("four bytes")), decode(Some(row)));
            }
            range = chunk.more;
        }
    }
    Ok(lists)
}

/// Updates a list to what it is.
pub(super) async fn touch(store: &Store, partitions: &[PartitionId; 2], list: u32) -> Result<(), StoreError> {
    let same = |row: Option<&[u8]>| row.map_or(Modify::Keep, |row| Modify::Put(row.to_vec()));
    store.session().modify(home(partitions, list), &key(list), same).await.map(|_| ())
}

/// A client's next transaction.
pub(super) async fn turn(clients: &Clients, dice: &Dice) {
    let Some((node, store)) = clients.any_store(dice) else { return };
    if clients.lists.borrow().len() >= TRANSACTIONS_MAX {
        return;
    }
    let isolation = dice.pick(&[Isolation::ReadCommitted, Isolation::RepeatableRead]);
    let index = clients.lists.borrow().len();
    let began_ns = clients.now_ns();
    let recorded =
        ListTransaction { node, isolation, began_ns, operations: Vec::new(), outcome: Outcome::Unknown, ended_ns: u64::MAX >> 1 };
    clients.lists.borrow_mut().push(recorded);
    let mut session = store.session();
    let work = Work { clients, dice, index, isolation };
    let outcome = match work.run(&mut session).await {
        Ok(committed) => clients.judge(&committed),
        Err(trouble) => {
            clients.count(trouble.word());
            clients.give_up(dice, &mut session).await;
            Outcome::Aborted
        }
    };
    let recorded = &mut clients.lists.borrow_mut()[index];
    (recorded.outcome, recorded.ended_ns) = (outcome, clients.now_ns());
}

/// One transaction.
struct Work<'a> {
    clients: &'a Clients,
    dice: &'a Dice,
    index: usize,
    isolation: Isolation,
}

impl Work<'_> {
    fn record(&self, operation: ListOperation) {
        self.clients.lists.borrow_mut()[self.index].operations.push(operation);
    }

    fn pick_list(&self) -> u32 {
        self.clients.hot.borrow()[self.dice.below(self.clients.plan.lists) as usize].0
    }

    /// A new element for a list, which makes room for another list when it is long enough.
    fn new_element(&self, list: u32) -> u32 {
        let element = self.clients.elements.get() + 1;
        self.clients.elements.set(element);
        for (place, appends) in self.clients.hot.borrow_mut().iter_mut().filter(|(place, _)| *place == list) {
            *appends += 1;
            if *appends >= APPENDS_MAX {
                (*place, *appends) = (self.clients.new_list(), 0);
            }
        }
        element
    }

    /// The inner answer is the commit's, the outer one of what came before.
    async fn run(&self, session: &mut Session) -> Result<Result<(), Trouble>, Trouble> {
        if self.isolation == Isolation::ReadCommitted && self.dice.chance(20) {
            // One statement, which is a transaction: whatever goes wrong with it may go wrong after its commit.
            let done = self.operation(session, true).await;
            return match done {
                Err(Trouble::Store(StoreError::Io { .. } | StoreError::Unavailable { .. })) => Ok(Err(Trouble::NoAnswer)),
                Err(Trouble::Store(StoreError::Corrupt { .. })) if self.clients.plan.damages => Ok(Err(Trouble::NoAnswer)),
                done => Ok(done),
            };
        }
        session.begin(self.isolation, false).map_err(Trouble::Store)?;
        for _ in 0..self.dice.between(1, 4) {
            session.new_statement();
            self.operation(session, false).await?;
        }
        if self.dice.chance(5) {
            self.clients.answer(self.dice, session.rollback()).await?;
            return Err(Trouble::Store(StoreError::Canceled));
        }
        Ok(self.clients.answer(self.dice, session.commit()).await.map(|_| ()))
    }

    async fn operation(&self, session: &mut Session, alone: bool) -> Result<(), Trouble> {
        let list = self.pick_list();
        let partition = home(&self.clients.tables().lists, list);
        let key = key(list);
        let at_ns = self.clients.now_ns();
        if self.dice.chance(45) {
            let row = self.clients.answer(self.dice, session.get(partition, &key)).await?;
            self.record(ListOperation::Read { list, elements: decode(row.as_deref()), at_ns });
            return Ok(());
        }
        let element = self.new_element(list);
        let repeatable = self.isolation == Isolation::RepeatableRead;
        let way = if alone { 0 } else { self.dice.below(3) };
        // Recorded before it is sent: it may be seen although its client never hears of it.
        let place = self.clients.lists.borrow()[self.index].operations.len();
        self.record(ListOperation::Append { list, element, found: None, at_ns });
        let seen = match way {
            1 => {
                let locked = session.get_for_update(partition, &key, LockStrength::Update, WaitPolicy::Wait);
                match self.clients.answer(self.dice, locked).await? {
                    LockedRow::Row(row) => {
                        let write = WriteOp::Update { partition, value: with(Some(&row), element), key };
                        self.clients.answer(self.dice, session.write(vec![write])).await?;
                        Some(row)
                    }
                    // Nothing to lock: somebody else may make it meanwhile.
                    _ => self.modify(session, partition, &key, element).await?,
                }
            }
            2 if repeatable => {
                let row = self.clients.answer(self.dice, session.get(partition, &key)).await?;
                let write = WriteOp::Put { partition, value: with(row.as_deref(), element), key };
                self.clients.answer(self.dice, session.write(vec![write])).await?;
                row
            }
            _ => self.modify(session, partition, &key, element).await?,
        };
        if let ListOperation::Append { found, .. } = &mut self.clients.lists.borrow_mut()[self.index].operations[place] {
            *found = Some(decode(seen.as_deref()));
        }
        Ok(())
    }

    /// Appends in one operation; the row before.
    async fn modify(
        &self,
        session: &mut Session,
        partition: PartitionId,
        key: &[u8],
        element: u32,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let change = move |row: Option<&[u8]>| Modify::Put(with(row, element));
        match self.clients.answer(self.dice, session.modify(partition, key, change)).await? {
            Modified::Put { previous, .. } => Ok(previous),
            _ => unreachable!("the modifier puts"),
        }
    }
}
