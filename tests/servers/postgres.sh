# shellcheck shell=bash disable=SC2034,SC2154
# PostgreSQL, with pg_stat_statements as the tests' independent witness of what reached the database.

postgres_stop=QUIT

# The newest that Debian installed; a `postgres` elsewhere may lack the extension.
postgres_bin() {
    compgen -G '/usr/lib/postgresql/*/bin/postgres' | sort -V | tail -n 1 | xargs -r dirname
}

postgres_packages() { [[ $(postgres_bin) ]] || echo postgresql; }

postgres_version() { "$(postgres_bin)/postgres" --version; }

postgres_prepare() {
    # The user's PGOPTIONS and the like are meant for another server.
    unset "${!PG@}"
    own_folder postgres "$dir/data"
    # Apart from the group that may be told to end: initdb cut short leaves shared memory behind.
    (become postgres setsid "$(postgres_bin)/initdb" --pgdata="$dir/data" --username=postgres --auth=trust \
        --encoding=UTF8 --locale=C.UTF-8 --no-sync)
}

postgres_run() {
    become postgres "$(postgres_bin)/postgres" -D "$dir/data" -p "$port" \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 \
        -c fsync=off -c full_page_writes=off -c synchronous_commit=off \
        -c shared_preload_libraries=pg_stat_statements -c pg_stat_statements.track=top
}

postgres_ready() {
    local database
    [[ $(postgres_query postgres 'SHOW data_directory') == "$dir/data" ]] || return 1
    # In template1 too, so that each database a test creates has it.
    for database in template1 postgres; do
        postgres_query "$database" 'CREATE EXTENSION IF NOT EXISTS pg_stat_statements' || return 1
    done
}

postgres_query() {
    "$(postgres_bin)/psql" --no-psqlrc -qAt -c "$2" "postgres://postgres@127.0.0.1:$port/$1"
}

postgres_url() { echo "postgres://postgres@127.0.0.1:$port/postgres"; }
