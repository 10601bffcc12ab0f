//! Who asks most for a bucket, and so should master it: counts in windows of a second that fade, and the choice of what to
//! move where.
//!
//! One table per shard, owned by it, of the buckets that it masters. No I/O and no clock: the shard says when a window
//! ends. Bounded: [`HOT_MAX`] buckets, four nodes by name in each, and [`RESTING_MAX`] buckets at rest. A bucket moves only
//! to a node that asks for it clearly more than all others together, and then rests: a bucket that several nodes want
//! stays where it is.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use super::{BlockHasher, Bucket, MastershipMap};
use crate::ids::NodeId;

/// Buckets that are counted at once. Others are, once one of these has faded.
pub const HOT_MAX: usize = 4_096;

/// Nodes that are told apart in each.
const NODES_COUNTED: usize = 4;

/// Buckets that have moved lately.
const RESTING_MAX: usize = 16_384;

/// Windows for which a bucket stays where it has come to.
pub const REST_WINDOWS: u64 = 10;

/// Windows after which a bucket that nobody would take is offered again.
const REFUSED_WINDOWS: u64 = 2;

/// Moves planned at the end of a window.
const MOVES_PER_WINDOW: usize = 64;

/// Moves for the sake of balance in one interval.
const BALANCE_MOVES_MAX: usize = 16;

/// How far the next master must be ahead of all other nodes together.
const LEAD: f64 = 2.0;

/// Below this a count has faded.
const FADED: f64 = 0.5;

/// Settings of remastering.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AffinityConfig {
    /// Whether buckets are moved at all.
    pub auto_remaster: bool,
    /// So many requests of another node, faded, before a bucket moves to it.
    pub remaster_threshold: u64,
    /// What is left of a count after a window of a second. 0 to below 1.
    pub affinity_decay: f64,
    /// Windows between two looks at how the load is spread.
    pub load_balance_interval: u64,
    /// How far above the mean a member's load may be, as a part of the mean, before it gives buckets away.
    pub load_imbalance_threshold: f64,
}

impl Default for AffinityConfig {
    fn default() -> AffinityConfig {
        AffinityConfig {
            auto_remaster: true,
            remaster_threshold: 100,
            affinity_decay: 0.95,
            load_balance_interval: 300,
            load_imbalance_threshold: 0.20,
        }
    }
}

/// The faded counts of a bucket's requests.
#[derive(Clone, Copy, Debug, Default)]
struct Heat {
    by_node: [(NodeId, f64); NODES_COUNTED],
    /// Of nodes that found no place among those.
    others: f64,
}

impl Heat {
    fn record(&mut self, node: NodeId) {
        let slot = self.by_node.iter().position(|&(counted, _)| counted == node);
        let slot = slot.or_else(|| self.by_node.iter().position(|&(counted, _)| counted == NodeId(0)));
        match slot {
            Some(slot) => self.by_node[slot] = (node, self.by_node[slot].1 + 1.0),
            None => self.others += 1.0,
        }
    }

    fn total(&self) -> f64 {
        self.others + self.by_node.iter().map(|(_, count)| count).sum::<f64>()
    }

    fn of(&self, node: NodeId) -> f64 {
        self.by_node.iter().find(|(counted, _)| *counted == node).map_or(0.0, |(_, count)| *count)
    }

    fn fade(&mut self, decay: f64) {
        self.others *= decay;
        for slot in &mut self.by_node {
            slot.1 *= decay;
            if slot.1 < FADED {
                *slot = Default::default();
            }
        }
    }

    /// The node that asks for more than twice as much as all others together.
    fn favourite(&self) -> Option<(NodeId, f64)> {
        let total = self.total();
        self.by_node.iter().copied().find(|&(node, count)| node != NodeId(0) && count > LEAD * (total - count))
    }
}

/// See the module.
#[derive(Debug)]
pub struct AffinityTable {
    node: NodeId,
    config: AffinityConfig,
    heat: HashMap<Bucket, Heat, BuildHasherDefault<BlockHasher>>,
    /// All requests, faded, also those of buckets that found no place.
    load: f64,
    window: u64,
    /// Buckets that stay where they are until that window.
    resting: BTreeMap<Bucket, u64>,
    plan: VecDeque<(Bucket, NodeId)>,
    /// Buckets that had moved before the view changed, and are to go back to where they were.
    restore: VecDeque<(Bucket, NodeId)>,
    /// What the other members have said of their load.
    loads: BTreeMap<NodeId, u64>,
}

impl AffinityTable {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(node: NodeId, config: AffinityConfig) -> AffinityTable {
        assert!((0.0..1.0).contains(&config.affinity_decay) && config.load_balance_interval > 0, "{config:?}");
        AffinityTable {
            node,
            config,
            heat: HashMap::default(),
            load: 0.0,
            window: 0,
            resting: BTreeMap::new(),
            plan: VecDeque::new(),
            restore: VecDeque::new(),
            loads: BTreeMap::new(),
        }
    }

    /// A node (maybe this one) asks this master for a block of the bucket.
    pub fn record(&mut self, bucket: Bucket, node: NodeId) {
        if !self.config.auto_remaster {
            return;
        }
        self.load += 1.0;
        if let Some(heat) = self.heat.get_mut(&bucket) {
            heat.record(node);
        } else if self.heat.len() < HOT_MAX {
            self.heat.entry(bucket).or_default().record(node);
        }
    }

