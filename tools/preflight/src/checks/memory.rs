//! Memory and the limits of the process: what a node takes, and what it is given.

use rustydb::interconnect::rdma::locked_bytes;

use super::bytes;
use crate::check::{Check, Finding};
use crate::facts::Limit;
use crate::host::Host;
use crate::needs::{BESIDE_CACHE_BYTES, FILES_BESIDE_CLIENTS};

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-MEM-001",
        what: "locked memory (RLIMIT_MEMLOCK)",
        why: "The block cache is registered with io_uring, and with the network card where blocks travel by RDMA. That pins it, which \
              counts against RLIMIT_MEMLOCK unless the process has CAP_IPC_LOCK. io_uring comes first and counts what it pins \
              for the user, over all processes; RDMA counts for the process, and io_uring's counts there too. So with RDMA it takes \
              twice the cache, and what RDMA has besides: about 1 MB a shard for each peer and for four more. rac.storage.polled_io and \
              nvme_passthrough have a ring of their own, which counts the cache once more. Where the limit is too low for io_uring, each \
              read and write pins its pages anew; where it is too low for RDMA, blocks go by TCP, or the node ends (protocol = \
              \"RDMA\"). The limit is this process's: run the preflight as the node is run (systemd-run -p LimitMEMLOCK=..., or from \
              its unit).",
        run: locked,
    },
    Check {
        id: "RDB-MEM-002",
        what: "memory for the cache",
        why: "The block cache is taken at the start, or as it fills where it can't be registered; a host without that much memory \
              swaps, or kills the node hours after its start. Counted: the cache and 1 GiB beside it, against MemAvailable. A cache \
              that fits into the reserved huge pages (RDB-MEM-005) is there already: MemAvailable does not have those pages, and \
              need not have them.",
        run: available,
    },
    Check {
        id: "RDB-MEM-003",
        what: "memory of the control group",
        why: "A control group's limit (a container's, a unit's MemoryMax) kills the node when its cache has filled, however much \
              the host has. A cache on reserved huge pages (RDB-MEM-005) does not count, unless the control groups are mounted with \
              memory_hugetlb_accounting.",
        run: control_group,
    },
    Check {
        id: "RDB-MEM-004",
        what: "transparent huge pages",
        why: "The cache asks for huge pages (madvise): 512 times fewer entries in the TLB. \"never\" refuses; with \"always\" other \
              programs on the host get them unasked, and the kernel's compaction with them. From \
              /sys/kernel/mm/transparent_hugepage/enabled.",
        run: transparent,
    },
    Check {
        id: "RDB-MEM-005",
        what: "reserved huge pages, 2 MiB",
        why: "A node takes its whole block cache from the reserved pages (vm.nr_hugepages) when enough are free as it starts: they are \
              there for sure, also when memory is in pieces. So reserve pages for the whole cache, each shard's part rounded up, or \
              none: with some, a part of the shards gets them, and what is left over is lost to everybody. Before the node starts all \
              of them are free, as they should be. Nothing else of a node lies there.",
        run: reserved,
    },
    Check {
        id: "RDB-MEM-006",
        what: "reserved huge pages, 1 GiB",
        why: "Nodes use pages of 2 MiB only (RDB-MEM-005). Pages of 1 GiB (hugepagesz=1G hugepages=N on the kernel's command line) \
              that nobody else uses are lost to everybody.",
        run: gigantic,
    },
    Check {
        id: "RDB-MEM-007",
        what: "swapping",
        why: "A cache that is swapped out reads from the disk twice, and a node whose pages come back slowly looks dead to the \
              others. With vm.swappiness at 10 or less the kernel swaps when it has to.",
        run: swap,
    },
    Check {
        id: "RDB-MEM-008",
        what: "overcommit",
        why: "With vm.overcommit_memory = 2 the kernel refuses memory beyond CommitLimit, whether or not it will be used; the cache \
              is mapped at once. Reserved huge pages (RDB-MEM-005) are outside of that limit.",
        run: overcommit,
    },
    Check {
        id: "RDB-MEM-009",
        what: "zone_reclaim_mode",
        why: "With vm.zone_reclaim_mode other than 0 the kernel rather frees caches of one memory node than takes memory of \
              another: stalls on machines with several.",
        run: zone_reclaim,
    },
    Check {
        id: "RDB-MEM-010",
        what: "open files (RLIMIT_NOFILE)",
        why: "Each client is a socket, each peer one for each shard; the volume, rings and logs come on top.",
        run: open_files,
    },
    Check {
        id: "RDB-MEM-011",
        what: "sizes of files and address space",
        why: "RLIMIT_FSIZE below the volume's size ends a write beyond it with EFBIG; RLIMIT_AS below the cache's size refuses its \
              mapping. Both are usually unlimited.",
        run: sizes,
    },
    Check {
        id: "RDB-MEM-012",
        what: "threads (RLIMIT_NPROC, pids.max)",
        why: "A node has a thread for each shard, and the kernel's workers for io_uring count as well.",
        run: threads,
    },
    Check {
        id: "RDB-MEM-013",
        what: "core dumps",
        why: "A node that finds its own state damaged ends itself. A core dump tells why; one of a large cache takes its size on \
              the disk, so it wants a place (kernel.core_pattern).",
        run: core_dumps,
    },
    Check {
        id: "RDB-MEM-014",
        what: "folder of live statistics",
        why: "A node publishes its statistics in a file of shared memory in server.statistics_folder, which rusty-db-cli top reads, also \
              after the node has died (docs/shm.md). Where the file can't be made, HTTP still tells them.",
        run: statistics,
    },
];

