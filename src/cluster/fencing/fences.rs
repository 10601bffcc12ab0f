//! What a node's lead asks of fencing: a door that the configured methods, on their threads, stand behind; a simulation
//! gives one of its own.
//!
//! Owned by the first shard's thread; the waiting is bounded by the methods' patience.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::{Fencer, FencingError, Lease, Life, Proof, Victim, Watchdog, methods};
use crate::cache::LocalFuture;
use crate::config::{FencingConfig, FencingMethod, FencingMethods, HaConfig, WatchdogUse};

/// Keeps nodes from the volume.
pub trait Fences {
    /// Makes this node known, before its first write as this life.
    fn register(&self, me: Life) -> LocalFuture<Result<(), FencingError>>;

    /// Keeps a life, and those before it, from the volume and proves it.
    fn fence(&self, victim: Victim) -> LocalFuture<Result<Proof, FencingError>>;

    /// Whether a node's next life proves that its former one is over: it can't have begun, on the volume, before the last
    /// write of that one had ended. So it is where all lives of a node run on one machine, and wait for each other's locks.
    fn next_life_is_proof(&self) -> bool;

    /// The lease under which this node writes, where leases are what keeps dead nodes from the volume.
    fn lease(&self) -> Option<Lease>;

    /// The watchdog that resets this machine when its node can't stop by itself, armed; where there is one to be used with
    /// the lease.
    ///
    /// # Errors
    /// When there is one, and it can't be armed.
    fn arm_watchdog(&self) -> Result<Option<Watchdog>, FencingError> {
        Ok(None)
    }
}

/// The configured methods.
pub struct ThreadFences {
    fencer: Fencer,
    /// What the methods' probes have found, once this node is registered.
    able: Rc<RefCell<Vec<FencingMethod>>>,
    config: FencingConfig,
}

impl ThreadFences {
    /// Starts the methods' threads, which find out by themselves what they can do for the volume.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn start(ha: &HaConfig, volume: &Path, cluster_id: u128) -> Result<Rc<dyn Fences>, std::io::Error> {
        // Named by the operator, a lease is kept; found in the default list, only where there is nothing better.
        let last_resort = ha.fencing_method == FencingMethods::default();
        let fencer = Fencer::start_with(methods(ha, volume, cluster_id), volume.display().to_string(), last_resort)?;
        Ok(Rc::new(ThreadFences { fencer, able: Rc::default(), config: ha.fencing.clone() }))
    }
}

impl Fences for ThreadFences {
    fn register(&self, me: Life) -> LocalFuture<Result<(), FencingError>> {
        let (asked, registered) = (self.fencer.able(), self.fencer.register(me));
        let able = self.able.clone();
        Box::pin(async move {
            *able.borrow_mut() = asked.await.unwrap_or(Err(FencingError::Ended))?;
            registered.await.unwrap_or(Err(FencingError::Ended))
        })
    }

    fn fence(&self, victim: Victim) -> LocalFuture<Result<Proof, FencingError>> {
        let fenced = self.fencer.fence(victim);
        Box::pin(async move { fenced.await.unwrap_or(Err(FencingError::Ended)) })
    }

    fn next_life_is_proof(&self) -> bool {
        self.able.borrow().contains(&FencingMethod::Process)
    }

    fn lease(&self) -> Option<Lease> {
        self.able.borrow().contains(&FencingMethod::Lease).then(|| Lease::new(self.config.lease()))
    }

    fn arm_watchdog(&self) -> Result<Option<Watchdog>, FencingError> {
        let device = &self.config.watchdog_device;
        let wanted = self.config.watchdog != WatchdogUse::Off && self.lease().is_some();
        if !wanted || (self.config.watchdog == WatchdogUse::Auto && !device.exists()) {
            return Ok(None);
        }
        Watchdog::arm(device, Duration::from_secs(self.config.watchdog_timeout)).map(Some)
    }
}
