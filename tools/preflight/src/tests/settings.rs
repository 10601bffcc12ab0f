//! What a check says depends on what the configuration asks for.

use super::*;

/// By the value of `rac.interconnect.protocol`.
fn with_protocol(protocol: &str) -> Needs {
    Needs { rdma: protocol == "RDMA", tcp_only: protocol == "TCP", ..appliance_needs() }
}

/// The severity by "RDMA", "auto" and "TCP".
fn by_protocol(tree: &Tree, facts: &Facts, id: &str) -> [Severity; 3] {
    ["RDMA", "auto", "TCP"].map(|protocol| severity(&tree.host(facts.clone(), with_protocol(protocol)), id))
}

#[test]
fn what_keeps_a_node_from_rdma_is_fatal_where_it_is_to_use_nothing_else() {
    use Severity::{Fatal, Info, Ok, Skipped, Warning};
    let without = |prefix: &str| {
        let files: Vec<_> = APPLIANCE.iter().filter(|(path, _)| !path.starts_with(prefix)).copied().collect();
        Tree::new(&files)
    };
    let asked = [Fatal, Warning, Info];
    let none = without("sys/class/infiniband");
    assert_eq!(by_protocol(&none, &appliance_facts(), "RDB-RDMA-001"), asked);
    assert_eq!(by_protocol(&none, &appliance_facts(), "RDB-RDMA-007"), [Skipped; 3]);
    // Nobody has said what is wanted.
    assert_eq!(severity(&none.host(appliance_facts(), Needs::default()), "RDB-RDMA-001"), Info);
    let verbs = without("dev/infiniband/rdma_cm");
    assert_eq!(by_protocol(&verbs, &appliance_facts(), "RDB-RDMA-006"), asked);
    assert_eq!(
        find(&verbs.host(appliance_facts(), appliance_needs()), "RDB-RDMA-006")[0].current,
        "/dev/infiniband/rdma_cm is not there"
    );

    // The interconnect is on another card, or on none.
    let all = Tree::new(APPLIANCE);
    let elsewhere = Facts { addresses: vec![("eno1".into(), [10, 0, 3, 11].into())], ..appliance_facts() };
    assert_eq!(by_protocol(&all, &elsewhere, "RDB-RDMA-007"), asked);
    let nowhere = Facts { addresses: Vec::new(), ..appliance_facts() };
    assert_eq!(by_protocol(&all, &nowhere, "RDB-RDMA-007"), asked);
    // On a VLAN of the card, whose GID stands behind the card's own; on InfiniBand, whose GIDs name no netdev.
    all.put("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/5", "enp1.100\n");
    let vlan = Facts { addresses: vec![("enp1.100".into(), [10, 0, 3, 11].into())], ..appliance_facts() };
    assert_eq!(by_protocol(&all, &vlan, "RDB-RDMA-007"), [Ok; 3]);
    all.put("sys/class/net/ib0/type", "32\n");
    let infiniband = Facts { addresses: vec![("ib0".into(), [10, 0, 3, 11].into())], ..appliance_facts() };
    assert_eq!(by_protocol(&all, &infiniband, "RDB-RDMA-007"), [Ok; 3]);

    // The engine refuses iWARP; beside another device it is in nobody's way.
    all.put("sys/class/infiniband/siw0/node_type", "4: RNIC\n");
    all.put("sys/class/infiniband/siw0/ports/1/state", "1: DOWN\n");
    assert_eq!(by_protocol(&all, &appliance_facts(), "RDB-RDMA-001"), [Info; 3]);
    assert_eq!(by_protocol(&all, &appliance_facts(), "RDB-RDMA-002"), [Ok; 3]);
    all.put("sys/class/infiniband/mlx5_0/node_type", "4: RNIC\n");
    assert_eq!(by_protocol(&all, &appliance_facts(), "RDB-RDMA-001"), asked);
    assert_eq!(by_protocol(&all, &appliance_facts(), "RDB-RDMA-006"), [Skipped; 3]);
}

#[test]
fn a_server_built_without_rdma_is_named_where_rdma_is_asked_for() {
    use Severity::{Fatal, Ok, Skipped, Warning};
    let tree = Tree::new(APPLIANCE);
    let with = |server: Option<Result<&str, &str>>| {
        let server = server.map(|said| said.map(str::to_owned).map_err(str::to_owned));
        by_protocol(&tree, &Facts { server, ..appliance_facts() }, "RDB-RDMA-008")
    };
    assert_eq!(with(Some(Result::Ok("rusty-db-server 0.7.0 (TCP and RDMA)"))), [Ok; 3]);
    assert_eq!(with(Some(Result::Ok("rusty-db-server 0.7.0 (TCP; built without RDMA)"))), [Fatal, Warning, Ok]);
    assert_eq!(with(Some(Err("error while loading shared libraries: libibverbs.so.1"))), [Fatal; 3]);
    assert_eq!(with(None), [Skipped; 3]);
}

