//! RDMA devices: which there are, whether their ports work, and what their networks need.

use super::net;
use crate::check::{Check, Finding};
use crate::host::Host;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-RDMA-001",
        what: "RDMA device",
        why: "Blocks travel by RDMA where both ends have it, by TCP otherwise. Soft-RoCE (rxe) and soft-iWARP (siw) are software \
              over an ordinary card: right for development, slower than TCP. From /sys/class/infiniband.",
        run: devices,
    },
    Check {
        id: "RDB-RDMA-002",
        what: "port is active",
        why: "A port that is not ACTIVE carries nothing: an InfiniBand port in INIT waits for a subnet manager, one that is DOWN \
              for a cable, or for its netdev to be up.",
        run: ports,
    },
    Check {
        id: "RDB-RDMA-003",
        what: "RoCE v2 address (GID)",
        why: "RoCE v2 goes over UDP and IP, and so through routers and by the addresses in the configuration; it needs a GID made \
              from an IP address. From ports/N/gids and gid_attrs/types.",
        run: addresses,
    },
    Check {
        id: "RDB-RDMA-004",
        what: "path MTU",
        why: "RoCE packs its packets into frames of the netdev: 4096 bytes of payload fit an MTU of 4200 and more, 1024 fit 1500. A \
              block of 8 KiB is two packets of 4096, or eight of 1024.",
        run: path_mtu,
    },
    Check {
        id: "RDB-RDMA-005",
        what: "flow control (PFC) and congestion (ECN)",
        why: "RoCE loses throughput by orders of magnitude where the network drops packets. Either priority flow control (PFC) for \
              its priority, or ECN with DCQCN, should be on at the card and the switch.",
        run: lossless,
    },
    Check {
        id: "RDB-RDMA-006",
        what: "verbs are accessible",
        why: "Programs reach the device by /dev/infiniband/uverbsN and set connections up by /dev/infiniband/rdma_cm.",
        run: verbs,
    },
    Check {
        id: "RDB-RDMA-007",
        what: "RDMA on the interconnect's interface",
        why: "rdma_cm finds the device by the address that a peer is given under: the interconnect's address must lie on a netdev \
              that an RDMA port belongs to.",
        run: on_interconnect,
    },
];

const CLASS: &str = "/sys/class/infiniband";

/// What a device is, by what its driver shows in sysfs.
fn software(host: &Host, device: &str) -> Option<&'static str> {
    let folder = format!("{CLASS}/{device}");
    // The rxe driver names the netdev that it stands on; a card has a device on a bus instead.
    let kind = host.read(&format!("{folder}/node_type")).unwrap_or_default();
    match () {
        () if host.exists(&format!("{folder}/device")) => None,
        () if host.exists(&format!("{folder}/parent")) || device.starts_with("rxe") => Some("soft-RoCE (rxe)"),
        () if kind.contains("RNIC") => Some("soft-iWARP (siw)"),
        () => Some("a device without a bus: software"),
    }
}

/// The port's netdev, as its first GID with one says.
fn netdev(host: &Host, port: &str) -> Option<String> {
    let folder = format!("{port}/gid_attrs/ndevs");
    host.list(&folder).iter().find_map(|index| host.read(&format!("{folder}/{index}")).filter(|name| !name.is_empty()))
}

fn is_roce(host: &Host, port: &str) -> bool {
    host.read(&format!("{port}/link_layer")).as_deref() == Some("Ethernet")
}

/// Looks at each port of each device: its name, and its folder.
fn each_port(host: &Host, look: impl Fn(&str, &str) -> Finding) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in host.list(CLASS) {
        for port in host.list(&format!("{CLASS}/{device}/ports")) {
            let folder = format!("{CLASS}/{device}/ports/{port}");
            findings.push(look(&device, &folder).of(format!("{device}/{port}")));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::skipped("there is no RDMA device: see RDB-RDMA-001"));
    }
    findings
}

