//! What goes wrong in a simulated world on purpose: partitions, pauses, clocks that jump, disks that fail, hang or give
//! wrong data, and the fences that keep a life of a host from them. All of it is asked for by name and host; which and when
//! is drawn by whoever asks.

use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::HostId;
use super::world::{SimWorld, State, World};
use crate::reactor::split_mix;

/// Reads that give wrong data while saying that all went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spoiling {
    /// How many reads.
    pub reads: u32,
    /// Only of what begins here or later, in bytes.
    pub from_offset: u64,
    /// Bytes of another place come instead (as long as the read). Otherwise a few bits are wrong.
    pub misdirected: bool,
}

/// Writes that end up in another place while saying that all went well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Straying {
    /// How many writes.
    pub writes: u32,
    /// Only of what begins here or later, in bytes; and not before this they land.
    pub from_offset: u64,
}

impl SimWorld {
    /// A machine that lost its power has a live network card again: a connection request to a port nobody listens on is
    /// refused, not left without an answer.
    pub fn power_on(&self, host: HostId) {
        self.0.state.borrow_mut().powered_off_addresses.retain(|(off, _)| *off != host);
    }

    /// The disks' gates, for tasks of this world that fence others.
    #[must_use]
    pub fn gates(&self) -> DiskGates {
        DiskGates(Rc::downgrade(&self.0))
    }

    /// What `from` sends does not reach `to` any more, until [`heal`](Self::heal). One way only.
    pub fn part_one_way(&self, from: HostId, to: HostId) {
        self.0.state.borrow_mut().parted.insert((from, to));
    }

    /// The two do not reach each other any more, until [`heal`](Self::heal).
    pub fn part(&self, one: HostId, other: HostId) {
        self.part_one_way(one, other);
        self.part_one_way(other, one);
    }

    /// The two reach each other again, both ways; what was sent meanwhile arrives.
    pub fn heal_pair(&self, one: HostId, other: HostId) {
        let mut state = self.0.state.borrow_mut();
        state.parted.remove(&(one, other));
        state.parted.remove(&(other, one));
        state.release_held();
    }

    /// Every connection between the two breaks: both sides see it reset, and what was on its way is lost.
    pub fn break_connections(&self, one: HostId, other: HostId) {
        self.0.state.borrow_mut().break_connections(one, other);
    }

    /// From now on one way over the network takes so long (least, most), in microseconds.
    pub fn set_network_us(&self, range: (u64, u64)) {
        self.0.state.borrow_mut().options.network_us = range;
    }

    /// The next reads of `spoiling` come out wrong on this host: its path to the disk is bad, the disk is not.
    pub fn spoil_reads(&self, host: HostId, spoiling: Spoiling) {
        self.0.state.borrow_mut().spoiled_reads.insert(host, spoiling);
    }

    /// The next writes of `straying` land in other places on this host: the driver, the cable or the disk mixes addresses up.
    pub fn stray_writes(&self, host: HostId, straying: Straying) {
        self.0.state.borrow_mut().stray_writes.insert(host, straying);
    }

    /// What the host writes goes where it belongs again.
    pub fn straighten_writes(&self, host: HostId) {
        self.0.state.borrow_mut().stray_writes.remove(&host);
    }

    /// Turns a bit around of what is on the disk: one of the pages that were ever written, from `from_offset` of the file on.
    /// Where, in bytes; `None` when nothing is there.
    pub fn rot(&self, path: &Path, from_offset: u64) -> Option<u64> {
        let state = &mut *self.0.state.borrow_mut();
        let disk = *state.paths.get(path)?;
        state.disks[disk].rot(from_offset, &mut state.random)
    }

    /// The host reads well again.
    pub fn spare_reads(&self, host: HostId) {
        self.0.state.borrow_mut().spoiled_reads.remove(&host);
    }

    /// All hosts reach each other again; what was sent meanwhile arrives.
    pub fn heal(&self) {
        let mut state = self.0.state.borrow_mut();
        state.parted.clear();
        state.powered_off_addresses.clear();
        state.release_held();
    }

    /// A host stops running (SIGSTOP, a stalled virtual machine), while the world goes on.
    pub fn pause(&self, host: HostId) {
        self.0.state.borrow_mut().paused.insert(host);
    }

