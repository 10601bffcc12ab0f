//! Small durable facts beside the data: what each node is doing (node slots), its sign of life (votes), and the life of
//! the cluster as a whole (the control block).
//!
//! A node slot and a vote are written by their node alone; the control block by the node that forms the cluster. Each is
//! a [`SectorPair`], so a torn write leaves the content before it. The checkpoints of the logs stand in the redo areas,
//! each written by its own shard (see `wal`).

use zerocopy::byteorder::little_endian::{U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::VolumeError;
use super::layout::block_offset;
use super::open::Volume;
use super::roster::{Roster, RosterBody};
use super::sector::{SECTOR_BODY, SectorKind, SectorPair};
use crate::ids::{BlockNo, Epoch, Incarnation, NodeId, Scn};

/// Whether a node's last life ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It was stopped cleanly, or never started: its redo holds nothing to replay.
    Clean,
    /// It runs, or died running: its redo must be replayed before anybody uses what it may have changed.
    Running,
    /// It was stopped and writes no more, but its redo still holds what must be replayed.
    Stopped,
}

/// What a node says about itself on the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSlot {
    /// The node.
    pub node: NodeId,
    /// Whether it runs.
    pub state: NodeState,
    /// Its life; one more at each start.
    pub incarnation: Incarnation,
    /// The epoch that it last took part in.
    pub epoch: Epoch,
    /// No SCN that the node drew is above this one, as far as it was written: a restart begins above it.
    pub scn: Scn,
    /// When the slot was written, in milliseconds since 1970.
    pub written_ms: u64,
    sequence: u64,
}

/// The cluster's life as the volume knows it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ControlBlock {
    /// The newest epoch that was begun.
    pub epoch: Epoch,
    /// The node that began it.
    pub formed_by: NodeId,
    /// Its members: bit n is node n.
    pub members: u128,
    /// Above every SCN that was ever used before the epoch.
    pub scn: Scn,
    /// When it was begun, in milliseconds since 1970.
    pub formed_ms: u64,
    /// The cluster's nodes from this epoch on; empty before the first.
    pub roster: Roster,
    sequence: u64,
}

/// Most nodes that one node evicts at a time.
pub const EVICTED_MAX: usize = 4;

/// A node's sign of life on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The epoch that it is in.
    pub epoch: Epoch,
    /// Counts the beats of this life.
    pub beat: u64,
    /// The nodes that it can reach: bit n is node n.
    pub reachable: u128,
    /// Lives that it keeps from renewing their leases, and all before them: node 0 is none.
    pub evicted: [(NodeId, Incarnation); EVICTED_MAX],
    /// The node's wall clock, in milliseconds since 1970. For people; nothing is decided by it.
    pub written_ms: u64,
    sequence: u64,
}

impl NodeSlot {
    /// The slot of a node that never started.
    #[must_use]
    pub const fn new(node: NodeId) -> NodeSlot {
        NodeSlot {
            node,
            state: NodeState::Clean,
            incarnation: Incarnation(0),
            epoch: Epoch(0),
            scn: Scn::ZERO,
            written_ms: 0,
            sequence: 0,
        }
    }
}

impl Vote {
    /// Of a node that never voted.
    #[must_use]
    pub const fn new(node: NodeId) -> Vote {
        let evicted = [(NodeId(0), Incarnation(0)); EVICTED_MAX];
        Vote { node, incarnation: Incarnation(0), epoch: Epoch(0), beat: 0, reachable: 0, evicted, written_ms: 0, sequence: 0 }
    }

