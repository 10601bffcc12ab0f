//! What the device is given to do, and what it says of it: work requests of the queue pairs, slots to receive into, completions.
//! The calls are the verbs' inline functions, by way of `native/`.
//!
//! In the shard's thread; this is the hot path. What a request points to is kept by the layer above until its completion: in a
//! slot, in a frame, or, where it is inline, no longer than the call.

use std::ffi::{CStr, c_int};
use std::io;
use std::ptr::null_mut;

use rdma_sys as sys;

use super::Device;
use crate::ids::BLOCK_SIZE;
use crate::interconnect::header::HEADER_BYTES;
use crate::interconnect::rdma::verbs::{Action, Event, Pair, SLOT_BYTES, VerbsFault, Work};

unsafe extern "C" {
    fn rustydb_ibv_post_send(qp: *mut sys::ibv_qp, wr: *mut sys::ibv_send_wr, bad: *mut *mut sys::ibv_send_wr) -> c_int;
    fn rustydb_ibv_post_srq_recv(srq: *mut sys::ibv_srq, wr: *mut sys::ibv_recv_wr, bad: *mut *mut sys::ibv_recv_wr) -> c_int;
    fn rustydb_ibv_poll_cq(cq: *mut sys::ibv_cq, entries: c_int, wc: *mut sys::ibv_wc) -> c_int;
    fn rustydb_ibv_req_notify_cq(cq: *mut sys::ibv_cq, solicited_only: c_int) -> c_int;
}

/// Receive work requests carry this and the slot; send requests their own name.
const RECEIVE: u64 = 1 << 63;

/// Completions taken with one call.
pub(super) const POLL_BATCH: usize = 16;

impl Device {
    /// See [`Verbs::send`](crate::interconnect::rdma::verbs::Verbs::send).
    pub(super) fn post_work(&self, pair: Pair, work: &[Work]) -> Result<(), VerbsFault> {
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

    /// See [`Verbs::receive`](crate::interconnect::rdma::verbs::Verbs::receive).
    pub(super) fn post_slots(&self, slots: &[u32]) -> Result<(), VerbsFault> {
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

    /// Takes what has completed.
    pub(super) fn take_completions(&self) {
        loop {
            let mut batch = self.completed.borrow_mut();
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

    /// Has the completion queue write to its channel when the next completion comes.
    pub(super) fn ask_for_completion_event(&self) -> Result<(), VerbsFault> {
        // SAFETY: the queue is live.
        let result = unsafe { rustydb_ibv_req_notify_cq(self.completions, 0) };
        if result != 0 {
            return Err(VerbsFault::System { call: "ibv_req_notify_cq", source: io::Error::from_raw_os_error(result) });
        }
        Ok(())
    }

    pub(super) fn drain_completion_events(&self) {
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
