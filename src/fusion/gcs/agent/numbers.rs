//! What Cache Fusion counts of its own work, beside what the cores count, and word of what takes too long.
//!
//! Owned by the shard; read as a [`GcsStats`].

use std::time::Duration;

use super::{Gcs, Inner};
use crate::fusion::gcs::message::Kind;
use crate::fusion::gcs::statistics::{GcsStats, Latencies, Path};
use crate::ids::{BlockId, RequestId};

#[derive(Default)]
pub(super) struct Numbers {
    pub(super) sent: [u64; Kind::ALL.len()],
    pub(super) received: [u64; Kind::ALL.len()],
    pub(super) latency: Box<Latencies>,
    pub(super) stalled: u64,
    pub(super) unsent: u64,
    pub(super) malformed: u64,
    pub(super) other_epoch: u64,
    pub(super) peers_lost: u64,
    pub(super) views: u64,
    pub(super) claims_sent: u64,
    pub(super) claims_received: u64,
    pub(super) blocks_recovered: u64,
    pub(super) blocks_rewritten: u64,
    pub(super) images_fetched: u64,
    pub(super) frozen_ns: u64,
}

impl Gcs {
    /// What has been done so far, and what is being done.
    #[must_use]
    pub fn stats(&self) -> GcsStats {
        let (numbers, cores, tables) = (self.0.numbers.borrow(), self.0.cores.borrow(), self.0.tables.borrow());
        let received = [Path::TwoWay, Path::ThreeWay].into_iter().flat_map(|path| &numbers.latency[path as usize]);
        let (transfers, transfers_ns) = received
            .fold((0, 0u64), |(count, sum_ns), latency| (count + latency.count(), sum_ns.saturating_add(latency.sum_ns())));
        let holder = cores.holder.counters();
        GcsStats {
            total_transfers: transfers,
            blocks_shipped_total: holder.ships_total,
            pi_transfers: holder.past_images_total,
            avg_transfer_latency_us: transfers_ns as f64 / 1000.0 / transfers.max(1) as f64,
            latency: numbers.latency.clone(),
            sent: numbers.sent,
            received: numbers.received,
            stalled_transfers_total: numbers.stalled,
            unsent_total: numbers.unsent,
            malformed_total: numbers.malformed,
            other_epoch_total: numbers.other_epoch,
            peers_lost_total: numbers.peers_lost,
            views_entered_total: numbers.views,
            claims_sent_total: numbers.claims_sent,
            claims_received_total: numbers.claims_received,
            blocks_recovered_total: numbers.blocks_recovered,
            blocks_rewritten_total: numbers.blocks_rewritten,
            past_images_fetched_total: numbers.images_fetched,
            remaster_frozen_us_total: numbers.frozen_ns / 1_000,
            buckets_mastered: self.map().buckets_of(self.0.node) as u64,
            buckets_overridden: self.map().overrides().len() as u64,
            requests_parked: cores.master.parked() as u64,
            outstanding_requests: tables.pending.len() as u64,
            waiting_requests: tables.in_line.len() as u64,
            grd_entries: cores.master.entries() as u64,
            blocks_held: cores.holder.blocks() as u64,
            transitions_in_flight: cores.master.transitions_in_flight() as u64,
            master: cores.master.counters(),
            holder,
        }
    }
}

impl Inner {
    /// One line a look, however many are stalled: the one that has waited longest.
    pub(super) fn report_stalls(&self) {
        if self.cores.borrow().holder.is_silent() {
            // The whole cluster waits, and says so itself.
            return;
        }
        let now = self.reactor.now();
        let limit = Duration::from_millis(self.config.block_transfer_timeout_ms);
        let mut stalled = 0;
        let mut worst: Option<(Duration, BlockId, RequestId)> = None;
        for (&block, pending) in &mut self.tables.borrow_mut().pending {
            let waited = now.since(pending.since);
            if waited > limit && !pending.reported {
                pending.reported = true;
                stalled += 1;
                worst = worst.max(Some((waited, block, pending.request)));
            }
        }
        let Some((waited, block, request)) = worst else { return };
        self.numbers.borrow_mut().stalled += stalled;
        let master = self.master(block);
        tracing::warn!(
            stalled, %block, %master, %request, waited_ms = waited.as_millis() as u64,
            "blocks have not arrived within block_transfer_timeout; they are still waited for"
        );
    }
}
