//! What goes into the membership's state machine and what comes out.

use std::collections::BTreeSet;
use std::fmt;

use crate::fusion::grd::Bucket;
use crate::ids::{Epoch, Incarnation, NodeId, Scn, ShardId};
use crate::volume::{Roster, RosterChange};

/// To be fenced: whatever life of the node there is. Used at a cold start for nodes that nobody has heard of.
pub const EVERY_LIFE: Incarnation = Incarnation(u64::MAX);

/// One generation of the cluster's membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its number: higher than that of any view before, durable on the volume before any node hears of it.
    pub epoch: Epoch,
    /// Who serves in it, with their lives, by number.
    pub members: Vec<(NodeId, Incarnation)>,
    /// Nodes whose life ended and is fenced, and whose redo has not been recovered yet. Never a member. By number.
    pub unrecovered: Vec<NodeId>,
    /// No SCN at or below this may be drawn in the epoch.
    pub scn: Scn,
    /// The cluster's nodes, over which quorums are counted. Every member is one of them.
    pub roster: Roster,
    /// The member that is one for the first time. It has no vote in what follows until the view has gone: the others may
    /// still be in the view before, which does not know it.
    pub new: Option<NodeId>,
}

impl View {
    /// Whether this life is a member.
    #[must_use]
    pub fn has(&self, node: NodeId, life: Incarnation) -> bool {
        self.members.contains(&(node, life))
    }

    /// Whether the node is a member, in whichever life.
    #[must_use]
    pub fn has_node(&self, node: NodeId) -> bool {
        self.members.iter().any(|(member, _)| *member == node)
    }

    /// The member that gathers what the others report while the view serves: the one of the lowest number.
    #[must_use]
    pub fn coordinator(&self) -> NodeId {
        self.members.first().expect("a view has members").0
    }
}

/// A bucket of blocks that has another master than the ring says, because its users are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// Of which shards' blocks.
    pub shard: ShardId,
    /// The bucket.
    pub bucket: Bucket,
    /// Its master.
    pub master: NodeId,
}

/// Most overrides that go from one view into the next; what is beyond goes back to the ring.
pub const OVERRIDES_MAX: usize = 12_000;

/// What a node takes for the cluster's roster before it has a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The epoch that it was written with; 0 for one of a configuration file.
    pub epoch: Epoch,
    /// The cluster's nodes.
    pub roster: Roster,
}

/// Whom a node follows in the change of view that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pledge {
    /// Nobody: none is under way, or it has not heard of it.
    Free,
    /// This coordinator.
    To(NodeId),
    /// It leads a change itself; `settled` once it has the pledges that it needs to fence.
    Leads {
        /// Whether it has a quorum.
        settled: bool,
    },
}

/// What a node says of itself to everybody that it is connected to: on connecting, and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The newest view that it has left the former epoch for; while it is starting, what it takes for the roster.
    pub view: Result<View, Known>,
    /// Whether it has been told to serve in it.
    pub went: bool,
    /// It can't reach a quorum, and answers no client.
    pub suspended: bool,
    /// A connection to a member of the view was lost since it entered it: messages may be missing.
    pub disturbed: bool,
    /// Whom it follows.
    pub pledge: Pledge,
    /// Whom it is connected to and does not suspect.
    pub links: BTreeSet<NodeId>,
    /// What an operator has asked it for: whoever leads makes it so.
    pub wish: Option<RosterChange>,
    /// The member that an operator wants out of the next view: whoever leads leaves it out, which fences it.
    pub out: Option<NodeId>,
}

impl State {
    /// Its newest view.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref().ok()
    }
}

