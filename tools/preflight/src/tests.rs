//! Made-up hosts: a good one, a bad one, one that tells nothing; and this one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustydb::config::{FencingMethod, FencingMethods, WatchdogUse};

use crate::check::{Finding, Severity};
use crate::checks;
use crate::facts::{ClockSync, Facts, Limit, Limits, Listen, NvmeIdentity, Uring, VolumeFacts, VolumeFormat, VolumeKind};
use crate::host::Host;
use crate::needs::Needs;
use crate::probe;
use crate::report::Report;

mod settings;

static TREES: AtomicU32 = AtomicU32::new(0);

/// A folder that is a host's root; gone at the end.
struct Tree(PathBuf);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Tree {
        let number = TREES.fetch_add(1, Ordering::Relaxed);
        let tree = Tree(std::env::temp_dir().join(format!("rusty-db-preflight-{}-{number}", std::process::id())));
        std::fs::create_dir_all(&tree.0).expect("the temporary folder can be written");
        files.iter().for_each(|(path, text)| tree.put(path, text));
        tree
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("the temporary folder can be written");
        std::fs::write(path, text).expect("the temporary folder can be written");
    }

    fn host(&self, facts: Facts, needs: Needs) -> Host {
        Host::new(&self.0, facts, needs)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn find(host: &Host, id: &str) -> Vec<Finding> {
    let check = checks::all().find(|check| check.id == id).expect("such a check");
    (check.run)(host)
}

fn severity(host: &Host, id: &str) -> Severity {
    find(host, id).iter().map(|finding| finding.severity).max().expect("every check says something")
}

/// An appliance: NVMe with power-loss protection, a card with RoCE, cores of its own.
const APPLIANCE: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.12.9-amd64\n"),
    ("proc/sys/kernel/hostname", "appliance1\n"),
    ("proc/sys/kernel/panic", "10\n"),
    ("proc/sys/kernel/io_uring_disabled", "0\n"),
    ("proc/sys/kernel/numa_balancing", "0\n"),
    ("proc/sys/kernel/core_pattern", "|/lib/systemd/systemd-coredump %P\n"),
    ("proc/sys/vm/swappiness", "1\n"),
    ("proc/sys/vm/zone_reclaim_mode", "0\n"),
    ("proc/sys/vm/overcommit_memory", "0\n"),
    ("proc/sys/net/core/somaxconn", "4096\n"),
    ("proc/sys/net/core/busy_read", "0\n"),
    ("proc/sys/net/core/busy_poll", "0\n"),
    ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "0\n"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
    ("proc/sys/net/ipv4/tcp_wmem", "4096\t65536\t4194304\n"),
    ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sse4_2 avx2\n"),
    ("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 60000000 kB\nSwapTotal: 8388608 kB\nSwapFree: 8388608 kB\n"),
    ("proc/self/status", "CapEff:\t0000000000000000\nSeccomp:\t0\n"),
    ("proc/self/cgroup", "0::/system.slice/rustydb.service\n"),
    ("sys/fs/cgroup/system.slice/rustydb.service/memory.max", "max\n"),
    ("sys/fs/cgroup/system.slice/rustydb.service/cpu.max", "max 100000\n"),
    ("sys/fs/cgroup/system.slice/rustydb.service/pids.max", "max\n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("sys/devices/system/cpu/isolated", "2-5\n"),
    ("sys/devices/system/cpu/nohz_full", "2-5\n"),
    ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/name", "C1\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "2\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state2/name", "C6\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state2/latency", "133\n"),
    ("sys/devices/system/cpu/cpu0/cpuidle/state2/disable", "1\n"),
    ("sys/devices/system/node/node0/meminfo", ""),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
    ("sys/class/net/enp1/carrier", "1\n"),
    ("sys/class/net/enp1/speed", "100000\n"),
    ("sys/class/net/enp1/mtu", "9000\n"),
    ("sys/class/net/enp1/device/uevent", "DRIVER=mlx5_core\n"),
    ("sys/class/net/enp1/ecn/roce_np/enable/3", "1\n"),
    ("sys/class/infiniband/mlx5_0/device/vendor", "0x15b3\n"),
    ("sys/class/infiniband/mlx5_0/hca_type", "MT4123\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/link_layer", "Ethernet\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/rate", "100 Gb/sec (4X EDR)\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gids/0", "fe80:0000:0000:0000:0e42:a1ff:fe00:0001\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gids/3", "0000:0000:0000:0000:0000:ffff:0a00:030b\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/0", "IB/RoCE v1\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/3", "RoCE v2\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/0", "enp1\n"),
    ("dev/infiniband/uverbs0", ""),
    ("dev/infiniband/rdma_cm", ""),
    ("dev/watchdog", ""),
    ("sys/class/watchdog/watchdog0/identity", "iTCO_wdt\n"),
    ("sys/class/watchdog/watchdog0/state", "inactive\n"),
    ("sys/dev/block/259:1/uevent", "DEVNAME=nvme0n1\n"),
    ("sys/dev/block/259:1/queue/write_cache", "write through\n"),
    ("sys/dev/block/259:1/queue/scheduler", "[none] mq-deadline\n"),
    ("sys/dev/block/259:1/queue/logical_block_size", "4096\n"),
    ("sys/dev/block/259:1/queue/rotational", "0\n"),
    ("sys/dev/block/259:1/queue/io_timeout", "10000\n"),
    ("sys/dev/block/259:1/queue/io_poll", "1\n"),
    ("sys/module/nvme/parameters/poll_queues", "4\n"),
];

