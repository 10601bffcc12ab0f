//! The simulated files as drivers reach them, and what becomes of them when a host dies. Part of the world's state.

use std::io;
use std::path::Path;

use super::disk::{Disk, PAGE};
use super::network::Segment;
use super::world::{Descriptor, Event, InFlight, OperationRef, State};
use super::{ActorId, HostId};
use crate::reactor::driver::{Handle, OpenOptions, Operation};
use crate::reactor::io::named;
use crate::reactor::split_mix;

impl State {
    pub(super) fn open(&mut self, actor: ActorId, path: &Path, how: OpenOptions) -> io::Result<Handle> {
        let disk = match self.paths.get(path) {
            Some(_) if how.create_new => return Err(named(libc::EEXIST, &format!("open {}", path.display()))),
            Some(disk) => *disk,
            None if how.create => {
                self.disks.push(Disk::default());
                self.paths.insert(path.to_owned(), self.disks.len() - 1);
                self.disks.len() - 1
            }
            None => return Err(named(libc::ENOENT, &format!("open {}", path.display()))),
        };
        Ok(self.add_descriptor(actor, Descriptor::File { disk, direct: how.direct, write: how.write }))
    }

    pub(super) fn disk_of(&mut self, file: Handle) -> &mut Disk {
        let Descriptor::File { disk, .. } = self.descriptor(file) else { panic!("{file:?} is no file") };
        &mut self.disks[disk]
    }

