#!/usr/bin/env bash
# Everything that has to hold: format, lints, unit and simulation tests, then a real cluster under psql, pgbench,
# psycopg, SQLAlchemy and JDBC, beside a real PostgreSQL. Installs what it needs from Debian's packages (as root).
#
#   ./test.sh              all of it
#   ./test.sh rust         only cargo's part
#   ./test.sh cluster      only the real cluster; arguments after it go to pytest (./test.sh cluster -k pgbench)
#   ./test.sh machines     only what runs in virtual machines (hw-tests/README.md); skipped, with the reason, where they can't be had
set -euo pipefail
cd "$(dirname "$0")"
part=${1:-all}
[ $# -gt 0 ] && shift

# No test that takes minutes in a virtual machine begins later than so many seconds after the start.
EXTRA_UNTIL_S=1500

say() { printf '\n== %s\n' "$*"; }

need() { # need COMMAND-OR-FILE PACKAGE...: installs the packages when the command or file is not there
    local what=$1
    shift
    if command -v "$what" >/dev/null 2>&1 || [ -e "$what" ]; then return; fi
    missing+=("$@")
}

install_packages() {
    missing=()
    need cc build-essential
    need psql postgresql-client-15
    need /usr/lib/postgresql/15/bin/pgbench postgresql-15
    need /usr/lib/postgresql/15/bin/initdb postgresql-15
    need java default-jre-headless
    need /usr/share/java/postgresql.jar libpostgresql-jdbc-java
    need sysbench sysbench
    need pkg-config pkg-config
    need /usr/include/infiniband/verbs.h libibverbs-dev
    need /usr/include/rdma/rdma_cma.h librdmacm-dev
    need /usr/lib/llvm-14/lib/libclang.so libclang-dev
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv python3-pip)
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing ${missing[*]}"
        apt-get update -qq
        # A fresh postgresql-15 would start a server of its own on 5432, the port that our nodes use by default.
        mkdir -p /etc/postgresql-common
        [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
}

rust_part() {
    say "format"
    cargo fmt --all -- --check
    say "clippy"
    cargo clippy --workspace --all-targets --quiet -- -D warnings
    if pkg-config --exists libibverbs librdmacm; then
        say "clippy, with RDMA"
        # The engine alone: in the whole workspace bindgen's needs would build DataFusion anew.
        cargo clippy -p rustydb --features rdma --all-targets --quiet -- -D warnings
    else
        say "no RDMA: pkg-config finds no libibverbs and librdmacm"
    fi
    say "the shards' rings in every interleaving"
    cargo test --quiet --release --manifest-path bench/loom/Cargo.toml
    say "unit and simulation tests"
    cargo test --workspace --quiet
}

cluster_part() {
    say "a real cluster"
    # One set of features for all builds, or DataFusion is built twice.
    cargo build --quiet --workspace --all-targets
    local folder
    folder=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')
    [ -x "$folder/venv/bin/pytest" ] || {
        python3 -m venv "$folder/venv"
        "$folder/venv/bin/pip" install --quiet --disable-pip-version-check -r tests/cluster/requirements.txt
    }
    RUSTYDB_BIN="$folder/debug" "$folder/venv/bin/pytest" -q tests/cluster "$@"
}

machines_part() {
    say "in virtual machines: reservations, RDMA, a watchdog"
    if [ -n "${ONLY:-}" ]; then
        hw-tests/run
        return
    fi
    ONLY=fencing,rdma,watchdog hw-tests/run
    # These take whole minutes, and all of this may take 40: what was built before leaves time for them. The others never have it.
    local more
    for more in rdma-cluster nvme; do
        if [ $SECONDS -lt $EXTRA_UNTIL_S ]; then
            ONLY=$more LIMIT_S=600 hw-tests/run
        else
            echo "$more: left out, because $((SECONDS / 60)) minutes have passed: ONLY=$more hw-tests/run"
        fi
    done
}

install_packages
case $part in
# Not joined by &&: in such a list the shell ignores the failures inside of the parts.
all)
    rust_part
    cluster_part
    machines_part
    ;;
rust) rust_part ;;
cluster) cluster_part "$@" ;;
machines) machines_part ;;
*) echo "usage: ./test.sh [all|rust|cluster|machines]" >&2 && exit 2 ;;
esac
say "all passed"
