//! The program as scripts use it: its exit statuses and its JSON.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (i32, Output) {
    let output = Command::new(env!("CARGO_BIN_EXE_rusty-db-preflight")).args(arguments).output().expect("it was just built");
    (output.status.code().expect("it ends by itself"), output)
}

#[test]
fn exit_statuses_are_those_that_the_help_promises() {
    assert_eq!(run(&["--list"]).0, 0);
    assert_eq!(run(&["--explain", "rdb-mem-001"]).0, 0);
    assert_eq!(run(&["--only", "RDB-KERN-002"]).0, 0);
    assert_eq!(run(&["--volume", "/nowhere/at/all", "--only", "RDB-DISK-001"]).0, 2);
    assert_eq!(run(&["--only", "RDB-NOTHING"]).0, 64);
    // There is no watchdog at that place: a warning, which counts only where it is asked to.
    let folder = std::env::temp_dir().join(format!("rusty-db-preflight-program-{}", std::process::id()));
    std::fs::write(
        &folder,
        "[cluster]\ncluster_name = \"c\"\nnode_id = 1\nnodes = { node1 = \"127.0.0.1:1\" }\n[rac.storage]\n\
         shared_storage_path = \"/nowhere\"\n[ha.fencing]\nwatchdog_device = \"/nowhere/watchdog\"\n",
    )
    .expect("the temporary folder can be written");
    let config = folder.to_string_lossy().into_owned();
    assert_eq!(run(&["--config", &config, "--only", "RDB-FENCE-004"]).0, 0);
    assert_eq!(run(&["--config", &config, "--only", "RDB-FENCE-004", "--strict"]).0, 1);
    std::fs::remove_file(&folder).ok();
}

#[test]
fn its_json_has_what_was_asked_for_and_no_colours() {
    let (_, output) = run(&["--json", "--only", "RDB-IO,RDB-TIME-001", "--skip", "RDB-IO-006"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    let ids: Vec<&str> = json["checks"].as_array().expect("a list").iter().filter_map(|check| check["id"].as_str()).collect();
    assert!(ids.contains(&"RDB-IO-001") && ids.contains(&"RDB-TIME-001"), "{ids:?}");
    assert!(ids.iter().all(|id| id.starts_with("RDB-IO-") || *id == "RDB-TIME-001") && !ids.contains(&"RDB-IO-006"), "{ids:?}");
    assert_eq!(json["schema"], "rustydb-preflight/1");
    // Not a terminal: no colours.
    let (_, output) = run(&["--only", "RDB-KERN"]);
    assert!(!output.stdout.contains(&0x1b));
}
