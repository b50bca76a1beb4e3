#!/usr/bin/env bash
# A throw-away PostgreSQL for the soak, which has to restart it: prints its address once it answers, then reads
# lines `SIGNAL SECONDS` (stop by this signal, stay down so long, start again, print the address again). It ends
# with its input, however the program that feeds it has ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:/usr/sbin:/sbin
# shellcheck source=tests/servers/common.sh
source tests/servers/common.sh
# shellcheck source=tests/servers/packages.sh
source tests/servers/packages.sh
# shellcheck source=tests/servers/postgres.sh
source tests/servers/postgres.sh

install_missing_packages postgres >&2
work=$(mktemp -d "${TMPDIR:-/tmp}/request-budget-soak.XXXXXX")
server=
trap 'stop QUIT; rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 711 "$work"
dir=$work/postgres log=$work/log
mkdir "$dir"

stop() {
    [[ $server ]] || return 0
    kill -s "$1" "$server" 2>/dev/null && wait "$server" || true
    server=
}

start() {
    # A commit that was acknowledged is with the operating system, which outlives every restart here.
    become postgres "$(postgres_bin)/postgres" -D "$dir/data" -p "$port" \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=100 \
        -c fsync=off -c synchronous_commit=on >>"$log" 2>&1 </dev/null &
    server=$!
    local attempt
    for ((attempt = 0; attempt < 600; attempt++)); do
        kill -0 "$server" 2>/dev/null || break
        if [[ $(postgres_query postgres 'SHOW data_directory' 2>/dev/null) == "$dir/data" ]]; then
            postgres_url
            return
        fi
        sleep 0.1
    done
    tail -n 30 "$log" >&2
    die 'PostgreSQL does not start; above is the end of its log'
}

postgres_prepare >"$log" 2>&1
port=$(free_port)
start
while read -r signal seconds; do
    stop "$signal"
    sleep "$seconds"
    start
done
