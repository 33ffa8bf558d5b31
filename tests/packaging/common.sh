# What the tests of the packages share. Sourced by bash.

say() {
    printf '\n== %s\n' "$*" >&2
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# What could not be run, and why: told again at the end, so that nobody takes silence for success.
NOT_RUN=()
not_run() {
    NOT_RUN+=("$*")
    printf 'NOT RUN: %s\n' "$*" >&2
}
tell_not_run() {
    local line
    for line in "${NOT_RUN[@]}"; do
        printf 'NOT RUN: %s\n' "$line" >&2
    done
}

# need COMMAND=PACKAGE...: installs Debian packages of commands that are missing.
need() {
    local pair missing=()
    PATH=$PATH:/usr/sbin:/sbin
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair##*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        die "missing: ${missing[*]} (names of Debian packages). Install them, or run this as root on Debian."
    fi
    say "installing ${missing[*]}"
    # The packages' services are not wanted, only their programs.
    local policy=/usr/sbin/policy-rc.d own=
    if [ ! -e "$policy" ]; then
        own=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    local failed=
    { apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; } || failed=yes
    [ -z "$own" ] || rm -f "$policy"
    [ -z "$failed" ] || die "the packages cannot be installed: ${missing[*]}"
}

# The binary under test: MYELIN_BINARY, or the release binary of this checkout.
find_binary() {
    MYELIN_BINARY=${MYELIN_BINARY:-${CARGO_TARGET_DIR:-$ROOT/target}/release/myelin}
    [ -x "$MYELIN_BINARY" ] || die "no binary at $MYELIN_BINARY: build it with 'cargo build --release -p myelin', or set MYELIN_BINARY"
    export MYELIN_BINARY
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local seconds=$1 what=$2 end
    shift 2
    end=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "waited $seconds seconds for $what"
        sleep 0.5
    done
}

# free_ports COUNT: ports that nobody has, out of those that the system gives to nobody by itself.
free_ports() {
    python3 - "$1" <<'PY'
import random, socket, sys
found = []
while len(found) < int(sys.argv[1]):
    one = socket.socket()
    try:
        one.bind(("127.0.0.1", random.randrange(10000, 32000)))
        found.append(one)
    except OSError:
        pass
print(*(one.getsockname()[1] for one in found))
PY
}
