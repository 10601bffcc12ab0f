//! What the lead does to the volume for the whole cluster: replays all redo when nobody serves, begins epochs, empties the redo
//! areas of nodes that have been recovered.
//!
//! In the first shard's thread, one after the other: whoever calls holds [`Lead`]'s turn for such work. That one node of the
//! cluster does it at a time is the membership's to see to.

use std::rc::Rc;

use super::Lead;
use crate::cluster::node::End;
use crate::cluster::recovery;
use crate::cluster::view::Input;
use crate::ids::{Epoch, NodeId, Scn};
use crate::volume::{ControlBlock, Roster};
use crate::wal::Log;

impl Lead {
    pub(super) async fn recover_volume(&self, known: Epoch, roster: &Roster) -> Result<Input, End> {
        if let Some(newer) = self.newer_than(known).await? {
            return Ok(Input::RosterOutdated(newer));
        }
        let status = self.parts.context.status.clone();
        let progress = Rc::new(move |done, total| {
            if done % 256 == 0 || done == total {
                status.detail(format!("replays the redo: {done} of {total} blocks"));
            }
        });
        let report = recovery::recover(&self.parts.reactor, &self.parts.volume, progress).await?;
        tracing::info!(
            groups = report.groups, blocks = report.blocks, written = report.written, scn = %report.scn,
            "the volume is recovered"
        );
        if let Some(newer) = self.newer_than(known).await? {
            return Ok(Input::RosterOutdated(newer));
        }
        let control = self.parts.volume.read_control().await?;
        let (epoch, scn) = self.begin_epoch(control, Epoch(0), report.scn, roster).await?;
        Ok(Input::Recovered { epoch, scn })
    }

    /// Begins an epoch on the volume, durably. Nobody draws an SCN of an earlier epoch in it, also when this machine's
    /// clock is behind (rule 10).
    pub(super) async fn begin_epoch(
        &self,
        mut control: ControlBlock,
        at_least: Epoch,
        found: Scn,
        roster: &Roster,
    ) -> Result<(Epoch, Scn), End> {
        let (reactor, context, volume) = (&self.parts.reactor, &self.parts.context, &self.parts.volume);
        control.epoch = Epoch(control.epoch.0 + 1).max(at_least);
        control.formed_by = context.node;
        control.members = roster.voters().fold(0, |members, node| members | 1 << node.0);
        control.roster = roster.clone();
        let seen = found.max(control.scn).max(context.shared.clock.latest());
        control.scn = seen.max(Scn::from_unix_ms(reactor.wall_ms())).next();
        control.formed_ms = reactor.wall_ms();
        volume.write_control(&mut control).await?;
        Ok((control.epoch, control.scn))
    }

    /// Resets the redo areas of nodes that have been recovered: their next lives begin with empty logs.
    pub(super) async fn release_redo(&self, nodes: &[NodeId]) -> Result<(), End> {
        let (reactor, volume) = (&self.parts.reactor, &self.parts.volume);
        for node in nodes {
            let slot = volume.read_node_slot(*node).await?;
            for area in volume.geometry().redo_areas().filter(|area| area.node == *node) {
                let log = Log::open(reactor, volume.file(), area, slot.incarnation).await?;
                log.checkpoint(log.append_lsn(), self.parts.context.shared.clock.latest()).await?;
            }
        }
        Ok(())
    }
}
