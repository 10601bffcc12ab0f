//! The bytes of a [`Claim`], as they lie one behind the other in the body of a `claims` message. Drawn in docs/formats.md.
//!
//! Plain functions. Bounded by the interconnect's longest body.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Claim;
use super::message::mode_from_wire;
use crate::cache::Mode;
use crate::ids::{BlockId, BlockNo, PartitionId, Scn};
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
        fn any_bytes_are_claims_or_are_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(claims) = decode(&body) {
                prop_assert_eq!(claims.len() * 40, body.len());
            }
        }
    }
}
