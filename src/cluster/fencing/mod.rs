//! Fencing: a node that is declared dead cannot write to the volume any more, and that is *proven* before its data is
//! recovered.
//!
//! A [`Method`] is one way to do it. Methods block (an ioctl on a hung device takes as long as it takes), so each lives on
//! a thread of its own behind a [`Fencer`], which any shard may ask and which answers by a cross-thread oneshot. They use
//! the system directly, not the reactor's driver: a simulation gives the `Fencer`'s callers a method of its own. Waiting
//! is bounded by [`Method::patience`], queues by [`REQUESTS_MAX`].
//!
//! What recovery relies on: a [`Proof`] about a life of a node means that no write that this life has begun or will begin
//! reaches the volume from now on. What "means" rests on is its [`Strength`]. docs/fencing.md tells operators the rest.

mod command;
mod error;
mod fences;
mod key;
mod lease;
mod persistent;
mod process;
mod reservation;
#[cfg(test)]
mod tests;
mod thread;
mod watchdog;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

pub use self::command::CommandMethod;
pub use self::error::FencingError;
pub use self::fences::{Fences, ThreadFences};
pub use self::key::Key;
pub use self::lease::{Evicted, Held, Lease, LeaseMethod, Renewal};
pub use self::persistent::{DeviceError, Kind, PersistentReservations, Reservation, ReservationDevice};
pub use self::process::ProcessMethod;
pub(in crate::cluster) use self::process::life_lock;
pub use self::reservation::ReservationMethod;
pub use self::thread::{Fencer, REQUESTS_MAX};
pub use self::watchdog::Watchdog;
use crate::config::{FencingMethod, HaConfig};
use crate::ids::{Epoch, Incarnation, NodeId};

/// One life of a node: what is fenced, and what registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// Which of its lives.
    pub incarnation: Incarnation,
}

/// Whom to fence, and what is known about it.
#[derive(Clone, Debug)]
pub struct Victim {
    /// This life of the node and all before it.
    pub life: Life,
    /// Its interconnect address, for an operator's command.
    pub address: Option<SocketAddr>,
    /// Its process, for an operator's command. Only a hint: it is never killed by this number alone.
    pub pid: Option<u32>,
    /// How long ago, at least, the mark that evicts this life became durable in the voting area. Without it a lease
    /// never counts as run out; see [`Lease`].
    pub evicted_ago: Option<Duration>,
}

/// What a proof rests on, from the strongest to the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// The device refuses the victim's writes, and has dropped those that were on their way.
    Device,
    /// The victim's process is gone, and the kernel that carried out its writes says that there are none left.
    Process,
    /// The operator's command said so.
    Operator,
    /// The victim's lease is over: it has stopped by itself, or its watchdog has reset the machine.
    Lease,
}

/// That a life of a node can't write to the volume any more. Only a [`Method`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Proof {
    life: Life,
    method: FencingMethod,
    strength: Strength,
    detail: String,
}

impl Proof {
    /// For implementations of [`Method`] only: `life` and all lives before it are fenced, and `detail` says how that is
    /// known.
    pub fn new(life: Life, method: FencingMethod, strength: Strength, detail: String) -> Proof {
        Proof { life, method, strength, detail }
    }

    /// Who is fenced: this life, and all before it of the same node.
    #[must_use]
    pub fn life(&self) -> Life {
        self.life
    }

    /// Which method proved it.
    #[must_use]
    pub fn method(&self) -> FencingMethod {
        self.method
    }

    /// What it rests on.
    #[must_use]
    pub fn strength(&self) -> Strength {
        self.strength
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is fenced by {}: {}", self.life, name(self.method), self.detail)
    }
}

/// What a method can do for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ability {
    /// What its proofs rest on.
    pub strength: Strength,
    /// For an operator: what protects the volume, and what does not.
    pub detail: String,
}

/// That a life which has lost its registration may register again: the quorum still counts it as a member, in `epoch`.
/// Only the control group's agreement may make one; a node must not give it to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Who may.
    pub life: Life,
    /// In which epoch it was agreed.
    pub epoch: Epoch,
}

/// Whether this node may still write, as the method sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its registration is there, or the method knows none.
    Registered,
    /// Its registration is gone: it was fenced, or the device forgot. It must stop writing until it has a [`Permit`].
    Lost,
}

