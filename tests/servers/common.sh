# shellcheck shell=bash disable=SC2034,SC2154
# What the servers of the tests have in common. Each NAME.sh beside this file gives:
#   NAME_packages   prints the Debian packages that are missing
#   NAME_prepare    fills the empty folder $dir
#   NAME_run        becomes the server, in the foreground, on $port
#   NAME_ready      succeeds once the server answers, is the process $server, and has what the tests need;
#                   called again until it does
#   NAME_url        prints the address for the tests
#   NAME_version    prints what was started
#   NAME_stop       (a variable) the signal that ends it at once and leaves nothing outside $dir

cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/request-budget
# Debian's own, whatever else comes first in PATH: it is the one that Debian's pip belongs to.
python=/usr/bin/python3
work=
keeper_pid=
declare -A job=()

say() { echo "tests/run: $*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# Makes the temporary folder $work, and the keeper that sees to its end.
begin() {
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    work=$(mktemp -d "${TMPDIR:-/tmp}/request-budget.XXXXXX")
    # Servers that run as another user have to get to their folders inside.
    chmod 711 "$work"
    mkdir "$work/groups"
    # A coprocess, because no other child inherits our end of its pipe.
    set -m
    coproc keeper_pipe { keeper; } >&2
    set +m
    keeper_pid=$!
}

finish() {
    local status=$?
    trap '' HUP INT TERM
    if [[ $keeper_pid ]]; then
        eval "exec ${keeper_pipe[1]}>&-"
        wait "$keeper_pid" || true
    else
        rm -rf "$work"
    fi
    exit "$status"
}

# Stops every group and removes $work once our end of its pipe is closed: even kill -9 of tests/run does that.
keeper() {
    trap '' HUP INT QUIT TERM
    read -r || true
    local attempt signal alive file
    # From here on no group can begin: each makes its file first, and fails.
    mv "$work/groups" "$work/ending"
    for ((attempt = 0; attempt < 100; attempt++)); do
        signal=TERM alive=
        ((attempt < 50)) || signal=KILL
        for file in "$work"/ending/*; do
            kill -s "$signal" -- "-${file##*/}" 2>/dev/null && alive=yes
        done
        [[ $alive ]] || break
        sleep 0.1
    done
    rm -rf "$work"
}

# Starts a command in the background, as leader of a process group, $group, that the keeper will stop.
start_group() {
    # Without job control the shell makes no group, and has the command ignore Ctrl-C.
    set -m
    lead_group "$@" </dev/null &
    set +m
    group=$!
}

lead_group() {
    : >"$work/groups/$BASHPID"
    "$@"
}

# Starts the servers, all at once, and exports their addresses.
start_servers() {
    local name started=$SECONDS
    begin
    say "starting ${*}"
    for name; do
        start_group run_server "$name"
        job[$name]=$group
    done
    for name; do
        until [[ -e $work/$name.url ]]; do
            die_if_a_server_ended
            sleep 0.1
        done
        export "${url_variable[$name]}=$(<"$work/$name.url")"
        say "$name: $("${name}_version"), $(<"$work/$name.url")"
    done
    say "all ready after $((SECONDS - started)) s"
}

die_if_a_server_ended() {
    local name
    for name in "${!job[@]}"; do
        kill -0 "${job[$name]}" 2>/dev/null && continue
        tail -n 30 "$work/$name.log" >&2 || true
        die "$name ended by itself; above is the end of its log"
    done
}

# The life of one server, in its own process group.
run_server() {
    local name=$1 attempt deadline
    dir=$work/$name server=
    exec >"$work/$name.log" 2>&1
    # The messages that are looked for below are in English.
    export LC_ALL=C.UTF-8
    # Expanded now: when a failure ends the shell, the trap runs after this function's variables are gone.
    # shellcheck disable=SC2064
    trap "end_server $name" EXIT
    trap 'exit 143' TERM
    mkdir "$dir"
    "${name}_prepare"
    for attempt in 1 2 3 4 5; do
        port=$(free_port)
        echo "attempt $attempt, port $port"
        "${name}_run" &
        server=$!
        deadline=$((SECONDS + 60))
        while kill -0 "$server" 2>/dev/null; do
            if "${name}_ready"; then
                "${name}_url" >"$work/$name.url.part"
                mv "$work/$name.url.part" "$work/$name.url"
                wait "$server"
                exit
            fi
            ((SECONDS < deadline)) || { echo "not ready after 60 s"; exit 1; }
            sleep 0.1
        done
        # Between our look for a free port and the server's use of it somebody else may take it.
        grep -q 'Address already in use' "$work/$name.log" || exit 1
    done
    exit 1
}

end_server() {
    local status=$? stop=${1}_stop
    trap '' TERM
    if [[ $server ]] && kill -s "${!stop}" "$server"; then
        wait "$server" || true
    fi
    # Once it ended by itself its number may come to be another's; when told to, others may still be in its group.
    ((status == 143)) || rm -f "$work/groups/$BASHPID"
}

free_port() {
    "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Becomes the command; as the given user where we are root, which PostgreSQL and MariaDB refuse to run as.
become() {
    # Not su or runuser: they stay in between, and the process id would be theirs.
    ((EUID != 0)) || exec setpriv --reuid="$1" --regid="$1" --init-groups -- "${@:2}"
    exec "${@:2}"
}

# Makes the folder $2, for the given user where we are root.
own_folder() {
    mkdir "$2"
    ((EUID != 0)) || chown "$1:" "$2"
}
