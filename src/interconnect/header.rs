//! The 64-byte header in front of every message between two nodes, and its checks.
//!
//! Plain data, owned by whoever holds it. Drawn byte by byte in `docs/formats.md`. The wire form is little-endian and
//! has no padding; [`Header`] is the same with the engine's types. The checksum (crc32c) covers the header and, unless the
//! body is a block, the body; a block carries a checksum of its own, so its 8 KiB are not summed twice.

use std::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::rdma::StreamFault;
use crate::ids::{BLOCK_SIZE, BlockId, BlockNo, Epoch, Incarnation, NodeId, PartitionId, RequestId, Scn};

/// Bytes of a header on the wire.
pub const HEADER_BYTES: usize = 64;

/// Most bytes of a body that is not a block.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The body is one block of [`BLOCK_SIZE`] bytes. Set by the interconnect.
pub const FLAG_BLOCK: u8 = 0x01;

/// The block lies in the frame that was exposed for the request: it was written there before this message came (RDMA). Set by
/// the interconnect, together with [`FLAG_BLOCK`].
pub const FLAG_WRITTEN: u8 = 0x02;

/// The flag bits that a service may give a meaning of its own; the others belong to the interconnect.
pub const FLAGS_OF_SERVICE: u8 = 0xf0;

/// Whom a message is for: the engine's layers share one connection, each with a range of message kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Service {
    /// Membership, kinds `0x00..=0x1f`. Its messages pass the epoch filter, because they establish the epoch.
    Cluster,
    /// Blocks (Cache Fusion), kinds `0x20..=0x3f`.
    Gcs,
    /// Locks, kinds `0x40..=0x5f`.
    Ges,
    /// Transactions: commit broadcast and state queries, kinds `0x60..=0x7f`.
    Txn,
    /// Raft groups, kinds `0x80..=0x9f`. Its messages pass the epoch filter: Raft has terms of its own, and decides epochs.
    Raft,
    /// The interconnect's own heartbeats, kinds `0xe0..=0xff`.
    Link,
}

impl Service {
    /// Every service, in the order of [`Service::index`].
    pub const ALL: [Service; 6] = [Service::Cluster, Service::Gcs, Service::Ges, Service::Txn, Service::Raft, Service::Link];

    /// The service that a message kind belongs to; `None` for kinds that nobody has.
    #[must_use]
    pub const fn of(kind: u8) -> Option<Service> {
        match kind {
            0x00..=0x1f => Some(Service::Cluster),
            0x20..=0x3f => Some(Service::Gcs),
            0x40..=0x5f => Some(Service::Ges),
            0x60..=0x7f => Some(Service::Txn),
            0x80..=0x9f => Some(Service::Raft),
            0xe0..=0xff => Some(Service::Link),
            _ => None,
        }
    }

    /// The first kind of the service's range; it has 32.
    #[must_use]
    pub const fn base(self) -> u8 {
        match self {
            Service::Cluster => 0x00,
            Service::Gcs => 0x20,
            Service::Ges => 0x40,
            Service::Txn => 0x60,
            Service::Raft => 0x80,
            Service::Link => 0xe0,
        }
    }

    /// Position in [`Service::ALL`], for tables by service.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Service::Cluster => 0,
            Service::Gcs => 1,
            Service::Ges => 2,
            Service::Txn => 3,
            Service::Raft => 4,
            Service::Link => 5,
        }
    }

    /// Name in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Service::Cluster => "cluster",
            Service::Gcs => "gcs",
            Service::Ges => "ges",
            Service::Txn => "txn",
            Service::Raft => "raft",
            Service::Link => "link",
        }
    }
}

/// What a service says with a message; the interconnect adds who, when and in which epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// Kind, out of the range of its [`Service`].
    pub kind: u8,
    /// Bits of [`FLAGS_OF_SERVICE`]; others must be clear.
    pub flags: u8,
    /// A mode, for the services that have modes.
    pub mode: u8,
    /// The block that it is about, where there is one.
    pub block: BlockId,
    /// The request that it opens or answers.
    pub request: RequestId,
    /// One more number with a meaning by kind.
    pub argument: u64,
}