    /// A paused host goes on, not knowing that it was away.
    pub fn resume(&self, host: HostId) {
        self.0.state.borrow_mut().paused.remove(&host);
    }

    /// A host's wall clock jumps by so many milliseconds.
    pub fn jump_clock(&self, host: HostId, by_ms: i64) {
        if let Some(base) = self.0.wall_base_ms.borrow().get(&host) {
            base.set(base.get().saturating_add_signed(by_ms));
        }
    }

    /// Every file operation that the host starts from now on fails with this error number; `None` mends it.
    pub fn set_disk_error(&self, host: HostId, number: Option<i32>) {
        let mut state = self.0.state.borrow_mut();
        match number {
            Some(number) => state.disk_errors.insert(host, number),
            None => state.disk_errors.remove(&host),
        };
    }

    /// File operations that the host starts from now on begin only after `duration`.
    pub fn stall_disk(&self, host: HostId, duration: Duration) {
        let until = (self.now() + duration).0;
        self.0.state.borrow_mut().disk_stalled_until_ns.insert(host, until);
    }
}

impl State {
    /// Where a write of `len` bytes to `offset` really goes.
    pub(super) fn stray(&mut self, host: HostId, offset: u64, len: usize) -> u64 {
        let Some(straying) = self.stray_writes.get_mut(&host).filter(|straying| offset >= straying.from_offset) else {
            return offset;
        };
        straying.writes = straying.writes.saturating_sub(1);
        let Straying { writes, from_offset } = *straying;
        if writes == 0 {
            self.stray_writes.remove(&host);
        }
        let neighbours = (offset - from_offset) / len as u64 + 1;
        from_offset + split_mix(&mut self.random) % neighbours * len as u64
    }

    /// Where a read of `len` bytes at `offset` really reads, and whether bits of it flip.
    pub(super) fn spoil(&mut self, host: HostId, offset: u64, len: usize) -> (u64, bool) {
        let Some(spoiling) = self.spoiled_reads.get_mut(&host).filter(|spoiling| offset >= spoiling.from_offset) else {
            return (offset, false);
        };
        spoiling.reads = spoiling.reads.saturating_sub(1);
        let Spoiling { reads, from_offset, misdirected } = *spoiling;
        if reads == 0 {
            self.spoiled_reads.remove(&host);
        }
        self.reads_spoiled += 1;
        let neighbours = (offset - from_offset) / len as u64 + 1;
        let elsewhere = from_offset + split_mix(&mut self.random) % neighbours * len as u64;
        match misdirected {
            true if elsewhere != offset => (elsewhere, false),
            true => (offset + len as u64, false),
            false => (offset, true),
        }
    }
}

/// What a persistent reservation does for a shared disk: from now on it refuses the writes of a life of a host.
///
/// A life of a host is what runs on it between two of its ends (crash or loss of power). Holds its world weakly, so a task
/// inside of it may keep one; does nothing once the world has ended.
#[derive(Clone)]
pub struct DiskGates(Weak<World>);

impl DiskGates {
    /// The host's present life: to be kept with the name under which it is fenced later (a node's incarnation).
    #[must_use]
    pub fn life_of(&self, host: HostId) -> u32 {
        self.0.upgrade().map_or(0, |world| world.state.borrow().life_of(host))
    }

    /// Refuses every write of this life of the host and of those before, as PREEMPT AND ABORT does: those in flight are
    /// aborted, each of their sectors written or not, before this returns; later ones end with `EBADE`, the kernel's word
    /// for a reservation conflict. Reading goes on. Fencing a life twice, or one that has ended, is harmless.
    pub fn refuse_writes(&self, host: HostId, life: u32) {
        if let Some(world) = self.0.upgrade() {
            world.state.borrow_mut().fence(host, life);
        }
    }

    /// Whether that life can write no more: fenced, or ended.
    #[must_use]
    pub fn is_refused(&self, host: HostId, life: u32) -> bool {
        let Some(world) = self.0.upgrade() else { return true };
        let state = world.state.borrow();
        state.actors.iter().all(|actor| actor.host != host || actor.life > life || actor.fenced || !actor.alive)
    }
}
