//! Processors and clocks.

use super::chosen;
use crate::check::{Check, Finding};
use crate::host::Host;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-CPU-001",
        what: "cores for the shards",
        why: "With engine.overprovisioned = true, which is the default, shards share their cores with others and sleep when they have \
              nothing to do. With false each is a thread that wants a core of its own. Counted: the processors that this process may \
              run on (affinity, cpusets).",
        run: cores,
    },
    Check {
        id: "RDB-CPU-002",
        what: "processor quota of the control group",
        why: "A quota (CPUQuota, a container's --cpus) stops all of a node's threads when it is used up, for up to a tenth of a \
              second at a time: long enough to spoil every 99th percentile.",
        run: quota,
    },
    Check {
        id: "RDB-CPU-003",
        what: "isolated cores",
        why: "Cores of isolcpus are left alone by the scheduler, those of nohz_full by its clock as well. They help shards that \
              have cores of their own (engine.overprovisioned = false). From /sys/devices/system/cpu/isolated and nohz_full.",
        run: isolation,
    },
    Check {
        id: "RDB-CPU-004",
        what: "frequency governor",
        why: "\"powersave\" and \"schedutil\" let cores run slowly until they have been busy for a while; a database's short \
              requests are over by then. From /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor.",
        run: governor,
    },
    Check {
        id: "RDB-CPU-005",
        what: "sleep states (C-states)",
        why: "Waking a core from a deep sleep takes 100 µs and more, as long as a block transfer. From \
              /sys/devices/system/cpu/cpu0/cpuidle; states that are disabled don't count.",
        run: sleep_states,
    },
    Check {
        id: "RDB-CPU-006",
        what: "memory nodes (NUMA)",
        why: "On a machine with several memory nodes a node of RustyDB is best kept on one, the network card's and the disk's; the \
              kernel's automatic balancing unmaps pages to watch who uses them, which stalls the shards.",
        run: memory_nodes,
    },
    Check {
        id: "RDB-CPU-007",
        what: "checksums in hardware",
        why: "Blocks and log records carry CRC-32C; with SSE 4.2 (x86) or the crc32 extension (ARM) it costs next to nothing.",
        run: checksums,
    },
    Check {
        id: "RDB-TIME-001",
        what: "clock source",
        why: "Reading the clock is a handful of instructions with tsc (x86) or arch_sys_counter (ARM), and a slow trap with hpet or \
              acpi_pm. From /sys/devices/system/clocksource/clocksource0.",
        run: clock_source,
    },
    Check {
        id: "RDB-TIME-002",
        what: "clock is synchronised",
        why: "System change numbers carry milliseconds of the wall clock: AS OF TIMESTAMP is as right as the clocks are. A clock far \
              ahead pulls all nodes' numbers with it. Correctness does not depend on it. Asked by adjtimex.",
        run: synchronised,
    },
];

fn cores(host: &Host) -> Vec<Finding> {
    let (allowed, shards) = (host.facts.processors_allowed as u64, host.needs.shards);
    let words = format!("{allowed} for {shards} shard{}", if shards == 1 { "" } else { "s" });
    if host.needs.overprovisioned {
        return Finding::ok(format!("{words}; they share (engine.overprovisioned)")).into();
    }
    if allowed > shards {
        return Finding::ok(words).into();
    }
    Finding::warning(words)
        .wants(format!("{}: one for each shard, and one for clients", shards + 1))
        .remedy(
            "engine.overprovisioned = true, or fewer shards (fixed when the volume is formatted), or CPUAffinity= in the unit",
        )
        .into()
}

fn quota(host: &Host) -> Vec<Finding> {
    let Some(group) = host.control_group("cpu") else {
        return Finding::skipped("this process is in no control group").into();
    };
    let quota = match host.read(&format!("{group}/cpu.max")) {
        Some(text) => text.split_whitespace().next().and_then(|quota| quota.parse::<i64>().ok()),
        None => host.read(&format!("{group}/cpu.cfs_quota_us")).and_then(|text| text.parse().ok()),
    };
    match quota {
        Some(quota) if quota > 0 => Finding::warning(format!("{quota} µs a period, in {group}"))
            .wants("none")
            .remedy("CPUQuota= (empty) in the systemd unit, or the container without --cpus; give it cores with a cpuset instead")
            .into(),
        _ => Finding::ok("none").into(),
    }
}

fn isolation(host: &Host) -> Vec<Finding> {
    let read =
        |name: &str| host.read(&format!("/sys/devices/system/cpu/{name}")).filter(|list| !list.is_empty() && list != "(null)");
    let words = match (read("isolated"), read("nohz_full")) {
        (None, None) => "none".to_owned(),
        (Some(isolated), None) => format!("isolcpus {isolated}"),
        (None, Some(full)) => format!("nohz_full {full}"),
        (Some(isolated), Some(full)) => format!("isolcpus {isolated}, nohz_full {full}"),
    };
    if host.needs.overprovisioned || words != "none" {
        return Finding::ok(words).into();
    }
    Finding::info(words)
        .wants("the shards' cores")
        .remedy("on the kernel's command line: isolcpus=managed_irq,domain,2-5 nohz_full=2-5; and CPUAffinity=2-5 in the unit")
        .into()
}

