//! What RustyDB's programs are made of: the server with its development cluster, the operator's
//! client, and the simulator.

pub mod cli;
pub mod http;
pub mod server;
pub mod sim;
