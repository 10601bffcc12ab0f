//! The bytes of a [`Claim`], as they lie one behind the other in the body of a `claims` message, and of a [`MovedEntry`] in
//! a `remaster_entries`. Drawn in docs/formats.md.
//!
//! Plain functions. Bounded by the interconnect's longest body.

use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::directory::Entry;
use super::message::mode_from_wire;
use super::{Claim, MovedEntry};
use crate::cache::Mode;
use crate::fusion::NodeSet;
use crate::ids::{BlockId, BlockNo, NODES_MAX, NodeId, PartitionId, Scn};
use crate::interconnect::BODY_BYTES_MAX;

/// Most claims in one message.
pub const CLAIMS_PER_MESSAGE: usize = BODY_BYTES_MAX / size_of::<WireClaim>();

const DIRTY: u8 = 1;
const PAST_IMAGE: u8 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireClaim {
    block: U64,
    partition: U32,
    mode: u8,
    flags: u8,
    zero: [u8; 2],
    scn: U64,
    disk_scn: U64,
    past_image: U64,
}

const _: () = assert!(size_of::<WireClaim>() == 40);

/// The body of a message with these claims, at most [`CLAIMS_PER_MESSAGE`].
#[must_use]
pub fn encode(claims: &[Claim]) -> Vec<u8> {
    assert!(claims.len() <= CLAIMS_PER_MESSAGE, "{} claims in one message", claims.len());
    let mut body = Vec::with_capacity(size_of_val(claims));
    for claim in claims {
        let flags = if claim.dirty { DIRTY } else { 0 } | if claim.past_image.is_some() { PAST_IMAGE } else { 0 };
        let wire = WireClaim {
            block: U64::new(claim.block.block.0),
            partition: U32::new(claim.block.partition.0),
            mode: claim.mode as u8,
            flags,
            zero: [0; 2],
            scn: U64::new(claim.scn.0),
            disk_scn: U64::new(claim.disk_scn.0),
            past_image: U64::new(claim.past_image.unwrap_or_default().0),
        };
        body.extend_from_slice(wire.as_bytes());
    }
    body
}

/// The claims of a body; `None` when it is not whole claims, or one has a mode or flags that do not exist.
#[must_use]
pub fn decode(body: &[u8]) -> Option<Vec<Claim>> {
    let claims = <[WireClaim]>::ref_from_bytes(body).ok()?;
    claims.iter().map(open).collect()
}

fn open(wire: &WireClaim) -> Option<Claim> {
    let sound = wire.flags & !(DIRTY | PAST_IMAGE) == 0 && wire.zero == [0; 2];
    let mode: Mode = mode_from_wire(wire.mode).filter(|_| sound)?;
    Some(Claim {
        block: BlockId::new(PartitionId(wire.partition.get()), BlockNo(wire.block.get())),
        mode,
        dirty: wire.flags & DIRTY != 0,
        scn: Scn(wire.scn.get()),
        disk_scn: Scn(wire.disk_scn.get()),
        past_image: (wire.flags & PAST_IMAGE != 0).then(|| Scn(wire.past_image.get())),
    })
}

/// Most entries in one message.
pub const MOVED_PER_MESSAGE: usize = BODY_BYTES_MAX / size_of::<WireEntry>();

const WRITE_WANTED: u8 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireEntry {
    block: U64,
    partition: U32,
    exclusive: u8,
    dirty_owner: u8,
    flags: u8,
    zero: u8,
    disk_scn: U64,
    dirty_scn: U64,
    past_image_scn: U64,
    holders: U128,
    past_images: U128,
}

const _: () = assert!(size_of::<WireEntry>() == 72);

/// The body of a message with these entries, at most [`MOVED_PER_MESSAGE`].
#[must_use]
pub fn encode_moved(entries: &[MovedEntry]) -> Vec<u8> {
    assert!(entries.len() <= MOVED_PER_MESSAGE, "{} entries in one message", entries.len());
    let mut body = Vec::with_capacity(entries.len() * size_of::<WireEntry>());
    for MovedEntry { block, entry } in entries {
        let wire = WireEntry {
            block: U64::new(block.block.0),
            partition: U32::new(block.partition.0),
            exclusive: entry.exclusive().unwrap_or_default().0,
            dirty_owner: entry.dirty_owner().unwrap_or_default().0,
            flags: if entry.write_wanted { WRITE_WANTED } else { 0 },
            zero: 0,
            disk_scn: U64::new(entry.disk_scn.0),
            dirty_scn: U64::new(entry.dirty_scn.0),
            past_image_scn: U64::new(entry.past_image_scn.0),
            holders: U128::new(entry.holders.bits()),
            past_images: U128::new(entry.past_images.bits()),
        };
        body.extend_from_slice(wire.as_bytes());
    }
    body
}