fn governor(host: &Host) -> Vec<Finding> {
    let folder = "/sys/devices/system/cpu";
    let mut governors: Vec<String> = host
        .list(folder)
        .iter()
        .filter(|name| name.strip_prefix("cpu").is_some_and(|rest| rest.parse::<u32>().is_ok()))
        .filter_map(|cpu| host.read(&format!("{folder}/{cpu}/cpufreq/scaling_governor")))
        .collect();
    let cores = governors.len();
    governors.sort();
    governors.dedup();
    match &governors[..] {
        [] => Finding::skipped("the kernel controls no frequency here (a virtual machine, or the firmware does)").into(),
        [one] if one == "performance" => Finding::ok(format!("performance on {cores} cores")).into(),
        several => Finding::warning(several.join(", "))
            .wants("performance")
            .remedy("cpupower frequency-set -g performance (Debian: apt-get install linux-cpupower)")
            .into(),
    }
}

/// Microseconds that waking may take without being noticed.
const SLEEP_US_MAX: u64 = 20;

fn sleep_states(host: &Host) -> Vec<Finding> {
    let folder = "/sys/devices/system/cpu/cpu0/cpuidle";
    let states = host.list(folder);
    if states.is_empty() {
        return Finding::skipped("the kernel puts cores to sleep by itself here (no cpuidle driver)").into();
    }
    let deepest = states
        .iter()
        .filter(|state| host.read(&format!("{folder}/{state}/disable")).is_none_or(|disabled| disabled == "0"))
        .filter_map(|state| {
            let name = host.read(&format!("{folder}/{state}/name"))?;
            Some((host.number(&format!("{folder}/{state}/latency"))?, name))
        })
        .max();
    match deepest {
        None => Finding::ok("all disabled").into(),
        Some((us, name)) if us <= SLEEP_US_MAX => Finding::ok(format!("{name} wakes within {us} µs")).into(),
        Some((us, name)) => Finding::warning_if(!host.needs.overprovisioned, format!("{name} takes up to {us} µs to wake"))
            .wants(format!("at most {SLEEP_US_MAX} µs"))
            .remedy("cpupower idle-set --disable-by-latency 20; or intel_idle.max_cstate=1 on the kernel's command line")
            .into(),
    }
}

fn memory_nodes(host: &Host) -> Vec<Finding> {
    let nodes = host.list("/sys/devices/system/node");
    let count = nodes.iter().filter(|name| name.strip_prefix("node").is_some_and(|rest| rest.parse::<u32>().is_ok())).count();
    if count <= 1 {
        return Finding::ok("one").into();
    }
    match host.sysctl("kernel.numa_balancing").as_deref() {
        Some("0") | None => Finding::info(format!("{count}, no automatic balancing"))
            .wants("the node of RustyDB on one of them")
            .remedy("NUMAPolicy=bind and NUMAMask=0 in the systemd unit, with CPUAffinity=numa")
            .into(),
        Some(_) => Finding::warning(format!("{count}, and the kernel balances between them"))
            .wants("kernel.numa_balancing = 0")
            .remedy("sysctl -w kernel.numa_balancing=0; NUMAPolicy=bind, NUMAMask=0 and CPUAffinity=numa in the systemd unit")
            .into(),
    }
}

fn checksums(host: &Host) -> Vec<Finding> {
    let text = host.read("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let Some(line) = line else { return Finding::skipped("/proc/cpuinfo does not tell").into() };
    match line.split_whitespace().find(|flag| *flag == "sse4_2" || *flag == "crc32") {
        Some(flag) => Finding::ok(flag).into(),
        None => {
            Finding::warning("neither sse4_2 nor crc32").wants("either").remedy("let the guest see the host's processor").into()
        }
    }
}

fn clock_source(host: &Host) -> Vec<Finding> {
    let folder = "/sys/devices/system/clocksource/clocksource0";
    let Some(current) = host.read(&format!("{folder}/current_clocksource")) else {
        return Finding::skipped(format!("{folder} is not there")).into();
    };
    let available = host.read(&format!("{folder}/available_clocksource")).unwrap_or_default();
    match chosen(&current) {
        "tsc" | "arch_sys_counter" => Finding::ok(current).into(),
        "kvm-clock" | "hyperv_clocksource_tsc_page" => Finding::info(format!("{current} (of {available})"))
            .wants("tsc, where the hypervisor's is steady")
            .remedy(format!("echo tsc > {folder}/current_clocksource; at boot: clocksource=tsc tsc=reliable"))
            .into(),
        _ => Finding::warning(format!("{current} (of {available})"))
            .wants("tsc")
            .remedy(format!("journalctl -k --grep tsc tells why not; then echo tsc > {folder}/current_clocksource"))
            .into(),
    }
}

/// Microseconds that a clock may be off, by its own reckoning.
const CLOCK_ERROR_US_MAX: i64 = 100_000;

fn synchronised(host: &Host) -> Vec<Finding> {
    let finding = match &host.facts.clock {
        None => return Finding::skipped("not asked").into(),
        Some(Err(error)) => return Finding::skipped(format!("adjtimex: {error}")).into(),
        Some(Ok(clock)) if !clock.synchronised => Finding::warning("no: nothing keeps this clock right"),
        Some(Ok(clock)) if clock.error_us_max > CLOCK_ERROR_US_MAX => {
            Finding::warning(format!("to within {} ms", clock.error_us_max / 1_000))
        }
        Some(Ok(clock)) => return Finding::ok(format!("to within {:.1} ms", clock.error_us_max as f64 / 1_000.0)).into(),
    };
    finding
        .wants(format!("to within {} ms", CLOCK_ERROR_US_MAX / 1_000))
        .remedy("apt-get install chrony; chronyc tracking; the same servers on all nodes")
        .into()
}