const IPC_LOCK: u32 = 14;

/// Memory beside the cache that a shard registers with io_uring (batches of the log, copies of the block writer), with some to spare.
const REGISTERED_BESIDE_CACHE_BYTES: u64 = 8 << 20;

fn locked(host: &Host) -> Vec<Finding> {
    let needs = &host.needs;
    let rings = match () {
        () if needs.poll_only => 0,
        () if needs.polled_io || needs.nvme_passthrough => 2,
        () => 1,
    };
    let for_uring = rings * (needs.cache_bytes + needs.shards * REGISTERED_BESIDE_CACHE_BYTES);
    let for_rdma = needs.cache_bytes + needs.shards * locked_bytes(needs.peers());
    let with_rdma = needs.rdma || !needs.tcp_only && !super::rdma::usable(host).is_empty();
    let need = if with_rdma { for_uring + for_rdma } else { for_uring };
    if host.has_capability(IPC_LOCK) {
        return Finding::ok("without limit: this process has CAP_IPC_LOCK").into();
    }
    let remedy = "LimitMEMLOCK=infinity in the [Service] section of the systemd unit; or in /etc/security/limits.d/rustydb.conf: \
                  rustydb - memlock unlimited";
    match host.facts.limits.locked_memory.soft {
        None => Finding::ok("unlimited").into(),
        Some(limit) if limit >= need => Finding::ok(bytes(limit)).into(),
        Some(limit) if !with_rdma => Finding::ok(format!(
            "{}; enough without RDMA: what can't be registered with io_uring costs a little speed ({} would be all of it)",
            bytes(limit),
            bytes(need)
        ))
        .into(),
        Some(limit) => Finding::fatal_if(needs.rdma, bytes(limit))
            .wants(format!(
                "{}: {} that io_uring pins, and {} that RDMA pins beside it, for {}",
                bytes(need),
                bytes(for_uring),
                bytes(for_rdma),
                needs.cache_words()
            ))
            .remedy(remedy)
            .into(),
    }
}

/// A huge page as nodes use them.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Reserved huge pages of 2 MiB.
struct HugePages {
    /// That there are.
    all: u64,
    /// That a node could have now.
    free: u64,
    /// That a node takes for its cache, if so many are free: each shard its own part, rounded up.
    wanted: u64,
}

