//! A real device: libibverbs for the data, librdmacm for connecting, and a few descriptors to sleep on.
//!
//! One [`Device`] per shard, owned by its thread. It has a protection domain, one completion queue, one shared receive queue, the
//! memory of the slots, and a queue pair for each connection. Nothing of the protocol is known here. Bounds: the slots it is
//! opened with; as many pairs as the layer above makes; the completion queue holds everything that these can complete.
//! Completions are polled; before the shard sleeps the queue is asked to write to its channel, whose descriptor the reactor
//! watches.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, c_int};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;

use rdma_sys as sys;
use sys::rdma_cm_event_type as cm;

use super::SLOTS_PER_LANE;
use super::verbs::{
    Access, Action, Event, GREETING_BYTES, Incoming, LocalFuture, MemoryKeys, Pair, SEND_QUEUE_DEPTH, SLOT_BYTES, Verbs,
    VerbsFault, Work,
};
use crate::ids::BLOCK_SIZE;
use crate::interconnect::header::HEADER_BYTES;
use crate::reactor::driver::RawAddress;
use crate::reactor::sync::Notify;
use crate::reactor::{Adopted, Class, Reactor, TaskHandle};

unsafe extern "C" {
    fn rustydb_ibv_post_send(qp: *mut sys::ibv_qp, wr: *mut sys::ibv_send_wr, bad: *mut *mut sys::ibv_send_wr) -> c_int;
    fn rustydb_ibv_post_srq_recv(srq: *mut sys::ibv_srq, wr: *mut sys::ibv_recv_wr, bad: *mut *mut sys::ibv_recv_wr) -> c_int;
    fn rustydb_ibv_poll_cq(cq: *mut sys::ibv_cq, entries: c_int, wc: *mut sys::ibv_wc) -> c_int;
    fn rustydb_ibv_req_notify_cq(cq: *mut sys::ibv_cq, solicited_only: c_int) -> c_int;
    fn rustydb_ibv_reg_mr(pd: *mut sys::ibv_pd, start: *mut libc::c_void, bytes: usize, access: c_int) -> *mut sys::ibv_mr;
}

/// Receive work requests carry this and the slot; send requests their own name.
const RECEIVE: u64 = 1 << 63;

/// Completions taken with one call.
const POLL_BATCH: usize = 64;

/// Connection events are looked for at every so many polls, at least; each look is a system call.
const CONNECTION_POLLS: u32 = 64;

/// Milliseconds that finding the other side's address, or the way there, may take.
const RESOLVE_MS: c_int = 2_000;

/// Connections that may wait to be answered.
const BACKLOG: c_int = 32;

/// Reads of a connection that a device works on at a time; more wait in its queue, and with them what stands behind.
const READS_AT_ONCE: u8 = 4;

/// Watches a descriptor of the libraries, without ever having more than one operation on it.
struct Watched {
    /// It is readable, and nobody has read it since.
    ready: Cell<bool>,
    again: Notify,
}

struct Connection {
    id: *mut sys::rdma_cm_id,
    qp_number: Option<u32>,
    greeting: Option<[u8; GREETING_BYTES]>,
    failed: bool,
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