/// A received message's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Kind, out of the range of its [`Service`].
    pub kind: u8,
    /// The service's flag bits, and [`FLAG_BLOCK`].
    pub flags: u8,
    /// A mode, for the services that have modes.
    pub mode: u8,
    /// Sender.
    pub from: NodeId,
    /// Bytes of the body.
    pub body_len: u32,
    /// The sender's epoch.
    pub epoch: Epoch,
    /// The sender's life.
    pub incarnation: Incarnation,
    /// The sender's clock when it sent; already observed by our clock when a handler sees the message.
    pub scn: Scn,
    /// The block that it is about, where there is one.
    pub block: BlockId,
    /// The request that it opens or answers.
    pub request: RequestId,
    /// One more number with a meaning by kind.
    pub argument: u64,
}

/// The header as it lies on the wire.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct WireHeader {
    kind: u8,
    flags: u8,
    mode: u8,
    from_node: u8,
    body_len: U32,
    epoch: U64,
    incarnation: U64,
    scn: U64,
    block_no: U64,
    partition: U32,
    checksum: U32,
    request: U64,
    argument: U64,
}

const _: () = assert!(size_of::<WireHeader>() == HEADER_BYTES);

/// Why a received header or small body is no message. The connection that brought it is closed: after this nobody knows
/// where the next message begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameFault {
    /// A length that no message has.
    Length {
        /// What the header says.
        body_len: u32,
        /// Whether it says that the body is a block.
        block: bool,
    },
    /// The checksum is wrong.
    Checksum {
        /// In the header.
        carried: u32,
        /// Over the bytes received.
        computed: u32,
    },
    /// A kind that belongs to no service.
    Kind(u8),
    /// The clock that it carries stands beyond every possible time.
    Clock(Scn),
    /// The message names another sender than the connection's peer.
    Sender(NodeId),
    /// The message does not belong where it came, or says what can't be of the two ways that messages come.
    Stream(StreamFault),
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameFault::Length { body_len, block: true } => {
                write!(f, "a message says that its block has {body_len} bytes, blocks have {BLOCK_SIZE}")
            }
            FrameFault::Length { body_len, block: false } => {
                write!(f, "a message says that its body has {body_len} bytes, at most {BODY_BYTES_MAX} are allowed")
            }
            FrameFault::Checksum { carried, computed } => {
                write!(f, "a message's checksum is {carried:#010x}, its bytes give {computed:#010x}")
            }
            FrameFault::Kind(kind) => write!(f, "message kind {kind:#04x} belongs to no service"),
            FrameFault::Clock(scn) => write!(f, "a message carries {scn}, which no clock ever showed"),
            FrameFault::Sender(node) => write!(f, "a message names {node} as its sender, which is not this connection's peer"),
            FrameFault::Stream(fault) => write!(f, "{fault}"),
        }
    }
}

impl std::error::Error for FrameFault {}

impl Header {
    /// Whether the body is a block.
    #[must_use]
    pub const fn is_block(&self) -> bool {
        self.flags & FLAG_BLOCK != 0
    }

    /// Whether the block was written into its frame already.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        self.flags & (FLAG_BLOCK | FLAG_WRITTEN) == FLAG_BLOCK | FLAG_WRITTEN
    }

    /// The service that it is for.
    #[must_use]
    pub fn service(&self) -> Option<Service> {
        Service::of(self.kind)
    }

    /// The wire form, sealed over the header and `summed_body` (empty for a block).
    #[must_use]
    pub fn seal(&self, summed_body: &[u8]) -> WireHeader {
        let mut wire = WireHeader {
            kind: self.kind,
            flags: self.flags,
            mode: self.mode,
            from_node: self.from.0,
            body_len: U32::new(self.body_len),
            epoch: U64::new(self.epoch.0),
            incarnation: U64::new(self.incarnation.0),
            scn: U64::new(self.scn.0),
            block_no: U64::new(self.block.block.0),
            partition: U32::new(self.block.partition.0),
            checksum: U32::ZERO,
            request: U64::new(self.request.0),
            argument: U64::new(self.argument),
        };
        wire.checksum = U32::new(wire.compute(summed_body));
        wire
    }
}

