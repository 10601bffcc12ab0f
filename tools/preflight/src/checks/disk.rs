//! The volume, and the device that it lies on.

use super::{bytes, chosen};
use crate::check::{Check, Finding};
use crate::facts::{VolumeFacts, VolumeFormat, VolumeKind};
use crate::host::{BlockDevice, Host};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-DISK-001",
        what: "volume can be reached",
        why: "The path of rac.storage.shared_storage_path (or --volume) must be a block device or a file that this process may \
              read and write.",
        run: reachable,
    },
    Check {
        id: "RDB-DISK-002",
        what: "volume is this cluster's",
        why: "The superblock names the cluster, how many nodes have a place and how many shards each has. A node refuses a volume \
              that does not fit its configuration, before it writes anything.",
        run: format,
    },
    Check {
        id: "RDB-DISK-003",
        what: "volume is shared",
        why: "All nodes work on the same disk. A plain file on a machine's own disk serves nodes on that machine only; a file system \
              that several machines mount (NFS) lies about what is durable more often than not. NVMe namespaces say whether \
              several controllers may attach them.",
        run: shared,
    },
    Check {
        id: "RDB-DISK-004",
        what: "direct I/O",
        why: "Nodes go around the page cache (O_DIRECT); where a file system refuses, the cache lies in between, and what one node \
              reads may be older than what another wrote.",
        run: direct,
    },
    Check {
        id: "RDB-DISK-005",
        what: "volatile write cache",
        why: "A device with a volatile cache makes each durable write wait for the cache to be emptied, or for one write with FUA. \
              Devices with power-loss protection say \"write through\" and are several times faster at commits. From \
              queue/write_cache and queue/fua, and NVMe's IDENTIFY (VWC) where this process may ask.",
        run: write_cache,
    },
    Check {
        id: "RDB-DISK-006",
        what: "I/O scheduler",
        why: "Shards send few, ordered requests; an NVMe device or a SAN sorts them better than the kernel. From queue/scheduler.",
        run: scheduler,
    },
    Check {
        id: "RDB-DISK-007",
        what: "poll queues",
        why: "rac.storage.polled_io needs queues without interrupts: module parameter poll_queues of nvme, and queue/io_poll. Without \
              them a node goes the plain way, and its log says so (docs/storage.md).",
        run: poll_queues,
    },
    Check {
        id: "RDB-DISK-008",
        what: "sector size",
        why: "The log and the superblock are written in 4 KiB; a device with larger logical sectors can't take them.",
        run: sectors,
    },
    Check {
        id: "RDB-DISK-009",
        what: "kind of disk",
        why: "A rotating disk makes some 100 durable writes a second; so many commits one after the other. From queue/rotational.",
        run: rotating,
    },
    Check {
        id: "RDB-DISK-010",
        what: "time a request may take",
        why: "Survivors may only recover a dead node once the last of its writes has ended. With fencing by lease, \
              ha.fencing.lease_margin must cover the longest time of one write: the device's timeout. From queue/io_timeout and \
              device/timeout.",
        run: timeouts,
    },
    Check {
        id: "RDB-DISK-011",
        what: "room for the volume's file",
        why: "A volume's file is reserved at its full size; a copy-on-write file system needs room for each change of it too.",
        run: room,
    },
    Check {
        id: "RDB-DISK-012",
        what: "durable writes, timed",
        why: "A hundred writes of 4 KiB, durable by RWF_DSYNC and by fdatasync in turns, to a temporary file in the volume's folder. \
              Only with --probe-writes, and never on a block device.",
        run: timed,
    },
    Check {
        id: "RDB-DISK-013",
        what: "NVMe passthrough",
        why: "rac.storage.nvme_passthrough takes a whole NVMe namespace (no partition, no device mapper, no file) and its character \
              device /dev/ngXnY, which the server's user may open for reading and writing. Without it a node goes the plain way, and \
              its log says so (docs/storage.md).",
        run: passthrough,
    },
];

