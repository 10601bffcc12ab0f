//! A group goes on with this node as its only member: all others have left the cluster for good, with a majority's votes.
//!
//! No vote can show that they won't come back; whoever asks for this knows it from elsewhere (of two nodes one has fenced the
//! other, and it was removed). What this node has of the log counts from then on, what is not known to be committed too:
//! nobody is left who could say otherwise.

use std::rc::Rc;

use super::super::error::{OpenError, RaftError};
use super::super::group::Group;
use super::super::journal::Item;
use super::super::record::image_records;
use super::super::storage::Durable;
use super::super::types::Configuration;
use super::RaftHost;

impl RaftHost {
    /// Ends the group as it is on this node and gives it anew, with this node as its only member. Whoever waits for it hears
    /// that it has ended.
    ///
    /// # Errors
    /// When the log can't be written.
    pub async fn go_on_alone(&self, group: &Group) -> Result<Group, OpenError> {
        let (host, id) = (&self.0, group.id());
        let Some(member) = host.members.borrow_mut().remove(&id) else { return Ok(group.clone()) };
        let (machine, configuration) = (member.machine.clone(), Configuration::of([host.node()], []));
        let durable = {
            let replica = member.replica.borrow();
            let applied = replica.applied_index();
            Durable::alone(replica.durable(), configuration, applied, machine.snapshot())
        };
        member.fail(RaftError::Closed, host);
        tracing::warn!(
            group = %id, applied = durable.snapshot.index.0, term = durable.hard_state.term.0,
            "all other members have left for good: the group goes on with this node alone"
        );
        host.journal.append(Item { group: id, records: image_records(id, &durable), image: true, number: None });
        host.journal.settled(id).await?;
        machine.members_changed(&configuration);
        Ok(self.start(id, durable, Rc::clone(&machine)))
    }
}
