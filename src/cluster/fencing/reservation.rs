//! Fencing by the device: SCSI-3 persistent reservations, and NVMe's, which the kernel offers by the same calls.
//!
//! Every node registers a [`Key`] that names its cluster, itself and its life; one of them holds a reservation *write
//! exclusive, registrants only*. From then on the device takes writes from registered paths only. PREEMPT AND ABORT
//! removes the victim's key and ends its requests; then keys and reservation are read back as proof.
//!
//! What makes it sound: a life registers only after the writes of its former life have ended (a path's key is replaced,
//! its queue is not), and never again by itself once its key is gone (only with a [`Permit`] of the quorum). The
//! reservation's holder does not unregister when it leaves, because that would lift the reservation for everybody.

use std::io;
use std::time::Duration;

use super::persistent::{DeviceError, Kind, Reservation, ReservationDevice};
use super::{Ability, FencingError, Intruder, Key, Life, Method, Permit, Proof, Standing, Strength, Victim};
use crate::config::FencingMethod;

/// How often keys are read and removed anew before a victim counts as coming back faster than it is fenced.
const ROUNDS_MAX: usize = 4;
const METHOD: FencingMethod = FencingMethod::PersistentReservation;

/// The method; `D` is a device, or a model of one in tests.
pub struct ReservationMethod<D> {
    device: D,
    cluster_id: u128,
    patience: Duration,
    /// The life of this node that was registered, whether or not it still is.
    registered: Option<Life>,
}

impl<D: ReservationDevice> ReservationMethod<D> {
    /// For the cluster whose volume is on `device`, which may take `patience` for a call.
    pub fn new(device: D, cluster_id: u128, patience: Duration) -> ReservationMethod<D> {
        ReservationMethod { device, cluster_id, patience, registered: None }
    }

    fn key(&self, life: Life) -> u64 {
        Key::new(self.cluster_id, life).0
    }

    fn life(&self, key: u64) -> Option<Life> {
        Key(key).life(self.cluster_id)
    }

    fn error(&self, doing: &'static str, error: DeviceError) -> FencingError {
        let error = match error {
            DeviceError::Unsupported(reason) => return FencingError::Unable { method: METHOD, reason },
            DeviceError::Conflict => io::Error::other("reservation conflict"),
            DeviceError::System(error) => error,
        };
        FencingError::System { doing, path: self.device.path().to_owned(), error }
    }

    fn keys(&mut self) -> Result<Vec<u64>, FencingError> {
        self.device.keys().map_err(|error| self.error("read the registered keys of", error))
    }

    fn reservation(&mut self) -> Result<Option<Reservation>, FencingError> {
        self.device.reservation().map_err(|error| self.error("read the reservation of", error))
    }

    /// This life, with its key seen on the device just now.
    fn me(&mut self, keys: &[u64]) -> Result<Life, FencingError> {
        let me = self.registered.ok_or(FencingError::NotRegistered)?;
        if keys.contains(&self.key(me)) { Ok(me) } else { Err(FencingError::SelfFenced { life: me }) }
    }

    fn put_key(&mut self, me: Life) -> Result<(), FencingError> {
        let new = self.key(me);
        let keys = self.keys()?;
        // First as if the path had no key; then in place of what a former life of this node left on it.
        let former = |life: Life| life.node == me.node && life.incarnation <= me.incarnation;
        let mut olds = vec![0];
        olds.extend(keys.iter().copied().filter(|key| self.life(*key).is_some_and(former)));
        for old in olds {
            match self.device.register(old, new) {
                Ok(()) => return Ok(()),
                Err(DeviceError::Conflict) => continue,
                Err(error) => return Err(self.error("register with", error)),
            }
        }
        Err(FencingError::PathTaken { life: me })
    }

    /// Makes sure that only registered paths may write.
    fn hold(&mut self, me: Life) -> Result<(), FencingError> {
        for _ in 0..ROUNDS_MAX {
            match self.reservation()? {
                Some(Reservation { registrants_only: true, key, .. }) if self.life(key).is_some() => return Ok(()),
                Some(found) => {
                    let found = format!("key {:#018x}, type {}", found.key, found.kind);
                    return Err(FencingError::Reserved { device: self.device.path().to_owned(), found });
                }
                None => match self.device.reserve(self.key(me)) {
                    // Another node was quicker, or this one was fenced meanwhile: see what is there now.
                    Ok(()) | Err(DeviceError::Conflict) => {
                        let keys = self.keys()?;
                        self.me(&keys)?;
                    }
                    Err(error) => return Err(self.error("reserve", error)),
                },
            }
        }
        let error = io::Error::other("the reservation comes and goes");
        Err(FencingError::System { doing: "reserve", path: self.device.path().to_owned(), error })
    }

