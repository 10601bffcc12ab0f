#!/usr/bin/env bash
# pgbench on one RustyDB node and on PostgreSQL 15, in turns, on the same disk with the same durability.
#
#   bench/pgbench-beside-postgresql.sh [BIN-FOLDER] [SECONDS-A-RUN] [SCALE]
#
# Prints transactions per second of both and their ratio for -S and for the TPC-B-like script, both prepared.
set -euo pipefail
bin=${1:-target/release} seconds=${2:-8} scale=${3:-5}
pg=/usr/lib/postgresql/15/bin
folder=$(mktemp -d /tmp/rustydb-beside-XXXXXX)
as=()
[ "$(id -u)" = 0 ] && as=(setpriv --reuid=postgres --regid=postgres --clear-groups --) && chown postgres "$folder" && chmod 755 "$folder"
finish() {
    [ -n "${server:-}" ] && kill -INT "$server" 2>/dev/null && wait "$server" 2>/dev/null
    [ -n "${peer:-}" ] && kill -INT "$peer" 2>/dev/null && wait "$peer" 2>/dev/null
    rm -rf "$folder"
}
trap finish EXIT
"${as[@]}" $pg/initdb -D "$folder/pg" -U postgres -A trust --no-locale -E UTF8 >/dev/null
"${as[@]}" $pg/postgres -D "$folder/pg" -h 127.0.0.1 -p 25432 -k "$folder" -c shared_buffers=256MB >/dev/null 2>&1 &
peer=$!
"$bin/rusty-db-server" dev --nodes 1 --data-dir "$folder/rustydb" --pg-port 25433 --http-port 25480 --interconnect-port 25733 --volume-size 2GiB >/dev/null &
server=$!
for port in 25432 25433; do timeout 60 sh -c "until psql -qX -h 127.0.0.1 -p $port -U postgres -c 'select 1' postgres >/dev/null 2>&1; do sleep 0.2; done"; done
bench() { $pg/pgbench -h 127.0.0.1 -p "$@" -U postgres postgres 2>/dev/null; }
tps() { bench "$@" -n -M prepared -j 2 -T "$seconds" | sed -n 's/^tps = \([0-9.]*\).*/\1/p'; }
for port in 25432 25433; do bench $port -i -q -s "$scale" >/dev/null; done
printf '%-12s %8s %12s %12s %8s\n' script clients PostgreSQL RustyDB ratio
for script in "-S" "-b tpcb-like"; do
    for clients in 1 8 16; do
        for round in 1 2; do
            # shellcheck disable=SC2086
            a=$(tps 25432 $script -c $clients) b=$(tps 25433 $script -c $clients)
            printf '%-12s %8s %12s %12s %8s\n' "$script" "$clients" "$a" "$b" "$(echo "$a $b" | awk '{printf "%.2f", $2 / $1}')"
        done
    done
done
