# What tests/run and .ci/run share. Sourced by bash; the folder of the project is the working directory.

say() {
    printf '\n== %s\n' "$*" >&2
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The newest PostgreSQL of this machine.
find_postgres() {
    if [ -z "${PGBIN:-}" ]; then
        PGBIN=$(find /usr/lib/postgresql -maxdepth 2 -name bin -type d 2>/dev/null | sort -V | tail -n 1)
    fi
    [ -n "$PGBIN" ] && [ -x "$PGBIN/initdb" ] && [ -x "$PGBIN/postgres" ]
}

install_missing() {
    local packages=()
    # Debian's services are not in everybody's path.
    PATH=$PATH:/usr/sbin
    command -v cc >/dev/null || packages+=(build-essential)
    command -v pkg-config >/dev/null || packages+=(pkg-config)
    command -v python3 >/dev/null || packages+=(python3)
    # The module that puts pip into a virtual environment is a package of its own.
    python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
    command -v flock >/dev/null || packages+=(util-linux)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
    command -v pebble >/dev/null || packages+=(pebble)
    command -v named >/dev/null || packages+=(bind9)
    command -v nginx >/dev/null || packages+=(nginx-light)
    command -v haproxy >/dev/null || packages+=(haproxy)
    command -v apache2 >/dev/null || packages+=(apache2)
    command -v caddy >/dev/null || packages+=(caddy)
    find_postgres || packages+=(postgresql)
    if [ ${#packages[@]} -gt 0 ]; then
        if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
            die "missing: ${packages[*]} (names of Debian packages). Install them, or run this as root on Debian."
        fi
        say "installing ${packages[*]}"
        # The tests start their own PostgreSQL: the package need not make and run one.
        mkdir -p /etc/postgresql-common
        [ -e /etc/postgresql-common/createcluster.conf ] ||
            echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
        # Nor should what else is a service be started.
        local policy=/usr/sbin/policy-rc.d own_policy=
        if [ ! -e "$policy" ]; then
            own_policy=yes
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        local failed=
        { apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; } ||
            failed=yes
        [ -z "$own_policy" ] || rm -f "$policy"
        [ -z "$failed" ] || die "the packages cannot be installed: ${packages[*]}"
    fi
    find_postgres || die "no PostgreSQL server under /usr/lib/postgresql; PGBIN may name the folder of its programs"
    export PGBIN
    PATH=$PATH:$HOME/.cargo/bin
    command -v cargo >/dev/null || die "no cargo: install Rust 1.95 or newer, see https://rustup.rs"
}

# Cargo's output goes to a folder that outlives the clone, where there is one.
use_build_cache() {
    # Compiler flags and the linker are left alone everywhere, so that this cache and a developer's fit each other.
    if [ "${CI:-}" = true ]; then
        export CARGO_INCREMENTAL=0
    fi
    [ -z "${CARGO_TARGET_DIR:-}" ] || return 0
    local cache=${MYELIN_BUILD_CACHE:-/var/cache/myelin-build}
    if [ -n "${MYELIN_BUILD_CACHE:-}" ] || [ "${CI:-}" = true ]; then
        mkdir -p "$cache" 2>/dev/null || true
    fi
    [ -d "$cache" ] && [ -w "$cache" ] || return 0
    # What old versions left behind must not fill the disk: above 20 GiB it starts anew.
    if [ "$(du -sm "$cache" 2>/dev/null | cut -f1)" -gt 20480 ]; then
        say "the build cache $cache has grown too large: emptying it"
        find "$cache" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
    fi
    export CARGO_TARGET_DIR=$cache
    say "building in $cache"
}

# Runs a PostgreSQL program as a user that it accepts: it refuses root.
as_postgres() {
    if [ "$(id -u)" -eq 0 ]; then
        runuser -u postgres -- "$@"
    else
        "$@"
    fi
}

# start_postgres FOLDER: a private cluster, for tests that make and drop databases. It keeps nothing, so it need not
# wait for the disk; what must survive a crash is tested on clusters of its own.
start_postgres() {
    POSTGRES_DATA=$1
    mkdir -p "$POSTGRES_DATA"
    # The user postgres must be able to pass through.
    chmod 0711 "$(dirname "$POSTGRES_DATA")"
    [ "$(id -u)" -ne 0 ] || chown postgres "$POSTGRES_DATA"
    (
        cd /
        as_postgres "$PGBIN/initdb" --pgdata "$POSTGRES_DATA/data" --username myelin --auth trust \
            --encoding UTF8 --locale C --no-sync >"$POSTGRES_DATA.log" 2>&1
    ) || die "initdb failed: $(cat "$POSTGRES_DATA.log")"

    local port attempt
    for attempt in 1 2 3 4 5; do
        port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
        if (
            cd /
            as_postgres "$PGBIN/pg_ctl" --pgdata "$POSTGRES_DATA/data" --log "$POSTGRES_DATA/server.log" --wait --timeout 60 \
                --options "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories='' \
                    -c max_connections=300 -c fsync=off -c full_page_writes=off -c synchronous_commit=off" \
                start >/dev/null
        ); then
            export MYELIN_TEST_POSTGRES_URL=postgres://myelin@127.0.0.1:$port/postgres
            return 0
        fi
    done
    die "PostgreSQL does not start: $(tail -n 20 "$POSTGRES_DATA/server.log" 2>/dev/null)"
}

stop_postgres() {
    if [ -n "${POSTGRES_DATA:-}" ] && [ -e "$POSTGRES_DATA/data/postmaster.pid" ]; then
        (
            cd /
            as_postgres "$PGBIN/pg_ctl" --pgdata "$POSTGRES_DATA/data" --mode immediate --wait stop >/dev/null 2>&1
        ) || true
    fi
}

# The version of Synapse that Myelin is tested with.
SYNAPSE_VERSION=1.163.2

# Synapse, in a virtual environment of Python beside what cargo builds, so that it is installed once.
use_synapse() {
    [ -z "${SYNAPSE_VENV:-}" ] || return 0
    local target=${CARGO_TARGET_DIR:-$PWD/target}
    export SYNAPSE_VENV=$target/synapse-$SYNAPSE_VERSION
    mkdir -p "$target"
    (
        flock 9
        # The last step made it, so what has it is whole.
        [ ! -e "$SYNAPSE_VENV/installed" ] || exit 0
        say "installing Synapse $SYNAPSE_VERSION in $SYNAPSE_VENV"
        rm -rf "$SYNAPSE_VENV" &&
            python3 -m venv "$SYNAPSE_VENV" &&
            "$SYNAPSE_VENV/bin/pip" install --quiet --disable-pip-version-check "matrix-synapse==$SYNAPSE_VERSION" &&
            touch "$SYNAPSE_VENV/installed"
    ) 9>"$target/.synapse.lock" || die "Synapse cannot be installed; SYNAPSE_VENV may name a virtual environment with it"
}