impl WireHeader {
    /// Checks what can be checked before the body is there: the length and the kind. The checksum of a message with a
    /// small body needs [`WireHeader::verify`] once the body is there; until then the fields are only claims.
    pub fn open(&self) -> Result<Header, FrameFault> {
        let body_len = self.body_len.get();
        let block = self.flags & FLAG_BLOCK != 0;
        let length_fits = if block { body_len as usize == BLOCK_SIZE } else { body_len as usize <= BODY_BYTES_MAX };
        if !length_fits {
            return Err(FrameFault::Length { body_len, block });
        }
        if Service::of(self.kind).is_none() {
            return Err(FrameFault::Kind(self.kind));
        }
        Ok(Header {
            kind: self.kind,
            flags: self.flags,
            mode: self.mode,
            from: NodeId(self.from_node),
            body_len,
            epoch: Epoch(self.epoch.get()),
            incarnation: Incarnation(self.incarnation.get()),
            scn: Scn(self.scn.get()),
            block: BlockId::new(PartitionId(self.partition.get()), BlockNo(self.block_no.get())),
            request: RequestId(self.request.get()),
            argument: self.argument.get(),
        })
    }

    /// Checks the checksum over the header and `summed_body` (empty for a block).
    pub fn verify(&self, summed_body: &[u8]) -> Result<(), FrameFault> {
        let carried = self.checksum.get();
        let computed = self.compute(summed_body);
        if carried == computed { Ok(()) } else { Err(FrameFault::Checksum { carried, computed }) }
    }

    fn compute(&self, summed_body: &[u8]) -> u32 {
        let mut bare = *self;
        bare.checksum = U32::ZERO;
        crc32c::crc32c_append(crc32c::crc32c(bare.as_bytes()), summed_body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_header() -> impl Strategy<Value = Header> {
        let ids = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>());
        (0u8..0xa0, any::<u8>(), any::<u8>(), any::<u8>(), ids).prop_map(|(kind, flags, mode, from, ids)| Header {
            kind,
            flags: flags & FLAGS_OF_SERVICE,
            mode,
            from: NodeId(from),
            body_len: 0,
            epoch: Epoch(ids.0),
            incarnation: Incarnation(ids.1),
            scn: Scn(ids.2),
            block: BlockId::new(PartitionId(ids.4), BlockNo(ids.3)),
            request: RequestId(ids.5),
            argument: ids.6,
        })
    }

    proptest! {
        #[test]
        fn a_header_comes_back_and_any_flipped_bit_is_seen(
            mut header in any_header(), body in proptest::collection::vec(any::<u8>(), 0..300), bit: u32
        ) {
            header.body_len = body.len() as u32;
            let wire = header.seal(&body);
            prop_assert_eq!(wire.open(), Ok(header));
            prop_assert_eq!(wire.verify(&body), Ok(()));

            let mut bytes = wire.as_bytes().to_vec();
            bytes.extend_from_slice(&body);
            let at = bit as usize % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            let (damaged, body) = bytes.split_at(HEADER_BYTES);
            let damaged = WireHeader::read_from_bytes(damaged).unwrap();
            prop_assert!(damaged.verify(body).is_err());
        }
    }

    #[test]
    fn lengths_and_kinds_that_no_message_has_are_refused() {
        let good = Header {
            kind: Service::Gcs.base(),
            flags: 0,
            mode: 0,
            from: NodeId(1),
            body_len: BODY_BYTES_MAX as u32,
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            scn: Scn(1),
            block: BlockId::default(),
            request: RequestId(0),
            argument: 0,
        };
        assert!(good.seal(&[]).open().is_ok());
        let long = Header { body_len: BODY_BYTES_MAX as u32 + 1, ..good };
        assert!(matches!(long.seal(&[]).open(), Err(FrameFault::Length { block: false, .. })));
        let short_block = Header { flags: FLAG_BLOCK, body_len: 4096, ..good };
        assert!(matches!(short_block.seal(&[]).open(), Err(FrameFault::Length { block: true, .. })));
        let nobody = Header { kind: 0xb9, ..good };
        assert!(matches!(nobody.seal(&[]).open(), Err(FrameFault::Kind(0xb9))));
    }
}