impl HugePages {
    fn of(host: &Host) -> Option<HugePages> {
        let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let count = |name: &str| host.number(&format!("{folder}/{name}"));
        let or_none = |name: &str| count(name).unwrap_or(0);
        let (all, free) = (count("nr_hugepages")?, count("free_hugepages")?);
        // Somebody has mapped these and not touched them yet. And more than are reserved may be had, if the operator allows it.
        let promised = or_none("resv_hugepages");
        let surplus = or_none("nr_overcommit_hugepages").saturating_sub(or_none("surplus_hugepages"));
        let shards = host.needs.shards.max(1);
        let wanted = shards * (host.needs.cache_bytes / shards).div_ceil(HUGE_PAGE_BYTES);
        Some(HugePages { all, free: free.saturating_sub(promised) + surplus, wanted })
    }

    fn suffice(&self) -> bool {
        self.free >= self.wanted
    }
}

/// The cache lies on huge pages that are reserved already.
fn has_huge_pages(host: &Host) -> bool {
    HugePages::of(host).is_some_and(|pages| pages.suffice())
}

/// What a node takes of the memory that is not reserved for anything.
fn ordinary_bytes(host: &Host) -> u64 {
    if has_huge_pages(host) { BESIDE_CACHE_BYTES } else { host.needs.cache_bytes + BESIDE_CACHE_BYTES }
}

fn available(host: &Host) -> Vec<Finding> {
    let need = ordinary_bytes(host);
    let (Some(total), Some(available)) = (host.memory_bytes("MemTotal"), host.memory_bytes("MemAvailable")) else {
        return Finding::skipped("/proc/meminfo can't be read").into();
    };
    let reserved = if has_huge_pages(host) { "; the cache has its own, on reserved huge pages" } else { "" };
    let words = format!("{} of {} available{reserved}", bytes(available), bytes(total));
    if available >= need {
        return Finding::ok(words).into();
    }
    let beside = bytes(BESIDE_CACHE_BYTES);
    if has_huge_pages(host) {
        return Finding::warning(words)
            .wants(format!("{beside} beside the cache"))
            .remedy("fewer reserved huge pages, with a smaller rac.cache_fusion.global_cache_size, or more memory")
            .into();
    }
    let wants = format!("{} ({} and {beside} beside it)", bytes(need), host.needs.cache_words());
    let remedy = "a smaller rac.cache_fusion.global_cache_size, reserved huge pages for all of the cache or none (RDB-MEM-005), or more \
                  memory";
    Finding::fatal_if(total < need, words).wants(wants).remedy(remedy).into()
}

fn control_group(host: &Host) -> Vec<Finding> {
    let counts_huge_pages = host.read("/proc/self/mounts").is_some_and(|mounts| mounts.contains("memory_hugetlb_accounting"));
    let need = if counts_huge_pages { host.needs.cache_bytes + BESIDE_CACHE_BYTES } else { ordinary_bytes(host) };
    let Some(group) = host.control_group("memory") else {
        return Finding::skipped("this process is in no control group").into();
    };
    let limit = ["memory.max", "memory.limit_in_bytes"].into_iter().find_map(|name| host.number(&format!("{group}/{name}")));
    // Version 1 writes a number near 2^63 for "none".
    match limit.filter(|limit| *limit < 1 << 62) {
        None => Finding::ok("no limit").into(),
        Some(limit) if limit >= need => Finding::ok(format!("at most {}", bytes(limit))).into(),
        Some(limit) => Finding::fatal(format!("at most {}", bytes(limit)))
            .wants(bytes(need))
            .remedy(format!("MemoryMax=infinity in the systemd unit, the container's --memory, or {group}/memory.max"))
            .into(),
    }
}

fn transparent(host: &Host) -> Vec<Finding> {
    let Some(list) = host.read("/sys/kernel/mm/transparent_hugepage/enabled") else {
        return Finding::skipped("this kernel has none").into();
    };
    let remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; at boot: transparent_hugepage=madvise";
    match super::chosen(&list) {
        "madvise" => Finding::ok("madvise").into(),
        "never" => Finding::warning("never").wants("madvise").remedy(remedy).into(),
        other => Finding::info(other).wants("madvise").remedy(remedy).into(),
    }
}