fn with_volume(host: &Host, look: impl FnOnce(&VolumeFacts) -> Finding) -> Vec<Finding> {
    match &host.facts.volume {
        None => Finding::skipped("no volume named: give --config or --volume").into(),
        Some(volume) if volume.kind == VolumeKind::Missing => Finding::skipped("there is no volume: see RDB-DISK-001").into(),
        Some(volume) => look(volume).into(),
    }
}

fn each_device(host: &Host, look: impl Fn(&BlockDevice) -> Finding) -> Vec<Finding> {
    if host.facts.volume.is_none() {
        return Finding::skipped("no volume named: give --config or --volume").into();
    }
    let devices = host.volume_devices();
    if devices.is_empty() {
        return Finding::skipped("the volume lies on no block device of this host").into();
    }
    devices.iter().map(|device| look(device).of(&device.name)).collect()
}

fn reachable(host: &Host) -> Vec<Finding> {
    let Some(volume) = &host.facts.volume else {
        return Finding::skipped("no volume named: give --config or --volume").into();
    };
    let path = volume.path.display();
    if let Some(error) = &volume.access {
        let wants = "to be read and written by the node's user";
        return Finding::fatal(format!("{path}: {error}"))
            .wants(wants)
            .remedy(format!("ls -l {path}; id; chown or a udev rule"))
            .into();
    }
    match volume.kind {
        VolumeKind::Missing => Finding::fatal(format!("{path} does not exist"))
            .wants("a volume")
            .remedy(format!(
                "attach the LUN, or make the volume: rusty-db-server --init-rac --shared-storage {path} --cluster-name NAME"
            ))
            .into(),
        VolumeKind::Other => Finding::fatal(format!("{path} is neither a file nor a block device")).wants("either").into(),
        VolumeKind::File => Finding::ok(format!("a file of {} on {}", bytes(volume.bytes), volume.file_system)).into(),
        VolumeKind::Device => Finding::ok(format!("a block device of {}", bytes(volume.bytes))).into(),
    }
}

fn format(host: &Host) -> Vec<Finding> {
    with_volume(host, |volume| {
        let path = volume.path.display();
        let (name, nodes_max, shards, formatted) = match &volume.format {
            VolumeFormat::Unread => return Finding::skipped("it can't be read"),
            VolumeFormat::Unformatted(words) => {
                return Finding::fatal(format!("not formatted (superblock: {words})")).wants("a RustyDB volume").remedy(format!(
                    "rusty-db-server --init-rac --shared-storage {path} --cluster-name NAME, on one node, once"
                ));
            }
            VolumeFormat::Unusable(words) => {
                return Finding::fatal(words.clone())
                    .wants("a RustyDB volume")
                    .remedy("don't format it: the data may be whole. Check the device; restore the first 16 KiB from a backup");
            }
            VolumeFormat::Volume { cluster_name, nodes_max, shards, bytes } => (cluster_name, *nodes_max, *shards, *bytes),
        };
        let words = format!("cluster {name:?}, {nodes_max} nodes, {shards} shards, {}", bytes(formatted));
        let needs = &host.needs;
        let wrong = |wants: String, remedy: &str| Finding::fatal(words.clone()).wants(wants).remedy(remedy);
        match () {
            () if volume.bytes < formatted => wrong(
                format!("its whole length; it has {} now", bytes(volume.bytes)),
                "restore the full length: was it copied, or the LUN resized?",
            ),
            () if needs.cluster_name.as_ref().is_some_and(|wanted| wanted != name) => wrong(
                format!("cluster {:?}", needs.cluster_name.as_deref().unwrap_or_default()),
                "correct cluster.cluster_name or rac.storage.shared_storage_path",
            ),
            () if needs.node.is_some_and(|node| node > nodes_max) => wrong(
                format!("a place for node {}", needs.node.unwrap_or_default()),
                "correct cluster.node_id, or format for more nodes",
            ),
            () if needs.configured() && needs.shards != u64::from(shards) => {
                wrong(format!("{} shards", needs.shards), "set engine.shards to the volume's")
            }
            () => Finding::ok(words),
        }
    })
}

