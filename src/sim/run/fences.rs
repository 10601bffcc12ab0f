//! Fencing in the simulation: a shared disk with persistent reservations, kept by [`DiskGates`].
//!
//! Shared by the nodes of a run, as the device is. Bounded by the lives of a run.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::supervisor::host;
use crate::cache::LocalFuture;
use crate::cluster::fencing::{Fences, FencingError, Lease, Life, Proof, Strength, Victim};
use crate::config::FencingMethod;
use crate::ids::{Incarnation, NodeId};
use crate::reactor::driver::sim::{DiskGates, HostId};

/// The device's registrations: which life of which host is which life of a node.
pub(super) struct SimFences {
    gates: DiskGates,
    registered: RefCell<BTreeMap<(NodeId, Incarnation), u32>>,
    asked: Cell<u64>,
}

fn host_of(node: NodeId) -> HostId {
    host(usize::from(node.0) - 1)
}

impl SimFences {
    pub(super) fn new(gates: DiskGates) -> Rc<SimFences> {
        Rc::new(SimFences { gates, registered: RefCell::default(), asked: Cell::new(0) })
    }

    /// How often somebody wanted somebody fenced.
    pub(super) fn asked(&self) -> u64 {
        self.asked.get()
    }
}

impl Fences for SimFences {
    fn register(&self, me: Life) -> LocalFuture<Result<(), FencingError>> {
        let life = self.gates.life_of(host_of(me.node));
        self.registered.borrow_mut().insert((me.node, me.incarnation), life);
        Box::pin(std::future::ready(Ok(())))
    }

    fn fence(&self, victim: Victim) -> LocalFuture<Result<Proof, FencingError>> {
        let Life { node, incarnation } = victim.life;
        self.asked.set(self.asked.get() + 1);
        let registered = self.registered.borrow();
        // The newest life that is meant: those before it are refused with it. One that never registered can't write.
        let newest = registered.range((node, Incarnation(0))..=(node, incarnation)).next_back().map(|(_, life)| *life);
        let mut strength = Strength::Process;
        if let Some(life) = newest {
            // Also when another coordinator has had it refused before: it may read until its lease has run out.
            strength = Strength::Device;
            self.gates.refuse_writes(host_of(node), life);
        }
        let detail = "the simulated disk refuses its writes".into();
        let proof = Proof::new(victim.life, FencingMethod::PersistentReservation, strength, detail);
        Box::pin(std::future::ready(Ok(proof)))
    }

    fn next_life_is_proof(&self) -> bool {
        true
    }

    fn lease(&self) -> Option<Lease> {
        None
    }
}
