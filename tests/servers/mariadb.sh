# shellcheck shell=bash disable=SC2034,SC2154
# MariaDB, with its general log in a table, for tests that switch it on to see what reached the server.

mariadb_stop=KILL

mariadb_packages() { have mariadbd mariadb-install-db mariadb || echo mariadb-server; }

mariadb_version() { mariadbd --version | sed 's/^.*Ver /MariaDB /; s/ for .*//'; }

mariadb_prepare() {
    own_folder mysql "$dir/data"
    own_folder mysql "$dir/tmp"
    # For the server as well: as it starts it deletes the temporary tables of any other in the same folder.
    export TMPDIR=$dir/tmp
    # Without the test database comes no nameless user, who would shadow the others.
    (become mysql mariadb-install-db --no-defaults --datadir="$dir/data" --skip-test-db \
        --auth-root-authentication-method=normal --skip-name-resolve)
    echo 'CREATE DATABASE IF NOT EXISTS test;' >"$dir/init.sql"
    chmod 755 "$dir"
}

mariadb_run() {
    become mysql mariadbd --no-defaults --datadir="$dir/data" --port="$port" --bind-address=127.0.0.1 \
        --socket="$dir/data/socket" --pid-file="$dir/data/pid" --init-file="$dir/init.sql" \
        --skip-name-resolve --skip-log-bin --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=64M \
        --max-connections=300 --character-set-server=utf8mb4 --general-log=OFF --log-output=TABLE
}

mariadb_ready() {
    [[ $(mariadb --no-defaults --protocol=TCP --host=127.0.0.1 --port="$port" --user=root \
        --silent --skip-column-names --execute='SELECT @@datadir' test) == "$dir/data/" ]]
}

mariadb_url() { echo "mysql://root@127.0.0.1:$port/test"; }
