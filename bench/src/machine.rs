//! The machine, as far as it matters for a figure: said in every report, because no figure means anything without.

use std::path::Path;

use rustydb_preflight::checks;
use rustydb_preflight::facts::Facts;
use rustydb_preflight::host::Host;
use rustydb_preflight::needs::Needs;
use rustydb_preflight::probe;
use serde::{Deserialize, Serialize};

/// See the module. What the host does not tell is "unknown" or "none".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// `uname -r`
    pub kernel: String,
    /// Its model.
    pub processor: String,
    /// Processors that this process may run on.
    pub cores: usize,
    /// Of the first core.
    pub governor: String,
    /// What the clock is read from.
    pub clock_source: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Transparent huge pages.
    pub huge_pages: String,
    /// A hypervisor runs it.
    pub virtual_machine: bool,
    /// Over 1, 5 and 15 minutes, when the benchmark began: what ran beside it.
    pub load_average: String,
    /// The file system and the device under `--dir`, with its write cache and scheduler.
    pub device: String,
    /// Interfaces with a link, with driver, speed and MTU.
    pub network: Vec<String>,
    /// RDMA devices, with firmware, and for each port state, rate and the payload of a packet.
    #[serde(default)]
    pub rdma: Vec<String>,
    /// What the program was built from.
    pub commit: String,
    /// `release` or `debug`.
    pub build: String,
}

impl Machine {
    /// This one, now; `folder` is where the benchmark's files are.
    #[must_use]
    pub fn here(folder: &Path) -> Machine {
        let volume = probe::volume_facts(&folder.join("rusty-db-bench.volume"));
        let file_system = volume.file_system.clone();
        let host = Host::new(Path::new("/"), Facts { volume: Some(volume), ..Facts::default() }, Needs::default());
        let read = |path: &str| host.read(path).filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".into());
        let processors = read("/proc/cpuinfo");
        let line = |key: &str| {
            let line = processors.lines().find(|line| line.starts_with(key))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let devices = host.volume_devices().into_iter().map(|device| {
            let queue = |name: &str| host.read(&format!("{}/{name}", device.queue)).unwrap_or_else(|| "unknown".into());
            format!(
                "{}, write cache {}, FUA {}, scheduler {}",
                device.name,
                queue("write_cache"),
                queue("fua"),
                queue("scheduler")
            )
        });
        let devices: Vec<String> = devices.collect();
        let load_average = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
        Machine {
            kernel: read("/proc/sys/kernel/osrelease"),
            processor: line("model name").unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            clock_source: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            memory_bytes: host.memory_bytes("MemTotal").unwrap_or(0),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled"),
            virtual_machine: line("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            load_average,
            device: if devices.is_empty() { file_system } else { format!("{file_system} on {}", devices.join("; ")) },
            network: network(&host),
            rdma: rdma(&host),
            commit: env!("RUSTYDB_COMMIT").into(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
        }
    }

    /// What tables of a report say, line by line.
    #[must_use]
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let Machine { kernel, processor, cores, governor, clock_source, memory_bytes, huge_pages, .. } = self;
        let guest = if self.virtual_machine { ", a virtual machine" } else { "" };
        let mut lines = vec![
            ("processor", format!("{processor}, {cores} cores{guest}; governor {governor}")),
            ("memory", format!("{:.1} GiB; huge pages {huge_pages}", *memory_bytes as f64 / f64::from(1 << 30))),
            ("kernel", format!("Linux {kernel}; clock {clock_source}")),
            ("disk", self.device.clone()),
            ("network", self.network.join("; ")),
            ("load average", format!("{} at the start", self.load_average)),
            ("built from", format!("{}, {}", self.commit, self.build)),
        ];
        if !self.rdma.is_empty() {
            lines.insert(5, ("RDMA", self.rdma.join("; ")));
        }
        lines
    }
}

fn network(host: &Host) -> Vec<String> {
    let describe = |name: &String| {
        let folder = format!("/sys/class/net/{name}");
        let up = host.read(&format!("{folder}/carrier")).as_deref() == Some("1");
        let mtu = host.number(&format!("{folder}/mtu")).filter(|_| up)?;
        let uevent = host.read(&format!("{folder}/device/uevent")).unwrap_or_default();
        let driver = uevent.lines().find_map(|line| line.strip_prefix("DRIVER=")).unwrap_or("virtual").to_owned();
        let speed = host.read(&format!("{folder}/speed")).and_then(|text| text.parse::<i64>().ok()).filter(|speed| *speed > 0);
        let speed = speed.map_or_else(String::new, |speed| format!(", {speed} Mbit/s"));
        Some(format!("{name}: {driver}, MTU {mtu}{speed}"))
    };
    host.list("/sys/class/net").iter().filter_map(describe).collect()
}

fn rdma(host: &Host) -> Vec<String> {
    let class = "/sys/class/infiniband";
    let describe = |device: &String| {
        let read = |path: &str| host.read(&format!("{class}/{device}/{path}")).filter(|text| !text.is_empty());
        let kind = read("hca_type").or_else(|| read("parent").map(|netdev| format!("soft-RoCE over {netdev}")));
        let mut said = format!("{device}: {}", kind.unwrap_or_else(|| "unknown".into()));
        if let Some(firmware) = read("fw_ver") {
            said += &format!(", firmware {firmware}");
        }
        for port in host.list(&format!("{class}/{device}/ports")) {
            let folder = format!("{class}/{device}/ports/{port}");
            let part = |name: &str| read(&format!("ports/{port}/{name}")).unwrap_or_else(|| "unknown".into());
            let (state, rate) = (part("state"), part("rate"));
            said += &format!(", port {port} {}, {rate}", state.split_once(": ").map_or(state.as_str(), |(_, name)| name));
            if let Some((netdev, mtu)) = checks::roce_netdev(host, &folder) {
                said += &format!(", active MTU {} ({netdev} has {mtu})", checks::roce_payload_bytes(mtu));
            }
        }
        said
    };
    host.list(class).iter().map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rdma_devices_are_told_with_firmware_and_mtu() {
        let root = std::env::temp_dir().join(format!("rusty-db-bench-machine-{}", std::process::id()));
        let port = "sys/class/infiniband/mlx5_0/ports/1";
        for (path, text) in [
            ("sys/class/infiniband/mlx5_0/hca_type", "MT4123"),
            ("sys/class/infiniband/mlx5_0/fw_ver", "20.31.1014"),
            (&format!("{port}/state"), "4: ACTIVE"),
            (&format!("{port}/rate"), "100 Gb/sec (4X EDR)"),
            (&format!("{port}/link_layer"), "Ethernet"),
            (&format!("{port}/gid_attrs/ndevs/0"), "enp1"),
            ("sys/class/net/enp1/mtu", "9000"),
        ] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("the temporary folder can be written");
            std::fs::write(path, text).expect("the temporary folder can be written");
        }
        let found = rdma(&Host::new(&root, Facts::default(), Needs::default()));
        std::fs::remove_dir_all(&root).ok();
        let wanted = "mlx5_0: MT4123, firmware 20.31.1014, port 1 ACTIVE, 100 Gb/sec (4X EDR), active MTU 4096 (enp1 has 9000)";
        assert_eq!(found, [wanted]);
    }
}