fn devices(host: &Host) -> Vec<Finding> {
    let devices = host.list(CLASS);
    if devices.is_empty() {
        let finding = match host.needs.rdma {
            true => Finding::warning("none, though rac.interconnect.protocol asks for one"),
            false => Finding::info("none: blocks travel over TCP"),
        };
        return finding
            .wants("a device, where latency matters")
            .remedy("docs/rdma.md; for development: rdma link add rxe0 type rxe netdev DEVICE")
            .into();
    }
    devices
        .iter()
        .map(|device| {
            let read = |name: &str| host.read(&format!("{CLASS}/{device}/{name}")).unwrap_or_default();
            match software(host, device) {
                Some(kind) => Finding::warning_if(host.needs.rdma, format!("{kind}, over {}", read("parent")))
                    .wants("a card with RDMA, in production")
                    .remedy("rac.interconnect.protocol = \"TCP\" is faster than software RDMA"),
                None => Finding::ok(format!("{} (firmware {})", read("hca_type"), read("fw_ver"))),
            }
            .of(device)
        })
        .collect()
}

fn ports(host: &Host) -> Vec<Finding> {
    each_port(host, |_, folder| {
        let state = host.read(&format!("{folder}/state")).unwrap_or_default();
        let words = format!(
            "{}, {}, {}",
            state.split_once(": ").map_or(state.as_str(), |(_, name)| name),
            host.read(&format!("{folder}/link_layer")).unwrap_or_default(),
            host.read(&format!("{folder}/rate")).unwrap_or_default()
        );
        match state.starts_with("4:") {
            true => Finding::ok(words),
            false => Finding::warning_if(host.needs.rdma, words)
                .wants("ACTIVE")
                .remedy("RoCE: ip link set NETDEV up; InfiniBand: start a subnet manager (opensm), look at cable and switch"),
        }
    })
}

fn addresses(host: &Host) -> Vec<Finding> {
    each_port(host, |_, folder| {
        if !is_roce(host, folder) {
            return Finding::skipped("InfiniBand: its GIDs come from the subnet manager");
        }
        let kinds = format!("{folder}/gid_attrs/types");
        let version_2 = host.list(&kinds).into_iter().find_map(|index| {
            let kind = host.read(&format!("{kinds}/{index}"))?;
            let gid = host.read(&format!("{folder}/gids/{index}"))?;
            // IPv4 addresses are mapped (::ffff:a.b.c.d); link-local ones go nowhere but to the next switch.
            let routable = !gid.starts_with("fe80") && !gid.chars().all(|letter| letter == '0' || letter == ':');
            (kind == "RoCE v2" && routable).then(|| format!("index {index}: {gid}"))
        });
        match version_2 {
            Some(found) => Finding::ok(found),
            None => Finding::warning_if(host.needs.rdma, "none made from an IP address")
                .wants("one of type RoCE v2")
                .remedy("give the netdev an address (ip address add A.B.C.D/24 dev NETDEV); rdma link show"),
        }
    })
}

/// The largest payload of a RoCE packet that fits a netdev's MTU: 14 bytes less for VLAN and the like are counted by none.
fn payload(mtu: u64) -> u64 {
    // Headers of RoCE v2: IPv6 40, UDP 8, base transport 12, RDMA 16, checksum 4, and some to spare.
    [4_096, 2_048, 1_024, 512].into_iter().find(|payload| payload + 104 <= mtu).unwrap_or(256)
}