fn appliance_facts() -> Facts {
    let enough = Limits {
        locked_memory: Limit { soft: Some(72 << 30), hard: None },
        open_files: Limit { soft: Some(65_536), hard: Some(65_536) },
        ..Limits::default()
    };
    Facts {
        uring: Some(Ok(Uring {
            single_issuer: true,
            defer_taskrun: true,
            coop_taskrun: true,
            iopoll: true,
            needed_features: true,
            skip_success: true,
            msg_ring: true,
            send_zc: true,
            uring_cmd: true,
            ..Uring::default()
        })),
        limits: enough,
        processors_allowed: 6,
        clock: Some(Ok(ClockSync { synchronised: true, error_us_max: 800 })),
        addresses: vec![("enp1".into(), [10, 0, 3, 11].into())],
        listens: vec![Listen { setting: "the interconnect's".into(), address: ([10, 0, 3, 11], 7433).into(), refused: None }],
        volume: Some(VolumeFacts {
            path: "/dev/nvme0n1".into(),
            kind: VolumeKind::Device,
            device: Some((259, 1)),
            bytes: 1 << 40,
            format: VolumeFormat::Volume { cluster_name: "prod".into(), nodes_max: 8, shards: 4, bytes: 1 << 40 },
            ..VolumeFacts::default()
        }),
        nvme: vec![(
            "nvme0n1".into(),
            Ok(NvmeIdentity { model: "A MODEL".into(), volatile_cache: false, reservations: true, shared: true }),
        )],
        server: Some(Ok("rusty-db-server 0.7.0 (TCP and RDMA)".into())),
        fencing: vec![("persistent_reservation", Ok("NVMe reservations".into())), ("lease", Ok("nodes stop".into()))],
        ..Facts::default()
    }
}

fn appliance_needs() -> Needs {
    let nodes = BTreeMap::from([(1, ([10, 0, 3, 11], 7433).into()), (2, ([10, 0, 3, 12], 7433).into())]);
    Needs {
        file: Some(("node1.toml".into(), Ok(()))),
        cluster_name: Some("prod".into()),
        node: Some(1),
        nodes,
        cache_bytes: 32 << 30,
        shards: 4,
        overprovisioned: false,
        rdma: true,
        ..Needs::default()
    }
}

