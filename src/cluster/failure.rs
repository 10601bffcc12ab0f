//! Ends the node when one of its shards can't make redo durable any more.
//!
//! Two tasks per shard wait for the log and for Cache Fusion to say so. From then on nothing that the node does may be
//! acknowledged, and no block that it changed may be given away; the other nodes recover its redo once it is gone. So it
//! does not linger: the first failure of any shard is the node's ([`Phase::Failed`]), in words for the operator. A life that may
//! not write any more, because the others have fenced it or its lease has run out, is no fault: the next joins
//! ([`Phase::Over`]).

use std::fmt::Display;
use std::path::Path;

use super::status::{Phase, Status};
use crate::cache::CacheError;
use crate::fusion::gcs::Gcs;
use crate::reactor::{Class, Reactor};
use crate::volume::Refusal;
use crate::wal::{Log, LogError};

/// Watches a shard's log and Cache Fusion until the shard ends.
pub(super) fn watch(reactor: &Reactor, log: &Log, gcs: &Gcs, volume: &Path, status: &Status) {
    let end = |status: &Status, volume: &Path, error: &dyn Display| {
        let message = format!(
            "the volume {} failed: {error}. This node has ended; what it acknowledged is in the redo on the volume, and is \
             recovered when the node is started again",
            volume.display()
        );
        tracing::error!("{message}");
        status.enter(Phase::Failed(message.clone()), message);
    };
    let over = |status: &Status, why: Refusal| {
        tracing::error!("{why}");
        status.enter(Phase::Over(why.to_string()), why.to_string());
    };
    let (watched, path, told) = (log.clone(), volume.to_owned(), status.clone());
    reactor.spawn(Class::Critical, "watch the log", async move {
        match watched.poisoned().await {
            LogError::Refused { why, .. } => over(&told, why),
            error => end(&told, &path, &error),
        }
    });
    let (watched, path, told) = (gcs.clone(), volume.to_owned(), status.clone());
    reactor.spawn(Class::Critical, "watch cache fusion", async move {
        match watched.failed().await {
            CacheError::Refused(why) => over(&told, why),
            error => end(&told, &path, &error),
        }
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::clock::ScnClock;
    use crate::fusion::gcs::{GcsConfig, GcsParts};
    use crate::fusion::grd::MastershipMap;
    use crate::ids::{Epoch, Incarnation, NodeId, ShardId};
    use crate::interconnect::{Interconnect, Settings};
    use crate::reactor::driver::sim::{HostId, SimWorld};
    use crate::volume::{Expected, FormatOptions, Volume};
    use crate::wal::redo::RecordKind;

    /// How a node ends whose disk refuses every write so.
    fn refused_with(errno: i32) -> Phase {
        end_of_a_node_that(move |world, _| world.set_disk_error(HostId(0), Some(errno)))
    }

    /// How a node ends that can't write any more since `loss`.
    fn end_of_a_node_that(loss: impl FnOnce(&SimWorld, &Reactor)) -> Phase {
        let world = SimWorld::new(11);
        let reactor = world.reactor(HostId(0));
        let status = Status::default();
        let (inside, told) = (reactor.clone(), status.clone());
        let log = world.block_on(&reactor, async move {
            let path = Path::new("shared.vol");
            let options = FormatOptions {
                nodes_max: 1,
                volume_bytes: 64 << 20,
                redo_area_bytes: Some(8 << 20),
                ..FormatOptions::new("test")
            };
            Volume::format(&inside, path, &options, &mut |_| {}).await.expect("the simulated disk has room");
            let volume = Volume::open(&inside, path, &Expected::default()).await.expect("it was formatted");
            let node = NodeId(1);
            let area = volume.geometry().redo_area(node, ShardId(0));
            let log = Log::open(&inside, volume.file(), area, Incarnation(1)).await.expect("the log opens");
            let address = "10.1.0.1:7000".parse().expect("an address");
            let settings = Settings::new(1, node, Incarnation(1), ShardId(0), 1, address);
            let map = MastershipMap::new(Epoch(1), &[node], 1, BTreeMap::new()).expect("a map of one");
            let gcs = Gcs::new(GcsParts {
                reactor: inside.clone(),
                interconnect: Interconnect::new(&inside, &ScnClock::new(), settings),
                map: Rc::new(map),
                config: GcsConfig::default(),
            });
            watch(&inside, &log, &gcs, path, &told);
            inside.set_local(Rc::new(volume));
            log
        });
        let write = async |log: Log| {
            let mut reservation = log.reserve(8).await.expect("room");
            let end = log.append(&mut reservation, RecordKind::CheckpointMark, &[&[0; 8]]);
            log.flush_to(end).await
        };
        let once = log.clone();
        world.block_on(&reactor, async move { write(once).await.expect("a healthy disk") });
        world.run_for(Duration::from_millis(10));
        assert!(!status.get().phase.is_over());

        loss(&world, &reactor);
        world.block_on(&reactor, async move { write(log).await.expect_err("a disk that fails") });
        world.run_for(Duration::from_millis(10));
        status.get().phase
    }

    #[test]
    fn a_node_whose_log_can_not_be_written_ends_and_says_what_to_do() {
        let ended = refused_with(libc::EIO);
        let Phase::Failed(message) = ended else { panic!("{ended:?}") };
        for part in ["shared.vol", "node1", "shard0", "Input/output error", "restart the node"] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }

    #[test]
    fn a_node_that_the_device_refuses_was_fenced_and_its_next_life_joins() {
        let ended = refused_with(libc::EBADE);
        assert!(matches!(&ended, Phase::Over(why) if why.contains("fenced")), "{ended:?}");
    }

    #[test]
    fn a_node_that_wakes_up_after_its_lease_is_no_failure_of_the_volume_and_its_next_life_joins() {
        let ended = end_of_a_node_that(|_, reactor| reactor.write_until(Some(reactor.now())));
        assert!(matches!(&ended, Phase::Over(why) if why.contains("lease on the volume has run out")), "{ended:?}");
    }
}
