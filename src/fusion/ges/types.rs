//! The words of the lock service: resources, modes, owners, value blocks. Plain values.

use std::fmt;

use crate::ids::{NodeId, TxnId};

/// Kind of a resource. Numbers go over the wire; 64 and above are free for the layers above to give meanings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ResourceClass(pub u8);

impl ResourceClass {
    /// A transaction: waited for until it ends. `id1` is its id. Mastered at its home, held by it implicitly.
    pub const TRANSACTION: ResourceClass = ResourceClass(1);
    /// A table, `id1` its number.
    pub const TABLE: ResourceClass = ResourceClass(2);
    /// The SQL catalog (or a part of it, by `id1`); its value block carries the catalog's version.
    pub const CATALOG: ResourceClass = ResourceClass(3);
    /// A sequence, `id1` its number.
    pub const SEQUENCE: ResourceClass = ResourceClass(4);
    /// Locks that users name themselves (advisory locks).
    pub const USER: ResourceClass = ResourceClass(5);
}

/// Something that is locked by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Resource {
    /// Its kind.
    pub class: ResourceClass,
    /// First part of its name.
    pub id1: u64,
    /// Second part of its name.
    pub id2: u64,
}

impl Resource {
    /// The version of the SQL catalog, in its value block. Held in CR by whoever relies on it, in EX by whoever commits a
    /// change of the catalog, for as long as that takes.
    pub const CATALOG_VERSION: Resource = Resource::new(ResourceClass::CATALOG, 0, 1);

    /// Puts a name together.
    #[must_use]
    pub const fn new(class: ResourceClass, id1: u64, id2: u64) -> Resource {
        Resource { class, id1, id2 }
    }

    /// The resource that stands for a transaction.
    #[must_use]
    pub const fn transaction(txn: TxnId) -> Resource {
        Resource::new(ResourceClass::TRANSACTION, txn.raw(), 0)
    }

    /// 64 well-mixed bits of the name, equal on all nodes and in all versions: it decides who masters the resource.
    #[must_use]
    pub fn hash(&self) -> u64 {
        mix(mix(mix(u64::from(self.class.0)) ^ self.id1) ^ self.id2)
    }

    /// The node among `members` that masters it: the one of the highest weight (rendezvous hashing, Thaler and Ravishankar
    /// 1998), so that a change of members moves only what must move. A transaction's master is its home, whoever the
    /// members are. `None` when there are no members.
    #[must_use]
    pub fn master(&self, members: impl Iterator<Item = NodeId>) -> Option<NodeId> {
        if self.class == ResourceClass::TRANSACTION {
            return TxnId::from_raw(self.id1).map(TxnId::node);
        }
        let hash = self.hash();
        members.max_by_key(|node| (mix(hash ^ mix(u64::from(node.0))), *node))
    }
}

/// The finisher of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.class, TxnId::from_raw(self.id1)) {
            (ResourceClass::TRANSACTION, Some(txn)) => write!(f, "{txn}"),
            (ResourceClass::TABLE, _) => write!(f, "table {}", self.id1),
            (ResourceClass::CATALOG, _) => write!(f, "catalog {}.{}", self.id1, self.id2),
            (ResourceClass::SEQUENCE, _) => write!(f, "sequence {}", self.id1),
            (ResourceClass::USER, _) => write!(f, "user lock {}.{}", self.id1, self.id2),
            (ResourceClass(class), _) => write!(f, "lock {class}.{}.{}", self.id1, self.id2),
        }
    }
}

/// The six modes of the VMS lock manager, from the weakest to the strongest (CW and PR are not comparable).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum LockMode {
    /// NL: an interest without a claim.
    #[default]
    Null = 0,
    /// CR: reads, whatever others do short of Exclusive.
    ConcurrentRead = 1,
    /// CW: reads and writes beside other concurrent readers and writers.
    ConcurrentWrite = 2,
    /// PR: reads, and nobody writes.
    ProtectedRead = 3,
    /// PW: writes, and nobody else writes; concurrent readers go on.
    ProtectedWrite = 4,
    /// EX: alone.
    Exclusive = 5,
}

use LockMode::{ConcurrentRead, ConcurrentWrite, Exclusive, Null, ProtectedRead, ProtectedWrite};

impl LockMode {
    /// All modes, in the order of their numbers.
    pub const ALL: [LockMode; 6] = [Null, ConcurrentRead, ConcurrentWrite, ProtectedRead, ProtectedWrite, Exclusive];

