//! A real device: libibverbs for the data, librdmacm for connecting, and a few descriptors to sleep on.
//!
//! One [`Device`] per shard, owned by its thread. It has a protection domain, one completion queue, one shared receive queue, the
//! memory of the slots, and a queue pair for each connection ([`connections`]) that is given work and completes it ([`work`]).
//! Nothing of the protocol is known here. Bounds: the slots it is opened with; as many pairs as the layer above makes; the
//! completion queue holds everything that these can complete. Completions are polled; before the shard sleeps the queue is asked
//! to write to its channel, whose descriptor the reactor watches.

mod connections;
mod work;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_int;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;

use rdma_sys as sys;

use self::connections::Connection;
use self::work::POLL_BATCH;
use super::SLOTS_PER_LANE;
use super::verbs::{
    Access, Event, GREETING_BYTES, Incoming, LocalFuture, MemoryKeys, Pair, SEND_QUEUE_DEPTH, SLOT_BYTES, Verbs, VerbsFault, Work,
};
use crate::reactor::sync::Notify;
use crate::reactor::{Adopted, Class, Reactor, TaskHandle};

unsafe extern "C" {
    fn rustydb_ibv_reg_mr(pd: *mut sys::ibv_pd, start: *mut libc::c_void, bytes: usize, access: c_int) -> *mut sys::ibv_mr;
}

/// Connection events are looked for at every so many polls, at least; each look is a system call.
const CONNECTION_POLLS: u32 = 64;

/// Watches a descriptor of the libraries, without ever having more than one operation on it.
struct Watched {
    /// It is readable, and nobody has read it since.
    ready: Cell<bool>,
    again: Notify,
}

/// See the module.
pub struct Device {
    address: SocketAddr,
    name: String,
    context: *mut sys::ibv_context,
    connections_channel: *mut sys::rdma_event_channel,
    listener: Cell<*mut sys::rdma_cm_id>,
    domain: *mut sys::ibv_pd,
    completions_channel: *mut sys::ibv_comp_channel,
    completions: *mut sys::ibv_cq,
    receives: *mut sys::ibv_srq,
    slots: NonNull<u8>,
    slots_layout: Layout,
    slots_key: u32,
    memory: RefCell<Vec<*mut sys::ibv_mr>>,
    receive_slots: u32,
    send_slots: u32,
    pairs: RefCell<HashMap<Pair, Connection>>,
    by_qp: RefCell<HashMap<u32, Pair>>,
    asked: RefCell<HashMap<Incoming, *mut sys::rdma_cm_id>>,
    next: Cell<u64>,
    polls: Cell<u32>,
    /// Where completions are taken to. Kept, for to clear it at every look was most of what a look cost.
    completed: RefCell<[sys::ibv_wc; POLL_BATCH]>,
    found: RefCell<Vec<Event>>,
    woken: Rc<Notify>,
    watched: [Rc<Watched>; 2],
    tasks: Vec<TaskHandle>,
}

fn system(call: &'static str) -> VerbsFault {
    VerbsFault::System { call, source: io::Error::last_os_error() }
}

fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers are involved.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What the kernel holds against RLIMIT_MEMLOCK for devices: of all threads of this process (proc(5), VmPin).
fn locked_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmPin:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}

async fn watch(adopted: Adopted, watched: Rc<Watched>, woken: Rc<Notify>) {
    loop {
        adopted.readable().await;
        let again = watched.again.notified();
        watched.ready.set(true);
        woken.notify_all();
        again.await;
    }
}