#[test]
fn locked_memory_counts_the_cache_for_io_uring_and_again_for_rdma() {
    let locked = |tree: &Tree, limit: u64, needs: Needs| {
        let locked_memory = Limit { soft: Some(limit), hard: None };
        let facts = Facts { limits: Limits { locked_memory, ..Limits::default() }, ..Facts::default() };
        find(&tree.host(facts, needs), "RDB-MEM-001").remove(0)
    };
    let (with, without) = (Tree::new(&[("sys/class/infiniband/mlx5_0/fw_ver", "1")]), Tree::new(&[]));
    // Enough for the cache of 256 MiB once, and not for twice.
    let once = 280 << 20;
    let few = || Needs { cache_bytes: 256 << 20, shards: 1, ..with_protocol("auto") };
    assert_eq!(locked(&without, 8 << 20, few()).severity, Severity::Ok);
    assert_eq!(locked(&with, once, Needs { tcp_only: true, ..few() }).severity, Severity::Ok);
    assert_eq!(locked(&with, once, few()).severity, Severity::Warning);
    let required = locked(&with, once, Needs { rdma: true, ..few() });
    assert_eq!(required.severity, Severity::Fatal);
    assert!(required.required.contains("264 MiB that io_uring pins"), "{required:?}");
    // What is asked for is enough; a megabyte less is not.
    let enough = |needs: Needs| (0..2_000).find(|mib| locked(&with, mib << 20, needs.clone()).severity == Severity::Ok);
    let two_nodes = enough(few()).expect("no more than that is needed");
    assert!((520..540).contains(&two_nodes), "{two_nodes} MiB");
    // Each peer more takes slots and queues in each shard.
    let nodes = (1..=8).map(|node| (node, ([10, 0, 3, 10 + node], 7433).into())).collect();
    let eight_nodes = enough(Needs { nodes, shards: 4, ..few() }).expect("no more than that is needed");
    assert!(eight_nodes > two_nodes + 3 * 8 + 6 * 4, "{eight_nodes} MiB and {two_nodes}");
    // The volume's own ring pins it once more; the poll driver pins nothing.
    assert!(enough(Needs { polled_io: true, ..few() }) > Some(two_nodes + 256));
    assert!(enough(Needs { poll_only: true, ..few() }) < Some(two_nodes - 256));
}