    /// From its number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<LockMode> {
        LockMode::ALL.get(usize::from(number)).copied()
    }

    /// Whether two owners may hold these modes at the same time.
    #[must_use]
    pub const fn compatible(self, other: LockMode) -> bool {
        match (self, other) {
            (Null, _) | (_, Null) => true,
            (Exclusive, _) | (_, Exclusive) => false,
            (ConcurrentRead, _) | (_, ConcurrentRead) => true,
            (ConcurrentWrite, ConcurrentWrite) | (ProtectedRead, ProtectedRead) => true,
            _ => false,
        }
    }

    /// Whether a holder of this mode may do all that a holder of `other` may.
    #[must_use]
    pub const fn covers(self, other: LockMode) -> bool {
        match (self, other) {
            (ProtectedRead, ConcurrentWrite) => false,
            _ => self as u8 >= other as u8,
        }
    }

    /// The weakest mode that covers both.
    #[must_use]
    pub const fn join(self, other: LockMode) -> LockMode {
        match (self, other) {
            (ConcurrentWrite, ProtectedRead) | (ProtectedRead, ConcurrentWrite) => ProtectedWrite,
            _ if self as u8 >= other as u8 => self,
            _ => other,
        }
    }

    /// Whether its holder may write the value block.
    #[must_use]
    pub const fn writes_value(self) -> bool {
        matches!(self, ProtectedWrite | Exclusive)
    }
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Null => "NL",
            ConcurrentRead => "CR",
            ConcurrentWrite => "CW",
            ProtectedRead => "PR",
            ProtectedWrite => "PW",
            Exclusive => "EX",
        })
    }
}

/// Bytes of a lock value block.
pub const VALUE_BYTES: usize = 32;

/// The value that a resource carries, for as long as anybody holds a lock on it; zeros at first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ValueBlock {
    /// The bytes.
    pub bytes: [u8; VALUE_BYTES],
    /// False after a holder who may have been about to change it was lost, or its master with all who surely knew it: the
    /// bytes are the last that are known, and whoever needs them must find out what is true by other means. The next write
    /// makes it valid again.
    pub valid: bool,
    /// Grows with each write while anybody holds a lock on the resource: of two copies it tells the newer.
    pub sequence: u64,
}

impl Default for ValueBlock {
    fn default() -> ValueBlock {
        ValueBlock { bytes: [0; VALUE_BYTES], valid: true, sequence: 0 }
    }
}

impl ValueBlock {
    /// As it is after a write.
    #[must_use]
    pub fn written(self, bytes: [u8; VALUE_BYTES]) -> ValueBlock {
        ValueBlock { bytes, valid: true, sequence: self.sequence + 1 }
    }

    /// As it is when nobody knows any more whether it is true.
    #[must_use]
    pub fn doubted(self) -> ValueBlock {
        ValueBlock { valid: false, sequence: self.sequence + 1, ..self }
    }
}

/// A session of this node's store, in one of its transactions. That may have an id in each shard, or none yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId {
    /// Its number in the store.
    pub number: u64,
    /// Which of its transactions: that one has ended may be heard of when the next has begun.
    pub transaction: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}.{}", self.number, self.transaction)
    }
}

/// On whose behalf a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LockOwner {
    /// A transaction; it may become the victim of a deadlock.
    Transaction(TxnId),
    /// A session whose transaction had come in by the [`Gate`](super::Gate) when the resource was closed.
    Session(SessionId),
    /// A node, for itself; never a victim.
    Node(NodeId),
}

impl fmt::Display for LockOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockOwner::Transaction(txn) => write!(f, "{txn}"),
            LockOwner::Session(session) => write!(f, "{session}"),
            LockOwner::Node(node) => write!(f, "{node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_compatible_as_in_the_classic_matrix() {
        let classic = ["111111", "111110", "111000", "110100", "110000", "100000"];
        for (a, row) in LockMode::ALL.iter().zip(classic) {
            for (b, bit) in LockMode::ALL.iter().zip(row.chars()) {
                assert_eq!(a.compatible(*b), bit == '1', "{a} beside {b}");
                assert_eq!(a.compatible(*b), b.compatible(*a));
            }
        }
    }

    #[test]
    fn a_mode_covers_another_when_it_keeps_out_whatever_the_other_keeps_out() {
        for a in LockMode::ALL {
            for b in LockMode::ALL {
                let keeps_out = LockMode::ALL.iter().all(|c| b.compatible(*c) || !a.compatible(*c));
                assert!(!a.covers(b) || keeps_out, "{a} covers {b}");
                assert!(a.join(b).covers(a) && a.join(b).covers(b));
                assert_eq!(a.join(b), b.join(a));
                let weaker = LockMode::ALL.iter().filter(|c| c.covers(a) && c.covers(b)).min();
                assert_eq!(weaker, Some(&a.join(b)), "{a} and {b}");
            }
        }
    }

    #[test]
    fn masters_are_spread_and_stay_when_others_come() {
        let nodes = |count: u8| (1..=count).map(NodeId);
        let tables: Vec<Resource> = (0..3_000).map(|table| Resource::new(ResourceClass::TABLE, table, 0)).collect();
        let mut mastered = [0u32; 5];
        for table in &tables {
            let before = table.master(nodes(3)).unwrap();
            let after = table.master(nodes(4)).unwrap();
            mastered[usize::from(before.0)] += 1;
            assert!(after == before || after == NodeId(4));
        }
        assert!(mastered[1..4].iter().all(|count| (800..1_200).contains(count)), "{mastered:?}");
    }
}
