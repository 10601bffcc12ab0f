//! io_uring: whether it is to be had, and which of its gains.

use crate::check::{Check, Finding};
use crate::facts::Uring;
use crate::host::Host;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-IO-001",
        what: "io_uring can be set up",
        why: "Nodes do their I/O through io_uring. Where it is refused they fall back to the slower poll driver, or don't start \
              with engine.io_driver = \"uring\". It is refused by the sysctl kernel.io_uring_disabled, by a seccomp filter (of a \
              container's runtime, of a systemd unit), by RLIMIT_MEMLOCK, or because the kernel was built without it; these \
              are told apart. Tried by making a ring.",
        run: set_up,
    },
    Check {
        id: "RDB-IO-002",
        what: "SINGLE_ISSUER and DEFER_TASKRUN",
        why: "Completions are delivered when the shard asks for them instead of by interrupting it. From Linux 6.1 on; before \
              that COOP_TASKRUN (5.19) is used. Tried by making such a ring.",
        run: flags,
    },
    Check {
        id: "RDB-IO-003",
        what: "operations that nodes use",
        why: "Reads, writes, syncs and socket operations of the engine's driver, waiting with a time limit, and no dropped \
              completions. Asked of the kernel by IORING_REGISTER_PROBE.",
        run: operations,
    },
    Check {
        id: "RDB-IO-004",
        what: "MSG_RING",
        why: "A shard wakes another by a message from ring to ring; without it (before 5.18) by an eventfd, which costs a system \
              call more for each wake-up.",
        run: msg_ring,
    },
    Check {
        id: "RDB-IO-005",
        what: "registered files and buffers",
        why: "Files and sockets are registered with the ring, which spares looking them up for each operation; so are the block \
              cache, the log's batches and the block writer's copies, which spares pinning their pages for each. It counts against \
              RLIMIT_MEMLOCK (RDB-MEM-001). Tried with 2 MiB.",
        run: registered,
    },
    Check {
        id: "RDB-IO-006",
        what: "SEND_ZC",
        why: "Sending without copying, from Linux 6.0 on. Nodes don't use it: it gained nothing where it was measured \
              (docs/performance.md), and the kernel would keep a block's frame until the other node has acknowledged. Blocks that are \
              not to be copied go by RDMA.",
        run: send_zc,
    },
    Check {
        id: "RDB-IO-007",
        what: "IOPOLL rings",
        why: "Rings that poll a device for its completions instead of taking interrupts: for rac.storage.polled_io, on NVMe devices \
              with poll queues (RDB-DISK-007).",
        run: iopoll,
    },
    Check {
        id: "RDB-IO-008",
        what: "uring_cmd",
        why: "Commands passed through to NVMe devices without the block layer, from Linux 5.19 on: for rac.storage.nvme_passthrough \
              (RDB-DISK-013).",
        run: uring_cmd,
    },
];

fn with_uring(host: &Host, look: impl FnOnce(&Uring) -> Finding) -> Vec<Finding> {
    match &host.facts.uring {
        Some(Ok(uring)) => look(uring).into(),
        _ => Finding::skipped("there is no io_uring to be asked: see RDB-IO-001").into(),
    }
}

fn set_up(host: &Host) -> Vec<Finding> {
    let refused = match &host.facts.uring {
        None => return Finding::skipped("not tried").into(),
        Some(Ok(_)) if host.needs.poll_only => return Finding::ok("yes; not used, as engine.io_driver is \"poll\"").into(),
        Some(Ok(_)) => return Finding::ok("yes").into(),
        Some(Err(number)) => *number,
    };
    let disabled = host.sysctl("kernel.io_uring_disabled").unwrap_or_default();
    let filtered = host.field("/proc/self/status", "Seccomp").is_some_and(|mode| mode != "0");
    let (words, remedy) = match (refused, disabled.as_str()) {
        (libc::EPERM, "1" | "2") => (
            format!("no: refused by the sysctl kernel.io_uring_disabled = {disabled}"),
            "sysctl -w kernel.io_uring_disabled=0; and in /etc/sysctl.d/90-rustydb.conf: kernel.io_uring_disabled = 0 (1 \
             allows it to the group of kernel.io_uring_group)",
        ),
        (libc::EPERM | libc::EACCES, _) if filtered => (
            "no: refused by a seccomp filter".into(),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the filter: a container's seccomp profile \
             (docker: --security-opt seccomp=FILE), or SystemCallFilter=@io-event in the systemd unit",
        ),
        (libc::EPERM | libc::EACCES, _) => (
            "no: refused, though this process has no seccomp filter and the sysctl allows it".into(),
            "look for a security module's denial: journalctl -k --grep 'io_uring|avc'",
        ),
        (libc::ENOSYS, _) if filtered => (
            "no: hidden by a seccomp filter, or the kernel was built without it".into(),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the filter; grep CONFIG_IO_URING /boot/config-$(uname -r)",
        ),
        (libc::ENOSYS, _) => (
            "no: the kernel was built without it".into(),
            "use a kernel with CONFIG_IO_URING=y: grep CONFIG_IO_URING /boot/config-$(uname -r)",
        ),
        (libc::ENOMEM, _) => (
            "no: RLIMIT_MEMLOCK is too low for its rings".into(),
            "LimitMEMLOCK=infinity in the [Service] section of the systemd unit, or ulimit -l unlimited before the start",
        ),
        (number, _) => {
            (format!("no: {}", std::io::Error::from_raw_os_error(number)), "journalctl -k; and report the kernel's version")
        }
    };
    if host.needs.poll_only {
        return Finding::info(words).into();
    }
    Finding::fatal_if(host.needs.uring_only, words).wants("yes").remedy(remedy).into()
}