#[test]
fn an_appliance_has_nothing_to_be_mended() {
    let tree = Tree::new(APPLIANCE);
    let host = tree.host(appliance_facts(), appliance_needs());
    for (check, finding) in checks::run(&host, |_| true) {
        assert!(matches!(finding.severity, Severity::Ok | Severity::Skipped), "{}: {finding:?}", check.id);
        let told = ["RDB-MEM-005", "RDB-MEM-006", "RDB-DISK-011", "RDB-DISK-012", "RDB-DISK-013", "RDB-FENCE-003"];
        let skipped = finding.severity == Severity::Skipped;
        assert_eq!(skipped, told.contains(&check.id), "{}: {finding:?}", check.id);
    }
}

/// One file or fact differs from the appliance's, and the check that is about it says so.
#[test]
fn every_flaw_is_named_by_its_check() {
    use Severity::{Fatal, Info, Skipped, Warning};
    let flaws: &[(&str, &str, &str, Severity, &str)] = &[
        ("RDB-KERN-001", "proc/sys/kernel/osrelease", "5.15.0-91-generic", Warning, "newer kernel"),
        ("RDB-KERN-002", "proc/sys/kernel/panic", "0", Info, "kernel.panic"),
        ("RDB-KERN-003", "proc/cpuinfo", "flags : fpu hypervisor sse4_2", Info, "pin"),
        ("RDB-MEM-002", "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 9000000 kB", Fatal, "global_cache_size"),
        ("RDB-MEM-003", "sys/fs/cgroup/system.slice/rustydb.service/memory.max", "1073741824", Fatal, "MemoryMax"),
        ("RDB-MEM-004", "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]", Warning, "madvise"),
        ("RDB-MEM-007", "proc/sys/vm/swappiness", "60", Warning, "vm.swappiness"),
        ("RDB-MEM-008", "proc/sys/vm/overcommit_memory", "2", Fatal, "overcommit"),
        ("RDB-MEM-009", "proc/sys/vm/zone_reclaim_mode", "1", Warning, "zone_reclaim"),
        ("RDB-MEM-012", "sys/fs/cgroup/system.slice/rustydb.service/pids.max", "64", Warning, "TasksMax"),
        ("RDB-CPU-002", "sys/fs/cgroup/system.slice/rustydb.service/cpu.max", "200000 100000", Warning, "CPUQuota"),
        ("RDB-CPU-004", "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave", Warning, "cpupower"),
        ("RDB-CPU-005", "sys/devices/system/cpu/cpu0/cpuidle/state2/disable", "0", Warning, "idle-set"),
        ("RDB-CPU-006", "sys/devices/system/node/node1/meminfo", "", Info, "NUMA"),
        ("RDB-TIME-001", "sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet", Warning, "tsc"),
        ("RDB-NET-002", "sys/class/net/enp1/speed", "1000", Warning, "faster card"),
        ("RDB-NET-002", "sys/class/net/enp1/carrier", "0", Fatal, "ip link"),
        ("RDB-NET-003", "sys/class/net/enp1/mtu", "1500", Warning, "mtu 9000"),
        ("RDB-NET-004", "proc/sys/net/core/somaxconn", "128", Warning, "somaxconn"),
        ("RDB-RDMA-002", "sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN", Warning, "ip link"),
        ("RDB-RDMA-003", "sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/3", "IB/RoCE v1", Warning, "ip address"),
        ("RDB-RDMA-004", "sys/class/net/enp1/mtu", "1500", Warning, "mtu 9000"),
        ("RDB-RDMA-005", "sys/class/net/enp1/ecn/roce_np/enable/3", "0", Skipped, ""),
        ("RDB-DISK-005", "sys/dev/block/259:1/queue/write_cache", "write back", Warning, "power-loss"),
        ("RDB-DISK-006", "sys/dev/block/259:1/queue/scheduler", "none [bfq]", Warning, "udev"),
        ("RDB-DISK-007", "sys/module/nvme/parameters/poll_queues", "0", Info, "poll_queues=4"),
        ("RDB-DISK-008", "sys/dev/block/259:1/queue/logical_block_size", "8192", Fatal, "LUN"),
        ("RDB-DISK-009", "sys/dev/block/259:1/queue/rotational", "1", Warning, "solid"),
        ("RDB-FENCE-004", "sys/class/watchdog/watchdog0/state", "active", Warning, "RuntimeWatchdogSec"),
        ("RDB-FENCE-004", "sys/class/watchdog/watchdog0/identity", "Software Watchdog", Warning, "iTCO"),
    ];
    for (id, path, text, wanted, remedy) in flaws {
        let tree = Tree::new(APPLIANCE);
        tree.put(path, text);
        let findings = find(&tree.host(appliance_facts(), appliance_needs()), id);
        let worst = findings.iter().max_by_key(|finding| finding.severity).expect("every check says something");
        assert_eq!(worst.severity, *wanted, "{id} with {path} = {text:?}: {worst:?}");
        assert!(worst.remedy.contains(remedy), "{id} with {path} = {text:?}: {worst:?}");
    }
}

