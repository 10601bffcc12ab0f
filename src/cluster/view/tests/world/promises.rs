//! What must never be, looked for after every step: two views of an epoch, a view that goes without a node that is not fenced,
//! redo that is forgotten, a node that reads in a view of the past; and what must be once all is quiet.

use std::collections::BTreeMap;

use super::super::super::View;
use super::{Work, World};
use crate::ids::{Epoch, NodeId};
use crate::volume::Standing;

impl World {
    pub(super) fn goes(&mut self, node: NodeId, view: View) {
        let life = self.nodes[&node].life;
        let epoch = view.epoch;
        if let Some(other) = self.gone.get(&epoch) {
            let other = other.clone();
            if (&other.members, other.scn) != (&view.members, view.scn) {
                self.violated(format!("two views of {epoch}: {other:?} and {view:?}"));
            }
        } else if !self.is_fenced(node) {
            // (One that was fenced before it heard that all have frozen goes in a view of the past.)
            self.first_goes(&view);
        }
        if !view.has(node, life) {
            self.violated(format!("{node} goes in {view:?} without being a member in {life}"));
        }
        // Who is fenced leaves no redo, whatever it believes.
        if !self.is_fenced(node) {
            self.redo.insert(node, life);
        }
        let member = self.nodes.get_mut(&node).expect("it exists");
        member.serving = Some(epoch);
        if !view.unrecovered.is_empty() {
            member.work.push(Work::RecoverInstances(epoch));
        }
    }

    /// What must be true when the first member serves in a view.
    fn first_goes(&mut self, view: &View) {
        self.changes += 1;
        let before = self.gone.last_key_value().map(|(_, view)| view.clone());
        if let Some(before) = before.filter(|before| before.epoch < view.epoch) {
            self.roster_changes += usize::from(before.roster != view.roster);
            for (node, there) in before.roster.nodes() {
                let now = view.roster.standing(*node);
                if there.standing >= Standing::Member && now.is_none_or(|now| now < there.standing) {
                    self.violated(format!("{view:?} has forgotten that {node} was {:?}", there.standing));
                }
            }
            self.joins += view.members.iter().filter(|(node, _)| !before.has_node(*node)).count();
            for &(node, life) in &before.members {
                let unfenced = self.fenced.get(&node).is_none_or(|fenced| *fenced < life);
                // A newer life is proof that the former has ended.
                if !view.has(node, life) && unfenced && self.nodes[&node].life == life {
                    self.violated(format!("{view:?} goes without {node} {life}, which is not fenced"));
                }
            }
        }
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            let life = self.nodes[&node].life;
            let alive = self.nodes[&node].views.is_some();
            let starting = self.nodes[&node].views.as_ref().is_some_and(|views| views.view().is_none());
            if !view.has(node, life) && alive && !starting && !self.is_fenced(node) {
                self.violated(format!("{view:?} goes while {node} {life} has entered a view and is not fenced"));
            }
        }
        for (&node, &life) in &self.redo.clone() {
            if view.has_node(node) && !view.has(node, life) {
                self.violated(format!("{node} is let into {view:?} over the redo of its {life}"));
            } else if !view.has_node(node) && !view.unrecovered.contains(&node) {
                self.violated(format!("{view:?} has forgotten that the redo of {node} {life} is not recovered"));
            }
        }
        for node in self.redo.keys().copied().collect::<Vec<_>>() {
            if !view.roster.has(node) {
                self.violated(format!("{view:?} is without {node}, whose redo is not recovered"));
            }
        }
        if view.members.iter().any(|(node, _)| !view.roster.votes(*node)) {
            self.violated(format!("{view:?} has a member that is none of the cluster's nodes"));
        }
        if 2 * view.members.len() < view.roster.voters().count() {
            self.violated(format!("{view:?} has no quorum"));
        }
        self.gone.insert(view.epoch, view.clone());
    }

    pub(super) fn check(&mut self) {
        let serving: BTreeMap<Epoch, NodeId> = self
            .nodes
            .iter()
            .filter(|(node, _)| !self.is_fenced(**node))
            .filter_map(|(node, it)| Some((it.serving?, *node)))
            .collect();
        if serving.len() > 1 {
            self.violated(format!("nodes serve in different epochs: {serving:?}"));
        }
        let newest = self.gone.last_key_value().map_or(Epoch(0), |(epoch, _)| *epoch);
        let late = self.nodes.iter().find(|(node, it)| it.serving.is_some_and(|epoch| epoch < newest) && self.reads(**node));
        if let Some((node, _)) = late {
            self.violated(format!("{node} has a lease to read in a view before {newest}, which has gone"));
        }
    }

    /// One view with all live nodes serves, and nothing is left to recover.
    pub(in super::super) fn all_is_well(&self) -> Result<(), String> {
        let (_, view) = self.gone.last_key_value().ok_or("no view ever went")?;
        let live: Vec<_> = self.nodes.iter().filter(|(_, it)| it.views.is_some()).map(|(node, it)| (*node, it.life)).collect();
        if view.roster != self.disk_roster {
            return Err(format!("{view:?} has another roster than the volume: {:?}", self.disk_roster));
        }
        if let Some((idle, _)) = view.roster.present().find(|(node, _)| !view.has_node(*node) && !self.stay_dead.contains(node)) {
            return Err(format!("{idle} is none of {view:?}"));
        }
        if view.members != live {
            return Err(format!("{view:?} is not of all live nodes {live:?}"));
        }
        for (node, it) in self.nodes.iter().filter(|(_, it)| it.views.is_some()) {
            let views = it.views.as_ref().expect("filtered");
            if it.serving != Some(view.epoch) || !views.serves() {
                return Err(format!("{node} serves {:?}, not {}: {}", it.serving, view.epoch, views.waiting_for()));
            }
            let left = &views.view().expect("it serves").unrecovered;
            if !left.is_empty() {
                return Err(format!("{left:?} are still to be recovered at {node}"));
            }
        }
        Ok(())
    }
}