    fn victims(&self, keys: &[u64], victim: Life) -> Vec<u64> {
        let is_victim = |life: Life| life.node == victim.node && life.incarnation <= victim.incarnation;
        let mut found: Vec<u64> = keys.iter().copied().filter(|key| self.life(*key).is_some_and(is_victim)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl<D: ReservationDevice> Method for ReservationMethod<D> {
    fn method(&self) -> FencingMethod {
        METHOD
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn probe(&mut self) -> Result<Ability, FencingError> {
        let kind = self.device.open().map_err(|error| self.error("open", error))?;
        let keys = self.keys()?;
        let reservation = self.reservation()?;
        let ours = keys.iter().filter(|key| self.life(**key).is_some()).count();
        let kind = match kind {
            Kind::Scsi => "SCSI-3 persistent reservations",
            Kind::Nvme => "NVMe reservations",
        };
        let reserved = match reservation {
            None => "not reserved yet".to_owned(),
            Some(found) if found.registrants_only => "reserved for registered nodes".to_owned(),
            Some(found) => format!("reserved by key {:#018x} with type {}", found.key, found.kind),
        };
        let others = keys.len() - ours;
        let detail = format!("{kind}: {ours} keys of this cluster, {others} of others, {reserved}");
        Ok(Ability { strength: Strength::Device, detail })
    }

    fn register(&mut self, me: Life) -> Result<(), FencingError> {
        if self.registered == Some(me) {
            // Said twice is fine. But a key that is gone was taken away, and only the quorum gives it back.
            let keys = self.keys()?;
            self.me(&keys)?;
            return self.hold(me);
        }
        self.put_key(me)?;
        self.registered = Some(me);
        self.hold(me)
    }

    fn fence(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        let keys = self.keys()?;
        let me = self.me(&keys)?;
        assert!(me != victim.life, "{me} fences itself");
        self.hold(me)?;
        for _ in 0..ROUNDS_MAX {
            let keys = self.keys()?;
            self.me(&keys)?;
            let found = self.victims(&keys, victim.life);
            if found.is_empty() {
                break;
            }
            for key in found {
                match self.device.preempt_abort(self.key(me), key) {
                    // Conflict: another survivor has done it, or has fenced this node; the keys tell which.
                    Ok(()) | Err(DeviceError::Conflict) => {}
                    Err(error) => return Err(self.error("preempt the victim's registration with", error)),
                }
            }
        }
        self.verify(victim)
    }

    fn verify(&mut self, victim: &Victim) -> Result<Proof, FencingError> {
        let keys = self.keys()?;
        self.me(&keys)?;
        let left = self.victims(&keys, victim.life);
        if let Some(key) = left.first() {
            let reason = format!("its key {key:#018x} is registered with {}", self.device.path().display());
            return Err(FencingError::NotFenced { life: victim.life, reason });
        }
        // A reservation of a foreign key would not be under this cluster's control; its removal would lift the fence.
        match self.reservation()? {
            Some(found) if found.registrants_only && self.life(found.key).is_some() => {
                let detail = format!("no key of it is registered with {}, which takes writes of registered nodes only", {
                    self.device.path().display()
                });
                Ok(Proof::new(victim.life, METHOD, Strength::Device, detail))
            }
            found => {
                let reason = format!("{} is not reserved for registered nodes ({found:?})", self.device.path().display());
                Err(FencingError::NotFenced { life: victim.life, reason })
            }
        }
    }

    fn standing(&mut self) -> Result<Standing, FencingError> {
        let keys = self.keys()?;
        match self.me(&keys) {
            Ok(_) => Ok(Standing::Registered),
            Err(FencingError::SelfFenced { .. }) => Ok(Standing::Lost),
            Err(error) => Err(error),
        }
    }

    fn reregister(&mut self, permit: &Permit) -> Result<(), FencingError> {
        let me = self.registered.ok_or(FencingError::NotRegistered)?;
        if permit.life != me {
            return Err(FencingError::NotPermitted { permitted: permit.life });
        }
        self.put_key(me)?;
        self.hold(me)
    }

    fn audit(&mut self, members: &[Life]) -> Result<Vec<Intruder>, FencingError> {
        let known: Vec<u64> = members.iter().map(|life| self.key(*life)).collect();
        let mut strangers: Vec<u64> = self.keys()?.into_iter().filter(|key| !known.contains(key)).collect();
        strangers.sort_unstable();
        strangers.dedup();
        Ok(strangers.into_iter().map(|key| self.life(key).map_or(Intruder::Foreign(key), Intruder::Life)).collect())
    }

    fn leave(&mut self) -> Result<(), FencingError> {
        let Some(me) = self.registered.take() else { return Ok(()) };
        let key = self.key(me);
        let alone = self.keys()?.iter().all(|other| *other == key);
        let holds = self.reservation()?.is_some_and(|held| held.key == key);
        if holds && !alone {
            return Ok(());
        }
        match self.device.register(key, 0) {
            Ok(()) | Err(DeviceError::Conflict) => Ok(()),
            Err(error) => Err(self.error("unregister from", error)),
        }
    }
}
