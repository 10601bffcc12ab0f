//! What RustyDB's programs are made of: the server with its development cluster, and the operator's
//! client.

pub mod cli;
pub mod http;
pub mod server;
