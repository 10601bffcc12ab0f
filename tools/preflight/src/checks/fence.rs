//! Fencing: what would keep a dead node from the volume.

use rustydb::config::{FencingMethod, FencingMode, WatchdogUse};

use crate::check::{Check, Finding};
use crate::facts::{VolumeFormat, VolumeKind};
use crate::host::Host;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-FENCE-001",
        what: "protects the volume",
        why: "A node that is declared dead is fenced before anything of it is recovered: by the device (SCSI-3 or NVMe \
              reservations), the operator's command, the end of its process, or its lease and watchdog. Each configured method is \
              asked what it can do for this volume, as a node asks at its start. Reading a device's keys opens it for writing, \
              because the kernel asks for that; nothing is written.",
        run: protects,
    },
    Check {
        id: "RDB-FENCE-002",
        what: "reservations of the device",
        why: "SCSI-3 persistent reservations and NVMe reservations are the strongest method: the device itself refuses a dead node's \
              writes. They need a block device, CAP_SYS_ADMIN and CAP_SYS_RAWIO; NVMe's are read from Linux 6.19 on.",
        run: reservations,
    },
    Check {
        id: "RDB-FENCE-003",
        what: "a key can be registered",
        why: "With --probe-writes a key that is no node's is registered with the volume's device and removed again: what a node \
              does at its start. A path that has a key already keeps it.",
        run: registration,
    },
    Check {
        id: "RDB-FENCE-004",
        what: "watchdog",
        why: "A machine whose node can't stop by itself is reset by its watchdog, so that survivors may go on when lease and margin \
              have passed. It must count no longer than ha.fencing.watchdog_timeout. It is not opened here: that would arm it. \
              From /sys/class/watchdog.",
        run: watchdog,
    },
    Check {
        id: "RDB-FENCE-005",
        what: "who decides",
        why: "With ha.fencing_mode = \"manual\" a dead node's data waits for an operator, day or night.",
        run: mode,
    },
];

fn protects(host: &Host) -> Vec<Finding> {
    if host.facts.fencing.is_empty() {
        return Finding::skipped("no volume to be protected: see RDB-DISK-001").into();
    }
    let mut findings: Vec<Finding> = host
        .facts
        .fencing
        .iter()
        .map(|(name, able)| match able {
            Ok(detail) => Finding::ok(detail).of(*name),
            // One of several may well be unable: the volume's kind decides.
            Err(reason) => Finding::info(reason).of(*name),
        })
        .collect();
    if host.facts.fencing.iter().all(|(_, able)| able.is_err()) {
        findings.push(
            Finding::fatal("none of the configured methods can protect this volume")
                .wants("one that can")
                .remedy("docs/fencing.md: reservations for a SAN or NVMe, ha.fencing.command for a power switch"),
        );
    }
    findings
}

fn reservations(host: &Host) -> Vec<Finding> {
    let Some(volume) = &host.facts.volume else {
        return Finding::skipped("no volume named: give --config or --volume").into();
    };
    if volume.kind != VolumeKind::Device {
        return Finding::skipped("the volume is no block device").into();
    }
    let unable = host.facts.nvme.iter().find(|(_, found)| found.as_ref().is_ok_and(|identity| !identity.reservations));
    if let Some((name, _)) = unable {
        return Finding::warning(format!("{name} knows no reservations (ONCS)"))
            .wants("a device with reservations")
            .remedy("ha.fencing_method = [\"command\", \"lease\"] with a fencing command; or another device")
            .into();
    }
    match host.facts.fencing.iter().find(|(name, _)| *name == rustydb::cluster::fencing::name(FencingMethod::PersistentReservation)) {
        None => Finding::skipped("ha.fencing_method does not name persistent_reservation").into(),
        Some((_, Ok(detail))) => Finding::ok(detail).into(),
        Some((_, Err(reason))) => Finding::warning(reason)
            .wants("a device with reservations, and the rights to them")
            .remedy("sg_persist --in -k DEVICE (Debian: sg3-utils); AmbientCapabilities=CAP_SYS_ADMIN CAP_SYS_RAWIO in the systemd unit")
            .into(),
    }
}

fn registration(host: &Host) -> Vec<Finding> {
    match &host.facts.registration {
        None => Finding::skipped("only with --probe-writes, for a volume that is a block device").into(),
        Some(Ok(())) => Finding::ok("yes; it was removed again").into(),
        Some(Err(reason)) => {
            let formatted = host.facts.volume.as_ref().is_some_and(|volume| matches!(volume.format, VolumeFormat::Volume { .. }));
            let wants = if formatted { "a free path to the device, or a node that runs" } else { "a device with reservations" };
            Finding::warning(reason).wants(wants).into()
        }
    }
}

fn watchdog(host: &Host) -> Vec<Finding> {
    let (fencing, leases) = (&host.needs.ha.fencing, host.needs.fences_by(FencingMethod::Lease));
    if !leases || fencing.watchdog == WatchdogUse::Off {
        return Finding::skipped("the configuration uses none").into();
    }
    let required = fencing.watchdog == WatchdogUse::Required;
    let device = fencing.watchdog_device.display().to_string();
    let folder = match device.trim_start_matches("/dev/") {
        "watchdog" => "/sys/class/watchdog/watchdog0".to_owned(),
        name => format!("/sys/class/watchdog/{name}"),
    };
    if !host.exists(&device) {
        return Finding::fatal_if(required, format!("there is no {device}"))
            .wants("a watchdog")
            .remedy("modprobe the board's driver (iTCO_wdt, sp5100_tco, ipmi_watchdog), or softdog; in /etc/modules-load.d/watchdog.conf")
            .into();
    }
    let read = |name: &str| host.read(&format!("{folder}/{name}"));
    let identity = read("identity").unwrap_or_else(|| "a watchdog".into());
    if read("state").as_deref() == Some("active") {
        return Finding::fatal_if(required, format!("{identity}: somebody feeds it already"))
            .wants("one that is free")
            .remedy(format!("fuser -v {device}; systemd takes it with RuntimeWatchdogSec= in /etc/systemd/system.conf"))
            .into();
    }
    let bound = |name: &str| host.number(&format!("{folder}/{name}")).filter(|seconds| *seconds > 0);
    let timeout = fencing.watchdog_timeout;
    if bound("max_timeout").is_some_and(|most| timeout > most) || bound("min_timeout").is_some_and(|least| timeout < least) {
        return Finding::fatal_if(required, format!("{identity} can't count {timeout} s"))
            .wants("ha.fencing.watchdog_timeout within its bounds")
            .remedy(format!("cat {folder}/min_timeout {folder}/max_timeout; then set ha.fencing.watchdog_timeout"))
            .into();
    }
    match identity.contains("Software") {
        true => Finding::warning(format!("{identity}: of no use when the kernel itself hangs"))
            .wants("a watchdog in hardware")
            .remedy("modprobe the board's driver: iTCO_wdt, sp5100_tco, ipmi_watchdog")
            .into(),
        false => Finding::ok(identity).into(),
    }
}

fn mode(host: &Host) -> Vec<Finding> {
    match host.needs.ha.fencing_mode {
        FencingMode::Automatic => Finding::ok("the cluster").into(),
        FencingMode::Manual => Finding::warning("an operator, node by node (ha.fencing_mode = \"manual\")")
            .wants("automatic")
            .remedy("ha.fencing_mode = \"automatic\"")
            .into(),
    }
}
