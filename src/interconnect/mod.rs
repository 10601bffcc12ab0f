//! Messages between nodes: framing, connections, heartbeats, dispatch to the services.
//!
//! One [`Interconnect`] per shard, owned by that shard's thread; shard i of a node talks only to shard i of other nodes,
//! over one connection per pair. What bounds it: per peer a send queue, one receive buffer and one message under
//! construction; a fixed number of half-open connections. What it promises: messages to one peer arrive in the order in
//! which they were sent, whole, at most once, or the peer is reported down; never a message of another epoch or of
//! an earlier life of the peer; a block lies in the frame that its handler reserved.

mod header;
mod hello;

pub use self::header::{
    BODY_BYTES_MAX, FLAG_BLOCK, FLAGS_OF_SERVICE, FrameFault, HEADER_BYTES, Header, Message, Service, WireHeader,
};
pub use self::hello::{Expected, HELLO_BYTES, HELLO_MAGIC, Hello, HelloFault, PROTOCOL_VERSION, WireHello};