impl Device {
    /// Opens the device of the interface that has this address, and listens there for connections.
    ///
    /// # Errors
    /// [`VerbsFault::NoDevice`] when there is none, [`VerbsFault::Memlock`] when its memory can't be locked.
    pub fn open(reactor: &Reactor, address: SocketAddr, receive_slots: u32, send_slots: u32) -> Result<Rc<Device>, VerbsFault> {
        let slots_layout =
            Layout::from_size_align((receive_slots + send_slots) as usize * SLOT_BYTES, 4096).expect("slots are few");
        // SAFETY: there are slots, so the size is not zero.
        let slots = NonNull::new(unsafe { alloc_zeroed(slots_layout) }).expect("memory for the slots");
        let watched = || Rc::new(Watched { ready: Cell::new(false), again: Notify::new() });
        // From here on its Drop gives everything back that there is by then.
        let mut device = Device {
            address,
            name: String::new(),
            context: null_mut(),
            connections_channel: null_mut(),
            listener: Cell::new(null_mut()),
            domain: null_mut(),
            completions_channel: null_mut(),
            completions: null_mut(),
            receives: null_mut(),
            slots,
            slots_layout,
            slots_key: 0,
            memory: RefCell::default(),
            receive_slots,
            send_slots,
            pairs: RefCell::default(),
            by_qp: RefCell::default(),
            asked: RefCell::default(),
            next: Cell::new(1),
            polls: Cell::new(0),
            // SAFETY: plain data, all zeros is a valid value.
            completed: RefCell::new(unsafe { std::mem::zeroed() }),
            found: RefCell::default(),
            woken: Rc::new(Notify::new()),
            watched: [watched(), watched()],
            tasks: Vec::new(),
        };
        device.listen()?;
        device.set_up()?;
        // SAFETY: both channels were made above and live as long as the device.
        let descriptors = unsafe { [(*device.completions_channel).fd, (*device.connections_channel).fd] };
        for (fd, watched) in descriptors.into_iter().zip(device.watched.clone()) {
            let adopt = || {
                set_nonblocking(fd)?;
                // SAFETY: the descriptor is open during the call.
                let own = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
                reactor.adopt(own)
            };
            let adopted = adopt().map_err(|source| VerbsFault::System { call: "watching the device", source })?;
            let task = reactor.spawn(Class::High, "RDMA device", watch(adopted, watched, device.woken.clone()));
            device.tasks.push(task);
        }
        Ok(Rc::new(device))
    }

    fn set_up(&mut self) -> Result<(), VerbsFault> {
        // There are as many pairs as lanes at most, and each has slots to receive into.
        let pairs_max = self.receive_slots as usize / SLOTS_PER_LANE as usize;
        let completions = self.receive_slots as usize + pairs_max * SEND_QUEUE_DEPTH;
        // SAFETY: the context is open; what is made is kept in `self`, and given back in the reverse order.
        unsafe {
            self.domain = sys::ibv_alloc_pd(self.context);
            if self.domain.is_null() {
                return Err(system("ibv_alloc_pd"));
            }
            self.completions_channel = sys::ibv_create_comp_channel(self.context);
            if self.completions_channel.is_null() {
                return Err(system("ibv_create_comp_channel"));
            }
            self.completions = sys::ibv_create_cq(self.context, completions as c_int, null_mut(), self.completions_channel, 0);
            if self.completions.is_null() {
                return Err(self.or_memlock("ibv_create_cq", completions as u64 * 64));
            }
            let mut attributes: sys::ibv_srq_init_attr = std::mem::zeroed();
            attributes.attr.max_wr = self.receive_slots;
            attributes.attr.max_sge = 1;
            self.receives = sys::ibv_create_srq(self.domain, &mut attributes);
            if self.receives.is_null() {
                return Err(self.or_memlock("ibv_create_srq", u64::from(self.receive_slots) * 64));
            }
        }
        let keys = self.register_with(self.slots.as_ptr(), self.slots_layout.size(), None)?;
        self.slots_key = keys.local;
        Ok(())
    }

    fn or_memlock(&self, call: &'static str, bytes: u64) -> VerbsFault {
        let source = io::Error::last_os_error();
        if !matches!(source.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM)) {
            return VerbsFault::System { call, source };
        }
        // SAFETY: rlimit is plain data, and the pointer to it is live during the call.
        let limit = unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit);
            limit.rlim_cur
        };
        if limit == libc::RLIM_INFINITY {
            VerbsFault::System { call, source }
        } else {
            VerbsFault::Memlock { bytes, locked: locked_bytes(), limit }
        }
    }

    fn register_with(&self, start: *mut u8, bytes: usize, remote: Option<Access>) -> Result<MemoryKeys, VerbsFault> {
        let others = match remote {
            Some(Access::Write) => sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0,
            Some(Access::Read) => sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0,
            Some(Access::ReadAndWrite) => {
                sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0 | sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0
            }
            None => 0,
        };
        let access = sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0 | others;
        // SAFETY: the caller's memory is mapped for as long as the region is registered.
        let region = unsafe { rustydb_ibv_reg_mr(self.domain, start.cast(), bytes, access as c_int) };
        if region.is_null() {
            return Err(self.or_memlock("ibv_reg_mr", bytes as u64));
        }
        self.memory.borrow_mut().push(region);
        // SAFETY: the region was just made.
        Ok(unsafe { MemoryKeys { local: (*region).lkey, remote: (*region).rkey } })
    }

    fn fail(&self, pair: Pair, why: String) {
        let mut pairs = self.pairs.borrow_mut();
        if let Some(connection) = pairs.get_mut(&pair)
            && !std::mem::replace(&mut connection.failed, true)
        {
            self.found.borrow_mut().push(Event::Failed { pair, why });
        }
    }

    fn name_next(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    fn slot(&self, index: u32) -> *mut u8 {
        assert!(index < self.receive_slots + self.send_slots, "slot {index} is beyond the device's");
        self.slots.as_ptr().wrapping_add(index as usize * SLOT_BYTES)
    }
}

