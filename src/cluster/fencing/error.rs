//! Why a node could not be fenced, or must not write, in an operator's words.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{Life, name};
use crate::config::FencingMethod;

/// Fencing did not happen, or this node is the one that was fenced.
#[derive(Debug)]
pub enum FencingError {
    /// The method can't protect this volume.
    Unable {
        /// Which method.
        method: FencingMethod,
        /// Why, and what would be needed.
        reason: String,
    },
    /// This node must register before it fences others.
    NotRegistered,
    /// This life's registration is gone: the others have fenced it. It must not write any more.
    SelfFenced {
        /// Which life.
        life: Life,
    },
    /// The permit is not this life's.
    NotPermitted {
        /// Whose it is.
        permitted: Life,
    },
    /// The path from this machine to the device is registered for somebody else.
    PathTaken {
        /// Who wanted to register.
        life: Life,
    },
    /// Somebody else's reservation is on the device.
    Reserved {
        /// The device.
        device: PathBuf,
        /// What it says.
        found: String,
    },
    /// The victim can still write.
    NotFenced {
        /// Who.
        life: Life,
        /// Why that is known, and what to do.
        reason: String,
    },
    /// The operator's command did not say that the node is fenced.
    CommandFailed {
        /// Its exit, and the end of what it wrote.
        reason: String,
    },
    /// The method didn't answer in time.
    TimedOut {
        /// Which method.
        method: FencingMethod,
        /// How long it was waited for.
        after: Duration,
    },
    /// The method still works on an earlier request, or too many wait.
    Busy {
        /// Which method; none for the queue to all of them.
        method: Option<FencingMethod>,
    },
    /// The system refused something.
    System {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// No method proved it.
    NoProof {
        /// Who is not fenced.
        life: Life,
        /// What each method said, in their order.
        attempts: Vec<FencingError>,
    },
    /// The fencing threads have ended.
    Ended,
}

impl fmt::Display for FencingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FencingError::Unable { method, reason } => write!(f, "{} can't protect this volume: {reason}", name(*method)),
            FencingError::NotRegistered => {
                f.write_str("this node is not registered with the volume's device and can't fence others")
            }
            FencingError::SelfFenced { life } => {
                write!(f, "{life} was fenced by the other nodes: it must not write, and comes back with a restart")
            }
            FencingError::NotPermitted { permitted } => {
                write!(f, "the permission to register again is for {permitted}, not for this life of this node")
            }
            FencingError::PathTaken { life } => write!(
                f,
                "{life} can't register: this machine's path to the device is registered already, by another node on this machine \
                 or by another program; give each node a path (initiator) of its own"
            ),
            FencingError::Reserved { device, found } => write!(
                f,
                "the device {} is reserved by somebody else ({found}): find out who uses it, then clear it (sg_persist --clear)",
                device.display()
            ),
            FencingError::NotFenced { life, reason } => write!(f, "{life} can still write to the volume: {reason}"),
            FencingError::CommandFailed { reason } => {
                write!(f, "the fencing command failed: {reason}; see ha.fencing.command, and run it by hand")
            }
            FencingError::TimedOut { method, after } => {
                write!(
                    f,
                    "{} did not answer within {} ms: see whether the volume's device hangs",
                    name(*method),
                    after.as_millis()
                )
            }
            FencingError::Busy { method: Some(method) } => {
                write!(f, "{} still works on an earlier request: see whether the volume's device hangs", name(*method))
            }
            FencingError::Busy { method: None } => {
                f.write_str("too many requests for fencing wait: see whether the volume's device hangs")
            }
            FencingError::System { doing, path, error } => write!(f, "can't {doing} {}: {error}", path.display()),
            FencingError::NoProof { life, attempts } => {
                write!(
                    f,
                    "{life} is not proven to be fenced, so its data is not recovered. Stop its machine, then say so: `rusty-db-cli node \
                     fence {} --confirm`",
                    life.node
                )?;
                attempts.iter().try_for_each(|attempt| write!(f, " [{attempt}]"))
            }
            FencingError::Ended => f.write_str("the fencing threads of this node have ended"),
        }
    }
}

impl std::error::Error for FencingError {}