#[test]
fn facts_that_are_wrong_are_named_by_their_checks() {
    use Severity::{Fatal, Warning};
    type Spoil = fn(&mut Facts, &mut Needs);
    let flaws: &[(&str, Severity, Spoil)] = &[
        ("RDB-CFG-001", Fatal, |_, needs| needs.file = Some(("x.toml".into(), Err("unknown key".into())))),
        ("RDB-CFG-002", Fatal, |facts, _| facts.addresses.clear()),
        ("RDB-MEM-001", Fatal, |facts, _| facts.limits.locked_memory.soft = Some(8 << 20)),
        ("RDB-MEM-010", Warning, |facts, _| facts.limits.open_files.soft = Some(1_024)),
        ("RDB-MEM-011", Fatal, |facts, _| facts.limits.file_size.soft = Some(1 << 30)),
        ("RDB-MEM-014", Warning, |facts, _| facts.statistics_folder = Some("permission denied".into())),
        ("RDB-CPU-001", Warning, |facts, _| facts.processors_allowed = 4),
        ("RDB-TIME-002", Warning, |facts, _| facts.clock = Some(Ok(ClockSync { synchronised: false, error_us_max: 0 }))),
        ("RDB-NET-001", Fatal, |facts, _| facts.listens[0].refused = Some("address in use".into())),
        ("RDB-DISK-001", Fatal, |facts, _| volume(facts).kind = VolumeKind::Missing),
        ("RDB-DISK-001", Fatal, |facts, _| volume(facts).access = Some("permission denied".into())),
        ("RDB-DISK-002", Fatal, |facts, _| volume(facts).format = VolumeFormat::Unformatted("blank".into())),
        ("RDB-DISK-002", Fatal, |_, needs| needs.cluster_name = Some("other".into())),
        ("RDB-DISK-002", Fatal, |_, needs| needs.node = Some(9)),
        ("RDB-DISK-002", Fatal, |_, needs| needs.shards = 2),
        ("RDB-DISK-002", Fatal, |facts, _| volume(facts).bytes -= 1),
        ("RDB-DISK-003", Fatal, |facts, _| volume(facts).kind = VolumeKind::File),
        ("RDB-DISK-003", Warning, |facts, _| facts.nvme[0].1 = Ok(NvmeIdentity::default())),
        ("RDB-DISK-004", Fatal, |facts, _| volume(facts).direct = Some("invalid argument".into())),
        // Somebody told the kernel not to flush a cache that loses its content: commits would be lost.
        ("RDB-DISK-005", Fatal, |facts, _| {
            facts.nvme[0].1 = Ok(NvmeIdentity { volatile_cache: true, ..NvmeIdentity::default() });
        }),
        ("RDB-DISK-010", Warning, |_, needs| {
            needs.ha.fencing_method = FencingMethods::One(FencingMethod::Lease);
            needs.ha.fencing.lease_margin = 5_000;
        }),
        ("RDB-FENCE-001", Fatal, |facts, _| facts.fencing.iter_mut().for_each(|(_, able)| *able = Err("no".into()))),
        ("RDB-FENCE-002", Warning, |facts, _| facts.nvme[0].1 = Ok(NvmeIdentity::default())),
        ("RDB-FENCE-003", Warning, |facts, _| facts.registration = Some(Err("conflict".into()))),
        ("RDB-FENCE-004", Fatal, |_, needs| {
            needs.ha.fencing.watchdog = WatchdogUse::Required;
            needs.ha.fencing.watchdog_device = "/dev/watchdog7".into();
        }),
    ];
    let tree = Tree::new(APPLIANCE);
    for (index, (id, wanted, spoil)) in flaws.iter().enumerate() {
        let (mut facts, mut needs) = (appliance_facts(), appliance_needs());
        spoil(&mut facts, &mut needs);
        assert_eq!(severity(&tree.host(facts, needs), id), *wanted, "flaw {index}, {id}");
    }
}

