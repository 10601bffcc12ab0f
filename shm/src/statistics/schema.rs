//! What a file holds: its metrics, described once for all groups of a scope.

/// Whose a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The node's.
    Node,
    /// Each shard's.
    Shard,
}

impl Scope {
    pub(super) const fn code(self) -> u16 {
        match self {
            Scope::Node => 1,
            Scope::Shard => 2,
        }
    }

    pub(super) const fn from_code(code: u16) -> Option<Scope> {
        match code {
            1 => Some(Scope::Node),
            2 => Some(Scope::Shard),
            _ => None,
        }
    }
}

/// What kind of value it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; begins at zero with the node's life.
    Counter,
    /// A level.
    Gauge,
    /// How often which value, in buckets that are linear within powers of two.
    Histogram {
        /// Values are counted in units of 2 to this.
        unit_shift: u8,
        /// Each power of two is divided into 2 to this buckets.
        sub_bits: u8,
        /// How many buckets there are.
        buckets: u32,
    },
}

impl Kind {
    pub(super) const fn code(self) -> u8 {
        match self {
            Kind::Counter => 1,
            Kind::Gauge => 2,
            Kind::Histogram { .. } => 3,
        }
    }

    /// Words of 8 bytes that a value takes.
    pub(super) const fn words(self) -> usize {
        match self {
            Kind::Counter | Kind::Gauge => 1,
            Kind::Histogram { buckets, .. } => super::layout::HISTOGRAM_HEAD_WORDS + buckets as usize,
        }
    }
}

/// A metric as its file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// As in Prometheus: `rustydb_block_transfers_total`. At most 64 bytes.
    pub name: String,
    /// What tells it from others of the same name: `path="two_way",mode="x"`. At most 48 bytes.
    pub labels: String,
    /// Of its values: `blocks`, `bytes`, `ns`. At most 16 bytes.
    pub unit: String,
    /// A sentence. At most 112 bytes.
    pub help: String,
    /// Whose it is.
    pub scope: Scope,
    /// What it is.
    pub kind: Kind,
}
