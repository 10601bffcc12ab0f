//! An operation as the ring sees it: the entry that is made of it, and what the kernel reads and writes of it besides its
//! buffers.
//!
//! In the driver's thread. Everything that an entry points to lies in the operation's place in the slab, or in its boxed
//! message, until the completion: neither moves. An operation takes one entry, a write whose sync follows it two that are
//! linked.

use std::os::fd::AsRawFd;

use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{opcode, squeue};

use super::super::system::RawAddress;
use super::super::{DurableMethod, Handle, Operation, Token, fill_io_vectors};
use super::{FIXED_FILES, UringDriver};

/// Message headers kept for the next vectored send, accept or connect.
pub(super) const SPARE_MESSAGES: usize = 64;

/// An operation that the kernel has, or is to get with the turn's others.
pub(super) struct InFlight {
    pub(super) token: Token,
    pub(super) operation: Operation,
    /// The socket that a connect is making.
    pub(super) connecting: Option<Handle>,
    pub(super) message: Option<Box<Message>>,
    /// Of a write with a linked sync: the write's result, once it is known.
    pub(super) written: Option<i32>,
}

/// What the kernel reads and writes besides the buffers; in a box because its address must not change.
pub(super) struct Message {
    header: libc::msghdr,
    vectors: Vec<libc::iovec>,
    pub(super) address: RawAddress,
}

impl UringDriver {
    pub(super) fn start_receives(&mut self) {
        let mut receives = std::mem::take(&mut self.receives);
        receives.drain(..).for_each(|index| self.start(index));
        self.receives = receives;
    }

    /// Sends an operation, which lies in the slab at `index`, to the ring.
    pub(super) fn start(&mut self, index: u32) {
        let handle = self.operations[index].connecting.or(self.operations[index].operation.handle());
        let handle = handle.expect("a connect has got its socket by now");
        let fd = self.descriptors.get(handle).fd.as_raw_fd();
        let durable_method = self.descriptors.get(handle).durable;
        let fixed = (self.fixed_files && handle.index < FIXED_FILES).then_some(Fixed(handle.index));
        let memory = match &self.operations[index].operation {
            Operation::Read { buffer, .. } | Operation::Write { buffer, .. } => self.memory.find(buffer.as_ptr(), buffer.len()),
            _ => None,
        };
        let in_flight = &mut self.operations[index];
        let message = &mut in_flight.message;
        /// Builds the entry for the ring's own number of the file where it has one.
        macro_rules! on_file {
            (|$target:ident| $entry:expr) => {
                match fixed {
                    Some($target) => $entry.build(),
                    None => {
                        let $target = Fd(fd);
                        $entry.build()
                    }
                }
            };
        }
        let mut sync_after = false;
        let entry = match &mut in_flight.operation {
            Operation::Read { offset, buffer, .. } => {
                let (pointer, len) = (buffer.as_mut_ptr(), length(buffer.len()));
                match memory {
                    Some(memory) => on_file!(|file| opcode::ReadFixed::new(file, pointer, len, memory).offset(*offset)),
                    None => on_file!(|file| opcode::Read::new(file, pointer, len).offset(*offset)),
                }
            }
            Operation::Write { offset, buffer, durable, .. } => {
                let (pointer, len) = (buffer.as_ptr(), length(buffer.len()));
                sync_after = *durable && durable_method == DurableMethod::WriteThenSync;
                let flags = if *durable && !sync_after { libc::RWF_DSYNC } else { 0 };
                match memory {
                    Some(memory) => {
                        on_file!(|file| opcode::WriteFixed::new(file, pointer, len, memory).offset(*offset).rw_flags(flags))
                    }
                    None => on_file!(|file| opcode::Write::new(file, pointer, len).offset(*offset).rw_flags(flags)),
                }
            }
            Operation::Sync { .. } => on_file!(|file| opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC)),
            Operation::Readable { .. } => on_file!(|file| opcode::PollAdd::new(file, libc::POLLIN as u32)),
            Operation::Accept { .. } => {
                let address = &mut message.as_mut().expect("set at submit").address;
                let (pointer, len) = (address.as_mut_ptr(), &raw mut address.length);
                on_file!(|file| opcode::Accept::new(file, pointer, len).flags(libc::SOCK_CLOEXEC))
            }
            Operation::Connect { .. } => {
                let address = &message.as_ref().expect("set at submit").address;
                on_file!(|file| opcode::Connect::new(file, address.as_ptr(), address.length))
            }
            Operation::Send { buffer, done, .. } => {
                let rest = &buffer.as_slice()[*done..];
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                on_file!(|file| opcode::Send::new(file, rest.as_ptr(), length(rest.len())).flags(flags))
            }
            Operation::SendVectored { buffers, done, .. } => {
                let message = message.as_mut().expect("set at submit");
                fill_io_vectors(&mut message.vectors, buffers, *done);
                message.header.msg_iov = message.vectors.as_mut_ptr();
                message.header.msg_iovlen = message.vectors.len();
                let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
                on_file!(|file| opcode::SendMsg::new(file, &message.header).flags(flags))
            }
            Operation::Receive { buffer, done, exact, .. } => {
                let rest = &mut buffer.as_mut_slice()[*done..];
                let flags = if *exact { libc::MSG_WAITALL } else { 0 };
                on_file!(|file| opcode::Recv::new(file, rest.as_mut_ptr(), length(rest.len())).flags(flags))
            }
        };
        let name = u64::from(index) << 1;
        if sync_after {
            let sync = on_file!(|file| opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC));
            self.push(&[entry.flags(squeue::Flags::IO_LINK).user_data(name), sync.user_data(name | 1)]);
        } else {
            self.push(&[entry.user_data(name)]);
        }
    }

    pub(super) fn message(&mut self, address: RawAddress) -> Box<Message> {
        match self.spare.pop() {
            Some(mut message) => {
                message.address = address;
                message
            }
            None => {
                // SAFETY: msghdr is plain data, all zeros is a valid value.
                let header = unsafe { std::mem::zeroed() };
                Box::new(Message { header, vectors: Vec::new(), address })
            }
        }
    }
}

pub(super) fn length(len: usize) -> u32 {
    u32::try_from(len).expect("an operation moves less than 4 GiB")
}
