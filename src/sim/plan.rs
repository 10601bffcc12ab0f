//! What a run is like, drawn from its seed before anything happens: the cluster, its disk and network, the workload, and
//! which faults it has how often. Each run has a few of them only ("swarm testing", Groce et al. 2012): a run with all
//! faults at once rarely gets far enough for the rare combinations of two.

use std::time::Duration;

use super::Options;
use super::dice::Dice;
use crate::reactor::driver::sim::SimOptions;

/// What can go wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fault {
    /// A process is killed after some more steps of the world: anywhere.
    Crash,
    /// A machine loses its power; its peers hear nothing.
    PowerOff,
    /// All machines and the disk lose their power.
    PowerLoss,
    /// A node's path to the disk returns errors for a while.
    DiskErrors,
    /// A node's path to the disk hangs for a while.
    DiskStall,
    /// A few of a node's reads give wrong bits, or another block, without an error.
    SpoiledReads,
    /// The connections between two nodes break.
    Break,
    /// Two nodes do not hear each other.
    Partition,
    /// One node does not hear another.
    OneWay,
    /// Messages take long, and overtake each other on different connections.
    SlowNetwork,
    /// A node stands still (SIGSTOP, a stalled virtual machine), then goes on.
    Pause,
    /// A machine's wall clock jumps.
    ClockJump,
    /// An operator stops a node.
    CleanStop,
    /// An operator drains a node: its clients go elsewhere, it writes its blocks. After a while it takes clients again.
    Drain,
    /// A bit on the disk turns around.
    Rot,
    /// A few of a node's writes land in other places.
    StrayWrites,
    /// As [`SpoiledReads`](Fault::SpoiledReads), of the redo areas and their headers as well.
    SpoiledLogReads,
    /// An operator adds a node.
    Join,
    /// An operator removes a node for good: a dead one, or one that serves, by force.
    Leave,
}

impl Fault {
    pub(super) const ALL: [Fault; 14] = [
        Fault::Crash,
        Fault::PowerOff,
        Fault::PowerLoss,
        Fault::DiskErrors,
        Fault::DiskStall,
        Fault::SpoiledReads,
        Fault::Break,
        Fault::Partition,
        Fault::OneWay,
        Fault::SlowNetwork,
        Fault::Pause,
        Fault::ClockJump,
        Fault::CleanStop,
        Fault::Drain,
    ];
}

/// Nodes that a run with [`Fault::Join`] has room for beyond those that it begins with.
const SPARE_NODES: u8 = 3;

/// A run's nature.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) nodes: u8,
    /// So many may join.
    pub(super) spare_nodes: u8,
    pub(super) shards: u8,
    pub(super) volume_bytes: u64,
    pub(super) redo_area_bytes: u64,
    pub(super) cache_bytes: u64,
    pub(super) heartbeat_interval_ms: u64,
    pub(super) heartbeat_timeout_ms: u64,
    pub(super) checkpoint_interval_s: u64,
    pub(super) world: SimOptions,
    /// The clocks' distance from each other at the start, milliseconds.
    pub(super) clock_skew_ms: u64,
    pub(super) clients: u64,
    /// Mean time that a client waits between transactions.
    pub(super) think: Duration,
    pub(super) accounts: u64,
    pub(super) lists: u64,
    /// The volume is small, and the client who makes and drops tables fills it.
    pub(super) fills_volume: bool,
    /// The disk may lose what it had: reads may end with an error that names the block, and the cluster may come to a stop.
    pub(super) damages: bool,
    /// How often the client who makes and drops tables does so when it is its turn, in percent.
    pub(super) tables_per_cent: u64,
    /// How often a client hangs up in the middle of an operation, in percent.
    pub(super) hangs_up_per_cent: u64,
    /// Faded requests after which a bucket of blocks gets another master.
    pub(super) remaster_threshold: u64,
    pub(super) load_balance_interval_s: u64,
    /// Those of this run; empty in a calm one.
    pub(super) faults: Vec<Fault>,
    /// Mean time between two of them.
    pub(super) fault_interval: Duration,
    /// Least and most milliseconds that a node stands still.
    pub(super) pause_ms: (u64, u64),
}