fn volume(facts: &mut Facts) -> &mut VolumeFacts {
    facts.volume.as_mut().expect("the appliance has one")
}

#[test]
fn a_refusal_of_io_uring_names_who_refuses() {
    let cases: &[(i32, &str, &str, &str)] = &[
        (libc::EPERM, "2", "0", "sysctl kernel.io_uring_disabled = 2"),
        (libc::EPERM, "0", "2", "seccomp"),
        (libc::ENOSYS, "", "2", "hidden by a seccomp filter"),
        (libc::ENOSYS, "", "0", "built without"),
        (libc::ENOMEM, "0", "0", "RLIMIT_MEMLOCK"),
    ];
    for (number, disabled, seccomp, words) in cases {
        let tree =
            Tree::new(&[("proc/sys/kernel/io_uring_disabled", disabled), ("proc/self/status", &format!("Seccomp:\t{seccomp}"))]);
        let facts = Facts { uring: Some(Err(*number)), ..Facts::default() };
        let auto = tree.host(facts.clone(), Needs::default());
        let found = find(&auto, "RDB-IO-001").remove(0);
        assert!(found.current.contains(words), "{found:?}");
        // The poll driver does instead, unless the configuration wants no other.
        assert_eq!(found.severity, Severity::Warning);
        let only = tree.host(facts, Needs { uring_only: true, ..Needs::default() });
        assert_eq!(severity(&only, "RDB-IO-001"), Severity::Fatal);
        assert_eq!(severity(&only, "RDB-IO-004"), Severity::Skipped);
    }
}

#[test]
fn software_rdma_is_named_as_such() {
    let tree = Tree::new(&[
        ("sys/class/infiniband/rxe0/parent", "eth0"),
        ("sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE"),
        ("sys/class/infiniband/rxe0/ports/1/link_layer", "Ethernet"),
    ]);
    let found = find(&tree.host(Facts::default(), Needs::default()), "RDB-RDMA-001").remove(0);
    assert!(found.current.contains("soft-RoCE") && found.current.contains("eth0"), "{found:?}");
    let wanted = tree.host(Facts::default(), Needs { rdma: true, ..Needs::default() });
    assert_eq!(severity(&wanted, "RDB-RDMA-001"), Severity::Warning);
}

#[test]
fn a_multipath_device_is_looked_at_path_by_path() {
    let tree = Tree::new(&[
        ("sys/dev/block/253:0/uevent", "DEVNAME=dm-0"),
        ("sys/dev/block/253:0/queue/scheduler", "[none]"),
        ("sys/dev/block/253:0/slaves/sda/dev", "8:0"),
        ("sys/dev/block/253:0/slaves/sdb/dev", "8:16"),
        ("sys/dev/block/8:0/uevent", "DEVNAME=sda"),
        ("sys/dev/block/8:0/queue/scheduler", "[mq-deadline] none"),
        ("sys/dev/block/8:16/uevent", "DEVNAME=sdb"),
        ("sys/dev/block/8:16/queue/scheduler", "[bfq] none"),
    ]);
    let volume = VolumeFacts { kind: VolumeKind::Device, device: Some((253, 0)), ..VolumeFacts::default() };
    let host = tree.host(Facts { volume: Some(volume), ..Facts::default() }, Needs::default());
    let found: Vec<_> = find(&host, "RDB-DISK-006").into_iter().map(|finding| (finding.subject, finding.severity)).collect();
    assert_eq!(found, [("sda".to_owned(), Severity::Ok), ("sdb".to_owned(), Severity::Warning)]);
}

