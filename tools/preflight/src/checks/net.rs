//! The network: ports, the interconnect's interface, the kernel's settings for TCP.

use crate::check::{Check, Finding};
use crate::host::Host;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "RDB-NET-001",
        what: "port is free",
        why: "Clients, HTTP and each shard's interconnect listen on ports of their own; the interconnect's begin at the address in \
              the configuration. Each is bound and let go again at once. A node that runs already holds them.",
        run: ports,
    },
    Check {
        id: "RDB-NET-002",
        what: "interface is up",
        why: "Links, their speed and duplex of every interface with a carrier; of the interconnect's only, when the configuration \
              names it. Blocks are 8 KiB: 1 Gbit/s moves some 14,000 a second.",
        run: links,
    },
    Check {
        id: "RDB-NET-003",
        what: "MTU",
        why: "A block with its header takes one frame of 9000 bytes, and six of 1500. All nodes and the switch must agree, or \
              large messages vanish: ping -M do -s 8972 PEER shows it.",
        run: mtu,
    },
    Check {
        id: "RDB-NET-004",
        what: "connections that wait to be accepted",
        why: "net.core.somaxconn bounds the queue of new clients; above it they are refused or wait for a second.",
        run: backlog,
    },
    Check {
        id: "RDB-NET-005",
        what: "TCP after a pause",
        why: "With net.ipv4.tcp_slow_start_after_idle = 1 a connection that was quiet sends its next block in several round trips.",
        run: slow_start,
    },
    Check {
        id: "RDB-NET-006",
        what: "socket buffers",
        why: "The kernel sizes TCP's buffers up to tcp_rmem's and tcp_wmem's last number. At 1 MiB and more a burst of blocks does \
              not wait for acknowledgements.",
        run: buffers,
    },
    Check {
        id: "RDB-NET-007",
        what: "busy polling",
        why: "Looking at the card for so many microseconds instead of waiting for its interrupt: less latency, more of the processor. \
              rac.interconnect.busy_poll_us has a node's shards do so for their own sockets, by io_uring (Linux 6.9, a kernel with \
              NET_RX_BUSY_POLL); net.core.busy_read and busy_poll have every thread of the host do so that waits for a socket.",
        run: busy_polling,
    },
];

fn ports(host: &Host) -> Vec<Finding> {
    if host.facts.listens.is_empty() {
        return Finding::skipped("nothing was to listen").into();
    }
    let findings = host.facts.listens.iter().map(|listen| {
        let subject = listen.address.to_string();
        match &listen.refused {
            None => Finding::ok(listen.setting.clone()).of(subject),
            Some(error) => Finding::fatal(format!("{}: {error}", listen.setting))
                .of(subject)
                .wants("an address of this host that nobody listens on")
                .remedy(format!("ss -ltnp 'sport = :{}' tells who does; is a node running already?", listen.address.port())),
        }
    });
    findings.collect()
}

/// The interfaces that matter: the interconnect's if it is known, else all that have a carrier and are no loopback.
pub(super) fn interfaces(host: &Host) -> Vec<String> {
    if let Some(address) = host.needs.own_address().filter(|address| !address.is_unspecified()) {
        let own = host.facts.addresses.iter().find(|(_, own)| *own == address);
        return own.map(|(name, _)| name.clone()).into_iter().collect();
    }
    let up = |name: &String| name != "lo" && host.read(&format!("/sys/class/net/{name}/carrier")).as_deref() == Some("1");
    host.list("/sys/class/net").into_iter().filter(up).collect()
}

fn each_interface(host: &Host, look: impl Fn(&str, &str) -> Finding) -> Vec<Finding> {
    let interfaces = interfaces(host);
    if interfaces.is_empty() {
        return Finding::skipped("no interface with a carrier, or none that has the configured address").into();
    }
    interfaces
        .iter()
        .map(|name| match name.as_str() {
            "lo" => Finding::ok("loopback: nodes on one machine").of("lo"),
            name => look(name, &format!("/sys/class/net/{name}")).of(name),
        })
        .collect()
}

fn links(host: &Host) -> Vec<Finding> {
    each_interface(host, |name, folder| {
        if host.read(&format!("{folder}/carrier")).as_deref() != Some("1") {
            return Finding::fatal("no carrier")
                .wants("a link")
                .remedy(format!("ip link set {name} up; look at cable and switch"));
        }
        // Virtual interfaces say -1, or nothing.
        let speed = host.read(&format!("{folder}/speed")).and_then(|text| text.parse::<i64>().ok()).filter(|speed| *speed > 0);
        let duplex = host.read(&format!("{folder}/duplex")).filter(|duplex| duplex != "unknown");
        let driver = driver(host, folder);
        if duplex.as_deref() == Some("half") {
            return Finding::warning("half duplex").wants("full").remedy(format!("ethtool -s {name} autoneg on"));
        }
        match speed {
            None => Finding::ok(format!("{driver}, it does not tell its speed")),
            Some(speed) if speed >= 10_000 => Finding::ok(format!("{driver}, {} Gbit/s", speed / 1_000)),
            Some(speed) => Finding::warning(format!("{driver}, {speed} Mbit/s"))
                .wants("10 Gbit/s or more")
                .remedy("put the interconnect on a faster card, and its address into [cluster.nodes]"),
        }
    })
}

