//! A simulated file on a shared disk: what has been synced, and per page the versions that have not.
//!
//! Reads see the newest write of any host, synced or not. A crash loses a host's unsynced writes sector by sector, and
//! tears those in flight. Memory is bounded by what is written.

use std::collections::BTreeMap;

use super::HostId;
use crate::reactor::split_mix;

pub(super) const PAGE: usize = 4096;

/// In place of a host that has ended.
const NOBODY: HostId = HostId(u32::MAX);

type Page = Box<[u8; PAGE]>;

#[derive(Default)]
pub(super) struct Disk {
    pub(super) bytes: u64,
    durable: BTreeMap<u64, Page>,
    /// Unsynced versions of a page, oldest first, with who wrote them.
    unsynced: BTreeMap<u64, Vec<(HostId, Page)>>,
}

/// Which sectors a crash keeps.
#[derive(Clone, Copy)]
enum Keep {
    All,
    Nothing,
    Some,
}

/// Decides sector by sector.
struct Fate<'a> {
    random: &'a mut u64,
    keep: Keep,
}

impl Fate<'_> {
    /// Most crashes tear; some lose or keep everything.
    fn draw(random: &mut u64) -> Fate<'_> {
        let keep = match split_mix(random) % 4 {
            0 => Keep::All,
            1 => Keep::Nothing,
            _ => Keep::Some,
        };
        Fate { random, keep }
    }

    fn keeps(&mut self) -> bool {
        match self.keep {
            Keep::All => true,
            Keep::Nothing => false,
            Keep::Some => split_mix(self.random) & 1 == 1,
        }
    }
}

fn zeros() -> Page {
    Box::new([0; PAGE])
}

fn pages(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    assert!(offset.is_multiple_of(PAGE as u64) && bytes.len().is_multiple_of(PAGE), "checked when submitted");
    (offset / PAGE as u64..).zip(bytes.chunks_exact(PAGE))
}

impl Disk {
    fn newest(&self, page: u64) -> Option<&Page> {
        self.unsynced.get(&page).and_then(|versions| versions.last()).map(|(_, page)| page).or_else(|| self.durable.get(&page))
    }

    /// Fills `bytes` as far as the file goes.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> usize {
        let len = bytes.len().min(usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX));
        for (page, chunk) in (offset / PAGE as u64..).zip(bytes[..len].chunks_mut(PAGE)) {
            match self.newest(page) {
                Some(content) => chunk.copy_from_slice(&content[..chunk.len()]),
                None => chunk.fill(0),
            }
        }
        len
    }

    pub(super) fn write(&mut self, host: HostId, offset: u64, bytes: &[u8], durable: bool) {
        self.bytes = self.bytes.max(offset + bytes.len() as u64);
        for (number, chunk) in pages(offset, bytes) {
            let page: Page = Box::new(chunk.try_into().expect("one page"));
            if durable {
                self.durable.insert(number, page);
                self.unsynced.remove(&number);
                continue;
            }
            let versions = self.unsynced.entry(number).or_default();
            match versions.last_mut() {
                Some((writer, newest)) if *writer == host => *newest = page,
                _ => versions.push((host, page)),
            }
        }
    }

    /// What `host` has written, what lives that have ended left behind, and everything older beneath it, becomes durable.
    /// (A device's cache has no owners. Others' writes are left out, so that nobody relies on somebody else's sync.)
    pub(super) fn sync(&mut self, host: HostId) {
        let Disk { durable, unsynced, .. } = self;
        unsynced.retain(|number, versions| {
            if let Some(last) = versions.iter().rposition(|(writer, _)| *writer == host || *writer == NOBODY) {
                let (_, page) = versions.drain(..=last).next_back().expect("the one that was found");
                durable.insert(*number, page);
            }
            !versions.is_empty()
        });
    }

    /// What `host` has written and not synced belongs to nobody from now on.
    pub(super) fn disown(&mut self, host: HostId) {
        for (writer, _) in self.unsynced.values_mut().flatten().filter(|(writer, _)| *writer == host) {
            *writer = NOBODY;
        }
    }

    /// A write that was in flight when its host died: each sector is written or not.
    pub(super) fn tear(&mut self, offset: u64, bytes: &[u8], sector: usize, random: &mut u64) {
        let mut fate = Fate::draw(random);
        for (number, chunk) in pages(offset, bytes) {
            for (at, new) in (0..).step_by(sector).zip(chunk.chunks(sector)) {
                if fate.keeps() {
                    self.patch(number, at, new);
                }
            }
        }
        self.bytes = self.bytes.max(offset + bytes.len() as u64);
    }

    /// The unsynced writes of `host` (of all, when `None`) are lost, sector by sector.
    pub(super) fn lose_unsynced(&mut self, host: Option<HostId>, sector: usize, random: &mut u64) {
        let mut fate = Fate::draw(random);
        let is_lost = |writer: HostId| host.is_none_or(|host| host == writer);
        let numbers: Vec<u64> = self.unsynced.keys().copied().collect();
        for number in numbers {
            let versions = self.unsynced.remove(&number).unwrap_or_default();
            let newest_is_lost = versions.last().is_some_and(|(writer, _)| is_lost(*writer));
            let (lost, kept): (Vec<_>, Vec<_>) = versions.into_iter().partition(|(writer, _)| is_lost(*writer));
            if !kept.is_empty() {
                self.unsynced.insert(number, kept);
            }
            let Some((_, last)) = lost.last() else { continue };
            for (at, content) in (0..).step_by(sector).zip(last.chunks(sector)) {
                if !fate.keeps() {
                    continue;
                }
                if newest_is_lost {
                    self.patch(number, at, content);
                } else {
                    let page = self.durable.entry(number).or_insert_with(zeros);
                    page[at..at + content.len()].copy_from_slice(content);
                }
            }
        }
    }

    /// Turns a bit around in a page from `from` (bytes) on, in all its versions; where.
    pub(super) fn rot(&mut self, from: u64, random: &mut u64) -> Option<u64> {
        let pages: Vec<u64> = self.durable.range(from.div_ceil(PAGE as u64)..).map(|(number, _)| *number).collect();
        let number = *pages.get((split_mix(random) % pages.len().max(1) as u64) as usize)?;
        let at = split_mix(random) as usize % PAGE;
        let mut byte = self.newest(number)?[at];
        byte ^= 1 << (split_mix(random) % 8);
        self.patch(number, at, &[byte]);
        Some(number * PAGE as u64 + at as u64)
    }

    /// Changes a sector in the durable page and in every version above it.
    fn patch(&mut self, number: u64, at: usize, content: &[u8]) {
        let durable = self.durable.entry(number).or_insert_with(zeros);
        let versions = self.unsynced.get_mut(&number).into_iter().flatten().map(|(_, page)| page);
        for page in versions.chain([durable]) {
            page[at..at + content.len()].copy_from_slice(content);
        }
    }
}
