//! Compiles the shim over the verbs' inline functions (`native/`), where the feature `rdma` is on. Without it there is
//! nothing to build: one binary then speaks TCP only.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=native");
    #[cfg(feature = "rdma")]
    shim();
}

#[cfg(feature = "rdma")]
fn shim() {
    for library in ["libibverbs", "librdmacm"] {
        let found = std::process::Command::new("pkg-config").args(["--exists", library]).status();
        assert!(
            found.is_ok_and(|status| status.success()),
            "the feature `rdma` needs {library}, and pkg-config does not find it: install libibverbs-dev, librdmacm-dev, \
             libclang-dev and pkg-config, or build without the feature (docs/rdma.md)"
        );
    }
    cc::Build::new().file("native/verbs_shim.c").warnings(true).compile("rustydb_verbs_shim");
    println!("cargo::rustc-link-lib=ibverbs");
    println!("cargo::rustc-link-lib=rdmacm");
}
