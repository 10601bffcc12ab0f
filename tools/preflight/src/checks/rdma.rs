//! RDMA devices: which there are, whether their ports work, and what their networks need.

use super::net;
use crate::check::{Check, Finding};
use crate::host::Host;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-RDMA-001",
        what: "RDMA device",
        why: "Blocks travel by RDMA where both ends have it and rac.interconnect.protocol says \"auto\" or \"RDMA\"; the default is \
              \"TCP\". With \"RDMA\" a node without a device ends at its start. InfiniBand and RoCE are supported, iWARP is not. \
              Soft-RoCE (rxe) is software over an ordinary card: right for development, slower than TCP. From /sys/class/infiniband.",
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
        why: "Programs reach the device by /dev/infiniband/uverbsN and set connections up by /dev/infiniband/rdma_cm. Without them it is \
              as if there were no device.",
        run: verbs,
    },
    Check {
        id: "RDB-RDMA-007",
        what: "RDMA on the interconnect's interface",
        why: "rdma_cm finds the device by the address that a peer is given under: the interconnect's address must lie on a netdev \
              that an RDMA port belongs to (its VLANs and bonds too). Otherwise it is as if there were no device.",
        run: on_interconnect,
    },
    Check {
        id: "RDB-RDMA-008",
        what: "RDMA in the server",
        why: "RDMA is a feature of the build (docs/rdma.md); a server without it talks by TCP, and with protocol = \"RDMA\" ends at its \
              start. A server with it needs libibverbs and librdmacm to start at all. Asked of the rusty-db-server beside this program, \
              or of the one in PATH, with --version.",
        run: server,
    },
];

const CLASS: &str = "/sys/class/infiniband";

/// What a device is, by what its driver shows in sysfs.
fn software(host: &Host, device: &str) -> Option<&'static str> {
    let folder = format!("{CLASS}/{device}");
    // The rxe driver names the netdev that it stands on; a card has a device on a bus instead.
    match () {
        () if host.exists(&format!("{folder}/device")) => None,
        () if host.exists(&format!("{folder}/parent")) || device.starts_with("rxe") => Some("soft-RoCE (rxe)"),
        () => Some("a device without a bus: software"),
    }
}

/// The netdevs that the port's GIDs are of: its own first, then VLANs and others that stand on it.
fn netdevs(host: &Host, port: &str) -> Vec<String> {
    let folder = format!("{port}/gid_attrs/ndevs");
    let names = host.list(&folder).into_iter().filter_map(|index| host.read(&format!("{folder}/{index}")));
    names.filter(|name| !name.is_empty()).collect()
}

/// The port's own netdev.
fn netdev(host: &Host, port: &str) -> Option<String> {
    netdevs(host, port).into_iter().next()
}

/// iWARP, which nodes refuse: its card says that it is one, whatever makes it.
fn is_iwarp(host: &Host, device: &str) -> bool {
    host.read(&format!("{CLASS}/{device}/node_type")).is_some_and(|kind| kind.contains("RNIC"))
}

/// The devices that nodes can use.
pub(super) fn usable(host: &Host) -> Vec<String> {
    host.list(CLASS).into_iter().filter(|device| !is_iwarp(host, device)).collect()
}

/// What keeps a node from using RDMA at all: it does not start where it is to use nothing else.
fn missing(host: &Host, current: impl Into<String>) -> Finding {
    match host.needs.asks_for_rdma() {
        true => Finding::fatal_if(host.needs.rdma, current),
        false => Finding::info(current),
    }
}

const NO_DEVICE: &str = "there is no RDMA device that nodes can use: see RDB-RDMA-001";

fn is_roce(host: &Host, port: &str) -> bool {
    host.read(&format!("{port}/link_layer")).as_deref() == Some("Ethernet")
}

/// Looks at each port of each device: its name, and its folder.
fn each_port(host: &Host, look: impl Fn(&str, &str) -> Finding) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in usable(host) {
        for port in host.list(&format!("{CLASS}/{device}/ports")) {
            let folder = format!("{CLASS}/{device}/ports/{port}");
            findings.push(look(&device, &folder).of(format!("{device}/{port}")));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::skipped(NO_DEVICE));
    }
    findings
}