    fn listen(&mut self) -> Result<(), VerbsFault> {
        let address = self.address;
        let no_device = |source| VerbsFault::NoDevice { address, source };
        // SAFETY: the calls get live pointers, and what they make is kept in `self`.
        unsafe {
            self.connections_channel = sys::rdma_create_event_channel();
            if self.connections_channel.is_null() {
                return Err(no_device(io::Error::last_os_error()));
            }
            let mut listener = null_mut();
            if sys::rdma_create_id(self.connections_channel, &mut listener, null_mut(), sys::rdma_port_space::RDMA_PS_TCP) != 0 {
                return Err(no_device(io::Error::last_os_error()));
            }
            self.listener.set(listener);
            let mut raw = RawAddress::from(address);
            if sys::rdma_bind_addr(listener, raw.as_mut_ptr().cast()) != 0 {
                return Err(no_device(io::Error::last_os_error()));
            }
            self.context = (*listener).verbs;
            if self.context.is_null() {
                return Err(no_device(io::ErrorKind::NotFound.into()));
            }
            let name = CStr::from_ptr(sys::ibv_get_device_name((*self.context).device));
            self.name = name.to_string_lossy().into_owned();
            if sys::rdma_listen(listener, BACKLOG) != 0 {
                return Err(system("rdma_listen"));
            }
        }
        Ok(())
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

    fn name_next(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    fn slot(&self, index: u32) -> *mut u8 {
        assert!(index < self.receive_slots + self.send_slots, "slot {index} is beyond the device's");
        self.slots.as_ptr().wrapping_add(index as usize * SLOT_BYTES)
    }

    /// Makes the queue pair of a connection.
    fn make_pair(&self, id: *mut sys::rdma_cm_id) -> Result<u32, VerbsFault> {
        // SAFETY: the id is live; all that it is given belongs to the same device, which is checked.
        unsafe {
            if (*id).verbs != self.context {
                return Err(VerbsFault::NoDevice {
                    address: self.address,
                    source: io::Error::other("the way leads by another device"),
                });
            }
            let mut attributes: sys::ibv_qp_init_attr = std::mem::zeroed();
            attributes.send_cq = self.completions;
            attributes.recv_cq = self.completions;
            attributes.srq = self.receives;
            attributes.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
            attributes.cap.max_send_wr = SEND_QUEUE_DEPTH as u32;
            attributes.cap.max_send_sge = 1;
            attributes.cap.max_inline_data = HEADER_BYTES as u32;
            if sys::rdma_create_qp(id, self.domain, &mut attributes) != 0 {
                return Err(self.or_memlock("rdma_create_qp", (SEND_QUEUE_DEPTH * 256) as u64));
            }
            Ok((*(*id).qp).qp_num)
        }
    }

    fn parameters(greeting: Option<&[u8; GREETING_BYTES]>) -> sys::rdma_conn_param {
        // SAFETY: plain data, all zeros is a valid value.
        let mut parameters: sys::rdma_conn_param = unsafe { std::mem::zeroed() };
        if let Some(greeting) = greeting {
            parameters.private_data = greeting.as_ptr().cast();
            parameters.private_data_len = GREETING_BYTES as u8;
        }
        parameters.responder_resources = READS_AT_ONCE;
        parameters.initiator_depth = READS_AT_ONCE;
        parameters.flow_control = 1;
        parameters.retry_count = 7;
        // For ever; credits see to it that it never happens.
        parameters.rnr_retry_count = 7;
        parameters
    }

    fn fail(&self, pair: Pair, why: String) {
        let mut pairs = self.pairs.borrow_mut();
        if let Some(connection) = pairs.get_mut(&pair)
            && !std::mem::replace(&mut connection.failed, true)
        {
            self.found.borrow_mut().push(Event::Failed { pair, why });
        }
    }

    /// Takes what has completed.
    fn take_completions(&self) {
        loop {
            // SAFETY: plain data, all zeros is a valid value.
            let mut batch: [sys::ibv_wc; POLL_BATCH] = unsafe { std::mem::zeroed() };
            // SAFETY: the array is live and as long as said.
            let count = unsafe { rustydb_ibv_poll_cq(self.completions, POLL_BATCH as c_int, batch.as_mut_ptr()) };
            let Ok(count) = usize::try_from(count) else {
                let pairs: Vec<Pair> = self.pairs.borrow().keys().copied().collect();
                return pairs.into_iter().for_each(|pair| self.fail(pair, format!("ibv_poll_cq: error {count}")));
            };
            batch[..count].iter().for_each(|completion| self.take(completion));
            if count < POLL_BATCH {
                return;
            }
        }
    }

    fn take(&self, completion: &sys::ibv_wc) {
        let pair = self.by_qp.borrow().get(&completion.qp_num).copied();
        let worked = completion.status == sys::ibv_wc_status::IBV_WC_SUCCESS;
        if completion.wr_id & RECEIVE != 0 {
            let slot = (completion.wr_id & !RECEIVE) as u32;
            // SAFETY: of a message that came, the field is its immediate value.
            let immediate = u32::from_be(unsafe { completion.imm_data_invalidated_rkey_union.imm_data });
            let event = match pair.filter(|_| worked) {
                Some(pair) => Event::Received { pair, slot, bytes: completion.byte_len, immediate },
                None => Event::Returned { slot },
            };
            self.found.borrow_mut().push(event);
            if worked {
                return;
            }
        }
        let Some(pair) = pair else { return };
        if worked {
            self.found.borrow_mut().push(Event::Sent { pair, id: completion.wr_id });
        } else {
            // After a failed receive, too, the queue pair is in its error state, and what it was to bring is lost.
            // SAFETY: the library returns a constant string for every number.
            let why = unsafe { CStr::from_ptr(sys::ibv_wc_status_str(completion.status)) };
            self.fail(pair, why.to_string_lossy().into_owned());
        }
    }

    /// Takes what has happened to connections.
    fn take_connections(&self) {
        loop {
            let mut event: *mut sys::rdma_cm_event = null_mut();
            // SAFETY: the channel is open and does not block; the event is live until it is acknowledged.
            if unsafe { sys::rdma_get_cm_event(self.connections_channel, &mut event) } != 0 {
                return;
            }
            // SAFETY: as above; what is needed of it is copied.
            let (id, kind, status, private) = unsafe {
                let parameters = &(*event).param.conn;
                let length = usize::from(parameters.private_data_len);
                let mut greeting = [0u8; GREETING_BYTES];
                if (*event).event == cm::RDMA_CM_EVENT_CONNECT_REQUEST
                    && !parameters.private_data.is_null()
                    && length >= GREETING_BYTES
                {
                    std::ptr::copy_nonoverlapping(parameters.private_data.cast::<u8>(), greeting.as_mut_ptr(), GREETING_BYTES);
                }
                ((*event).id, (*event).event, (*event).status, greeting)
            };
            // SAFETY: acknowledged once.
            unsafe { sys::rdma_ack_cm_event(event) };
            if kind == cm::RDMA_CM_EVENT_CONNECT_REQUEST {
                let incoming = Incoming(self.name_next());
                self.asked.borrow_mut().insert(incoming, id);
                self.found.borrow_mut().push(Event::Asked { incoming, greeting: private });
                continue;
            }
            let pair = self.pairs.borrow().iter().find(|(_, connection)| connection.id == id).map(|(pair, _)| *pair);
            match pair {
                Some(pair) => self.step(pair, id, kind, status),
                None if kind == cm::RDMA_CM_EVENT_DEVICE_REMOVAL => {
                    tracing::error!(device = self.name, "the RDMA device is gone")
                }
                None => {}
            }
        }
    }

    fn step(&self, pair: Pair, id: *mut sys::rdma_cm_id, kind: cm::Type, status: c_int) {
        let greeting = self.pairs.borrow()[&pair].greeting;
        let went = match kind {
            // SAFETY: the id is live.
            cm::RDMA_CM_EVENT_ADDR_RESOLVED => unsafe { sys::rdma_resolve_route(id, RESOLVE_MS) == 0 },
            cm::RDMA_CM_EVENT_ROUTE_RESOLVED => match self.make_pair(id) {
                Ok(number) => {
                    self.by_qp.borrow_mut().insert(number, pair);
                    self.pairs.borrow_mut().get_mut(&pair).expect("found above").qp_number = Some(number);
                    let mut parameters = Device::parameters(greeting.as_ref());
                    // SAFETY: the id is live, and so is the greeting during the call.
                    unsafe { sys::rdma_connect(id, &mut parameters) == 0 }
                }
                Err(fault) => return self.fail(pair, fault.to_string()),
            },
            cm::RDMA_CM_EVENT_ESTABLISHED => {
                self.found.borrow_mut().push(Event::Connected { pair });
                true
            }
            cm::RDMA_CM_EVENT_TIMEWAIT_EXIT => true,
            _ => {
                // SAFETY: the library returns a constant string for every number.
                let what = unsafe { CStr::from_ptr(sys::rdma_event_str(kind)) }.to_string_lossy();
                return self.fail(pair, format!("{what} (status {status})"));
            }
        };
        if !went {
            self.fail(pair, format!("connecting: {}", io::Error::last_os_error()));
        }
    }

    fn drain_completion_events(&self) {
        let (mut queue, mut context) = (null_mut(), null_mut());
        let mut count = 0;
        // SAFETY: the channel is open and does not block; each event is acknowledged below.
        while unsafe { sys::ibv_get_cq_event(self.completions_channel, &mut queue, &mut context) } == 0 {
            count += 1;
        }
        if count > 0 {
            // SAFETY: so many were taken.
            unsafe { sys::ibv_ack_cq_events(self.completions, count) };
        }
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
        let asked: Vec<Incoming> = self.asked.borrow().keys().copied().collect();
        asked.into_iter().for_each(|incoming| self.refuse(incoming));
        let listener = self.listener.replace(null_mut());
        if !listener.is_null() {
            // SAFETY: it was live until now, and is destroyed once.
            unsafe { sys::rdma_destroy_id(listener) };
        }
    }

    fn connect(&self, to: SocketAddr, greeting: &[u8; GREETING_BYTES]) -> Result<Pair, VerbsFault> {
        let any_port: IpAddr = self.address.ip();
        let (mut from, mut to) = (RawAddress::from(SocketAddr::new(any_port, 0)), RawAddress::from(to));
        let mut id = null_mut();
        // SAFETY: the channel is open; addresses are live during the calls; the id is destroyed with its pair, or here.
        unsafe {
            if sys::rdma_create_id(self.connections_channel, &mut id, null_mut(), sys::rdma_port_space::RDMA_PS_TCP) != 0 {
                return Err(system("rdma_create_id"));
            }
            if sys::rdma_resolve_addr(id, from.as_mut_ptr().cast(), to.as_mut_ptr().cast(), RESOLVE_MS) != 0 {
                let fault = system("rdma_resolve_addr");
                sys::rdma_destroy_id(id);
                return Err(fault);
            }
        }
        let pair = Pair(self.name_next());
        let connection = Connection { id, qp_number: None, greeting: Some(*greeting), failed: false };
        self.pairs.borrow_mut().insert(pair, connection);
        Ok(pair)
    }

    fn accept(&self, incoming: Incoming) -> Result<Pair, VerbsFault> {
        let id = self.asked.borrow_mut().remove(&incoming).expect("answered once");
        let made = self.make_pair(id);
        let number = match made {
            Ok(number) => number,
            Err(fault) => {
                // SAFETY: the id is live and destroyed once.
                unsafe {
                    sys::rdma_reject(id, std::ptr::null(), 0);
                    sys::rdma_destroy_id(id);
                }
                return Err(fault);
            }
        };
        let pair = Pair(self.name_next());
        self.by_qp.borrow_mut().insert(number, pair);
        let connection = Connection { id, qp_number: Some(number), greeting: None, failed: false };
        self.pairs.borrow_mut().insert(pair, connection);
        let mut parameters = Device::parameters(None);
        // SAFETY: the id is live.
        if unsafe { sys::rdma_accept(id, &mut parameters) } != 0 {
            self.fail(pair, format!("rdma_accept: {}", io::Error::last_os_error()));
        }
        Ok(pair)
    }

    fn refuse(&self, incoming: Incoming) {
        let id = self.asked.borrow_mut().remove(&incoming).expect("answered once");
        // SAFETY: the id is live and destroyed once.
        unsafe {
            sys::rdma_reject(id, std::ptr::null(), 0);
            sys::rdma_destroy_id(id);
        }
    }

    fn destroy(&self, pair: Pair) {
        let connection = self.pairs.borrow_mut().remove(&pair).expect("a pair is destroyed once");
        // SAFETY: the id is live and destroyed once; after rdma_destroy_qp the device neither reads nor writes for it.
        unsafe {
            if connection.qp_number.is_some() {
                // Puts the queue pair into the error state, in which it takes nothing in; fails where it was not connected.
                sys::rdma_disconnect(connection.id);
                // Its receive slots come back with these.
                self.take_completions();
                sys::rdma_destroy_qp(connection.id);
                self.take_completions();
            }
            sys::rdma_destroy_id(connection.id);
        }
        if let Some(number) = connection.qp_number {
            self.by_qp.borrow_mut().remove(&number);
        }
        // A number may come again: nothing that was said of the old pair may be taken for the new one's. The receives that are
        // found keep the old name, and go back by it.
        self.found.borrow_mut().retain(|event| match event {
            Event::Sent { pair: of, .. } | Event::Failed { pair: of, .. } | Event::Connected { pair: of } => *of != pair,
            _ => true,
        });
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
        let pairs = self.pairs.borrow();
        let connection = &pairs[&pair];
        let mut pieces: Vec<sys::ibv_sge> = Vec::with_capacity(work.len());
        let mut requests: Vec<sys::ibv_send_wr> = Vec::with_capacity(work.len());
        for one in work {
            // SAFETY: plain data, all zeros is a valid value.
            let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
            request.wr_id = one.id;
            request.num_sge = 1;
            request.opcode = sys::ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
            request.send_flags = if one.signalled { sys::ibv_send_flags::IBV_SEND_SIGNALED.0 } else { 0 };
            let piece = match &one.action {
                Action::Write { from, key, to } => {
                    request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                    request.wr.rdma = sys::rdma_t { remote_addr: to.address, rkey: to.key };
                    sys::ibv_sge { addr: from.addr() as u64, length: BLOCK_SIZE as u32, lkey: *key }
                }
                Action::WriteWord { value, to } => {
                    request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                    request.send_flags |= sys::ibv_send_flags::IBV_SEND_INLINE.0;
                    request.wr.rdma = sys::rdma_t { remote_addr: to.address, rkey: to.key };
                    sys::ibv_sge { addr: std::ptr::from_ref(value).addr() as u64, length: 8, lkey: 0 }
                }
                Action::Read { to, key, from, bytes } => {
                    request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_READ;
                    request.wr.rdma = sys::rdma_t { remote_addr: from.address, rkey: from.key };
                    sys::ibv_sge { addr: to.addr() as u64, length: *bytes, lkey: *key }
                }
                Action::Inline { header, immediate } => {
                    request.send_flags |= sys::ibv_send_flags::IBV_SEND_INLINE.0;
                    request.imm_data_invalidated_rkey_union.imm_data = immediate.to_be();
                    sys::ibv_sge { addr: header.as_ptr().addr() as u64, length: HEADER_BYTES as u32, lkey: 0 }
                }
                Action::Staged { slot, bytes, immediate } => {
                    request.imm_data_invalidated_rkey_union.imm_data = immediate.to_be();
                    let from = self.slot(self.receive_slots + slot).addr() as u64;
                    sys::ibv_sge { addr: from, length: *bytes, lkey: self.slots_key }
                }
            };
            pieces.push(piece);
            requests.push(request);
        }
        for (request, piece) in requests.iter_mut().zip(&mut pieces) {
            request.sg_list = piece;
        }
        for i in 1..requests.len() {
            requests[i - 1].next = &raw mut requests[i];
        }
        let mut bad = null_mut();
        // SAFETY: the requests are linked within a live array, and point to live pieces; what these point to is inline, in a
        // slot that is kept, or in a frame that is kept, until the work is done.
        let result = unsafe { rustydb_ibv_post_send((*connection.id).qp, requests.as_mut_ptr(), &mut bad) };
        if result == 0 {
            return Ok(());
        }
        Err(VerbsFault::System { call: "ibv_post_send", source: io::Error::from_raw_os_error(result) })
    }

    fn receive(&self, slots: &[u32]) -> Result<(), VerbsFault> {
        let piece = |slot: &u32| {
            assert!(*slot < self.receive_slots, "slot {slot} is not one to receive into");
            sys::ibv_sge { addr: self.slot(*slot).addr() as u64, length: SLOT_BYTES as u32, lkey: self.slots_key }
        };
        let mut pieces: Vec<sys::ibv_sge> = slots.iter().map(piece).collect();
        let request = |(slot, piece): (&u32, &mut sys::ibv_sge)| {
            // SAFETY: plain data, all zeros is a valid value.
            let mut request: sys::ibv_recv_wr = unsafe { std::mem::zeroed() };
            (request.wr_id, request.sg_list, request.num_sge) = (RECEIVE | u64::from(*slot), piece, 1);
            request
        };
        let mut requests: Vec<sys::ibv_recv_wr> = slots.iter().zip(&mut pieces).map(request).collect();
        for i in 1..requests.len() {
            requests[i - 1].next = &raw mut requests[i];
        }
        let mut bad = null_mut();
        // SAFETY: the requests are linked within a live array; the slots are the device's until they come back.
        let result = unsafe { rustydb_ibv_post_srq_recv(self.receives, requests.as_mut_ptr(), &mut bad) };
        if result == 0 {
            return Ok(());
        }
        Err(VerbsFault::System { call: "ibv_post_srq_recv", source: io::Error::from_raw_os_error(result) })
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
        // SAFETY: the queue is live.
        let result = unsafe { rustydb_ibv_req_notify_cq(self.completions, 0) };
        if result != 0 {
            return Err(VerbsFault::System { call: "ibv_req_notify_cq", source: io::Error::from_raw_os_error(result) });
        }
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
        // SAFETY: each was made once and is given back once, users before what they use. The completion queue goes without waiting, for
        // its events were acknowledged when they were taken.
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
