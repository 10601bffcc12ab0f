//! The native way to a node, for programs on its host to which SQL's own protocol is too slow: requests and replies through
//! rings in shared memory, or the same messages over TCP.
//!
//! [`Client`] is a program's side, [`Endpoint`] the server's; what a request means is the server's [`Handler`]. A thread for
//! each client, on both sides; bounded by [`EndpointOptions::clients_max`] for each of the two kinds, [`ring::RING_BYTES`] for each ring and
//! [`MESSAGE_BYTES_MAX`] for each message. The server trusts nothing that a client can write: every position, length and
//! count is copied once and checked, and the memory is sealed against being cut short. A client that breaks the rules loses
//! its connection, and nobody else notices.

mod client;
mod leaving;
mod link;
mod ring;
mod serve;
#[cfg(test)]
mod tests;
pub mod wire;

pub use client::{Client, ClientError, ClientOptions, Found};
pub use serve::{Endpoint, EndpointOptions, Handler, Interrupter, Refusal};
pub use wire::{Isolation, MESSAGE_BYTES_MAX, Reply, Request, Value};
