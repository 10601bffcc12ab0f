//! What waits to be sent to one peer. Owned by the connection; bounded in bytes by a setting.
//!
//! Headers and small bodies are written one behind the other into shared buffers as they are queued; blocks stay where
//! they lie and are only referred to. So everything queued in one turn leaves in one vectored send, without a copy of a block.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::header::{HEADER_BYTES, Header};
use crate::ids::BLOCK_SIZE;
use crate::reactor::IoBuf;

/// Bytes after which a run of headers and small bodies is continued in another buffer.
const RUN_BYTES: usize = 64 * 1024;

/// Most buffers in one vectored send (the system's limit is 1,024).
const BATCH_BUFFERS_MAX: usize = 256;

/// Bytes after which a batch is sent though more is waiting.
const BATCH_BYTES: usize = 1024 * 1024;

/// Bytes that a run buffer starts with: a few small messages, the common batch.
const RUN_BYTES_FIRST: usize = 512;

/// Body of a queued message.
pub(super) enum QueuedBody<'a> {
    Bytes(&'a [u8]),
    Block(IoBuf),
}

enum Part {
    Run(Vec<u8>),
    Block(IoBuf),
}

/// The send queue of one connection.
#[derive(Default)]
pub(super) struct SendQueue {
    parts: VecDeque<Part>,
    bytes: usize,
    messages: usize,
}

impl SendQueue {
    /// Bytes that wait, headers included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages queued since the queue was last empty.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Queues one message behind the others.
    pub fn push(&mut self, header: &Header, body: QueuedBody<'_>) {
        let summed: &[u8] = match &body {
            QueuedBody::Bytes(bytes) => bytes,
            QueuedBody::Block(_) => &[],
        };
        let wire = header.seal(summed);
        let run = match self.parts.back_mut() {
            Some(Part::Run(run)) if run.len() < RUN_BYTES => run,
            _ => {
                self.parts.push_back(Part::Run(Vec::with_capacity(RUN_BYTES_FIRST)));
                let Some(Part::Run(run)) = self.parts.back_mut() else { unreachable!("a run was pushed above") };
                run
            }
        };
        run.extend_from_slice(wire.as_bytes());
        run.extend_from_slice(summed);
        self.bytes += HEADER_BYTES + summed.len();
        self.messages += 1;
        if let QueuedBody::Block(block) = body {
            assert_eq!(block.len(), BLOCK_SIZE, "a block body is one block");
            self.bytes += BLOCK_SIZE;
            self.parts.push_back(Part::Block(block));
        }
    }

    /// Takes the next batch out; empty when nothing waits.
    pub fn take_batch(&mut self) -> Vec<IoBuf> {
        let mut batch = Vec::with_capacity(self.parts.len().min(BATCH_BUFFERS_MAX));
        let mut bytes = 0;
        while batch.len() < BATCH_BUFFERS_MAX && bytes < BATCH_BYTES {
            let Some(part) = self.parts.pop_front() else { break };
            let buffer = match part {
                Part::Run(run) => IoBuf::from_vec(run),
                Part::Block(block) => block,
            };
            bytes += buffer.len();
            batch.push(buffer);
        }
        self.bytes -= bytes;
        if self.parts.is_empty() {
            self.messages = 0;
        }
        batch
    }
}
