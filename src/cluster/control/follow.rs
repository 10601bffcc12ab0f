//! The control group's members follow the cluster's nodes: whoever has come in for the first time becomes a learner, then
//! a voter; whoever was removed leaves the group. The last node goes on alone, also when the others' votes were a majority.
//!
//! Views decide who the nodes are, and never wait for this. Whoever leads the group proposes one step at a time, and looks
//! again when something has changed, or after [`LOOK_EVERY`]. Every step bears being taken twice, so leaders may change
//! in between.

use std::rc::Rc;
use std::time::Duration;

use super::{Command, Control, ControlState, NodeRole, NodeStanding, publish};
use crate::ids::{Epoch, NodeId};
use crate::raft::{Configuration, ConfigurationChange, LogIndex, MemberChange};
use crate::reactor::Class;
use crate::volume::{Roster, Standing};

/// How often the leader looks whether a step can be taken.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A learner that lacks so many entries at most has caught up.
const BEHIND_MAX: u64 = 100;

/// What the leader does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Members(MemberChange),
    Agree(Command),
    /// There is nobody else any more, and nobody who could say so.
    Alone,
}

/// The next step from what the group has to what the roster says. `matched`: how far the log of a member is known to be.
pub(super) fn next_step(
    me: NodeId,
    epoch: Epoch,
    roster: &Roster,
    members: &Configuration,
    state: &ControlState,
    caught_up: impl Fn(NodeId) -> bool,
) -> Option<Step> {
    for (node, there) in roster.nodes() {
        let node = *node;
        let known = state.nodes().get(&node).filter(|known| known.standing != NodeStanding::Removed);
        match there.standing {
            Standing::Joining => {}
            Standing::Member => {
                if known.is_none_or(|known| known.address != there.address) {
                    let configure = Command::Configure { epoch, node, address: there.address, role: NodeRole::Voter };
                    return Some(Step::Agree(configure));
                }
                if !members.contains(node) {
                    return Some(Step::Members(MemberChange::AddLearner(node)));
                }
                if !members.is_voter(node) && caught_up(node) {
                    return Some(Step::Members(MemberChange::AddVoter(node)));
                }
            }
            Standing::Removed => {
                if members.contains(node) && node != me {
                    return Some(Step::Members(MemberChange::Remove(node)));
                }
                if known.is_some() {
                    return Some(Step::Agree(Command::Stand { epoch, node, standing: NodeStanding::Removed }));
                }
            }
        }
    }
    None
}

impl Control {
    /// These are the cluster's nodes from now on.
    pub(in super::super) fn follow(&self, epoch: Epoch, roster: &Roster) {
        *self.roster.borrow_mut() = Some((epoch, roster.clone()));
        self.roster_changed.notify_all();
    }

    fn step(&self) -> Option<Step> {
        let me = self.me;
        let roster = self.roster.borrow();
        let (epoch, roster) = roster.as_ref()?;
        let status = self.group().status().replica;
        let alone = roster.voters().eq([me]) && !status.configuration.is_only_voter(me);
        match status.leadership.leader {
            // Most of the group's voters may have left for good: nobody else will ever lead it.
            None if alone => return Some(Step::Alone),
            Some(leader) if leader == me => {}
            _ => return None,
        }
        let caught_up = |node| {
            let enough = LogIndex(status.last.0.saturating_sub(BEHIND_MAX));
            status.peers.iter().any(|peer| peer.node == node && peer.active && !peer.in_snapshot && peer.matched >= enough)
        };
        next_step(me, *epoch, roster, &status.configuration, &self.machine.state(), caught_up)
    }

    pub(super) async fn follow_roster(self: Rc<Self>) {
        loop {
            let group = self.group();
            let (changed, roster_changed) = (group.changed(), self.roster_changed.notified());
            let done = match self.step() {
                Some(Step::Members(change)) => {
                    let changed = group.change_members(ConfigurationChange(vec![change])).await;
                    changed.map(|_| tracing::info!(?change, "the control group's members follow the cluster's nodes"))
                }
                Some(Step::Agree(command)) => group.propose(super::encode_command(&command)).await.map(|_| ()),
                Some(Step::Alone) => match self.host.go_on_alone(&group).await {
                    Ok(anew) => {
                        let published = publish(anew.clone(), self.machine.clone(), self.status.clone());
                        *self.group.borrow_mut() = anew;
                        let publishes = self.reactor.spawn(Class::Low, "control group's state", published);
                        std::mem::replace(&mut self.tasks.borrow_mut()[0], publishes).abort();
                        Ok(())
                    }
                    Err(error) => return tracing::error!(%error, "the control group can't go on alone"),
                },
                None => {
                    let mut changed = std::pin::pin!(changed);
                    let mut roster_changed = std::pin::pin!(roster_changed);
                    let either = std::future::poll_fn(|context| {
                        let ready = changed.as_mut().poll(context).is_ready() | roster_changed.as_mut().poll(context).is_ready();
                        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
                    });
                    // A learner that catches up changes nothing here.
                    let _ = self.reactor.timeout(LOOK_EVERY, either).await;
                    continue;
                }
            };
            if let Err(error) = done {
                tracing::debug!(%error, "the control group did not take the step yet");
                self.reactor.sleep(LOOK_EVERY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use super::*;
    use crate::volume::RosterChange;

    fn address(node: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, node], 7433))
    }

    /// Takes steps until there is none; the members then, and the steps to the members.
    fn steps(roster: &Roster, members: &mut Configuration, state: &mut ControlState) -> Vec<MemberChange> {
        let mut taken = Vec::new();
        for index in 10..50 {
            match next_step(NodeId(1), Epoch(3), roster, members, state, |_| true) {
                None => return taken,
                Some(Step::Alone) => unreachable!("it has a leader"),
                Some(Step::Agree(command)) => state.apply(LogIndex(index), command).expect("it can be"),
                Some(Step::Members(change)) => {
                    match change {
                        MemberChange::AddLearner(node) => members.learners.insert(node),
                        MemberChange::AddVoter(node) => {
                            members.learners.remove(node);
                            members.voters.insert(node);
                        }
                        MemberChange::Remove(node) => drop(members.voters.remove(node)),
                    }
                    taken.push(change);
                }
            }
        }
        panic!("it never ends: {taken:?}");
    }

    #[test]
    fn members_follow_the_roster_step_by_step() {
        let founders: BTreeMap<NodeId, SocketAddr> = (1..=2).map(|node| (NodeId(node), address(node))).collect();
        let mut members = Configuration::of(founders.keys().copied(), []);
        let mut state = ControlState::founding(&founders);
        let roster = Roster::founding(founders);
        assert_eq!(steps(&roster, &mut members, &mut state), []);
        let three = NodeId(3);
        let roster = roster.after(RosterChange::Admit(three, address(3))).expect("there is room");
        assert_eq!(steps(&roster, &mut members, &mut state), [], "whoever was never in is no member");
        let roster = roster.with_member(three);
        let added = [MemberChange::AddLearner(three), MemberChange::AddVoter(three)];
        assert_eq!(steps(&roster, &mut members, &mut state), added);
        let roster = roster.after(RosterChange::Remove(NodeId(2))).expect("others are left");
        assert_eq!(steps(&roster, &mut members, &mut state), [MemberChange::Remove(NodeId(2))]);
        let standing: Vec<NodeStanding> = state.nodes().values().map(|there| there.standing).collect();
        assert_eq!(standing, [NodeStanding::Member, NodeStanding::Removed, NodeStanding::Member]);
    }
}