fn reserved(host: &Host) -> Vec<Finding> {
    let Some(pages) = HugePages::of(host) else {
        return Finding::skipped("the kernel has no pages of this size").into();
    };
    let HugePages { all, free, wanted } = pages;
    let there = format!("{all} ({}), {free} free", bytes(all * HUGE_PAGE_BYTES));
    let cache = host.needs.cache_words();
    match free {
        _ if pages.suffice() => Finding::ok(format!("{there}: {wanted} hold {cache}")).into(),
        0 if all == 0 => Finding::ok(format!(
            "none: the cache asks for transparent ones; to be sure of them `sysctl -w vm.nr_hugepages={wanted}` before the node starts"
        ))
        .into(),
        0 => Finding::ok(format!("{there}: somebody uses them (this node, if it runs); else the cache asks for transparent ones")).into(),
        _ => {
            let number = all + wanted - free;
            Finding::warning(format!("{there}: too few for the cache, so some shards lie on ordinary memory, and pages are left over"))
                .wants(format!("{wanted} free for {cache}, or none"))
                .remedy(format!(
                    "before the node starts: sysctl -w vm.nr_hugepages={number}; and in /etc/sysctl.d/90-rustydb.conf: \
                     vm.nr_hugepages = {number} (0: none)"
                ))
                .into()
        }
    }
}

fn gigantic(host: &Host) -> Vec<Finding> {
    let count = |name: &str| host.number(&format!("/sys/kernel/mm/hugepages/hugepages-1048576kB/{name}"));
    let (Some(all), Some(free)) = (count("nr_hugepages"), count("free_hugepages")) else {
        return Finding::skipped("the kernel has no pages of this size").into();
    };
    let words = format!("{all} ({}), {free} free: nodes use pages of 2 MiB only", bytes(all << 30));
    match free {
        0 if all == 0 => Finding::ok("none: nodes use pages of 2 MiB only").into(),
        0 => Finding::ok(words).into(),
        _ => Finding::info(words)
            .wants("none that nobody uses")
            .remedy("take hugepagesz=1G hugepages=N from the kernel's command line, if nobody else is to use them; RDB-MEM-005")
            .into(),
    }
}

fn swap(host: &Host) -> Vec<Finding> {
    let (total, free) = (host.memory_bytes("SwapTotal").unwrap_or(0), host.memory_bytes("SwapFree").unwrap_or(0));
    let Some(swappiness) = host.sysctl_number("vm.swappiness") else {
        return Finding::skipped("vm.swappiness can't be read").into();
    };
    if total == 0 {
        return Finding::ok("no swap").into();
    }
    let words = format!("vm.swappiness = {swappiness}; {} of {} swap in use", bytes(total - free), bytes(total));
    match swappiness {
        0..=10 => Finding::ok(words).into(),
        _ => Finding::warning(words)
            .wants("vm.swappiness of 10 or less, or no swap")
            .remedy("sysctl -w vm.swappiness=1; and in /etc/sysctl.d/90-rustydb.conf: vm.swappiness = 1")
            .into(),
    }
}

fn overcommit(host: &Host) -> Vec<Finding> {
    let mode = host.sysctl("vm.overcommit_memory").unwrap_or_default();
    if mode != "2" {
        return Finding::ok(format!("vm.overcommit_memory = {mode}")).into();
    }
    let left = host.memory_bytes("CommitLimit").unwrap_or(0).saturating_sub(host.memory_bytes("Committed_AS").unwrap_or(0));
    let need = ordinary_bytes(host);
    let words = format!("vm.overcommit_memory = 2 and {} left to be committed", bytes(left));
    if left >= need {
        return Finding::ok(words).into();
    }
    Finding::fatal(words).wants(bytes(need)).remedy("sysctl -w vm.overcommit_memory=0").into()
}

fn zone_reclaim(host: &Host) -> Vec<Finding> {
    match host.sysctl_number("vm.zone_reclaim_mode") {
        None => Finding::skipped("the kernel has none (one memory node)").into(),
        Some(0) => Finding::ok("0").into(),
        Some(mode) => Finding::warning(mode.to_string()).wants("0").remedy("sysctl -w vm.zone_reclaim_mode=0").into(),
    }
}