fn shared(host: &Host) -> Vec<Finding> {
    with_volume(host, |volume| {
        let several = host.needs.nodes.values().map(|address| address.ip()).filter(|ip| !ip.is_loopback()).count() > 1;
        if volume.kind == VolumeKind::File {
            return match volume.file_system_shared {
                true => Finding::warning(format!("a file on {}, which several machines may mount", volume.file_system))
                    .wants("a block device that all machines see")
                    .remedy("export the disk itself (iSCSI, NVMe over Fabrics, a SAN's LUN)"),
                false if several => Finding::fatal(format!("a file on this machine's own {}", volume.file_system))
                    .wants("a block device that all machines see")
                    .remedy("a LUN or a multi-attach NVMe namespace in rac.storage.shared_storage_path"),
                false => Finding::info(format!("a file on this machine's own {}: for nodes on this machine", volume.file_system)),
            };
        }
        let nvme: Vec<_> = host.facts.nvme.iter().filter_map(|(name, found)| Some((name, found.as_ref().ok()?))).collect();
        match nvme.iter().find(|(_, identity)| !identity.shared) {
            Some((name, _)) => {
                Finding::warning_if(several, format!("the namespace {name} says that one controller at a time may attach it"))
                    .wants("a namespace that may be shared (NMIC)")
                    .remedy("nvme create-ns --nmic=1 ..., then nvme attach-ns for every controller")
            }
            None if nvme.is_empty() => Finding::ok("a block device; whether other machines see it is not looked at"),
            None => Finding::ok("an NVMe namespace that may be shared"),
        }
    })
}

fn direct(host: &Host) -> Vec<Finding> {
    with_volume(host, |volume| match &volume.direct {
        None => Finding::ok("yes"),
        Some(error) => Finding::fatal_if(volume.kind == VolumeKind::Device, format!("refused: {error}"))
            .wants("yes")
            .remedy("a block device, or a file on ext4 or xfs (tmpfs refuses)"),
    })
}

fn write_cache(host: &Host) -> Vec<Finding> {
    each_device(host, |device| {
        let Some(cache) = host.read(&format!("{}/write_cache", device.queue)) else {
            return Finding::skipped("it does not tell");
        };
        let fua = host.read(&format!("{}/fua", device.queue)).as_deref() == Some("1");
        let identity = host.facts.nvme.iter().find(|(name, _)| *name == device.name).map(|(_, found)| found);
        let said = match identity {
            Some(Ok(identity)) => format!(
                "; {} says that it has {} volatile cache",
                if identity.model.is_empty() { "the controller" } else { &identity.model },
                if identity.volatile_cache { "a" } else { "no" }
            ),
            Some(Err(error)) => format!("; IDENTIFY was refused ({error})"),
            None => String::new(),
        };
        let words = format!("{cache}, {} FUA{said}", if fua { "with" } else { "without" });
        match (cache.as_str(), identity) {
            ("write through", Some(Ok(identity))) if identity.volatile_cache => Finding::fatal(words)
                .wants("the kernel to flush a volatile cache")
                .remedy(format!("echo 'write back' > {}/write_cache; who set it to write through?", device.queue)),
            ("write through", _) => Finding::ok(format!("{words}: writes are durable when they complete")),
            _ => Finding::warning_if(!fua, words)
                .wants("write through: a device with power-loss protection")
                .remedy("a device with power-loss protection; without one every commit waits for the cache to be emptied"),
        }
    })
}

fn scheduler(host: &Host) -> Vec<Finding> {
    each_device(host, |device| {
        let Some(list) = host.read(&format!("{}/scheduler", device.queue)) else { return Finding::skipped("it does not tell") };
        match chosen(&list) {
            "none" => Finding::ok("none"),
            "mq-deadline" if !device.is_nvme() => Finding::ok("mq-deadline"),
            other => Finding::warning(other).wants(if device.is_nvme() { "none" } else { "none or mq-deadline" }).remedy(
                format!("echo none > {}/scheduler; for good, a udev rule: ATTR{{queue/scheduler}}=\"none\"", device.queue),
            ),
        }
    })
}

