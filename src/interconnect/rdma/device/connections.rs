//! The device's connections: listening, asking and answering, queue pairs that come and go. By librdmacm, whose events are taken
//! one after the other, without waiting.
//!
//! In the shard's thread. A connection's id and queue pair are given back once, by whoever ends the pair; from then on the device
//! neither reads nor writes for it. What one that asks says in its greeting is for the layer above to judge.

use std::ffi::{CStr, c_int};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ptr::null_mut;

use rdma_sys as sys;
use sys::rdma_cm_event_type as cm;

use super::{Device, system};
use crate::interconnect::header::HEADER_BYTES;
use crate::interconnect::rdma::verbs::{Event, GREETING_BYTES, Incoming, Pair, SEND_QUEUE_DEPTH, VerbsFault};
use crate::reactor::driver::RawAddress;

/// Milliseconds that finding the other side's address, or the way there, may take.
const RESOLVE_MS: c_int = 2_000;

/// Connections that may wait to be answered.
const BACKLOG: c_int = 32;

/// Reads of a connection that a device works on at a time; more wait in its queue, and with them what stands behind.
const READS_AT_ONCE: u8 = 4;

pub(super) struct Connection {
    pub(super) id: *mut sys::rdma_cm_id,
    pub(super) qp_number: Option<u32>,
    pub(super) greeting: Option<[u8; GREETING_BYTES]>,
    pub(super) failed: bool,
}

impl Device {
    pub(super) fn listen(&mut self) -> Result<(), VerbsFault> {
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
            // iWARP would listen on TCP's own ports, and its reads want more rights where they land.
            if (*(*self.context).device).transport_type != sys::ibv_transport_type::IBV_TRANSPORT_IB {
                return Err(VerbsFault::NotSupported { device: self.name.clone() });
            }
            if sys::rdma_listen(listener, BACKLOG) != 0 {
                return Err(system("rdma_listen"));
            }
        }
        Ok(())
    }

    /// See [`Verbs::stop_listening`](crate::interconnect::rdma::verbs::Verbs::stop_listening).
    pub(super) fn end_listening(&self) {
        let asked: Vec<Incoming> = self.asked.borrow().keys().copied().collect();
        asked.into_iter().for_each(|incoming| self.turn_away(incoming));
        let listener = self.listener.replace(null_mut());
        if !listener.is_null() {
            // SAFETY: it was live until now, and is destroyed once.
            unsafe { sys::rdma_destroy_id(listener) };
        }
    }

    /// See [`Verbs::connect`](crate::interconnect::rdma::verbs::Verbs::connect).
    pub(super) fn begin_connecting(&self, to: SocketAddr, greeting: &[u8; GREETING_BYTES]) -> Result<Pair, VerbsFault> {
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

    /// See [`Verbs::accept`](crate::interconnect::rdma::verbs::Verbs::accept).
    pub(super) fn take_in(&self, incoming: Incoming) -> Result<Pair, VerbsFault> {
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

    /// See [`Verbs::refuse`](crate::interconnect::rdma::verbs::Verbs::refuse).
    pub(super) fn turn_away(&self, incoming: Incoming) {
        let id = self.asked.borrow_mut().remove(&incoming).expect("answered once");
        // SAFETY: the id is live and destroyed once.
        unsafe {
            sys::rdma_reject(id, std::ptr::null(), 0);
            sys::rdma_destroy_id(id);
        }
    }

    /// See [`Verbs::destroy`](crate::interconnect::rdma::verbs::Verbs::destroy).
    pub(super) fn end_pair(&self, pair: Pair) {
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

    /// Takes what has happened to connections.
    pub(super) fn take_connections(&self) {
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
}
