//! `[ha]` and `[ha.fencing]`: how a node that is declared dead is kept from the volume.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::ConfigError;

/// Most words of `ha.fencing.command`.
pub const COMMAND_WORDS_MAX: usize = 64;
/// What `ha.fencing.command` may name in braces.
pub const COMMAND_PLACEHOLDERS: [&str; 4] = ["node", "incarnation", "pid", "address"];

/// `[ha]`. The same on all nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HaConfig {
    /// `"automatic"`: a node that is declared dead is fenced, then recovered. `"manual"`: recovery waits for an operator.
    /// Default automatic.
    pub fencing_mode: FencingMode,
    /// One method or a list, tried in this order; see [`FencingMethod`]. Default: all of them, each where it is possible.
    pub fencing_method: FencingMethods,
    /// Seconds that a starting cluster waits for nodes that are missing. Then a majority of the configured nodes goes on
    /// without them, once it has fenced them. 1 to 86,400; default 30.
    pub cold_start_patience: u64,
    /// Milliseconds between heartbeats on the disk. 10 to 60,000; default 250.
    pub disk_heartbeat_interval: u64,
    /// Milliseconds after which a node whose heartbeat on the disk stands still is suspected to be dead, and after which a
    /// node whose own disk does not answer stops answering its clients. At least three intervals, at most 600,000; default
    /// 1,500.
    pub disk_timeout: u64,
    /// Milliseconds that a node may answer reads from its cache after it asked the others whether it is still one of them.
    /// Who fences a node by other means than ending its process waits for as long, so that it shows nobody what is out of
    /// date. 100 to 60,000; default 1,000.
    pub read_lease: u64,
    /// `[ha.fencing]`
    pub fencing: FencingConfig,
}

impl Default for HaConfig {
    fn default() -> Self {
        HaConfig {
            fencing_mode: FencingMode::default(),
            fencing_method: FencingMethods::default(),
            cold_start_patience: 30,
            disk_heartbeat_interval: 250,
            disk_timeout: 1_500,
            read_lease: 1_000,
            fencing: FencingConfig::default(),
        }
    }
}

/// Who decides that a node is fenced.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FencingMode {
    /// The cluster.
    #[default]
    Automatic,
    /// An operator, node by node.
    Manual,
}

/// A way of keeping a node from the volume.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "snake_case")]
pub enum FencingMethod {
    /// SCSI-3 persistent reservations or NVMe reservations: the device itself refuses the node's writes.
    PersistentReservation,
    /// `ha.fencing.command`: whatever the operator's command does, a power switch or a port of the network.
    #[serde(alias = "power_management", alias = "network_isolation")]
    Command,
    /// Only for a plain file on this machine's own disk: the node's process is proven to be gone with all its writes.
    Process,
    /// The node stops by itself when its lease runs out, and a watchdog resets its machine when it can't.
    Lease,
}

/// `fencing_method` as operators write it: one name or a list of names.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum FencingMethods {
    /// `fencing_method = "persistent_reservation"`
    One(FencingMethod),
    /// `fencing_method = ["persistent_reservation", "command"]`
    List(Vec<FencingMethod>),
}

/// `[ha.fencing]`. The same on all nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FencingConfig {
    /// Program and arguments that fence a node; exit status 0 means that it is fenced. `{node}`, `{incarnation}`, `{pid}`
    /// and `{address}` are replaced. No shell reads it. At most [`COMMAND_WORDS_MAX`] words; default empty: there is none.
    pub command: Vec<String>,
    /// Milliseconds that the command may take before it is killed and counts as failed. 100 to 600,000; default 30,000.
    pub command_timeout: u64,
    /// Milliseconds that the device may take for one request about reservations, or a killed process to end. 100 to
    /// 600,000; default 30,000.
    pub method_timeout: u64,
    /// Whether a process that holds the volume's file open although its node is declared dead is killed (only with method
    /// `process`). Without it such a process is waited for. Default true.
    pub kill_process: bool,
    /// Milliseconds that a node may write after it began its last heartbeat that became durable. 100 to 600,000; default
    /// 5,000.
    pub lease: u64,
    /// Milliseconds that survivors wait beyond the lease. Must cover the longest time of one write on the device, and the
    /// watchdog's timeout unless that is off. 100 to 600,000; default 15,000.
    pub lease_margin: u64,
    /// `"auto"`: a watchdog is used where there is one. `"required"`: without one the lease counts for nothing. `"off"`:
    /// none is used. Default auto.
    pub watchdog: WatchdogUse,
    /// The watchdog's device. Default `/dev/watchdog`.
    pub watchdog_device: PathBuf,
    /// Seconds without a sign of life after which the watchdog resets the machine. 1 to 600; default 10.
    pub watchdog_timeout: u64,
}