fn driver(host: &Host, folder: &str) -> String {
    let uevent = host.read(&format!("{folder}/device/uevent")).unwrap_or_default();
    uevent.lines().find_map(|line| line.strip_prefix("DRIVER=")).unwrap_or("virtual").to_owned()
}

fn mtu(host: &Host) -> Vec<Finding> {
    each_interface(host, |name, folder| match host.number(&format!("{folder}/mtu")) {
        None => Finding::skipped("it does not tell"),
        Some(mtu) if mtu >= 9_000 => Finding::ok(mtu.to_string()),
        Some(mtu) => Finding::warning_if(host.needs.configured(), mtu.to_string())
            .wants("9000, on all nodes and the switch")
            .remedy(format!("ip link set {name} mtu 9000; then ping -M do -s 8972 PEER")),
    })
}

fn backlog(host: &Host) -> Vec<Finding> {
    match host.sysctl_number("net.core.somaxconn") {
        None => Finding::skipped("net.core.somaxconn can't be read").into(),
        Some(most) if most >= host.needs.connections.min(1_024) => Finding::ok(most.to_string()).into(),
        Some(most) => Finding::warning(most.to_string())
            .wants(host.needs.connections.min(1_024).to_string())
            .remedy("sysctl -w net.core.somaxconn=4096; and in /etc/sysctl.d/90-rustydb.conf: net.core.somaxconn = 4096")
            .into(),
    }
}

fn slow_start(host: &Host) -> Vec<Finding> {
    match host.sysctl_number("net.ipv4.tcp_slow_start_after_idle") {
        None => Finding::skipped("net.ipv4.tcp_slow_start_after_idle can't be read").into(),
        Some(0) => Finding::ok("keeps its speed").into(),
        Some(_) => Finding::info("starts slowly again (tcp_slow_start_after_idle = 1)")
            .wants("0")
            .remedy(
                "sysctl -w net.ipv4.tcp_slow_start_after_idle=0; and in /etc/sysctl.d/90-rustydb.conf: \
                 net.ipv4.tcp_slow_start_after_idle = 0",
            )
            .into(),
    }
}

fn buffers(host: &Host) -> Vec<Finding> {
    let most = |name: &str| host.sysctl(name)?.split_whitespace().nth(2)?.parse::<u64>().ok();
    let (Some(receive), Some(send)) = (most("net.ipv4.tcp_rmem"), most("net.ipv4.tcp_wmem")) else {
        return Finding::skipped("net.ipv4.tcp_rmem can't be read").into();
    };
    let words = format!("receive {}, send {}", super::bytes(receive), super::bytes(send));
    if receive.min(send) >= 1 << 20 {
        return Finding::ok(words).into();
    }
    Finding::warning(words)
        .wants("1 MiB or more")
        .remedy("in /etc/sysctl.d/90-rustydb.conf: net.ipv4.tcp_rmem = 4096 131072 6291456 and net.ipv4.tcp_wmem = 4096 65536 4194304")
        .into()
}

fn busy_polling(host: &Host) -> Vec<Finding> {
    let us = |name: &str| host.sysctl_number(name);
    let of_host = match (us("net.core.busy_read"), us("net.core.busy_poll")) {
        (None, _) | (_, None) => Finding::skipped("this kernel has none"),
        (Some(0), Some(0)) => Finding::ok("off: interrupts wake the shards"),
        (Some(read), Some(poll)) => {
            Finding::info(format!("busy_read {read} µs, busy_poll {poll} µs, for every socket of the host"))
                .wants("what you have measured a gain from")
        }
    };
    let time_us = host.needs.busy_poll_us;
    if time_us == 0 {
        return of_host.into();
    }
    let words = format!("busy_poll_us = {time_us}");
    let refused = match super::config::kernel_version(host) {
        _ if host.needs.poll_only => Some("engine.io_driver = \"poll\" can't"),
        Some(version) if version < (6, 9) => Some("this kernel can't"),
        _ if us("net.core.busy_read").is_none() => Some("this kernel was built without NET_RX_BUSY_POLL"),
        _ => None,
    };
    let of_node = match refused {
        None => Finding::ok(format!("{words}: each shard looks at the card before it sleeps")),
        Some(why) => Finding::warning(format!("{words}, and {why}: packets are waited for as ever"))
            .wants("io_uring, Linux 6.9 and NET_RX_BUSY_POLL")
            .remedy("a newer kernel, or rac.interconnect.busy_poll_us = 0"),
    };
    vec![of_node.of("this node"), of_host.of("the host")]
}
