//! Raft's records in the shard's log: appended in order, durable by the log's group commit together with everything else
//! of the shard, and never given up while they are needed.
//!
//! Owned by the shard's thread. What is appended waits for no timer and for no company. The log keeps everything from the
//! oldest group's newest image on ([`Log::retain_from`]); a group whose image has fallen behind by a quarter of the log
//! is written anew, so Raft holds no checkpoint back for longer. Bounded by the replicas: what they have in flight.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::record::image_records;
use super::replica::WriteNumber;
use super::storage::Durable;
use super::types::GroupId;
use crate::ids::Lsn;
use crate::reactor::sync::Notify;
use crate::wal::{Log, LogError, RecordKind};

/// What is to be appended for a group.
pub(super) struct Item {
    pub group: GroupId,
    pub records: Vec<Vec<u8>>,
    /// They are an image.
    pub image: bool,
    /// To be told when they are durable.
    pub number: Option<WriteNumber>,
}

struct Appended {
    end: Lsn,
    group: GroupId,
    number: Option<WriteNumber>,
    /// Where an image begins.
    image: Option<Lsn>,
}

/// See the module.
pub(super) struct Journal {
    log: Log,
    queue: RefCell<VecDeque<Item>>,
    queued: Notify,
    appended: RefCell<VecDeque<Appended>>,
    flush: Notify,
    /// Where each group's newest durable image begins (or its first, durable or not).
    images: RefCell<BTreeMap<GroupId, Lsn>>,
    /// Groups of which an image is on its way.
    imaging: RefCell<Vec<GroupId>>,
    imaged: Notify,
    closed: Cell<bool>,
}

impl Journal {
    /// Takes over the groups that were found in the log: writes each anew, so that the log needs nothing older.
    pub async fn open(log: Log, found: &BTreeMap<GroupId, Durable>) -> Result<Journal, LogError> {
        let mut images = BTreeMap::new();
        for (group, durable) in found {
            let records = image_records(*group, durable);
            let bytes = records.iter().map(Vec::len).sum();
            let mut reservation = log.reserve_image(bytes, records.len()).await?;
            let begin = log.append_lsn();
            let mut end = begin;
            for record in &records {
                end = log.append(&mut reservation, RecordKind::Raft, &[record]);
            }
            drop(reservation);
            log.flush_to(end).await?;
            images.insert(*group, begin);
        }
        log.retain_from(images.values().min().copied());
        Ok(Journal {
            log,
            queue: RefCell::default(),
            queued: Notify::new(),
            appended: RefCell::default(),
            flush: Notify::new(),
            images: RefCell::new(images),
            imaging: RefCell::default(),
            imaged: Notify::new(),
            closed: Cell::new(false),
        })
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Appends, at once where the log has room and nothing waits before it.
    pub fn append(&self, item: Item) {
        if item.image {
            self.imaging.borrow_mut().push(item.group);
        }
        if self.queue.borrow().is_empty() && !item.image {
            let bytes = item.records.iter().map(Vec::len).sum();
            // An error poisons the log, and whoever waits for it hears of it.
            if let Ok(Some(reservation)) = self.log.try_reserve_raft(bytes, item.records.len()) {
                return self.append_now(item, reservation);
            }
        }
        self.queue.borrow_mut().push_back(item);
        self.queued.notify_all();
    }

    fn append_now(&self, item: Item, mut reservation: crate::wal::Reservation) {
        let begin = self.log.append_lsn();
        let mut end = begin;
        for record in &item.records {
            end = self.log.append(&mut reservation, RecordKind::Raft, &[record]);
        }
        if item.image && !self.images.borrow().contains_key(&item.group) {
            self.images.borrow_mut().insert(item.group, begin);
            self.retain();
        }
        let image = item.image.then_some(begin);
        self.appended.borrow_mut().push_back(Appended { end, group: item.group, number: item.number, image });
        // The write begins now; `run_flush` waits for it.
        drop(self.log.flush_to(end));
        self.flush.notify_all();
    }

    fn retain(&self) {
        self.log.retain_from(self.images.borrow().values().min().copied());
    }

    /// Groups whose images hold back the log and should be written anew.
    pub fn due(&self) -> Vec<GroupId> {
        let (end, far) = (self.log.append_lsn().0, self.log.capacity() / 4);
        let imaging = self.imaging.borrow();
        let images = self.images.borrow();
        let due = images.iter().filter(|(group, lsn)| end - lsn.0 > far && !imaging.contains(group));
        due.map(|(group, _)| *group).collect()
    }

    /// Resolves when the group's image is durable.
    pub async fn settled(&self, group: GroupId) -> Result<(), LogError> {
        loop {
            let imaged = self.imaged.notified();
            if !self.imaging.borrow().contains(&group) {
                return Ok(());
            }
            if let Some(poison) = self.log.poison() {
                return Err(poison);
            }
            imaged.await;
        }
    }

    pub fn close(&self) {
        self.closed.set(true);
        self.queued.notify_all();
        self.flush.notify_all();
    }

    /// Appends what found no room at once. Ends with the journal, or when the log fails.
    pub async fn run_appends(self: Rc<Self>) {
        loop {
            let queued = self.queued.notified();
            if self.closed.get() {
                return;
            }
            let next = {
                let queue = self.queue.borrow();
                queue.front().map(|item| (item.records.iter().map(Vec::len).sum(), item.records.len(), item.image))
            };
            let Some((bytes, records, image)) = next else {
                queued.await;
                continue;
            };
            let reserved = match image {
                true => self.log.reserve_image(bytes, records).await,
                false => self.log.reserve_raft(bytes, records).await,
            };
            // `run_flush` reports the error.
            let Ok(reservation) = reserved else { return self.flush.notify_all() };
            let item = self.queue.borrow_mut().pop_front().expect("only this task takes from the queue");
            self.append_now(item, reservation);
        }
    }

    /// Tells what has become durable, in order. Ends with the journal, or when the log fails.
    pub async fn run_flush(self: Rc<Self>, durable: impl Fn(GroupId, WriteNumber)) -> Result<(), LogError> {
        loop {
            let more = self.flush.notified();
            if self.closed.get() {
                return Ok(());
            }
            if let Some(poison) = self.log.poison() {
                self.imaged.notify_all();
                return Err(poison);
            }
            let Some(end) = self.appended.borrow().front().map(|appended| appended.end) else {
                more.await;
                continue;
            };
            if let Err(error) = self.log.flush_to(end).await {
                self.imaged.notify_all();
                return Err(error);
            }
            let upto = self.log.durable_lsn();
            loop {
                let next = self.appended.borrow_mut().pop_front_if(|appended| appended.end <= upto);
                let Some(appended) = next else { break };
                if let Some(begin) = appended.image {
                    self.imaging.borrow_mut().retain(|group| *group != appended.group);
                    self.images.borrow_mut().entry(appended.group).and_modify(|lsn| *lsn = begin);
                    self.retain();
                    self.imaged.notify_all();
                }
                if let Some(number) = appended.number {
                    durable(appended.group, number);
                }
            }
        }
    }
}