fn path_mtu(host: &Host) -> Vec<Finding> {
    each_port(host, |_, folder| {
        if !is_roce(host, folder) {
            return Finding::skipped("InfiniBand: ibv_devinfo tells active_mtu");
        }
        let Some(netdev) = netdev(host, folder) else { return Finding::skipped("its netdev is not known") };
        let Some(mtu) = host.number(&format!("/sys/class/net/{netdev}/mtu")) else {
            return Finding::skipped(format!("the MTU of {netdev} is not known"));
        };
        let words = format!("{} bytes ({netdev} has an MTU of {mtu})", payload(mtu));
        match payload(mtu) {
            4_096 => Finding::ok(words),
            _ => Finding::warning_if(host.needs.rdma, words)
                .wants("4096, from an MTU of 4200 and more")
                .remedy(format!("ip link set {netdev} mtu 9000, on all nodes and the switch; ibv_devinfo shows active_mtu")),
        }
    })
}

fn lossless(host: &Host) -> Vec<Finding> {
    each_port(host, |device, folder| {
        if software(host, device).is_some() {
            return Finding::skipped("software: the netdev's queues drop what is too much");
        }
        if !is_roce(host, folder) {
            return Finding::ok("InfiniBand is lossless by itself");
        }
        let Some(netdev) = netdev(host, folder) else { return Finding::skipped("its netdev is not known") };
        let ecn = format!("/sys/class/net/{netdev}/ecn/roce_np/enable");
        let on: Vec<String> = host
            .list(&ecn)
            .into_iter()
            .filter(|priority| host.read(&format!("{ecn}/{priority}")).as_deref() == Some("1"))
            .collect();
        let pfc = host.read(&format!("/sys/class/net/{netdev}/qos/pfc"));
        match (on.is_empty(), pfc) {
            (false, _) => Finding::ok(format!("ECN for the priorities {}", on.join(", "))),
            (true, Some(pfc)) if pfc.contains('1') => Finding::ok(format!("PFC: {pfc}")),
            (true, Some(_)) => Finding::warning_if(host.needs.rdma, "PFC is off for all priorities, and so is ECN")
                .wants("either, for RoCE's priority")
                .remedy(format!("mlnx_qos -i {netdev} --pfc 0,0,0,1,0,0,0,0, and the same on the switch")),
            (true, None) => Finding::skipped(format!("the kernel tells it by netlink only: dcb pfc show dev {netdev}")),
        }
    })
}

fn verbs(host: &Host) -> Vec<Finding> {
    if host.list(CLASS).is_empty() {
        return Finding::skipped("there is no RDMA device: see RDB-RDMA-001").into();
    }
    let nodes = host.list("/dev/infiniband");
    let has = |prefix: &str| nodes.iter().any(|name| name.starts_with(prefix));
    match (has("uverbs"), has("rdma_cm")) {
        (true, true) => Finding::ok("uverbs and rdma_cm").into(),
        (uverbs, _) => {
            let missing = if uverbs { "rdma_cm" } else { "uverbs" };
            Finding::warning_if(host.needs.rdma, format!("/dev/infiniband/{missing} is not there"))
                .wants("both")
                .remedy("modprobe ib_uverbs; modprobe rdma_ucm (Debian: apt-get install rdma-core)")
                .into()
        }
    }
}

fn on_interconnect(host: &Host) -> Vec<Finding> {
    if host.list(CLASS).is_empty() {
        return Finding::skipped("there is no RDMA device: see RDB-RDMA-001").into();
    }
    if host.needs.own_address().is_none() {
        return Finding::skipped("no configuration names the interconnect's address").into();
    }
    let mut netdevs = Vec::new();
    for device in host.list(CLASS) {
        let ports = host.list(&format!("{CLASS}/{device}/ports"));
        netdevs.extend(ports.iter().filter_map(|port| netdev(host, &format!("{CLASS}/{device}/ports/{port}"))));
    }
    let own = net::interfaces(host);
    match own.iter().find(|name| netdevs.contains(name)) {
        Some(name) => Finding::ok(name).into(),
        None => Finding::warning_if(
            host.needs.rdma,
            format!("no: RDMA is on {}, the interconnect on {}", netdevs.join(", "), own.join(", ")),
        )
        .wants("the same interface")
        .remedy("in [cluster.nodes]: the addresses of the interface with RDMA")
        .into(),
    }
}