fn poll_queues(host: &Host) -> Vec<Finding> {
    let asked = host.needs.polled_io;
    if asked && let Some(found) = not_a_device(host, "rac.storage.polled_io") {
        return found.into();
    }
    each_device(host, |device| {
        if !device.is_nvme() && !asked {
            return Finding::skipped("not an NVMe device");
        }
        let queues = host.number("/sys/module/nvme/parameters/poll_queues").unwrap_or(0);
        let poll = host.read(&format!("{}/io_poll", device.queue)).as_deref() == Some("1");
        let with_setting = if asked { "" } else { ", and set rac.storage.polled_io" };
        match queues {
            _ if !device.is_nvme() && poll => Finding::ok("it polls"),
            _ if !device.is_nvme() => Finding::warning("it has none: storage completes by interrupts")
                .wants("queues for polling, as rac.storage.polled_io asks for them")
                .remedy("an NVMe device, or rac.storage.polled_io = false"),
            0 => Finding::warning_if(asked, "none: storage completes by interrupts")
                .wants("one for each shard, for IOPOLL")
                .remedy(format!(
                    "in /etc/modprobe.d/nvme.conf: options nvme poll_queues={}; then reboot{with_setting}",
                    host.needs.shards
                )),
            queues if !poll => {
                Finding::warning_if(asked, format!("{queues}, and the device does not use them")).wants("io_poll = 1").remedy(
                    "the module nvme was loaded with fewer: reboot; a path over a fabric wants nr_poll_queues of nvme connect",
                )
            }
            queues => Finding::ok(queues.to_string()),
        }
    })
}

/// What a setting for devices makes of a volume that is a file.
fn not_a_device(host: &Host, setting: &str) -> Option<Finding> {
    let volume = host.facts.volume.as_ref().filter(|volume| volume.kind == VolumeKind::File)?;
    let words = format!("the volume is a file on {}: {setting} does nothing", volume.file_system);
    Some(Finding::warning(words).wants("an NVMe device").remedy(format!("{setting} = false, or a volume that is a device")))
}

fn passthrough(host: &Host) -> Vec<Finding> {
    if !host.needs.nvme_passthrough {
        return Finding::skipped("rac.storage.nvme_passthrough is off").into();
    }
    if let Some(found) = not_a_device(host, "rac.storage.nvme_passthrough") {
        return found.into();
    }
    let itself = host.facts.volume.as_ref().and_then(|volume| host.block_device(volume.device?));
    each_device(host, |device| {
        let plain = |words: String| Finding::warning(format!("{words}: reads and writes go by the block layer"));
        if itself.as_ref() != Some(device) {
            return plain(format!("the volume is a device on {}", device.name)).wants("the namespace itself").remedy(
                "without device mapper or md: /dev/nvmeXnY in rac.storage.shared_storage_path, or nvme_passthrough = false",
            );
        }
        if !device.is_nvme() {
            return plain("not an NVMe device".into()).wants("an NVMe namespace").remedy("rac.storage.nvme_passthrough = false");
        }
        if host.exists(&format!("{}/partition", device.folder)) {
            return plain("a partition".into())
                .wants("the whole namespace")
                .remedy("a namespace of its own for the volume (nvme create-ns), or nvme_passthrough = false");
        }
        match host.facts.passthrough.iter().find(|(name, _)| *name == device.name) {
            None => Finding::skipped("not tried"),
            Some((_, Ok(path))) => Finding::ok(format!("{path} can be opened")),
            Some((_, Err(error))) => plain(error.clone()).wants("its character device, readable and writable").remedy(
                "Linux 5.19 or newer; a udev rule for the server's user: SUBSYSTEM==\"nvme-generic\", OWNER=\"rustydb\"; before Linux 6.2 \
                 CAP_SYS_ADMIN too",
            ),
        }
    })
}

