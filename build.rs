//! Looks for the libraries of RDMA. With the feature `rdma` it compiles the shim over the verbs' inline functions (`native/`), or
//! ends the build in words where a library is missing. Without the feature there is nothing to build (one binary then speaks TCP
//! only), and a release build says so. Why the feature is not switched on here: docs/decisions/0004.

use std::process::{Command, Stdio};

/// With the versions that the bindings ask for.
const LIBRARIES: [(&str, &str); 2] = [("libibverbs", "1.8.28"), ("librdmacm", "1.2.28")];

const INSTALL: &str = "apt-get install libibverbs-dev librdmacm-dev libclang-dev pkg-config";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=native");
    for variable in ["PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let missing: Vec<&str> = LIBRARIES.iter().filter(|library| !is_there(library)).map(|(name, _)| *name).collect();
    #[cfg(feature = "rdma")]
    with_rdma(&missing);
    #[cfg(not(feature = "rdma"))]
    without_rdma(&missing);
}

fn is_there((name, version): &(&str, &str)) -> bool {
    let program = std::env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
    let asked =
        Command::new(program).args(["--atleast-version", version, name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

#[cfg(feature = "rdma")]
fn with_rdma(missing: &[&str]) {
    if !missing.is_empty() {
        println!(
            "cargo::error=the feature `rdma` needs {}, which pkg-config does not find: {INSTALL}; or build without the feature, for TCP \
             only (docs/rdma.md)",
            missing.join(" and ")
        );
        return;
    }
    cc::Build::new().file("native/verbs_shim.c").warnings(true).compile("rustydb_verbs_shim");
    println!("cargo::rustc-link-lib=ibverbs");
    println!("cargo::rustc-link-lib=rdmacm");
}

/// Cargo repeats a warning with every command, also when nothing is built; so only those hear of it who build what will be run.
#[cfg(not(feature = "rdma"))]
fn without_rdma(missing: &[&str]) {
    if std::env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return;
    }
    let first = match missing.is_empty() {
        true => "Its libraries are here:".to_owned(),
        false => format!("pkg-config does not find {}: {INSTALL}, then", missing.join(" and ")),
    };
    println!(
        "cargo::warning=built without RDMA, nodes talk over TCP only. {first} `cargo build --release --features rustydb-tools/rdma` has it \
         (docs/rdma.md)"
    );
}