#[test]
fn a_host_that_tells_nothing_is_no_reason_to_panic() {
    let tree = Tree::new(&[]);
    let host = tree.host(Facts::default(), Needs::default());
    for (check, finding) in checks::run(&host, |_| true) {
        assert!(finding.severity != Severity::Fatal, "{}: {finding:?}", check.id);
    }
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory;
    crate::args::Arguments::command().debug_assert();
}

/// Ids are stable, unique and in the table of docs/preflight.md with what they look at.
#[test]
fn the_page_lists_every_check() {
    let page = include_str!("../../../docs/preflight.md");
    let mut seen = Vec::new();
    for check in checks::all() {
        assert!(!seen.contains(&check.id), "{} is given twice", check.id);
        seen.push(check.id);
        let row = page.lines().find(|line| line.starts_with(&format!("| {} |", check.id)));
        assert!(row.is_some_and(|row| row.contains(check.what)), "docs/preflight.md lacks {}: {}", check.id, check.what);
        assert!(crate::check::GROUPS.iter().any(|(group, _)| *group == check.group()), "{} is in no group", check.id);
    }
}

/// Really asks this machine, and looks whether what programs and people get is sound.
#[test]
fn this_host_is_looked_at_and_reported() {
    let folder = Tree::new(&[("node1.toml", "")]);
    folder.put("volume", &"x".repeat(100_000));
    folder.put(
        "node1.toml",
        &format!(
            "[cluster]\ncluster_name = \"prod\"\nnode_id = 1\nnodes = {{ node1 = \"127.0.0.1:0\" }}\n\
             [rac.storage]\nshared_storage_path = {:?}\n[server]\npg_address = \"127.0.0.1:0\"\nhttp_address = \"127.0.0.1:0\"\n",
            folder.0.join("volume")
        ),
    );
    let needs = Needs::read(Some(&folder.0.join("node1.toml")), None);
    let facts = probe::gather(&needs, probe::Options { writes: true });
    assert!(facts.durable.as_ref().is_some_and(Result::is_ok), "{:?}", facts.durable);
    assert_eq!(std::fs::read_dir(&folder.0).expect("it is there").count(), 2, "what was written is gone again");
    let host = Host::new(Path::new("/"), facts, needs);
    let report = Report::new(&host, checks::run(&host, |_| true));
    let json: serde_json::Value = serde_json::to_value(&report).expect("a report is plain data");
    let rows = json["checks"].as_array().expect("a list");
    for check in checks::all() {
        let mut of = rows.iter().filter(|row| row["id"] == check.id).peekable();
        assert!(of.peek().is_some(), "{} is missing", check.id);
        for row in of {
            let severity = row["severity"].as_str().expect("a word");
            assert!(Severity::ALL.iter().any(|known| known.name() == severity), "{row}");
            assert!(row["current"].as_str().is_some_and(|text| !text.is_empty()), "{row}");
            assert!(severity != "fatal" || !row["required"].as_str().unwrap_or_default().is_empty(), "{row}");
        }
    }
    // The file is no volume: that is fatal, and said so in each of the ways.
    assert_eq!((&json["summary"]["fit"], report.exit_status(false)), (&false.into(), 2));
    let plain = report.table(false, true);
    assert!(plain.contains("RDB-DISK-002") && plain.contains("Not fit") && !plain.contains('\x1b'), "{plain}");
    assert!(!plain.lines().any(|line| line.trim_start().starts_with("ok ")), "{plain}");
    assert!(report.table(true, false).contains('\x1b'));
}