fn flags(host: &Host) -> Vec<Finding> {
    with_uring(host, |uring| match (uring.single_issuer, uring.defer_taskrun, uring.coop_taskrun) {
        (true, true, _) => Finding::ok("yes"),
        (_, _, true) => Finding::warning("no; COOP_TASKRUN is used").wants("both").remedy("install Linux 6.1 or newer"),
        _ => Finding::warning("no; completions interrupt the shards").wants("both").remedy("install Linux 6.1 or newer"),
    })
}

fn operations(host: &Host) -> Vec<Finding> {
    with_uring(host, |uring| {
        if uring.needed_features && uring.missing.is_empty() {
            return Finding::ok("all there");
        }
        let mut missing = uring.missing.clone();
        if !uring.needed_features {
            missing.push("EXT_ARG and NODROP (5.11)");
        }
        let finding = Finding::fatal_if(host.needs.uring_only, format!("missing: {}", missing.join(", ")));
        finding.wants("all").remedy("install Linux 6.1 or newer")
    })
}

fn msg_ring(host: &Host) -> Vec<Finding> {
    with_uring(host, |uring| match uring.msg_ring && uring.skip_success {
        true => Finding::ok("yes"),
        false => Finding::warning_if(host.needs.shards > 1, "no: shards wake each other by eventfd")
            .wants("Linux 5.18 or newer")
            .remedy("install Linux 6.1 or newer"),
    })
}

fn registered(host: &Host) -> Vec<Finding> {
    with_uring(host, |uring| match (uring.registered_files, uring.registered_buffers) {
        (None, None) => Finding::ok("yes"),
        (_, Some(libc::ENOMEM)) => Finding::warning("buffers are refused: RLIMIT_MEMLOCK is used up").wants("both").remedy(
            "LimitMEMLOCK=infinity in the [Service] section of the systemd unit, or ulimit -l unlimited before the start",
        ),
        (files, buffers) => {
            let said = |what: &str, number: Option<i32>| {
                number.map(|number| format!("{what}: {}", std::io::Error::from_raw_os_error(number)))
            };
            let words = [said("files", files), said("buffers", buffers)].into_iter().flatten().collect::<Vec<_>>().join("; ");
            Finding::warning(words).wants("both").remedy("install Linux 6.1 or newer")
        }
    })
}

/// What a node can do without, and misses where its configuration asks for it.
fn gain(there: bool, asked_for: bool, lost: &str) -> Finding {
    match there {
        true => Finding::ok("yes"),
        false => Finding::warning_if(asked_for, format!("no: {lost}")).remedy("install Linux 6.1 or newer"),
    }
}

fn send_zc(host: &Host) -> Vec<Finding> {
    with_uring(host, |uring| Finding::ok(if uring.send_zc { "yes; nodes don't use it" } else { "no; nodes don't use it" }))
}

fn iopoll(host: &Host) -> Vec<Finding> {
    with_uring(host, |uring| gain(uring.iopoll, host.needs.polled_io, "storage completes by interrupts"))
}

fn uring_cmd(host: &Host) -> Vec<Finding> {
    with_uring(host, |uring| gain(uring.uring_cmd, host.needs.nvme_passthrough, "no passthrough to NVMe devices"))
}