fn devices(host: &Host) -> Vec<Finding> {
    let devices = host.list(CLASS);
    if devices.is_empty() {
        let words = match (host.needs.asks_for_rdma(), host.needs.rdma) {
            (true, true) => "none, and rac.interconnect.protocol = \"RDMA\": the node would end at its start",
            (true, false) => "none, though rac.interconnect.protocol = \"auto\": blocks travel over TCP",
            _ => "none: blocks travel over TCP",
        };
        return missing(host, words)
            .wants(if host.needs.asks_for_rdma() { "a device" } else { "a device, where latency matters" })
            .remedy(
                "a card with RoCE or InfiniBand, and its driver (lspci -k; docs/rdma.md), or rac.interconnect.protocol = \"TCP\"; for \
                 development: rdma link add rxe0 type rxe netdev DEVICE",
            )
            .into();
    }
    let none_usable = usable(host).is_empty();
    devices
        .iter()
        .map(|device| {
            if is_iwarp(host, device) {
                let words = "iWARP, which is not supported: nodes refuse it";
                let finding = if none_usable { missing(host, words) } else { Finding::info(words) };
                return finding
                    .wants("InfiniBand or RoCE")
                    .remedy("a card with RoCE (some can be switched: devlink dev param set pci/ADDRESS name enable_roce value true cmode runtime), \
                             or rac.interconnect.protocol = \"TCP\"")
                    .of(device);
            }
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

/// The netdev of a RoCE port, given the port's folder, and its MTU; `None` for InfiniBand and what does not tell.
#[must_use]
pub fn roce_netdev(host: &Host, port: &str) -> Option<(String, u64)> {
    let netdev = netdev(host, port).filter(|_| is_roce(host, port))?;
    let mtu = host.number(&format!("/sys/class/net/{netdev}/mtu"))?;
    Some((netdev, mtu))
}

/// The largest payload of a RoCE packet that fits a netdev's MTU: what the port's active MTU is.
#[must_use]
pub fn roce_payload_bytes(mtu: u64) -> u64 {
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
        let words = format!("{} bytes ({netdev} has an MTU of {mtu})", roce_payload_bytes(mtu));
        match roce_payload_bytes(mtu) {
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
    if usable(host).is_empty() {
        return Finding::skipped(NO_DEVICE).into();
    }
    let nodes = host.list("/dev/infiniband");
    let has = |prefix: &str| nodes.iter().any(|name| name.starts_with(prefix));
    match (has("uverbs"), has("rdma_cm")) {
        (true, true) => Finding::ok("uverbs and rdma_cm").into(),
        (uverbs, _) => {
            let absent = if uverbs { "rdma_cm" } else { "uverbs" };
            missing(host, format!("/dev/infiniband/{absent} is not there"))
                .wants("both")
                .remedy("modprobe ib_uverbs; modprobe rdma_ucm (Debian: apt-get install rdma-core)")
                .into()
        }
    }
}

fn on_interconnect(host: &Host) -> Vec<Finding> {
    let devices = usable(host);
    if devices.is_empty() {
        return Finding::skipped(NO_DEVICE).into();
    }
    let Some(address) = host.needs.own_address() else {
        return Finding::skipped("no configuration names the interconnect's address").into();
    };
    let remedy = "in [cluster.nodes]: the addresses of the interface with RDMA (rdma link)";
    if address.is_unspecified() {
        return missing(host, format!("{address} is no interface's address"))
            .wants("one of an interface with RDMA")
            .remedy(remedy)
            .into();
    }
    let ports = devices.iter().flat_map(|device| {
        let folder = format!("{CLASS}/{device}/ports");
        host.list(&folder).into_iter().map(move |port| format!("{folder}/{port}"))
    });
    let mut with_rdma: Vec<String> = ports.flat_map(|port| netdevs(host, &port)).collect();
    with_rdma.dedup();
    // The GIDs of InfiniBand name no netdev; that of an IP address on it is of a type of its own (ARPHRD_INFINIBAND).
    let has = |name: &String| with_rdma.contains(name) || host.number(&format!("/sys/class/net/{name}/type")) == Some(32);
    let own = net::interfaces(host);
    if let Some(name) = own.iter().find(|name| has(name)) {
        return Finding::ok(name).into();
    }
    let named = |list: &[String]| if list.is_empty() { "no interface of this host".to_owned() } else { list.join(", ") };
    missing(host, format!("no: RDMA is on {}, the interconnect on {}", named(&with_rdma), named(&own)))
        .wants("the same interface")
        .remedy(remedy)
        .into()
}

fn server(host: &Host) -> Vec<Finding> {
    let needs = &host.needs;
    match &host.facts.server {
        None => Finding::skipped("no rusty-db-server beside this program, and none in PATH").into(),
        Some(Err(error)) => Finding::fatal(format!("rusty-db-server does not start: {error}"))
            .wants("to start")
            .remedy("apt-get install libibverbs1 librdmacm1 ibverbs-providers, which a server with RDMA needs; ldd shows what is missing")
            .into(),
        Some(Ok(version)) if version.contains("without RDMA") && needs.asks_for_rdma() => missing(host, version.clone())
            .wants("a build with RDMA, as rac.interconnect.protocol asks for it")
            .remedy("cargo build --release --features rustydb-tools/rdma (docs/rdma.md), or rac.interconnect.protocol = \"TCP\"")
            .into(),
        Some(Ok(version)) => Finding::ok(version.clone()).into(),
    }
}
