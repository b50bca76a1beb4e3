# shellcheck shell=bash disable=SC2034,SC2154
# Redis, as the external system of the tests.

redis_stop=KILL

redis_packages() { have redis-server redis-cli || echo redis-server; }

redis_version() { redis-server --version | sed 's/ server v=/ /; s/ sha=.*//'; }

redis_prepare() { :; }

redis_run() {
    exec redis-server --port "$port" --bind 127.0.0.1 --dir "$dir" --save '' --appendonly no
}

redis_ready() {
    redis-cli -h 127.0.0.1 -p "$port" info server | tr -d '\r' | grep -qx "process_id:$server"
}

redis_url() { echo "redis://127.0.0.1:$port"; }