    pub(super) fn allocate(&mut self, file: Handle, bytes: u64) -> io::Result<()> {
        if bytes > self.options.file_bytes_max {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let disk = self.disk_of(file);
        disk.bytes = disk.bytes.max(bytes);
        Ok(())
    }

    pub(super) fn submit_disk(&mut self, reference: OperationRef, direct: bool, may_write: bool) {
        let host = self.host_of(self.operations[reference.index].actor);
        let (extent, time) = match &self.operations[reference.index].operation {
            Operation::Read { offset, buffer, .. } => (Some((*offset, buffer)), self.options.read_us),
            Operation::Write { offset, buffer, durable, .. } => {
                (Some((*offset, buffer)), if *durable { self.options.durable_us } else { self.options.write_us })
            }
            _ => (None, self.options.durable_us),
        };
        let writes = matches!(self.operations[reference.index].operation, Operation::Write { .. });
        let mut error = self.disk_errors.get(&host).copied();
        let reads = matches!(self.operations[reference.index].operation, Operation::Read { .. });
        if !reads && self.actors[self.operations[reference.index].actor.0 as usize].fenced {
            error = Some(libc::EBADE);
        }
        if let Some((offset, buffer)) = extent {
            let page = PAGE as u64;
            let aligned = offset.is_multiple_of(page) && buffer.len().is_multiple_of(PAGE);
            // As O_DIRECT: what a real disk refuses, the simulated one refuses too.
            if !aligned || (direct && !(buffer.as_ptr() as usize).is_multiple_of(512)) {
                error = Some(libc::EINVAL);
            }
            if writes && !may_write {
                error = Some(libc::EBADF);
            }
            if writes && offset + buffer.len() as u64 > self.options.file_bytes_max {
                error = Some(libc::ENOSPC);
            }
        }
        let start = self.disk_stalled_until_ns.get(&host).copied().unwrap_or(0).max(self.now());
        let at = start + self.draw(time);
        let event = match error {
            Some(number) => Event::Finish { operation: reference, result: Err(number), opened: None },
            None => Event::Disk { operation: reference },
        };
        self.schedule(at, event);
    }

    pub(super) fn run_disk(&mut self, reference: OperationRef) {
        let Some(actor) = self.actor_of(reference) else { return };
        let host = self.host_of(actor);
        let spoiled = match &self.operations[reference.index].operation {
            Operation::Write { offset, buffer, .. } => {
                let (offset, len) = (*offset, buffer.len());
                (self.stray(host, offset, len), false)
            }
            Operation::Read { offset, buffer, .. } => {
                let (offset, len) = (*offset, buffer.len());
                self.spoil(host, offset, len)
            }
            _ => (0, false),
        };
        let in_flight = self.operations.get_mut(reference.index).expect("it has an actor");
        let file = in_flight.operation.handle().expect("a file operation");
        let Some((_, Descriptor::File { disk, .. })) = self.descriptors.get(&file.index) else { panic!("{file:?} is no file") };
        let disk = &mut self.disks[*disk];
        let count = match &mut in_flight.operation {
            Operation::Read { buffer, .. } => {
                let (offset, flip) = spoiled;
                let count = disk.read(offset, buffer.as_mut_slice());
                if flip && count > 0 {
                    let at = split_mix(&mut self.random) as usize % count;
                    buffer.as_mut_slice()[at] ^= 1 << (split_mix(&mut self.random) % 8);
                }
                count
            }
            Operation::Write { buffer, durable, .. } => {
                disk.write(host, spoiled.0, buffer.as_slice(), *durable);
                buffer.len()
            }
            _ => {
                disk.sync(host);
                0
            }
        };
        let traffic = self.traffic.entry(host).or_default();
        match &self.operations[reference.index].operation {
            Operation::Read { .. } => traffic.read_bytes += count as u64,
            _ => traffic.written_bytes += count as u64,
        }
        self.finish(reference, Ok(count), None);
    }

    /// See [`DiskGates::refuse_writes`](super::DiskGates::refuse_writes).
    pub(super) fn fence(&mut self, host: HostId, life: u32) {
        let mut fenced = Vec::new();
        for (index, actor) in self.actors.iter_mut().enumerate() {
            if actor.host == host && actor.life <= life && actor.alive && !actor.fenced {
                actor.fenced = true;
                fenced.push(ActorId(index as u32));
            }
        }
        if fenced.is_empty() {
            return;
        }
        for index in self.operations.indexes() {
            let InFlight { actor, serial, operation, .. } = &self.operations[index];
            if !fenced.contains(actor) || !matches!(operation, Operation::Write { .. } | Operation::Sync { .. }) {
                continue;
            }
            let reference = OperationRef { index, serial: *serial };
            self.tear(index);
            self.finish(reference, Err(libc::EBADE), None);
        }
        self.leave_unsynced(host);
        self.note(&[self.now(), u64::from(host.0), u64::from(life)]);
    }

    /// A write in flight is interrupted: each of its sectors is written or not.
    fn tear(&mut self, operation: u32) {
        let Operation::Write { file, offset, buffer, .. } = &self.operations[operation].operation else { return };
        if let Some((_, Descriptor::File { disk, .. })) = self.descriptors.get(&file.index)
            && buffer.len().is_multiple_of(PAGE)
            && offset.is_multiple_of(PAGE as u64)
        {
            self.disks[*disk].tear(*offset, buffer.as_slice(), self.options.sector_bytes, &mut self.random);
        }
    }

    /// A host's reactors are gone, and with them what they had in flight.
    pub(super) fn bury(&mut self, host: HostId, silently: bool) {
        for actor in self.actors.iter_mut().filter(|actor| actor.host == host) {
            actor.alive = false;
        }
        for index in self.operations.indexes() {
            let actor = self.operations[index].actor;
            if self.host_of(actor) != host {
                continue;
            }
            if !self.actors[actor.0 as usize].fenced {
                self.tear(index);
            }
            self.graveyard.push(self.operations.remove(index).operation);
        }
        let theirs: Vec<u32> =
            self.descriptors.iter().filter(|(_, (actor, _))| self.host_of(*actor) == host).map(|(index, _)| *index).collect();
        for index in theirs {
            match self.descriptors.remove(&index) {
                Some((_, Descriptor::Listener(address))) => {
                    if silently {
                        self.powered_off_addresses.insert((host, address.ip()));
                    }
                    self.close_listener(address);
                }
                Some((_, Descriptor::Stream { connection, side })) if silently => self.vanish_side(connection, side),
                Some((_, Descriptor::Stream { connection, side })) => self.close_side(connection, side, Segment::Reset),
                _ => {}
            }
        }
        self.note(&[self.now(), u64::from(host.0), u64::from(silently)]);
    }

    /// What the host has written stays in the disks' caches without it, for anybody's sync.
    pub(super) fn leave_unsynced(&mut self, host: HostId) {
        self.disks.iter_mut().for_each(|disk| disk.disown(host));
    }

    pub(super) fn lose_unsynced(&mut self, host: Option<HostId>) {
        let sector = self.options.sector_bytes;
        for disk in &mut self.disks {
            disk.lose_unsynced(host, sector, &mut self.random);
        }
    }
}