#[test]
fn reserved_huge_pages_hold_the_whole_cache_or_none_of_it() {
    use Severity::{Fatal, Info, Ok, Warning};
    // 32 GiB on four shards are 16,384 pages. Little memory is left beside them.
    let tree = Tree::new(APPLIANCE);
    tree.put("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 2097152 kB");
    tree.put("sys/fs/cgroup/system.slice/rustydb.service/memory.max", "2147483648");
    let pages = |all: u64, free: u64| {
        tree.put("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", &all.to_string());
        tree.put("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", &free.to_string());
    };
    let host = || tree.host(appliance_facts(), appliance_needs());
    let severities = || ["RDB-MEM-005", "RDB-MEM-002", "RDB-MEM-003"].map(|id| severity(&host(), id));
    pages(0, 0);
    assert_eq!(severities(), [Ok, Warning, Fatal]);
    assert!(find(&host(), "RDB-MEM-005")[0].current.contains("vm.nr_hugepages=16384"), "{:?}", find(&host(), "RDB-MEM-005"));
    // Before the node starts all of them are free, and that is right; they are no memory that is missing.
    pages(16_384, 16_384);
    assert_eq!(severities(), [Ok, Ok, Ok]);
    pages(20_000, 16_383);
    assert_eq!(severities(), [Warning, Warning, Fatal]);
    assert!(find(&host(), "RDB-MEM-005")[0].remedy.contains("vm.nr_hugepages=20001"), "{:?}", find(&host(), "RDB-MEM-005"));
    // All in use: by the node itself, if it runs.
    pages(16_384, 0);
    assert_eq!(severities()[0], Ok);
    // Somebody else has mapped some and not touched them yet.
    pages(16_384, 16_384);
    tree.put("sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "10");
    assert_eq!(severities()[0], Warning);
    // Control groups can be mounted so that huge pages count.
    pages(16_394, 16_394);
    assert_eq!(severities(), [Ok, Ok, Ok]);
    tree.put("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,memory_hugetlb_accounting 0 0");
    assert_eq!(severities(), [Ok, Ok, Fatal]);
    // Each shard's part is rounded up.
    let thirds = tree.host(appliance_facts(), Needs { cache_bytes: 256 << 20, shards: 3, ..appliance_needs() });
    assert!(find(&thirds, "RDB-MEM-005")[0].current.contains(": 129 hold"), "{:?}", find(&thirds, "RDB-MEM-005"));
    // Of another size: nobody takes those.
    tree.put("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "8");
    tree.put("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "8");
    assert_eq!(severity(&host(), "RDB-MEM-006"), Info);
}

#[test]
fn ways_to_the_volume_that_are_asked_for_have_what_they_need() {
    use Severity::{Info, Ok, Skipped, Warning};
    let polled = || Needs { polled_io: true, ..appliance_needs() };
    let passing = || Needs { nvme_passthrough: true, ..appliance_needs() };
    let opened = |found: Result<&str, &str>| {
        let found = found.map(str::to_owned).map_err(str::to_owned);
        Facts { passthrough: vec![("nvme0n1".into(), found)], ..appliance_facts() }
    };
    let tree = Tree::new(APPLIANCE);
    assert_eq!(severity(&tree.host(appliance_facts(), polled()), "RDB-DISK-007"), Ok);
    assert_eq!(severity(&tree.host(opened(Result::Ok("/dev/ng0n1")), passing()), "RDB-DISK-013"), Ok);
    assert_eq!(severity(&tree.host(opened(Err("/dev/ng0n1: Permission denied")), passing()), "RDB-DISK-013"), Warning);
    // Less than was asked for matters; less than could be had does not.
    tree.put("sys/module/nvme/parameters/poll_queues", "0\n");
    assert_eq!(severity(&tree.host(appliance_facts(), polled()), "RDB-DISK-007"), Warning);
    assert_eq!(severity(&tree.host(appliance_facts(), appliance_needs()), "RDB-DISK-007"), Info);
    tree.put("sys/dev/block/259:1/partition", "1\n");
    assert_eq!(severity(&tree.host(opened(Result::Ok("/dev/ng0n1")), passing()), "RDB-DISK-013"), Warning);
    let mut file = appliance_facts();
    volume(&mut file).kind = VolumeKind::File;
    assert_eq!(severity(&tree.host(file.clone(), polled()), "RDB-DISK-007"), Warning);
    assert_eq!(severity(&tree.host(file.clone(), passing()), "RDB-DISK-013"), Warning);
    assert_eq!(severity(&tree.host(file, appliance_needs()), "RDB-DISK-013"), Skipped);
    let no_commands = |facts: &mut Facts| {
        if let Some(Result::Ok(uring)) = &mut facts.uring {
            (uring.uring_cmd, uring.iopoll) = (false, false);
        }
    };
    let mut old = appliance_facts();
    no_commands(&mut old);
    for (id, needs) in [("RDB-IO-007", polled()), ("RDB-IO-008", passing())] {
        assert_eq!(severity(&tree.host(old.clone(), needs), id), Warning, "{id}");
        assert_eq!(severity(&tree.host(old.clone(), appliance_needs()), id), Info, "{id}");
    }
}

#[test]
fn busy_polling_of_the_node_is_told_from_the_hosts() {
    let tree = Tree::new(APPLIANCE);
    let busy = || Needs { busy_poll_us: 50, ..appliance_needs() };
    let severities = |needs: Needs| -> Vec<Severity> {
        find(&tree.host(appliance_facts(), needs), "RDB-NET-007").iter().map(|finding| finding.severity).collect()
    };
    assert_eq!(severities(appliance_needs()), [Severity::Ok]);
    assert_eq!(severities(busy()), [Severity::Ok, Severity::Ok]);
    assert_eq!(severities(Needs { poll_only: true, ..busy() }), [Severity::Warning, Severity::Ok]);
    tree.put("proc/sys/kernel/osrelease", "6.8.0-generic");
    tree.put("proc/sys/net/core/busy_poll", "50");
    assert_eq!(severities(busy()), [Severity::Warning, Severity::Info]);
}

/// What nodes never do is no gain left behind.
#[test]
fn what_nodes_do_not_use_is_not_asked_for() {
    let mut facts = appliance_facts();
    if let Some(Ok(uring)) = &mut facts.uring {
        uring.send_zc = false;
    }
    let found = find(&Tree::new(APPLIANCE).host(facts, appliance_needs()), "RDB-IO-006").remove(0);
    assert_eq!((found.severity, found.remedy.as_str()), (Severity::Ok, ""));
}