/// What nodes tell each other. Lost only with the connection, in order otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// See [`State`].
    State(State),
    /// Follow me in a change to these members. The sender's next proposal replaces this one.
    Propose {
        /// Counts the sender's proposals.
        ballot: u64,
        /// The view that it starts from; 0 at a cold start.
        base: Epoch,
        /// Who would be in the next view.
        members: Vec<(NodeId, Incarnation)>,
    },
    /// I follow you in this proposal, and nobody else until you withdraw it, it is done, or we lose each other.
    Accept {
        /// The proposal's number.
        ballot: u64,
    },
    /// The proposal is given up; follow whom you like.
    Withdraw {
        /// The proposal's number.
        ballot: u64,
    },
    /// The epoch has begun on the volume and everybody else is fenced: leave the former epoch.
    Freeze {
        /// The proposal that it comes from.
        ballot: u64,
        /// The next view.
        view: View,
        /// Which buckets stay with the masters that their users gave them. All members must have the same.
        overrides: Vec<Override>,
    },
    /// I have left the former epoch and answer in this one.
    Frozen(Epoch),
    /// All have: serve.
    Go(Epoch),
    /// My part of the recovery of this view's unrecovered nodes is done, durably.
    InstancesRecovered(Epoch),
    /// The redo of this view's unrecovered nodes is no longer needed: nobody is unrecovered any more.
    Released(Epoch),
    /// This life of yours has been fenced.
    Excluded(Incarnation),
    /// Am I still one of us? See `lease.rs`.
    AskLease {
        /// The view that the sender has entered.
        epoch: Epoch,
        /// On the sender's clock, in nanoseconds.
        asked_ns: u64,
    },
    /// In this view I follow nobody yet into one without you.
    GrantLease {
        /// As asked.
        epoch: Epoch,
        /// As asked.
        asked_ns: u64,
    },
}

/// What happens to this node.
#[derive(Clone, Debug)]
pub enum Input {
    /// A connection to this life of a node stands.
    PeerUp(NodeId, Incarnation),
    /// It is gone, and with it everything under way.
    PeerDown(NodeId),
    /// A connected node said something.
    Received(NodeId, Message),
    /// A failure detector other than the connection takes the node for dead.
    Suspected(NodeId),
    /// It takes that back.
    Trusted(NodeId),
    /// This node has not served for the cold start patience: nobody that is missing is waited for any longer.
    FormWithoutMissing,
    /// The roster on the volume, read anew while the node is starting.
    RosterRead(Known),
    /// [`Output::Recover`] has done nothing: the volume has this newer roster.
    RosterOutdated(Known),
    /// An operator wants this change, or (none) does not any more.
    Wish(Option<RosterChange>),
    /// An operator wants this member fenced and out of the next view, or (none) does not any more.
    TakeOut(Option<NodeId>),
    /// [`Output::Recover`] is done and the epoch written.
    Recovered {
        /// The new epoch, durable.
        epoch: Epoch,
        /// At or above every SCN that was ever used.
        scn: Scn,
    },
    /// [`Output::Fence`] is done, proven: the life neither writes nor answers anybody ever again.
    Fenced(NodeId, Incarnation),
    /// It could not be done, or proven. Asked again at once if still wanted: whoever performs it paces the tries.
    FenceFailed(NodeId, Incarnation),
    /// [`Output::BeginEpoch`] is done.
    EpochBegun {
        /// The new epoch, durable.
        epoch: Epoch,
        /// At or above every SCN that was ever used.
        scn: Scn,
        /// The overrides as this node knows them, at most [`OVERRIDES_MAX`]. Any will do, as long as all members have the
        /// same: whoever masters a bucket in the next view learns from claims what is in it.
        overrides: Vec<Override>,
    },
    /// [`Output::Freeze`] is done for the view of this epoch, in all shards.
    Frozen(Epoch),
    /// This node has done its part of recovering the unrecovered nodes of this epoch's view, durably: nobody will need
    /// their redo on its account.
    InstancesRecovered(Epoch),
    /// [`Output::ReleaseRedo`] is done.
    RedoReleased(Epoch),
}