/// The entries of a body; `None` when it is not whole entries, or one names a node or flags that do not exist.
#[must_use]
pub fn decode_moved(body: &[u8]) -> Option<Vec<MovedEntry>> {
    let entries = <[WireEntry]>::ref_from_bytes(body).ok()?;
    entries.iter().map(open_moved).collect()
}

fn open_moved(wire: &WireEntry) -> Option<MovedEntry> {
    let node = |number: u8| match number {
        0 => Some(None),
        number => (usize::from(number) <= NODES_MAX).then_some(Some(NodeId(number))),
    };
    if wire.flags & !WRITE_WANTED != 0 || wire.zero != 0 {
        return None;
    }
    let mut entry = Entry::default();
    entry.holders = NodeSet::from_bits(wire.holders.get())?;
    entry.past_images = NodeSet::from_bits(wire.past_images.get())?;
    entry.disk_scn = Scn(wire.disk_scn.get());
    entry.dirty_scn = Scn(wire.dirty_scn.get());
    entry.past_image_scn = Scn(wire.past_image_scn.get());
    entry.write_wanted = wire.flags & WRITE_WANTED != 0;
    entry.set_exclusive(node(wire.exclusive)?);
    entry.set_dirty_owner(node(wire.dirty_owner)?);
    Some(MovedEntry { block: BlockId::new(PartitionId(wire.partition.get()), BlockNo(wire.block.get())), entry })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim() -> impl Strategy<Value = Claim> {
        let modes = prop_oneof![Just(Mode::Null), Just(Mode::Shared), Just(Mode::Exclusive)];
        let numbers = (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>());
        (numbers, modes, any::<bool>(), any::<Option<u64>>()).prop_map(|(numbers, mode, dirty, past_image)| {
            let (block, partition, scn, disk_scn) = numbers;
            let block = BlockId::new(PartitionId(partition), BlockNo(block));
            Claim { block, mode, dirty, scn: Scn(scn), disk_scn: Scn(disk_scn), past_image: past_image.map(Scn) }
        })
    }

    proptest! {
        #[test]
        fn claims_survive_the_wire(claims in proptest::collection::vec(claim(), 0..20), cut in 1usize..40) {
            let body = encode(&claims);
            prop_assert_eq!(decode(&body), Some(claims.clone()));
            if !claims.is_empty() {
                prop_assert_eq!(decode(&body[..body.len() - cut]), None);
            }
        }

        #[test]
        fn moved_entries_survive_the_wire(fields in prop::collection::vec(any::<([u64; 4], u32, [u8; 2], [u128; 2], bool)>(), 0..20)) {
            let entries: Vec<_> = fields.into_iter().map(|(numbers, partition, nodes, sets, write_wanted)| {
                let set = |bits: u128| NodeSet::from_bits(bits & !1).unwrap();
                let node = |number: u8| Some(NodeId(number % 128)).filter(|node| node.0 != 0);
                let mut entry = Entry::default();
                (entry.holders, entry.past_images) = (set(sets[0]), set(sets[1]));
                (entry.disk_scn, entry.dirty_scn, entry.past_image_scn) = (Scn(numbers[1]), Scn(numbers[2]), Scn(numbers[3]));
                entry.write_wanted = write_wanted;
                entry.set_exclusive(node(nodes[0]));
                entry.set_dirty_owner(node(nodes[1]));
                MovedEntry { block: BlockId::new(PartitionId(partition), BlockNo(numbers[0])), entry }
            }).collect();
            let body = encode_moved(&entries);
            prop_assert_eq!(decode_moved(&body), Some(entries.clone()));
            if !entries.is_empty() {
                prop_assert_eq!(decode_moved(&body[1..]), None);
            }
        }

        #[test]
        fn any_bytes_are_claims_or_are_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(claims) = decode(&body) {
                prop_assert_eq!(claims.len() * 40, body.len());
            }
            if let Some(entries) = decode_moved(&body) {
                prop_assert_eq!(entries.len() * 72, body.len());
            }
        }
    }
}
