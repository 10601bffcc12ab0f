//! What RustyDB's processes share with others on their host, in memory: a node's live statistics, which tools read without
//! asking the node, also after it has died; and rings for requests and replies, with a client for programs to which SQL's own
//! protocol is too slow.
//!
//! Knows neither the engine nor any runtime. `docs/shm.md` tells what is promised, `docs/formats.md` draws every byte.

pub mod native;
pub mod statistics;