/// Why a node does not serve for the time being.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuspendReason {
    /// It reaches too few members.
    NoQuorum {
        /// Members that it reaches, itself included.
        reached: usize,
        /// Configured nodes.
        configured: usize,
    },
    /// It reaches exactly half of the configured nodes, and goes on once it has fenced the others.
    WaitsForFence(Vec<NodeId>),
}

impl fmt::Display for SuspendReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SuspendReason::NoQuorum { reached, configured } => {
                write!(f, "this node reaches {reached} of {configured} nodes, no quorum: check the network and start the others")
            }
            SuspendReason::WaitsForFence(nodes) => {
                write!(f, "half of the nodes are lost ({}): this node goes on once it has fenced them", names(nodes))
            }
        }
    }
}

/// Why this life is over. The process exits, and its supervisor starts it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The others went on without it.
    Excluded {
        /// Who said so.
        by: NodeId,
        /// Their epoch; 0 when they only said that this life is fenced.
        epoch: Epoch,
    },
    /// So many members of the view have ended that it can't go on any more: all start afresh together.
    ViewLost {
        /// The view's epoch.
        epoch: Epoch,
    },
    /// The node has left the cluster for good. Its supervisor must not start it again.
    Removed,
    /// The cluster has nodes, and this is none of them. Its supervisor must not start it again.
    NotAdmitted,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndReason::Excluded { by, epoch } => {
                write!(
                    f,
                    "{by} says that the cluster went on without this life of the node ({epoch}); it joins again in its next"
                )
            }
            EndReason::Removed => {
                write!(
                    f,
                    "this node was removed from the cluster and can't come back: delete its configuration; a new node takes a \
                     number that was never used"
                )
            }
            EndReason::NotAdmitted => {
                write!(
                    f,
                    "this node is none of the cluster's: have it admitted first, on a machine of a running node: `rusty-db-cli \
                     cluster join --node-id NODE --address ADDRESS:PORT`, then start it again"
                )
            }
            EndReason::ViewLost { epoch } => {
                write!(f, "too few members of {epoch} are left for a quorum; the cluster forms again and replays its redo")
            }
        }
    }
}

/// What this node has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell a connected node; dropped where the connection is gone, of which an input tells.
    Send(NodeId, Message),
    /// If the roster on the volume is still of this epoch: replay all redo on the volume, begin an epoch there with this
    /// roster; nobody serves. Answer with [`Input::Recovered`], or [`Input::RosterOutdated`] when it is not.
    Recover {
        /// The epoch of the roster that decided who must take part or be fenced.
        known: Epoch,
        /// The roster of the new epoch.
        roster: Roster,
    },
    /// Make sure that this life never writes or answers again; for [`EVERY_LIFE`] whichever there is now. Answer with
    /// [`Input::Fenced`] or [`Input::FenceFailed`].
    Fence(NodeId, Incarnation),
    /// Begin an epoch on the volume, with this roster: the durable one plus one, or this one if it is higher. Answer with
    /// [`Input::EpochBegun`].
    BeginEpoch {
        /// No lower than this.
        at_least: Epoch,
        /// The roster of the new epoch.
        roster: Roster,
    },
    /// Stop serving in the former epoch, in all shards, and answer other nodes in this one, with the ring's masters but for
    /// these overrides. Answer with
    /// [`Input::Frozen`]. A later one replaces it.
    Freeze(View, Vec<Override>),
    /// All members are in the epoch: claim, rebuild, recover, serve. Ends a suspension.
    Go(View),
    /// Reset the redo areas of these nodes, durably. Answer with [`Input::RedoReleased`].
    ReleaseRedo {
        /// The view that recovered them.
        epoch: Epoch,
        /// Whose.
        nodes: Vec<NodeId>,
    },
    /// These are the cluster's nodes from now on, as far as this one knows: connect to them. Who has left is to be refused
    /// once the node has a view.
    Roster(Roster),
    /// Answer no client, neither reads nor writes, until the next [`Output::Go`].
    Suspend(SuspendReason),
    /// This life is over; nothing comes after it.
    End(EndReason),
}

pub(super) fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}