fn open_files(host: &Host) -> Vec<Finding> {
    let peers = host.needs.nodes.len() as u64 * host.needs.shards;
    let need = host.needs.connections + peers + FILES_BESIDE_CLIENTS;
    let Limit { soft, hard } = host.facts.limits.open_files;
    let Some(limit) = soft else { return Finding::ok("unlimited").into() };
    if limit >= need {
        return Finding::ok(limit.to_string()).into();
    }
    let hint = hard.map_or_else(String::new, |hard| format!(" (hard limit {hard})"));
    Finding::fatal_if(limit < FILES_BESIDE_CLIENTS, format!("{limit}{hint}"))
        .wants(format!("{need}: max_connections = {}, {peers} of peers, {FILES_BESIDE_CLIENTS} beside", host.needs.connections))
        .remedy(
            "LimitNOFILE=65536 in the [Service] section of the systemd unit; or in /etc/security/limits.d/rustydb.conf: rustydb - \
             nofile 65536",
        )
        .into()
}

fn sizes(host: &Host) -> Vec<Finding> {
    let limits = &host.facts.limits;
    let volume = host.facts.volume.as_ref().map_or(0, |volume| volume.bytes);
    let need = host.needs.cache_bytes + BESIDE_CACHE_BYTES;
    if let Some(limit) = limits.file_size.soft.filter(|limit| *limit < volume.max(1 << 40)) {
        let words = format!("files of at most {}", bytes(limit));
        let finding = Finding::fatal_if(limit < volume, words).wants("unlimited");
        return finding.remedy("LimitFSIZE=infinity in the systemd unit, or ulimit -f unlimited before the start").into();
    }
    match limits.address_space.soft {
        Some(limit) if limit < 2 * need => Finding::fatal(format!("an address space of at most {}", bytes(limit)))
            .wants("unlimited")
            .remedy("LimitAS=infinity in the systemd unit, or ulimit -v unlimited before the start")
            .into(),
        Some(limit) => Finding::ok(format!("an address space of {}", bytes(limit))).into(),
        None => Finding::ok("unlimited").into(),
    }
}

fn threads(host: &Host) -> Vec<Finding> {
    let need = 64 * host.needs.shards + 512;
    let group = host.control_group("pids").and_then(|group| host.number(&format!("{group}/pids.max")));
    let limit = [host.facts.limits.threads.soft, group].into_iter().flatten().min();
    match limit {
        None => Finding::ok("unlimited").into(),
        Some(limit) if limit >= need => Finding::ok(limit.to_string()).into(),
        Some(limit) => Finding::warning(limit.to_string())
            .wants(need.to_string())
            .remedy("LimitNPROC=infinity and TasksMax=infinity in the systemd unit")
            .into(),
    }
}

fn core_dumps(host: &Host) -> Vec<Finding> {
    let pattern = host.sysctl("kernel.core_pattern").unwrap_or_default();
    match host.facts.limits.core.soft {
        Some(0) if !pattern.starts_with('|') => Finding::info("off (RLIMIT_CORE = 0)")
            .wants("on, to a place with room for the cache")
            .remedy("LimitCORE=infinity in the systemd unit, and apt-get install systemd-coredump")
            .into(),
        _ => Finding::ok(format!("kernel.core_pattern = {pattern}")).into(),
    }
}

fn statistics(host: &Host) -> Vec<Finding> {
    let folder = host.needs.statistics_folder.display().to_string();
    match &host.facts.statistics_folder {
        _ if folder.is_empty() => Finding::skipped("server.statistics_folder is empty: no file is wanted").into(),
        None => Finding::ok(folder).into(),
        Some(error) => Finding::warning(format!("{folder}: {error}"))
            .wants("a folder, best in memory, that the node's user may write to")
            .remedy(format!("install -d -o rustydb {folder}; or another server.statistics_folder"))
            .into(),
    }
}