    /// A second is over: plans what to move, then lets everything fade.
    pub fn end_window(&mut self, members: &[NodeId]) {
        self.window += 1;
        self.resting.retain(|_, until| *until > self.window);
        self.plan = self.favourites(members).into();
        let phase = self.window % self.config.load_balance_interval;
        if phase == 1 % self.config.load_balance_interval && self.plan.is_empty() {
            self.plan = self.balance(members).into();
        }
        let decay = self.config.affinity_decay;
        self.load *= decay;
        self.heat.values_mut().for_each(|heat| heat.fade(decay));
        self.heat.retain(|_, heat| heat.total() >= FADED);
    }

    /// The next bucket to move, and whereto.
    pub fn next_move(&mut self) -> Option<(Bucket, NodeId)> {
        self.restore.pop_front().or_else(|| self.plan.pop_front())
    }

    /// Whether the members tell each other their load now.
    #[must_use]
    pub fn tells_load(&self) -> bool {
        self.config.auto_remaster && self.window.is_multiple_of(self.config.load_balance_interval)
    }

    /// The requests that this master gets, faded: of some twenty seconds where 0.95 is left after each.
    #[must_use]
    pub fn load(&self) -> u64 {
        self.load as u64
    }

    /// Another member's word on its load.
    pub fn heard_load(&mut self, node: NodeId, load: u64) {
        self.loads.insert(node, load);
    }

    /// The bucket has come here, or has gone: it stays there for a while.
    pub fn moved(&mut self, bucket: Bucket) {
        self.heat.remove(&bucket);
        self.rest(bucket, REST_WINDOWS);
    }

    /// The bucket was not taken.
    pub fn refused(&mut self, bucket: Bucket) {
        self.rest(bucket, REFUSED_WINDOWS);
    }

    fn rest(&mut self, bucket: Bucket, windows: u64) {
        if self.resting.len() < RESTING_MAX {
            self.resting.insert(bucket, self.window + windows);
        }
    }

    /// Another view, with the buckets in the places that `next` says. What this node does not master any more is forgotten,
    /// and what the members said. Buckets that it masters, and another member did `before`, go back to that.
    pub fn enter(&mut self, before: &MastershipMap, next: &MastershipMap) {
        let masters = |bucket| next.master_of_bucket(bucket) == self.node;
        self.heat.retain(|&bucket, _| masters(bucket));
        self.plan.clear();
        self.loads.clear();
        if !self.config.auto_remaster {
            return;
        }
        let mut restore: BTreeMap<Bucket, NodeId> = self.restore.iter().copied().collect();
        restore.extend(before.overrides().iter().map(|(&bucket, &node)| (bucket, node)));
        restore.retain(|&bucket, node| masters(bucket) && *node != self.node && next.members().contains(node));
        self.restore = restore.into_iter().collect();
    }

    fn favourites(&self, members: &[NodeId]) -> Vec<(Bucket, NodeId)> {
        let threshold = self.config.remaster_threshold as f64;
        let mut found: Vec<(f64, Bucket, NodeId)> = self
            .heat
            .iter()
            .filter_map(|(&bucket, heat)| heat.favourite().map(|(node, count)| (count, bucket, node)))
            .filter(|(count, bucket, node)| {
                *count >= threshold && *node != self.node && members.contains(node) && !self.resting.contains_key(bucket)
            })
            .collect();
        // The table's order is that of its hashes; the hottest go first.
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        found.into_iter().take(MOVES_PER_WINDOW).map(|(_, bucket, node)| (bucket, node)).collect()
    }

    /// What to give to the least busy member, if this one is too busy: cooler buckets first, and none that this node
    /// itself asks for most.
    fn balance(&self, members: &[NodeId]) -> Vec<(Bucket, NodeId)> {
        let others = members.iter().copied().filter(|&member| member != self.node);
        let Some(loads) = others.map(|member| Some((*self.loads.get(&member)?, member))).collect::<Option<Vec<_>>>() else {
            return Vec::new();
        };
        let Some(&(least, to)) = loads.iter().min() else { return Vec::new() };
        let mean = (loads.iter().map(|(load, _)| *load as f64).sum::<f64>() + self.load) / members.len() as f64;
        let threshold = self.config.remaster_threshold as f64;
        if self.load < threshold || self.load <= mean * (1.0 + self.config.load_imbalance_threshold) {
            return Vec::new();
        }
        let mut budget = (self.load - mean).min(mean - least as f64);
        let free = |bucket: &Bucket, heat: &Heat| !self.resting.contains_key(bucket) && heat.of(self.node) * 2.0 <= heat.total();
        let mut cooler: Vec<_> = self.heat.iter().filter(|(bucket, heat)| free(bucket, heat)).collect();
        cooler.sort_by(|a, b| a.1.total().total_cmp(&b.1.total()).then(a.0.cmp(b.0)));
        let mut plan = Vec::new();
        for (&bucket, heat) in cooler {
            if heat.total() > budget || plan.len() == BALANCE_MOVES_MAX {
                break;
            }
            budget -= heat.total();
            plan.push((bucket, to));
        }
        plan
    }
}

#[cfg(test)]
mod tests;
