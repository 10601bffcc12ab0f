//! What the two cores want done. The agent does it, in order; the explorer's world does it in any order that may happen.

use crate::cache::{Granted, Remains};
use crate::fusion::grd::Bucket;
use crate::ids::{BlockId, NodeId, RequestId, Scn};
use crate::interconnect::rdma::Place;

use super::message::Message;

/// One thing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Send a message without a body. `to` may be this node itself.
    Send {
        /// Receiver.
        to: NodeId,
        /// What it says.
        message: Message,
    },
    /// Protect the block in the cache, then tell the holder's core ([`super::HolderCore::on_protected`]).
    Protect {
        /// The block.
        block: BlockId,
    },
    /// Forget about that: the block has been released. A protection that was found by now, but not told, is void.
    CancelProtect {
        /// The block.
        block: BlockId,
    },
    /// The protected block goes, and a request of this node for it waits for its turn: its answer needs another frame. Comes
    /// before the block is shipped or given up.
    MakeWay {
        /// The block.
        block: BlockId,
    },
    /// Send the protected block's bytes with this Data message. Comes between Protect and Finish.
    Ship {
        /// Receiver; never this node itself.
        to: NodeId,
        /// The Data message.
        message: Message,
        /// Where in the receiver's memory the block may be written.
        place: Place,
    },
    /// End the protection of the block; its bytes have been handed to the interconnect.
    Finish {
        /// The block.
        block: BlockId,
        /// What remains here.
        remains: Remains,
    },
    /// End the protection of the block, and let everything be as it was.
    Unprotect {
        /// The block.
        block: BlockId,
    },
    /// The local request is served: put the mode into the frame. Comes before the Done that lets the master go on.
    Granted {
        /// The block.
        block: BlockId,
        /// The request that it answers.
        request: RequestId,
        /// The answer.
        granted: Granted,
    },
    /// A local release is acknowledged.
    Released {
        /// The block.
        block: BlockId,
    },
    /// Past images of the block up to this version are needed no more.
    DiscardPastImage {
        /// The block.
        block: BlockId,
        /// The version now on stable storage.
        up_to: Scn,
    },
    /// Another node's log waits for this block: write it soon if it is dirty here.
    RequestWrite {
        /// The block.
        block: BlockId,
    },
    /// The block's owner was lost. Make its newest version: start from this past image (where it is newer than the disk)
    /// or the disk, apply the lost nodes' redo, write it, then tell the master's core ([`super::MasterCore::on_recovered`]).
    Recover {
        /// The block.
        block: BlockId,
        /// Who keeps the newest past image, and its version.
        image: Option<(NodeId, Scn)>,
        /// A version that is known to be on the disk: nothing older may be put there.
        on_disk: Scn,
    },
    /// Go on looking for the entries of the bucket that leaves ([`super::MasterCore::gather`]), when there is time.
    Gather,
    /// Send the entries that [`super::MasterCore::take_shipment`] gives, and how many they are.
    HandOver {
        /// The next master; never this node itself.
        to: NodeId,
        /// What leaves.
        bucket: Bucket,
    },
    /// The bucket has another master: the holder's side goes by [`super::MasterCore::map`] from now on. Comes before the
    /// acknowledgement of it.
    Remapped {
        /// The bucket.
        bucket: Bucket,
        /// Its former master.
        from: NodeId,
        /// Its master.
        to: NodeId,
    },
    /// The bucket that was offered stays here.
    StaysHere {
        /// The bucket.
        bucket: Bucket,
    },
}
