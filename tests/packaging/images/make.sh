# Images under the names that the shipped files use, made of Debian's packages where no registry of images is reached.
# Sourced by bash after common.sh; $work is a folder of the run. With MYELIN_REAL_IMAGES=1 the real ones are pulled instead.
#
# Every image made here has the label org.myelin.standin, so that none of them is ever taken for the real one.
IMAGES=$ROOT/tests/packaging/images

# start_docker FOLDER: uses the Docker that runs, or starts one of our own, whose files lie in MYELIN_DOCKER_ROOT or FOLDER.
start_docker() {
    need dockerd=docker.io iptables=iptables docker=docker.io
    if docker info >/dev/null 2>&1; then
        return 0
    fi
    [ "$(id -u)" -eq 0 ] || die "Docker does not run, and only root can start it"
    say "starting Docker"
    mkdir -p "$1"
    export DOCKER_HOST=unix://$1/docker.sock
    dockerd --host "$DOCKER_HOST" --data-root "${MYELIN_DOCKER_ROOT:-$1/data}" --exec-root "$1/exec" --pidfile "$1/docker.pid" \
        >"$1/docker.log" 2>&1 </dev/null &
    DOCKER_PID=$!
    DOCKER_FOLDER=$1
    wait_for 60 "Docker (see $1/docker.log)" docker info
}

stop_docker() {
    [ -n "${DOCKER_PID:-}" ] || return 0
    kill "$DOCKER_PID" 2>/dev/null || true
    wait "$DOCKER_PID" 2>/dev/null || true
    # It leaves a mount of its network behind, which would keep the folder.
    umount "$DOCKER_FOLDER"/exec/netns/* 2>/dev/null || true
}

# get_compose FOLDER: Compose 2.24 or newer and buildx, of this machine or out of Debian trixie's packages.
get_compose() {
    local version
    version=$(docker compose version --short 2>/dev/null || echo 0)
    if printf '2.24\n%s\n' "${version#v}" | sort -V -C; then
        return 0
    fi
    say "getting Docker Compose"
    local folder=$1/compose mirror
    mkdir -p "$folder"/{state/lists/partial,cache/archives/partial,cli-plugins}
    # The mirror that this machine uses; not every machine has both places.
    mirror=$( (cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true) |
        sed -nE 's/^URIs: *(\S+\/debian)\/?$/\1/p; s/^deb (\[[^]]*\] )?(\S+\/debian)\/? .*/\2/p' | head -n 1)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} trixie main" >"$folder/sources.list"
    cat >"$folder/apt.conf" <<EOF
Dir::Etc::SourceList "$folder/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$folder/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "$folder/cache";
APT::Sandbox::User "root";
Acquire::Languages "none";
EOF
    (
        export APT_CONFIG=$folder/apt.conf
        cd "$folder"
        apt-get update -qq
        apt-get download -qq docker-compose docker-buildx
        for package in ./*.deb; do dpkg-deb -x "$package" unpacked; done
        cp unpacked/usr/libexec/docker/cli-plugins/* cli-plugins/
        rm -rf unpacked ./*.deb cache state
    ) || die "Docker Compose 2.24 cannot be had"
    export DOCKER_CONFIG=$folder
}

# What was made by this run is removed by it, unless MYELIN_DOCKER_ROOT keeps it.
MADE_IMAGES=()
remove_images() {
    [ -z "${MYELIN_DOCKER_ROOT:-}" ] || return 0
    local at
    for ((at = ${#MADE_IMAGES[@]} - 1; at >= 0; at--)); do
        docker image rm --force "${MADE_IMAGES[at]}" >/dev/null 2>&1 || true
    done
}

# debian_image SUITE: debian:SUITE-slim.
debian_image() {
    local tag=debian:$1-slim root
    ! docker image inspect "$tag" >/dev/null 2>&1 || return 0
    if [ -n "${MYELIN_REAL_IMAGES:-}" ]; then
        docker pull --quiet "$tag"
        return 0
    fi
    need debootstrap=debootstrap
    say "making $tag"
    root=$(mktemp -d "${TMPDIR:-/tmp}/myelin-debian.XXXXXX")
    chmod 755 "$root"
    debootstrap --variant=minbase "$1" "$root" >"$root.log" 2>&1 || die "debootstrap: $(tail -n 5 "$root.log")"
    rm -rf "$root"/usr/share/{doc,man,info,locale}/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
        "$root"/var/lib/apt/lists/* "$root/etc/machine-id" "$root.log"
    printf 'path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\npath-exclude /usr/share/man/*\npath-exclude /usr/share/locale/*\n' \
        >"$root/etc/dpkg/dpkg.cfg.d/docker"
    tar -C "$root" --one-file-system -c . | docker import -c 'CMD ["bash"]' -c 'LABEL org.myelin.standin=1' - "$tag" >/dev/null
    rm -rf "$root"
    MADE_IMAGES+=("$tag")
}

# image TAG FILE SUITE: TAG out of FILE.Dockerfile, on Debian SUITE.
image() {
    ! docker image inspect "$1" >/dev/null 2>&1 || return 0
    if [ -n "${MYELIN_REAL_IMAGES:-}" ] && [ "$2" != systemd ]; then
        docker pull --quiet "$1"
        return 0
    fi
    debian_image "$3"
    say "making $1"
    DOCKER_BUILDKIT=0 docker build --quiet --tag "$1" --build-arg "BASE=debian:$3-slim" --file "$IMAGES/$2.Dockerfile" "$IMAGES" >/dev/null 2>"$work/image.log" ||
        die "$1 cannot be made: $(tail -n 20 "$work/image.log")"
    MADE_IMAGES+=("$1")
}
