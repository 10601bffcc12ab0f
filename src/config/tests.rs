//! A configuration is taken whole or refused with the key in the message.

use super::*;

const THREE: &str = r#"
[cluster]
cluster_name = "dev"
node_id = "node2"
[cluster.nodes]
node1 = "127.0.0.1:7433"
node2 = "127.0.0.2:7433"
node3 = "127.0.0.3:7433"
[rac.storage]
shared_storage_path = "/mnt/shared"
"#;

fn refusal(text: &str) -> String {
    Config::parse(text).expect_err("must be refused").to_string()
}

#[test]
fn nodes_are_found_by_name() {
    let config = Config::parse(THREE).unwrap();
    assert_eq!(config.node_id(), NodeId(2));
    assert_eq!(config.nodes().unwrap()[&NodeId(3)], "127.0.0.3:7433".parse().unwrap());
    assert_eq!(config.rac.cache_fusion.global_cache_size, ByteSize(256 << 20));
}

#[test]
fn peers_are_the_other_nodes_in_order() {
    let config = Config::parse(
        r#"
        [cluster]
        cluster_name = "production-rac"
        node_id = 2
        [rac]
        node_count = 3
        [rac.interconnect]
        address = "10.0.3.12:7433"
        peers = ["10.0.3.11:7433", "10.0.3.13:7433"]
        protocol = "TCP"
        [rac.cache_fusion]
        block_transfer_timeout = 100
        global_cache_size = 10737418240
        [rac.storage]
        shared_storage_path = "/mnt/shared"
        "#,
    )
    .unwrap();
    let nodes: Vec<_> = config.nodes().unwrap().into_iter().map(|(node, address)| (node.0, address.to_string())).collect();
    assert_eq!(nodes, [(1, "10.0.3.11:7433".into()), (2, "10.0.3.12:7433".into()), (3, "10.0.3.13:7433".into())]);
}

#[test]
fn an_unknown_key_is_named() {
    let message = refusal(&THREE.replace("[rac.storage]", "[rac.storage]\nshared_storage = 1"));
    assert!(message.contains("shared_storage") && message.contains("unknown field"), "{message}");
}

#[test]
fn a_value_out_of_range_is_named_with_its_bounds() {
    let message = refusal(&format!("{THREE}\n[engine]\nshards = 65\n"));
    assert_eq!(message, "engine.shards = 65 is out of range: it must be 1 to 64");
    let message = refusal(&format!("{THREE}\n[rac.cache_fusion]\nglobal_cache_size = \"1MiB\"\n"));
    assert!(message.contains("global_cache_size = 1MiB") && message.contains("4MiB or more"), "{message}");
    let message = refusal(&format!("{THREE}\n[rac.interconnect]\nheartbeat_interval = 1000\nheartbeat_timeout = 1500\n"));
    assert!(message.contains("heartbeat_timeout = 1500"), "{message}");
}

#[test]
fn remastering_is_set_within_its_bounds() {
    let set = "auto_remaster = false\nremaster_threshold = 1000\naffinity_decay = 0\nload_balance_interval = 600";
    let grd = Config::parse(&format!("{THREE}\n[rac.grd]\n{set}\n")).unwrap().rac.grd;
    assert!(!grd.auto_remaster && grd.remaster_threshold == 1_000 && grd.affinity_decay == 0.0);
    assert_eq!((grd.load_balance_interval, grd.load_imbalance_threshold), (600, 0.2));
    for wrong in ["1.0", "-0.5", "nan"] {
        let message = refusal(&format!("{THREE}\n[rac.grd]\naffinity_decay = {wrong}\n"));
        assert!(message.contains("rac.grd.affinity_decay") && message.contains("0 to 0.999"), "{message}");
    }
}

#[test]
fn elections_wait_for_more_than_one_heartbeat() {
    let config = Config::parse(&format!("{THREE}\n[raft]\nheartbeat_interval = 20\nelection_timeout_min = 40\n")).unwrap();
    assert_eq!(
        (config.raft.election_timeout_min, config.raft.election_timeout_max, config.raft.snapshot_threshold),
        (40, 300, 10_000)
    );
    let message = refusal(&format!("{THREE}\n[raft]\nelection_timeout_min = 99\n"));
    assert_eq!(message, "raft.election_timeout_min = 99 is out of range: it must be 100 to 60000");
    let message = refusal(&format!("{THREE}\n[raft]\nelection_timeout_max = 150\n"));
    assert_eq!(message, "raft.election_timeout_max = 150 is out of range: it must be 151 to 120000");
}

#[test]
fn fencing_is_configured_by_method() {
    let config = Config::parse(THREE).unwrap();
    assert_eq!((config.ha.fencing_mode, config.ha.fencing_method.as_slice().len()), (FencingMode::Automatic, 4));
    let written = "[ha]\nfencing_mode = \"manual\"\nfencing_method = \"power_management\"\n";
    let message = refusal(&format!("{THREE}\n{written}"));
    assert!(message.contains("ha.fencing.command is missing"), "{message}");
    let config =
        Config::parse(&format!("{THREE}\n{written}[ha.fencing]\ncommand = [\"fence_ipmilan\", \"--plug={{node}}\"]\n")).unwrap();
    assert_eq!(config.ha.fencing_method.as_slice(), [FencingMethod::Command]);
    let message = refusal(&format!("{THREE}\n[ha.fencing]\ncommand = [\"fence\", \"{{host}}\"]\n"));
    assert!(message.contains("ha.fencing.command = {host} is out of range"), "{message}");
    let message = refusal(&format!("{THREE}\n[ha.fencing]\nlease_margin = 9999\n"));
    assert_eq!(message, "ha.fencing.lease_margin = 9999 is out of range: it must be 10000 to 600000");
    Config::parse(&format!("{THREE}\n[ha.fencing]\nlease_margin = 9999\nwatchdog = \"off\"\n")).unwrap();
    let message = refusal(&format!("{THREE}\n[ha]\nfencing_method = [\"lease\", \"lease\"]\n"));
    assert!(message.contains("none twice"), "{message}");
}

#[test]
fn a_node_must_be_one_of_the_cluster() {
    let message = refusal(&THREE.replace("\"node2\"\n", "\"node9\"\n"));
    assert!(message.contains("cluster.nodes is missing") && message.contains("node9"), "{message}");
    let message = refusal(&THREE.replace("\"node2\"\n", "\"second\"\n"));
    assert!(message.contains("cluster.node_id = \"second\""), "{message}");
}

#[test]
fn sizes_are_read_with_their_units() {
    for (text, bytes) in [("256MiB", 256 << 20), ("1GiB", 1 << 30), ("10 GB", 10_000_000_000), ("512", 512), ("4kib", 4096)] {
        assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
    }
    assert!("1.5GiB".parse::<ByteSize>().is_err());
    assert!("99999999999TiB".parse::<ByteSize>().is_err());
    assert_eq!(ByteSize(256 << 20).to_string(), "256MiB");
}