/// Whether the lease is backed by a watchdog.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum WatchdogUse {
    /// Where there is one.
    #[default]
    Auto,
    /// Or the lease proves nothing.
    Required,
    /// Never.
    Off,
}

impl Default for FencingMethods {
    fn default() -> Self {
        use FencingMethod::{Command, Lease, PersistentReservation, Process};
        FencingMethods::List(vec![PersistentReservation, Command, Process, Lease])
    }
}

impl FencingMethods {
    /// The methods in their order.
    #[must_use]
    pub fn as_slice(&self) -> &[FencingMethod] {
        match self {
            FencingMethods::One(method) => std::slice::from_ref(method),
            FencingMethods::List(methods) => methods,
        }
    }
}

impl Default for FencingConfig {
    fn default() -> Self {
        FencingConfig {
            command: Vec::new(),
            command_timeout: 30_000,
            method_timeout: 30_000,
            kill_process: true,
            lease: 5_000,
            lease_margin: 15_000,
            watchdog: WatchdogUse::Auto,
            watchdog_device: PathBuf::from("/dev/watchdog"),
            watchdog_timeout: 10,
        }
    }
}

impl FencingConfig {
    /// As [`FencingConfig::lease`].
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease)
    }

    /// As [`FencingConfig::lease_margin`].
    #[must_use]
    pub fn lease_margin(&self) -> Duration {
        Duration::from_millis(self.lease_margin)
    }
}

/// The names in braces of one word of a command.
fn placeholders(word: &str) -> impl Iterator<Item = &str> {
    word.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
}

impl HaConfig {
    /// As [`HaConfig::cold_start_patience`].
    #[must_use]
    pub fn cold_start_patience(&self) -> Duration {
        Duration::from_secs(self.cold_start_patience)
    }

    /// As [`HaConfig::read_lease`].
    #[must_use]
    pub fn read_lease(&self) -> Duration {
        Duration::from_millis(self.read_lease)
    }

    pub(super) fn check(
        &self,
        within: &dyn Fn(&'static str, u64, u64, u64) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let fencing = &self.fencing;
        let methods = self.fencing_method.as_slice();
        let mut distinct = methods.to_vec();
        distinct.sort();
        distinct.dedup();
        if distinct.is_empty() || distinct.len() != methods.len() {
            let allowed = "at least one method, none twice".into();
            return Err(ConfigError::out_of_range("ha.fencing_method", &format!("{methods:?}"), allowed));
        }
        let named = self.fencing_method != FencingMethods::default() && methods.contains(&FencingMethod::Command);
        if named && fencing.command.is_empty() {
            let remedy = "ha.fencing_method names the command: write it as a list of words, [\"/path/to/program\", \"{node}\"]";
            return Err(ConfigError::Missing { key: "ha.fencing.command", remedy: remedy.into() });
        }
        if fencing.command.len() > COMMAND_WORDS_MAX {
            let allowed = format!("at most {COMMAND_WORDS_MAX} words");
            return Err(ConfigError::out_of_range("ha.fencing.command", &format!("{:?}", fencing.command), allowed));
        }
        for word in &fencing.command {
            if let Some(unknown) = placeholders(word).find(|name| !COMMAND_PLACEHOLDERS.contains(name)) {
                let allowed = format!("made of words with no other braces than {{{}}}", COMMAND_PLACEHOLDERS.join("}, {"));
                return Err(ConfigError::out_of_range("ha.fencing.command", &format!("{{{unknown}}}"), allowed));
            }
        }
        within("ha.read_lease", self.read_lease, 100, 60_000)?;
        within("ha.cold_start_patience", self.cold_start_patience, 1, 86_400)?;
        within("ha.disk_heartbeat_interval", self.disk_heartbeat_interval, 10, 60_000)?;
        within("ha.disk_timeout", self.disk_timeout, 3 * self.disk_heartbeat_interval, 600_000)?;
        within("ha.fencing.command_timeout", fencing.command_timeout, 100, 600_000)?;
        within("ha.fencing.method_timeout", fencing.method_timeout, 100, 600_000)?;
        within("ha.fencing.lease", fencing.lease, 100, 600_000)?;
        within("ha.fencing.watchdog_timeout", fencing.watchdog_timeout, 1, 600)?;
        let least = if fencing.watchdog == WatchdogUse::Off { 100 } else { fencing.watchdog_timeout * 1_000 };
        within("ha.fencing.lease_margin", fencing.lease_margin, least, 600_000)
    }
}