impl Verbs for Device {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn receive_slots(&self) -> u32 {
        self.receive_slots
    }

    fn send_slots(&self) -> u32 {
        self.send_slots
    }

    fn stop_listening(&self) {
        self.end_listening();
    }

    fn connect(&self, to: SocketAddr, greeting: &[u8; GREETING_BYTES]) -> Result<Pair, VerbsFault> {
        self.begin_connecting(to, greeting)
    }

    fn accept(&self, incoming: Incoming) -> Result<Pair, VerbsFault> {
        self.take_in(incoming)
    }

    fn refuse(&self, incoming: Incoming) {
        self.turn_away(incoming);
    }

    fn destroy(&self, pair: Pair) {
        self.end_pair(pair);
    }

    unsafe fn register(&self, start: *mut u8, bytes: usize, access: Access) -> Result<MemoryKeys, VerbsFault> {
        self.register_with(start, bytes, Some(access))
    }

    fn stage(&self, slot: u32, parts: &[&[u8]]) {
        assert!(slot < self.send_slots && parts.iter().map(|part| part.len()).sum::<usize>() <= SLOT_BYTES);
        let mut to = self.slot(self.receive_slots + slot);
        for part in parts {
            // SAFETY: the slot is free, and the parts fit, as was just checked.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len()) };
            to = to.wrapping_add(part.len());
        }
    }

    fn send(&self, pair: Pair, work: &[Work]) -> Result<(), VerbsFault> {
        self.post_work(pair, work)
    }

    fn receive(&self, slots: &[u32]) -> Result<(), VerbsFault> {
        self.post_slots(slots)
    }

    fn read(&self, slot: u32, bytes: u32, look: &mut dyn FnMut(&[u8])) {
        assert!(slot < self.receive_slots && bytes as usize <= SLOT_BYTES);
        // SAFETY: the device has given the slot back with a message of this length, and does not touch it before it is given again.
        look(unsafe { std::slice::from_raw_parts(self.slot(slot), bytes as usize) });
    }

    fn poll(&self, events: &mut Vec<Event>) {
        self.take_completions();
        let polls = self.polls.get() + 1;
        self.polls.set(polls % CONNECTION_POLLS);
        if polls == CONNECTION_POLLS {
            self.take_connections();
        }
        events.append(&mut self.found.borrow_mut());
    }

    fn arm(&self) -> Result<(), VerbsFault> {
        // Each look is a system call, and what nobody has been told of yet wakes whoever waits.
        let [completions, connections] = &self.watched;
        if completions.ready.get() {
            self.drain_completion_events();
        }
        if connections.ready.get() {
            self.take_connections();
        }
        self.ask_for_completion_event()?;
        for watched in &self.watched {
            if watched.ready.replace(false) {
                watched.again.notify_all();
            }
        }
        Ok(())
    }

    fn wait(&self) -> LocalFuture<()> {
        let notified = self.woken.notified();
        if self.watched.iter().any(|watched| watched.ready.get()) {
            return Box::pin(std::future::ready(()));
        }
        Box::pin(notified)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.tasks.iter().for_each(TaskHandle::abort);
        let pairs: Vec<Pair> = self.pairs.borrow().keys().copied().collect();
        pairs.into_iter().for_each(|pair| self.destroy(pair));
        self.stop_listening();
        // SAFETY: each was made once and is given back once, users before what they use. The completion queue goes without waiting,
        // for its events were acknowledged when they were taken.
        unsafe {
            if !self.receives.is_null() {
                sys::ibv_destroy_srq(self.receives);
            }
            if !self.completions.is_null() {
                sys::ibv_destroy_cq(self.completions);
            }
            if !self.completions_channel.is_null() {
                sys::ibv_destroy_comp_channel(self.completions_channel);
            }
            for region in self.memory.take() {
                sys::ibv_dereg_mr(region);
            }
            if !self.domain.is_null() {
                sys::ibv_dealloc_pd(self.domain);
            }
            if !self.connections_channel.is_null() {
                sys::rdma_destroy_event_channel(self.connections_channel);
            }
            dealloc(self.slots.as_ptr(), self.slots_layout);
        }
    }
}
