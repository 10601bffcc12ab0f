//! A shard's end of the connections to the other nodes: its settings, what it goes by besides TCP, and the doors that its
//! services open later.
//!
//! In the shard's thread. The connections are there before the services are, which come with the first view: what a peer sends to
//! one until then is its door's to keep or to drop.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::begin::Birth;
use super::{End, NodeContext};
use crate::cluster::control::ControlDoor;
use crate::cluster::late::LateHandler;
use crate::config::Protocol;
use crate::ids::ShardId;
use crate::interconnect::{Interconnect, SEND_QUEUE_BYTES, Service, Settings};
use crate::reactor::Reactor;

/// A shard's end of the connections, and the doors of the services that come later.
pub(in crate::cluster) struct Doors {
    pub(in crate::cluster) interconnect: Interconnect,
    pub(in crate::cluster) gcs: Rc<LateHandler>,
    pub(in crate::cluster) ges: Rc<LateHandler>,
    pub(in crate::cluster) txn: Rc<LateHandler>,
    /// Bound in the first shard only, where the control group is.
    pub(in crate::cluster) raft: Rc<ControlDoor>,
}

pub(super) fn connect(reactor: &Reactor, context: &NodeContext, shard: ShardId, identity: &Birth) -> Result<Doors, End> {
    let at = |address: &SocketAddr| SocketAddr::new(address.ip(), address.port() + u16::from(shard.0));
    let peers = identity.roster.present().filter(|(node, _)| *node != context.node);
    let settings = Settings {
        cluster_id: identity.cluster_id,
        node: context.node,
        incarnation: identity.incarnation,
        shard,
        shards: context.shards,
        listen: at(&context.address),
        peers: peers.map(|(node, address)| (node, at(&address))).collect(),
        heartbeat_interval: Duration::from_millis(context.config.rac.interconnect.heartbeat_interval),
        heartbeat_timeout: context.config.heartbeat_timeout(),
        send_queue_bytes_max: SEND_QUEUE_BYTES,
    };
    let (listen, nodes) = (settings.listen, settings.peers.len());
    let interconnect = Interconnect::new(reactor, &context.shared.clock, settings);
    let config = &context.config.rac.interconnect;
    let poll = Duration::from_micros(config.poll_us);
    if config.busy_poll_us > 0 {
        match reactor.busy_poll(Duration::from_micros(config.busy_poll_us)) {
            Ok(()) => {
                tracing::info!(%shard, time_us = config.busy_poll_us, "looks for packets at the network card before it sleeps")
            }
            Err(error) => tracing::warn!(
                %shard,
                %error,
                "busy_poll_us is set, and this kernel does not let a ring poll network cards (it takes io_uring, Linux 6.9 and \
                 NET_RX_BUSY_POLL): packets are waited for as ever"
            ),
        }
    }
    match config.protocol {
        Protocol::Tcp => {}
        Protocol::Auto => match interconnect.use_device(listen, nodes, false, poll) {
            Ok(device) => tracing::info!(%shard, device, "RDMA to the nodes that have it too"),
            Err(why) => tracing::info!(%shard, "TCP only: {why}"),
        },
        Protocol::Rdma => {
            let device = interconnect.use_device(listen, nodes, true, poll);
            let device = device.map_err(|why| End::Failed(format!("[rac.interconnect] protocol is \"RDMA\": {why}")))?;
            tracing::info!(%shard, device, "RDMA only");
        }
    }
    let late = LateHandler::new;
    let doors = Doors { interconnect, gcs: late(), ges: late(), txn: late(), raft: Rc::default() };
    doors.interconnect.register(Service::Gcs, doors.gcs.clone());
    doors.interconnect.register(Service::Ges, doors.ges.clone());
    doors.interconnect.register(Service::Txn, doors.txn.clone());
    doors.interconnect.register(Service::Raft, doors.raft.clone());
    Ok(doors)
}
