#!/bin/bash
# Makes the secrets of the stack at its first start, each once; later starts leave them alone. Each folder is a volume
# that only those containers see that need what is in it.
set -euo pipefail
umask 022

# random: 43 letters and digits, or a few less.
random() {
    head -c 32 /dev/urandom | base64 | tr -d '+/=\n'
}

# once FILE TEXT: writes it all or not at all.
once() {
    [ -s "$1" ] && return 0
    printf '%s' "$2" >"$1.new"
    sync "$1.new"
    mv "$1.new" "$1"
    printf 'made %s\n' "$1"
}

once /secrets/database/password "$(random)"
once /secrets/database/url "postgres://myelin:$(cat /secrets/database/password)@postgres/myelin"
once /secrets/server/registration_token "$(random)"
once /secrets/server/registration_shared_secret "$(random)"
once /secrets/grafana/admin_password "$(random)"
once /secrets/turn/secret "$(random)"
