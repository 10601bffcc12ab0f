//! The configuration file, and the kernel as a whole.

use crate::check::{Check, Finding};
use crate::host::Host;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-CFG-001",
        what: "configuration file",
        why: "The file given with --config is read as rusty-db-server reads it: unknown keys, values out of bounds and settings \
              that contradict each other are errors. Without --config the other checks take the defaults.",
        run: file,
    },
    Check {
        id: "RDB-CFG-002",
        what: "this node's address",
        why: "The interconnect's address of this node (in [cluster.nodes] or rac.interconnect.address) must be one of this \
              host's, or it can't listen there. A loopback address works for nodes on one machine only.",
        run: own_address,
    },
    Check {
        id: "RDB-KERN-001",
        what: "kernel version",
        why: "io_uring as the engine uses it needs Linux 5.11; 6.1 has DEFER_TASKRUN, MSG_RING and stable registered buffers. \
              Below 5.11 nodes use the poll driver. From /proc/sys/kernel/osrelease.",
        run: version,
    },
    Check {
        id: "RDB-KERN-002",
        what: "reboot after a kernel panic",
        why: "With kernel.panic = 0 a machine whose kernel has panicked stands still until somebody comes; its node can't join \
              again. The watchdog may reset it, if there is one.",
        run: panic,
    },
    Check {
        id: "RDB-KERN-003",
        what: "virtual machine",
        why: "On a virtual machine the hypervisor takes cores away at will (steal time in /proc/stat): pauses that look like a \
              dead node to the others. From the hypervisor flag in /proc/cpuinfo.",
        run: virtual_machine,
    },
];

fn file(host: &Host) -> Vec<Finding> {
    match &host.needs.file {
        None => Finding::skipped("no --config given: the defaults are assumed").into(),
        Some((path, Ok(()))) => Finding::ok(format!("{} is valid", path.display())).into(),
        Some((path, Err(words))) => {
            let at = path.display();
            let fatal = Finding::fatal(words.trim().replace('\n', " ")).wants("a file that rusty-db-server reads");
            fatal.remedy(format!("edit {at}, then run rusty-db-preflight --config {at} --only RDB-CFG-001")).into()
        }
    }
}

fn own_address(host: &Host) -> Vec<Finding> {
    let Some(address) = host.needs.own_address() else {
        return Finding::skipped("no configuration names it").into();
    };
    if address.is_unspecified() {
        return Finding::info(format!("{address}: the interconnect listens on all of this host's addresses"))
            .wants("the address of the interconnect's own network")
            .remedy("name that address in [cluster.nodes]")
            .into();
    }
    if address.is_loopback() {
        let several = host.needs.nodes.values().any(|other| !other.ip().is_loopback());
        let words = format!("{address} is a loopback address: other machines don't reach it");
        let finding = if several { Finding::fatal(words) } else { Finding::info(words) };
        return finding.wants("an address of the interconnect's network").remedy("correct [cluster.nodes]").into();
    }
    match host.facts.addresses.iter().find(|(_, own)| *own == address) {
        Some((interface, _)) => Finding::ok(format!("{address} on {interface}")).into(),
        None => Finding::fatal(format!("{address} is none of this host's addresses"))
            .wants("an address of this host")
            .remedy("ip -brief address; then correct cluster.node_id or [cluster.nodes]")
            .into(),
    }
}

/// `(6, 1)` of `6.1.0-18-amd64`.
pub(super) fn kernel_version(host: &Host) -> Option<(u32, u32)> {
    let release = host.sysctl("kernel.osrelease")?;
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn version(host: &Host) -> Vec<Finding> {
    let release = host.sysctl("kernel.osrelease").unwrap_or_default();
    let finding = match kernel_version(host) {
        None => return Finding::skipped(format!("{release:?} can't be read as a version")).into(),
        Some(version) if version >= (6, 1) => return Finding::ok(format!("Linux {release}")).into(),
        Some(version) if version >= (5, 11) => Finding::warning(format!("Linux {release}")),
        Some(_) => Finding::fatal_if(host.needs.uring_only, format!("Linux {release}: no io_uring that the engine could use")),
    };
    finding.wants("6.1 or newer").remedy("install a newer kernel (Debian: apt-get install linux-image-amd64)").into()
}

fn panic(host: &Host) -> Vec<Finding> {
    match host.sysctl("kernel.panic").and_then(|text| text.parse::<i64>().ok()) {
        None => Finding::skipped("kernel.panic can't be read").into(),
        Some(0) => Finding::info("never (kernel.panic = 0)")
            .wants("some seconds")
            .remedy("sysctl -w kernel.panic=10; and in /etc/sysctl.d/90-rustydb.conf: kernel.panic = 10")
            .into(),
        Some(seconds) if seconds < 0 => Finding::ok("at once").into(),
        Some(seconds) => Finding::ok(format!("after {seconds} s")).into(),
    }
}

fn virtual_machine(host: &Host) -> Vec<Finding> {
    let flags = host.read("/proc/cpuinfo").unwrap_or_default();
    let guest = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.ends_with(" hypervisor") || line.contains(" hypervisor "));
    if !guest {
        return Finding::ok("no").into();
    }
    let stat = host.read("/proc/stat").unwrap_or_default();
    let times: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let total: u64 = times.iter().take(8).sum();
    let stolen = times.get(7).copied().unwrap_or(0) as f64 / total.max(1) as f64 * 100.0;
    let words = format!("yes; {stolen:.2} % of the time since it booted was stolen");
    Finding::warning_if(stolen >= 1.0, words)
        .wants("a machine, or a guest whose cores are pinned; steal below 1 %")
        .remedy("pin the guest's virtual processors and reserve its memory in the hypervisor")
        .into()
}
