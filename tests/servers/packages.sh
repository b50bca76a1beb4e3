# shellcheck shell=bash disable=SC2034,SC2154
# The Debian packages and cargo: what has to be there before a server can start.

install_missing_packages() {
    local name root=() packages=()
    for name; do
        mapfile -t -O "${#packages[@]}" packages < <("${name}_packages")
    done
    [[ -x $python ]] || packages+=(python3)
    ((${#packages[@]})) || return 0

    mkdir -p "$cache"
    command -v apt-get >/dev/null ||
        die "missing: ${packages[*]}, and there is no apt-get; name your own servers instead, see --help"
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            die "missing: ${packages[*]}; run 'apt-get install ${packages[*]}' as root, or name your own servers, see --help"
        root=(sudo)
    fi
    say "installing ${packages[*]}"
    # The lock is for another tests/run that is here at the same time: apt-get update does not wait.
    in_turn "${root[@]}" sh -euc "$install_as_root" sh "${packages[@]}" >"$cache/install.log" 2>&1 || {
        tail -n 30 "$cache/install.log" >&2
        die "apt-get could not install ${packages[*]}; above is the end of its log"
    }
}

# Whether all the commands are there: `command -v` is content with one of them.
have() {
    local name
    for name; do
        command -v "$name" >/dev/null || return 1
    done
}

# Debian starts a server as soon as it is installed, unless this file of its own forbids it.
# shellcheck disable=SC2016
install_as_root='
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap "rm -f $policy" EXIT
        trap "exit 1" HUP INT TERM
        printf "#!/bin/sh\nexit 101\n" >$policy
        chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
'

# Runs a command while no other tests/run of this user does the same.
in_turn() {
    mkdir -p "$cache"
    (
        flock 9
        "$@" 9>&-
    ) 9>"$cache/lock"
}

check_cargo_arguments() {
    command -v cargo >/dev/null || die "cargo is missing: install Rust"
    local before_dashes=() argument complaint
    for argument; do
        [[ $argument == -- ]] && break
        before_dashes+=("$argument")
    done
    # With -h cargo does no more than check its arguments: sooner than after the servers are up.
    complaint=$(cargo test --all-features "${before_dashes[@]}" -h 2>&1 >/dev/null) ||
        die "cargo test does not take these arguments:"$'\n'"$complaint"
}