fn sectors(host: &Host) -> Vec<Finding> {
    each_device(host, |device| {
        let read = |name: &str| host.number(&format!("{}/{name}", device.queue));
        let (Some(logical), physical) = (read("logical_block_size"), read("physical_block_size").unwrap_or(0)) else {
            return Finding::skipped("it does not tell");
        };
        let words = format!("{logical} logical, {physical} physical");
        match logical {
            512..=4_096 => Finding::ok(words),
            _ => Finding::fatal(words).wants("4096 or 512").remedy("another device, or a LUN made with sectors of 4096 bytes"),
        }
    })
}

fn rotating(host: &Host) -> Vec<Finding> {
    each_device(host, |device| match host.read(&format!("{}/rotational", device.queue)).as_deref() {
        Some("0") => Finding::ok("solid state"),
        Some(_) if ["vd", "xvd", "loop"].iter().any(|prefix| device.name.starts_with(prefix)) => {
            Finding::info("it says that it rotates, as virtual disks do whatever lies below")
        }
        Some(_) => Finding::warning("rotating").wants("solid state").remedy("a solid-state disk for the volume"),
        None => Finding::skipped("it does not tell"),
    })
}

fn timeouts(host: &Host) -> Vec<Finding> {
    use rustydb::config::FencingMethod::Lease;
    each_device(host, |device| {
        let queue = host.number(&format!("{}/io_timeout", device.queue));
        let scsi = host.number(&format!("{}/device/timeout", device.folder)).map(|seconds| seconds * 1_000);
        let Some(longest) = scsi.or(queue) else { return Finding::skipped("it does not tell") };
        let margin = host.needs.ha.fencing.lease_margin;
        let words = format!("{longest} ms a try");
        if !host.needs.fences_by(Lease) || margin >= longest {
            return Finding::ok(words);
        }
        // The reservation, where there is one, ends what is under way.
        let alone = host.needs.ha.fencing_method.as_slice() == [Lease];
        Finding::warning_if(alone, words)
            .wants(format!("at most ha.fencing.lease_margin = {margin} ms, where the lease is all there is"))
            .remedy(format!("ha.fencing.lease_margin = {longest}, or a shorter timeout in {}/io_timeout", device.queue))
    })
}

fn room(host: &Host) -> Vec<Finding> {
    let Some(volume) = host.facts.volume.as_ref().filter(|volume| matches!(volume.kind, VolumeKind::File | VolumeKind::Missing))
    else {
        return Finding::skipped("the volume is no file").into();
    };
    let free = bytes(volume.free_bytes);
    if volume.file_system == "btrfs" || volume.file_system == "zfs" {
        return Finding::warning(format!("{free} free on {}, which copies on write", volume.file_system))
            .wants("a file system that writes in place")
            .remedy("ext4 or xfs; on btrfs: chattr +C on the folder before the volume is made")
            .into();
    }
    match volume.free_bytes {
        0..1_073_741_824 if volume.kind == VolumeKind::Missing => {
            Finding::warning(format!("{free} free")).wants("room for the volume").remedy("another disk").into()
        }
        _ => Finding::ok(format!("{free} free on {}", volume.file_system)).into(),
    }
}

fn timed(host: &Host) -> Vec<Finding> {
    match &host.facts.durable {
        None => Finding::skipped("only with --probe-writes, for a volume that is a file").into(),
        Some(Err(error)) => Finding::warning(error.clone()).wants("to be written").into(),
        Some(Ok(found)) => {
            let words = format!(
                "RWF_DSYNC {} µs, worst {} µs; write and fdatasync {} µs (medians of 100)",
                found.dsync_p50_us, found.dsync_max_us, found.sync_p50_us
            );
            match found.dsync_p50_us.min(found.sync_p50_us) {
                0..2_000 => Finding::ok(words).into(),
                _ => Finding::warning(words).wants("2 ms or less").remedy("a device with power-loss protection").into(),
            }
        }
    }
}
