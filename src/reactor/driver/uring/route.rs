//! The way that the volume goes: which of the wished ways this machine has, and the driver's part in working the ring that the
//! volume has for itself ([`storage`](super::storage)).
//!
//! In the driver's thread. One file of a driver goes by a ring of its own; each way to it is tried out before it is taken, the
//! best first, and what fails is told in words. The volume's completions come out with the others'; a write by that ring whose
//! sync goes by the driver's own is done when both are.

use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use io_uring::opcode;
use io_uring::types::{Fd, FsyncFlags};

use super::super::{Completion, Handle, StorageRoute, StorageWish, Wait};
use super::entry::InFlight;
use super::nvme::{self, Namespace};
use super::storage::{self, StorageRing};
use super::{UringDriver, is_passing};
use crate::reactor::time::Clock;

impl UringDriver {
    /// See [`Driver::route`](super::super::Driver::route).
    pub(super) fn find_route(&mut self, file: Handle, wish: StorageWish) -> StorageRoute {
        assert!(self.descriptors.get(file).in_flight == 0, "the way of a file changes only while nothing is in flight");
        let mut route = StorageRoute::default();
        if let Some(storage) = &self.storage {
            route.refusals.push(format!("another file has this thread's one ring for it ({:?})", storage.file()));
            return route;
        }
        let block = self.descriptors.get(file).fd.as_raw_fd();
        let mut namespace = None;
        if wish.passthrough {
            match Namespace::find(block) {
                Ok(found) => namespace = Some(Rc::new(found)),
                Err(why) => route.refusals.push(format!("no NVMe passthrough: {why}")),
            }
        }
        let mut polled = false;
        if wish.polled {
            match nvme::can_poll(block) {
                Ok(()) => polled = true,
                Err(why) => route.refusals.push(format!("no polling: {why}")),
            }
        }
        let mut ways = Vec::new();
        if namespace.is_some() {
            ways.extend(polled.then_some((true, true)));
            ways.push((true, false));
        }
        ways.extend(polled.then_some((false, true)));
        // The best first; what is tried out and fails is left out.
        for (passthrough, polled) in ways {
            if self.storage.is_some() {
                break;
            }
            match self.storage_ring(file, namespace.clone().filter(|_| passthrough), polled) {
                Ok(storage) => {
                    route.passthrough = namespace.as_ref().filter(|_| passthrough).map(|namespace| namespace.path().to_owned());
                    route.polled = polled;
                    self.storage = Some(storage);
                }
                Err(why) => route.refusals.push(match (passthrough, polled) {
                    (true, true) => format!("no polled NVMe passthrough: {why}"),
                    (true, false) => format!("no NVMe passthrough: {why}"),
                    _ => format!("no polling: {why}"),
                }),
            }
        }
        route
    }

    /// A ring for the volume that goes by these ways, tried out.
    pub(super) fn storage_ring(
        &mut self,
        file: Handle,
        namespace: Option<Rc<Namespace>>,
        polled: bool,
    ) -> Result<StorageRing, String> {
        let block = self.descriptors.get(file).fd.as_raw_fd();
        let words = |error: io::Error| format!("no ring for it: {error}");
        let mut storage = StorageRing::new(file, block, namespace, polled).map_err(words)?;
        storage.tell(self.wake.event.fd()).map_err(words)?;
        storage.probe(block)?;
        for (start, bytes) in self.memory.pieces() {
            // SAFETY: it was promised to stay mapped for as long as this driver lives, and the ring goes with the driver.
            unsafe { storage.register(*start as *const u8, *bytes) };
        }
        Ok(storage)
    }

    /// Lets the volume's own ring work.
    pub(super) fn drive_storage(&mut self) {
        let Some(storage) = &mut self.storage else { return };
        let mut stored = std::mem::take(&mut self.stored);
        storage.drive(&mut stored);
        for done in stored.drain(..) {
            self.stored(done);
        }
        self.stored = stored;
    }

    /// What the volume's own ring has completed.
    fn stored(&mut self, done: storage::Done) {
        let storage::Done { token, operation, result, sync_after } = done;
        if sync_after {
            let written = result.ok().and_then(|bytes| i32::try_from(bytes).ok());
            let written = written.expect("a whole write of less than 2 GiB");
            let handle = operation.handle().expect("a write has a file");
            let fd = Fd(self.descriptors.get(handle).fd.as_raw_fd());
            let in_flight = InFlight { token, operation, connecting: None, message: None, written: Some(written) };
            let index = self.operations.insert(in_flight);
            let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
            return self.push(&[sync.user_data(u64::from(index) << 1 | 1)]);
        }
        if let Some(handle) = operation.handle()
            && self.descriptors.end(handle)
        {
            self.remove(handle);
        }
        self.done.push(Completion { token, result, buffers: operation.into_buffers(), opened: None });
    }

    /// Waits without sleeping, because the volume's ring has to be polled: until anything has completed, on either ring, or the
    /// time is over.
    pub(super) fn look_for_completions(&mut self, time: Option<Duration>) {
        let until = time.map(|time| Clock::System.now() + time);
        while self.done.is_empty() && self.storage.as_ref().is_some_and(StorageRing::must_poll) {
            self.drive_storage();
            if self.has_kernel_work() {
                if let Err(error) = self.enter(Wait::No) {
                    assert!(is_passing(&error), "io_uring fails: {error}");
                }
                if self.reap() {
                    return;
                }
            }
            if until.is_some_and(|until| Clock::System.now() >= until) {
                return;
            }
            std::hint::spin_loop();
        }
    }
}