impl Plan {
    pub(super) fn draw(options: &Options) -> Plan {
        let seed = options.seed;
        let dice = Dice::new(seed, 1);
        let shards = options.shards.unwrap_or(dice.pick(&[1, 1, 2]));
        let fills_volume = dice.chance(12);
        let small_redo = dice.chance(30);
        let (heartbeat_interval_ms, heartbeat_timeout_ms) = dice.pick(&[(1_000, 5_000), (200, 1_000), (500, 2_000)]);
        let world = SimOptions {
            durable_us: dice.pick(&[(30, 150), (200, 2_000), (1_000, 8_000)]),
            network_us: dice.pick(&[(20, 80), (50, 1_000), (500, 3_000)]),
            slow_per_mille: dice.pick(&[0, 5, 20]),
            sector_bytes: dice.pick(&[512, 4096]),
            crash_loses_unsynced: dice.chance(50),
            ..SimOptions::default()
        };
        let mut faults: Vec<Fault> = Fault::ALL.into_iter().filter(|_| dice.chance(35)).collect();
        if faults.is_empty() {
            faults.push(Fault::Crash);
        }
        // Drawn apart, so that a seed that has none of these is what it was before there were any.
        let further = Dice::new(seed, 3);
        faults.extend([Fault::SpoiledLogReads, Fault::Join, Fault::Leave].into_iter().filter(|_| further.chance(25)));
        if options.damage {
            // With a few others: damage meets recovery.
            faults.retain(|fault| matches!(fault, Fault::Crash | Fault::PowerOff | Fault::SlowNetwork));
            faults.extend([Fault::Rot, Fault::Rot, Fault::StrayWrites]);
        }
        if options.calm {
            faults.clear();
        }
        let drawn = Plan {
            seed,
            nodes: options.nodes.unwrap_or(3),
            spare_nodes: if faults.contains(&Fault::Join) { SPARE_NODES } else { 0 },
            shards,
            volume_bytes: if fills_volume { 192 << 20 } else { 4 << 30 },
            redo_area_bytes: if small_redo { 1 << 20 } else { dice.pick(&[4, 16]) << 20 },
            cache_bytes: u64::from(shards) * dice.pick(&[1 << 20, 4 << 20, 16 << 20]),
            heartbeat_interval_ms,
            heartbeat_timeout_ms,
            checkpoint_interval_s: dice.pick(&[1, 5, 30]),
            world,
            clock_skew_ms: dice.pick(&[0, 5, 500, 60_000]),
            clients: dice.between(3, 10),
            think: Duration::from_millis(dice.pick(&[50, 200, 800])),
            accounts: dice.between(3, 60),
            lists: dice.between(2, 6),
            fills_volume,
            faults,
            fault_interval: Duration::from_millis(dice.pick(&[3_000, 10_000, 30_000])),
            pause_ms: (10, 12_000),
            damages: options.damage,
            tables_per_cent: dice.pick(&[10, 10, 60]),
            hangs_up_per_cent: dice.pick(&[2, 2, 20]),
            remaster_threshold: dice.pick(&[1, 3, 20, 100]),
            load_balance_interval_s: dice.pick(&[1, 3, 300]),
        };
        let spare_areas = u64::from(drawn.spare_nodes) * u64::from(shards);
        let drawn = Plan { volume_bytes: drawn.volume_bytes + spare_areas * drawn.redo_area_bytes, ..drawn };
        if !options.damage {
            return drawn;
        }
        // Much is written and read again, little of it stays in the caches, and the disk is bad.
        let (cache_bytes, fault_interval) = (u64::from(shards) << 20, Duration::from_millis(400));
        Plan { cache_bytes, fault_interval, tables_per_cent: 60, fills_volume: false, ..drawn }
    }
}
