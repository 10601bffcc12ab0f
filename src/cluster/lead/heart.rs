//! The node's signs of life on the disk, and what is done about the others', and about a volume that no longer answers.
//!
//! In the first shard's thread; the [`Heart`] itself is [`pulse`](crate::cluster::pulse). From the first view on until the slot
//! says that the node has stopped.

use std::rc::Rc;
use std::time::Duration;

use super::{Lead, LeadParts};
use crate::cluster::node::End;
use crate::cluster::pulse::{Finding, Heart, HeartParts};
use crate::cluster::shard::ShardLife;
use crate::cluster::view::Input;
use crate::txn::Obstacle;

impl Lead {
    /// Begins to show and to watch the signs of life on the disk.
    pub(super) fn beat(self: &Rc<Self>) -> Result<(), End> {
        let LeadParts { reactor, context, volume, life, .. } = &self.parts;
        // Weak: the lead keeps the heart.
        let (agent, me, found) = (self.parts.agent.clone(), context.node, Rc::downgrade(self));
        let lease = self.parts.fences.lease();
        if lease.is_some() {
            tracing::info!("this node writes under a lease that its heartbeats on the disk renew");
        }
        let heart = Heart::start(HeartParts {
            reactor: reactor.clone(),
            volume: volume.clone(),
            log: life.log(),
            me: context.node,
            life: self.slot.borrow().incarnation,
            interval: Duration::from_millis(context.config.ha.disk_heartbeat_interval),
            timeout: Duration::from_millis(context.config.ha.disk_timeout),
            lease,
            watchdog: self.parts.fences.arm_watchdog()?,
            members: Rc::new(move || {
                let members = agent.view().into_iter().flat_map(|view| view.members);
                members.filter(|(node, _)| *node != me).collect()
            }),
            found: Rc::new(move |finding| {
                if let Some(lead) = found.upgrade() {
                    lead.on_finding(finding);
                }
            }),
        });
        *self.heart.borrow_mut() = Some(heart);
        Ok(())
    }

    fn on_finding(self: &Rc<Self>, finding: Finding) {
        let LeadParts { context, agent, .. } = &self.parts;
        match finding {
            Finding::Suspected(node) => {
                tracing::error!(%node, "its heartbeat on the disk stands still: its disk or its process hangs");
                agent.input(Input::Suspected(node));
            }
            Finding::Trusted(node) => {
                tracing::info!(%node, "it beats on the disk again");
                agent.input(Input::Trusted(node));
            }
            Finding::OwnDiskStalled => {
                let (volume, timeout) = (context.volume.display(), context.config.ha.disk_timeout);
                let reason =
                    format!("the volume {volume} has not answered this node for {timeout} ms: check its path to the disk");
                tracing::error!("suspended: {reason}");
                context.shared.serving.suspend(Obstacle::Disk, reason);
                self.tell_phase();
            }
            Finding::OwnDiskAnswers => {
                tracing::info!("the volume answers again");
                context.shared.serving.resume(Obstacle::Disk);
                self.tell_phase();
            }
            Finding::Evicted(by) => {
                self.fail(End::Over(format!("{by} has evicted this life of the node; it joins again in its next")));
            }
            Finding::LeaseUntil(until) => {
                self.spawn("renew the lease", async move |lead| {
                    let renew = async move |life: Rc<ShardLife>| {
                        life.write_until(until);
                        Ok(())
                    };
                    lead.each_shard("renew the lease", renew).await.map(|_| ())
                });
            }
            Finding::LeaseLost => {
                self.fail(End::Over("its lease on the volume has run out: the disk did not take its heartbeats".into()));
            }
        }
    }
}