    /// Whether it evicts this life.
    #[must_use]
    pub fn evicts(&self, node: NodeId, life: Incarnation) -> bool {
        self.evicted.iter().any(|(evicted, up_to)| *evicted == node && *up_to >= life)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NodeSlotBody {
    node: u8,
    state: u8,
    reserved: [u8; 6],
    incarnation: U64,
    epoch: U64,
    scn: U64,
    written_ms: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ControlBody {
    epoch: U64,
    formed_by: u8,
    reserved: [u8; 7],
    members: U128,
    scn: U64,
    formed_ms: U64,
    roster: RosterBody,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VoteBody {
    node: u8,
    reserved: [u8; 7],
    incarnation: U64,
    epoch: U64,
    beat: U64,
    reachable: U128,
    written_ms: U64,
    evicted: [EvictedBody; EVICTED_MAX],
}

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EvictedBody {
    node: u8,
    reserved: [u8; 7],
    incarnation: U64,
}

const _: () = {
    assert!(size_of::<NodeSlotBody>() == 40);
    assert!(size_of::<ControlBody>() == 48 + size_of::<RosterBody>() && size_of::<ControlBody>() <= SECTOR_BODY);
    assert!(size_of::<VoteBody>() == 120);
};

impl Volume {
    /// Reads what a node says about itself.
    ///
    /// # Errors
    /// [`VolumeError::Sector`] when both copies are damaged, or the device's error.
    pub async fn read_node_slot(&self, node: NodeId) -> Result<NodeSlot, VolumeError> {
        let (sequence, body) = self.read_fact::<NodeSlotBody>(SectorKind::NodeSlot, self.geometry().node_slot(node)).await?;
        Ok(NodeSlot {
            node,
            state: match body.state {
                0 => NodeState::Clean,
                2 => NodeState::Stopped,
                // A state that a later version writes is no promise to this one.
                _ => NodeState::Running,
            },
            incarnation: Incarnation(body.incarnation.get()),
            epoch: Epoch(body.epoch.get()),
            scn: Scn(body.scn.get()),
            written_ms: body.written_ms.get(),
            sequence,
        })
    }

    /// Writes a node's slot durably. Only that node does, starting from what it read; `slot` counts the writes.
    ///
    /// # Errors
    /// The device's; the slot says what it said before then.
    pub async fn write_node_slot(&self, slot: &mut NodeSlot) -> Result<(), VolumeError> {
        slot.written_ms = self.reactor().wall_ms();
        slot.sequence += 1;
        let body = NodeSlotBody {
            node: slot.node.0,
            state: match slot.state {
                NodeState::Clean => 0,
                NodeState::Running => 1,
                NodeState::Stopped => 2,
            },
            reserved: [0; 6],
            incarnation: U64::new(slot.incarnation.0),
            epoch: U64::new(slot.epoch.0),
            scn: U64::new(slot.scn.0),
            written_ms: U64::new(slot.written_ms),
        };
        self.write_fact(SectorKind::NodeSlot, self.geometry().node_slot(slot.node), slot.sequence, &body).await
    }

    /// Reads the control block.
    ///
    /// # Errors
    /// [`VolumeError::Sector`] when both copies are damaged, or the device's error.
    pub async fn read_control(&self) -> Result<ControlBlock, VolumeError> {
        let (sequence, body) = self.read_fact::<ControlBody>(SectorKind::Control, self.geometry().control_block()).await?;
        // To go on with half of it would be worse than not to start.
        let roster = Roster::from_bytes(&body.roster).ok_or_else(|| VolumeError::BadSuperblock {
            path: self.path().to_owned(),
            what: "the list of the cluster's nodes in its control block is of a newer release".into(),
        })?;
        Ok(ControlBlock {
            roster,
            epoch: Epoch(body.epoch.get()),
            formed_by: NodeId(body.formed_by),
            members: body.members.get(),
            scn: Scn(body.scn.get()),
            formed_ms: body.formed_ms.get(),
            sequence,
        })
    }

    /// Writes the control block durably. Only the node that forms the cluster does, starting from what it read.
    ///
    /// # Errors
    /// The device's; the block says what it said before then.
    pub async fn write_control(&self, control: &mut ControlBlock) -> Result<(), VolumeError> {
        control.sequence += 1;
        let body = ControlBody {
            epoch: U64::new(control.epoch.0),
            formed_by: control.formed_by.0,
            reserved: [0; 7],
            members: U128::new(control.members),
            scn: U64::new(control.scn.0),
            formed_ms: U64::new(control.formed_ms),
            roster: control.roster.to_bytes(),
        };
        self.write_fact(SectorKind::Control, self.geometry().control_block(), control.sequence, &body).await
    }

    /// Reads a node's sign of life.
    ///
    /// # Errors
    /// [`VolumeError::Sector`] when both copies are damaged, or the device's error.
    pub async fn read_vote(&self, node: NodeId) -> Result<Vote, VolumeError> {
        let (sequence, body) = self.read_fact::<VoteBody>(SectorKind::Vote, self.geometry().vote_block(node)).await?;
        Ok(Vote {
            node,
            incarnation: Incarnation(body.incarnation.get()),
            epoch: Epoch(body.epoch.get()),
            beat: body.beat.get(),
            reachable: body.reachable.get(),
            evicted: body.evicted.map(|evicted| (NodeId(evicted.node), Incarnation(evicted.incarnation.get()))),
            written_ms: body.written_ms.get(),
            sequence,
        })
    }

    /// Writes a node's sign of life durably. Only that node does.
    ///
    /// # Errors
    /// The device's.
    pub async fn write_vote(&self, vote: &mut Vote) -> Result<(), VolumeError> {
        vote.written_ms = self.reactor().wall_ms();
        vote.sequence += 1;
        let body = VoteBody {
            node: vote.node.0,
            reserved: [0; 7],
            incarnation: U64::new(vote.incarnation.0),
            epoch: U64::new(vote.epoch.0),
            beat: U64::new(vote.beat),
            reachable: U128::new(vote.reachable),
            written_ms: U64::new(vote.written_ms),
            evicted: vote.evicted.map(|(node, incarnation)| EvictedBody {
                node: node.0,
                incarnation: U64::new(incarnation.0),
                ..EvictedBody::default()
            }),
        };
        self.write_fact(SectorKind::Vote, self.geometry().vote_block(vote.node), vote.sequence, &body).await
    }

    async fn read_fact<T>(&self, kind: SectorKind, block: BlockNo) -> Result<(u64, T), VolumeError>
    where
        T: FromBytes + KnownLayout + Immutable + Copy,
    {
        let pair = SectorPair::adjacent(kind, self.geometry().stamp(), block_offset(block));
        let read = pair.read(self.reactor(), self.file()).await.map_err(|error| self.io("read", block, error))?;
        let read = read.map_err(|faults| VolumeError::Sector { path: self.path().to_owned(), kind, block, faults })?;
        let (body, _) = T::read_from_prefix(read.body()).expect("a sector holds more than any of its contents");
        Ok((read.sequence, body))
    }

    async fn write_fact(
        &self,
        kind: SectorKind,
        block: BlockNo,
        sequence: u64,
        body: &(impl IntoBytes + Immutable),
    ) -> Result<(), VolumeError> {
        let stamp = self.geometry().stamp();
        let pair = SectorPair::adjacent(kind, stamp, block_offset(block));
        let written = pair.write(self.reactor(), self.file(), sequence, stamp, body.as_bytes()).await;
        written.map_err(|error| self.io("write", block, error))
    }

    /// Gives every small fact of a volume that is being formatted its first content, in both copies.
    pub(super) async fn write_first_facts(&self) -> Result<(), VolumeError> {
        let (mut control, geometry) = (ControlBlock::default(), *self.geometry());
        for _copy in 0..2 {
            self.write_control(&mut control).await?;
        }
        for node in geometry.nodes() {
            let (mut slot, mut vote) = (NodeSlot::new(node), Vote::new(node));
            for _copy in 0..2 {
                self.write_node_slot(&mut slot).await?;
                self.write_vote(&mut vote).await?;
            }
        }
        Ok(())
    }
}