/// Who is registered with the device and should not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Intruder {
    /// A life of a node of this cluster that is no member now; its incarnation modulo 2^32.
    Life(Life),
    /// A key that is none of this cluster's: another program or cluster uses the device.
    Foreign(u64),
}

/// One way of keeping a node from the volume. All calls block and are made by one thread.
pub trait Method: Send {
    /// Which one it is.
    fn method(&self) -> FencingMethod;

    /// The longest that any call may take before it counts as hung.
    fn patience(&self) -> Duration;

    /// What this method can do for the volume, found out without changing anything.
    ///
    /// # Errors
    /// [`FencingError::Unable`] with the reason, or what went wrong on the way.
    fn probe(&mut self) -> Result<Ability, FencingError>;

    /// Makes this node known, before its first write and after the last write of its former life has ended (it holds the
    /// life lock of decision 0002): a registration is replaced by the next life's.
    ///
    /// # Errors
    /// [`FencingError::SelfFenced`] when this very life was registered before and is no more.
    fn register(&mut self, me: Life) -> Result<(), FencingError>;

    /// Keeps `victim` from the volume and proves it. Done twice, by one survivor or by two at once, it proves it twice.
    ///
    /// # Errors
    /// Whatever kept it from being proven; then nothing may be recovered on its account.
    fn fence(&mut self, victim: &Victim) -> Result<Proof, FencingError>;

    /// Proves that `victim` is fenced, without doing anything to it.
    ///
    /// # Errors
    /// [`FencingError::NotFenced`] when it isn't (any more).
    fn verify(&mut self, victim: &Victim) -> Result<Proof, FencingError>;

    /// Whether this node's registration is still there. To be asked after every error of a write and after the device was
    /// lost for a while.
    ///
    /// # Errors
    /// When the device doesn't say.
    fn standing(&mut self) -> Result<Standing, FencingError> {
        Ok(Standing::Registered)
    }

    /// Registers a life again whose registration is gone, with the cluster's permission.
    ///
    /// # Errors
    /// As [`Method::register`]; [`FencingError::NotPermitted`] when the permit is another life's.
    fn reregister(&mut self, _permit: &Permit) -> Result<(), FencingError> {
        Ok(())
    }

    /// Who is registered beside `members`.
    ///
    /// # Errors
    /// When the device doesn't say.
    fn audit(&mut self, _members: &[Life]) -> Result<Vec<Intruder>, FencingError> {
        Ok(Vec::new())
    }

    /// This node has written its last and goes in peace.
    ///
    /// # Errors
    /// When the device refuses; the registration then stays and is replaced by the next life's.
    fn leave(&mut self) -> Result<(), FencingError> {
        Ok(())
    }
}

/// A method's name as the configuration writes it.
#[must_use]
pub fn name(method: FencingMethod) -> &'static str {
    match method {
        FencingMethod::PersistentReservation => "persistent_reservation",
        FencingMethod::Command => "command",
        FencingMethod::Process => "process",
        FencingMethod::Lease => "lease",
    }
}

/// The configured methods for a volume, in the configured order. Nothing is opened yet: that is what probing does.
#[must_use]
pub fn methods(ha: &HaConfig, volume: &Path, cluster_id: u128) -> Vec<Box<dyn Method>> {
    let fencing = &ha.fencing;
    let limit = Duration::from_millis(fencing.method_timeout);
    ha.fencing_method
        .as_slice()
        .iter()
        .map(|method| -> Box<dyn Method> {
            match method {
                FencingMethod::PersistentReservation => {
                    Box::new(ReservationMethod::new(PersistentReservations::new(volume), cluster_id, limit))
                }
                FencingMethod::Command => {
                    Box::new(CommandMethod::new(fencing.command.clone(), Duration::from_millis(fencing.command_timeout)))
                }
                FencingMethod::Process => Box::new(ProcessMethod::new(volume, fencing.kill_process, limit)),
                FencingMethod::Lease => Box::new(LeaseMethod::new(fencing)),
            }
        })
        .collect()
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (incarnation {})", self.node, self.incarnation.0)
    }
}

impl fmt::Display for Intruder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Intruder::Life(life) => write!(f, "{life} is registered with the device and is no member: fence it again"),
            Intruder::Foreign(key) => {
                write!(f, "the key {key:#018x} is registered with the device and is not this cluster's: see who else uses it")
            }
        }
    }
}
