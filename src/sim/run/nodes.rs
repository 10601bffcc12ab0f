//! Nodes that come and that leave for good, by an operator who asks any node that serves until one says that it is so.
//!
//! Bounded by the room on the volume, and by one question at a time for each node.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::Run;
use super::supervisor::{Member, Place, address};
use crate::ids::NodeId;
use crate::reactor::Class;
use crate::sim::Failure;
use crate::volume::RosterChange;

/// A cluster that an operator makes smaller has so many nodes at least.
const NODES_MIN: usize = 3;
/// How long an operator waits for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);
/// How long an operator waits after an answer that was none.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The answer to a change, when it has come.
pub(super) type Asked = Rc<Cell<Option<Result<String, String>>>>;

impl Run {
    /// One more, if there is room; now and then it is started before it is admitted.
    pub(super) fn add_a_node(&mut self) {
        let node = self.members.len();
        if node == usize::from(self.plan.nodes + self.plan.spare_nodes) {
            return;
        }
        self.events.note(format_args!("node{} is to join", node + 1));
        self.members.push(Member::new(node, Place::Comes));
        if self.dice.chance(20) {
            self.start(node);
        }
    }

    /// A node is to leave for good: after its death, or while it serves.
    pub(super) fn remove(&mut self, node: usize) {
        let count = |place| self.members.iter().filter(|member| member.place == place).count();
        let (stay, leave) = (count(Place::Member), count(Place::Leaves));
        if stay < NODES_MIN || self.members[node].place != Place::Member {
            return;
        }
        // Whoever leaves votes until that is decided. An operator who took half of the votes away before would have to bring a node
        // back when the rest lose their power: nobody could decide anything.
        if 2 * (stay - 1) <= stay + leave {
            return;
        }
        self.events.note(format_args!("node{} is to leave for good", node + 1));
        self.members[node].place = Place::Leaves;
        if self.dice.chance(50) {
            self.kill(node, "is killed, and stays so");
        }
    }

    /// Whether a supervisor starts a node again that has ended. One that was removed is started now and then, by mistake.
    pub(super) fn is_started_again(&self, node: usize) -> bool {
        match self.members[node].place {
            Place::Member => true,
            Place::Comes => false,
            Place::Leaves | Place::Gone => self.dice.chance(20),
        }
    }

    /// A node says that it is not one of the cluster's.
    pub(super) fn refused(&mut self, node: usize, why: &str) -> Result<(), Failure> {
        if self.members[node].place == Place::Member {
            return Err(Failure::Broken(vec![format!("node{} was admitted and not removed, and ends: {why}", node + 1)]));
        }
        self.kill(node, &format!("has no place: {why}"));
        Ok(())
    }

    /// Hears what became of what was asked for, and asks (again).
    pub(super) fn change_nodes(&mut self) {
        for node in 0..self.members.len() {
            let member = &mut self.members[node];
            if !matches!(member.place, Place::Comes | Place::Leaves) {
                continue;
            }
            let Some(asked) = member.asked.take() else {
                self.ask_for(node);
                continue;
            };
            match asked.take() {
                None => member.asked = Some(asked),
                Some(Err(why)) => self.events.note(format_args!("node{}: not yet: {why}", node + 1)),
                Some(Ok(how)) => {
                    self.events.note(&how);
                    if member.place == Place::Comes {
                        member.place = Place::Member;
                        self.start(node);
                    } else {
                        member.place = Place::Gone;
                        self.clients.stores.borrow_mut()[node] = None;
                    }
                }
            }
        }
    }

    fn ask_for(&mut self, node: usize) {
        let serving = |member: &&Member| member.index != node && member.is_open();
        let serving: Vec<usize> = self.members.iter().filter(serving).map(|member| member.index).collect();
        if serving.is_empty() {
            return;
        }
        let operator = self.members[self.dice.pick(&serving)].hosted.as_ref().expect("it serves").operator();
        let number = NodeId(node as u8 + 1);
        let member = &mut self.members[node];
        let change = match member.place {
            Place::Comes => RosterChange::Admit(number, address(node)),
            _ => RosterChange::Remove(number),
        };
        let asked = Asked::default();
        member.asked = Some(asked.clone());
        let reactor = self.clients.reactor.clone();
        self.clients.reactor.spawn(Class::Normal, "change the nodes", async move {
            let answer = reactor.timeout(ANSWER_WITHIN, operator.change_roster(change, true)).await;
            let answer = answer.unwrap_or_else(|_| Err("no answer".into()));
            if answer.is_err() {
                reactor.sleep(ASK_AGAIN).await;
            }
            asked.set(Some(answer));
        });
    }
}
