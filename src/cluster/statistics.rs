//! What a shard's parts have counted, in one piece, for whoever publishes it.
//!
//! Gathered by a task of the lowest class in the shard's own thread, so that the counters stay plain cells; the publisher's
//! part runs there too and must neither wait nor take long. Bounded by what the parts count. `Send`: a publisher may copy it.

use std::rc::Rc;
use std::time::Duration;

use super::node::Node;
use super::shard::ShardLife;
use crate::cache::CacheStats;
use crate::fusion::gcs::GcsStats;
use crate::fusion::ges::GesStats;
use crate::histogram::Histogram;
use crate::ids::ShardId;
use crate::interconnect;
use crate::reactor::{Class, Instant, Reactor, ReactorStats, Remote};
use crate::store::{ShardEngine, StoreStatistics};
use crate::wal::LogStats;

/// What one shard has counted since its start.
#[derive(Clone, Debug)]
pub struct ShardStatistics {
    /// The shard.
    pub shard: ShardId,
    /// When this was gathered, on the shard's monotonic clock.
    pub now: Instant,
    /// The same on the wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
    /// Its thread.
    pub reactor: ReactorStats,
    /// Its connections; none before it has opened the volume.
    pub interconnect: Option<interconnect::Stats>,
    /// From the first view on.
    pub services: Option<ServiceStatistics>,
    /// Rows and transactions, from the moment on at which the shard serves.
    pub store: Option<StoreStatistics>,
}

/// Counters of what answers the other nodes.
#[derive(Clone, Debug)]
pub struct ServiceStatistics {
    /// Block frames.
    pub cache: CacheStats,
    /// The log.
    pub log: LogStats,
    /// Cache Fusion.
    pub gcs: GcsStats,
    /// Locks.
    pub ges: GesStats,
    /// Waits for locks.
    pub lock_wait_latency: Histogram,
}

/// Takes a shard's statistics, in the shard's thread.
pub type Publisher = Box<dyn FnMut(&ShardStatistics) + Send>;

impl ShardStatistics {
    /// What the shard of this reactor has counted.
    #[must_use]
    fn gather(reactor: &Reactor, shard: ShardId) -> ShardStatistics {
        let life = reactor.local::<ShardLife>();
        ShardStatistics {
            shard,
            now: reactor.now(),
            wall_ms: reactor.wall_ms(),
            reactor: reactor.stats(),
            interconnect: life.as_ref().map(|life| life.interconnect_statistics()),
            services: life.and_then(|life| life.service_statistics()),
            store: reactor.local::<ShardEngine>().map(|engine: Rc<ShardEngine>| engine.statistics()),
        }
    }
}

/// Where a node's statistics come from. `Send`; clones are the same.
#[derive(Clone)]
pub struct StatisticsSource(Vec<Remote>);

impl StatisticsSource {
    /// Has each shard's statistics published at once, and again after every `interval`: one publisher for each shard, in
    /// order. Ends with the shards.
    ///
    /// # Panics
    /// When there are not as many publishers as shards.
    pub fn publish(&self, interval: Duration, publishers: Vec<Publisher>) {
        assert_eq!(publishers.len(), self.0.len(), "one publisher for each shard");
        for ((number, remote), mut publish) in (0..).zip(&self.0).zip(publishers) {
            let begin = move |reactor: &Reactor| {
                let inside = reactor.clone();
                reactor.spawn(Class::Low, "publish statistics", async move {
                    loop {
                        publish(&ShardStatistics::gather(&inside, ShardId(number)));
                        inside.beat(interval).await;
                    }
                });
            };
            // A shard that takes no mail is ending: there is nothing to publish any more.
            let _ = remote.post(Box::new(begin));
        }
    }
}

impl Node {
    /// Where the shards' statistics come from.
    #[must_use]
    pub fn statistics(&self) -> StatisticsSource {
        StatisticsSource(self.shards())
    }
}
