#!/usr/bin/env bash
# The README's commands on machines that have python3, git and make, and nothing else.
#
#   tools/fresh_debian.sh [--test] [bookworm|trixie]...
#
# Every run gets a machine of its own: a minimal Debian tree made by mmdebstrap, entered by chroot in mount and process
# namespaces of its own, with an empty home and a fresh clone of what is committed here. It shares the host's network,
# and how apt, pip and npm get there; local package indexes of the host it does not see. --test runs `make test` there
# too, as root. Needs root and mmdebstrap. All it makes lies in one temporary directory and is removed at the end.
# shellcheck disable=SC2016 # what is quoted so is for the shell on the machine
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "fresh_debian: $*" >&2; exit 1; }

tests='' releases=()
for argument; do
    case $argument in
        --test) tests=1 ;;
        bookworm | trixie) releases+=("$argument") ;;
        *) die "usage: tools/fresh_debian.sh [--test] [bookworm|trixie]..." ;;
    esac
done
[ ${#releases[@]} != 0 ] || releases=(bookworm trixie)
[ "$(id -u)" = 0 ] || die "found user $(id -un), expected root, who may chroot and make namespaces"
command -v mmdebstrap >/dev/null || die "found no mmdebstrap. As root: apt-get install mmdebstrap"
[ -z "$(git status --porcelain)" ] || echo "fresh_debian: what is not committed is not in the clones"

top=$(mktemp -d)
trap 'rm -rf --one-file-system "$top"' EXIT
git bundle create -q "$top/checkout.bundle" HEAD

# How this machine reaches its registries: variables, and pip's own settings as variables.
words='(cert|index.url|extra.index.url|proxy|trusted.host|default.timeout)'
while IFS='=' read -r name value; do
    name=${name#global.} name=PIP_${name^^}
    export "${name//-/_}=${value//\'/}"
done < <(python3 -m pip config list 2>/dev/null | grep -E "^global\.$words=" | grep -v file:)
wanted="^(pip_$words|npm_config_(registry|cafile|proxy)|(https?|all|no)_proxy|ssl_cert_file|requests_ca_bundle|node_extra_ca_certs)$"
mkdir "$top/host"  # certificates; /host on the machines, because ca-certificates writes its own bundle where Debian has it
for name in $(compgen -e); do
    if [ "$name" = PATH ]; then
        continue
    elif ! grep -qiE "$wanted" <<<"$name"; then
        unset "$name"
    elif [ -f "${!name}" ]; then
        cp -L "${!name}" "$top/host/$name"
        export "$name=/host/$name"
    fi
done
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8

# tree RELEASE: the minimal Debian as a tar, from the host's own sources with the release's name put in.
tree() {
    local host
    # shellcheck disable=SC1091 # the machine's own
    host=$(. /etc/os-release && echo "$VERSION_CODENAME")
    apt-config dump Acquire >"$top/apt.conf"
    find /etc/apt \( -name '*.list' -o -name '*.sources' \) -exec cat {} + | sed "s/\b$host\b/$1/g" |
        mmdebstrap --quiet --variant=minbase --include=python3,git,make --aptopt="$top/apt.conf" "$1" "$top/$1.tar" -
}

# machine RELEASE: a new one in $top/machine.
machine() {
    rm -rf --one-file-system "$top/machine"
    mkdir "$top/machine"
    tar --extract --file "$top/$1.tar" --directory "$top/machine"
    cp -r "$top/checkout.bundle" "$top/host" "$top/machine/"
    cp -L /etc/resolv.conf /etc/hosts "$top/machine/etc/"
    # Also as a file: ansible-test passes no variables on to pip.
    local name words
    for name in $(compgen -e PIP_); do
        words=${name#PIP_} words=${words,,}
        echo "${words//_/-} = ${!name}"
    done | sed '1i [global]' >"$top/machine/etc/pip.conf"
    chroot "$top/machine" useradd --create-home --skel /nonexistent dba
    rm -rf "$top/machine/root" && mkdir "$top/machine/root"
    chroot "$top/machine" install -d -o dba -g dba /srv/dba
}

# inside USER COMMANDS: a shell on the machine. Its processes, and the mounts, end with it.
inside() {
    local home=/home/$1
    [ "$1" != root ] || home=/root
    HOME=$home unshare --mount --pid --fork --kill-child bash -euc '
        mount --rbind /dev "$1/dev"
        mount -t sysfs -o ro sysfs "$1/sys"
        mount -t proc proc "$1/proc"
        exec chroot --userspec="$2:$2" "$1" bash -euo pipefail -c "cd; $3"' - "$top/machine" "$1" "$2"
}

clone='git clone -q -c advice.detachedHead=false /checkout.bundle "$place"; cd "$place"'
demo='make demo
.venv/bin/ansible --version | sed -n "1p; s/^ *python version = /Python /p"
make demo; make demo-down
for each in /proc/[0-9]*; do
    [ "$each" = /proc/$$ ] || { echo "left running: $(tr "\0" " " <"$each/cmdline")"; exit 1; }
done'
refused='if said=$(make demo 2>&1); then echo "make demo went well"; exit 1; fi
echo "$said"
said=$(grep -v "^make: \*\*\*" <<<"$said")
[ "$(wc -l <<<"$said")" = 1 ]
[[ $said = *"As root: apt-get install python3-venv" ]]'
install='export DEBIAN_FRONTEND=noninteractive
apt-get -qq update; apt-get -qq install --no-install-recommends >/dev/null'
long=/srv/dba/$(printf 'a-long-path-%.0s' {1..12})
long=${long:0:150}

results=() failed=
# try RELEASE NAME COMMAND...: run it, keep the result.
try() {
    local code result=passed began=$SECONDS
    echo "===== $1: $2"
    set +e  # in the condition of an "if" or "||" it would not count inside either
    (set -e; "${@:3}")
    code=$?
    set -e
    [ $code = 0 ] || result=FAILED failed=1
    results+=("$(printf '%-6s  %4d s  %s: %s' "$result" $((SECONDS - began)) "$1" "$2")")
}
as_user() { # RELEASE PLACE PACKAGE...
    machine "$1"
    inside root "$install ${*:3}"
    inside dba "place=$2; $clone; $demo"
}
no_venv() { machine "$1"; inside dba "place=/srv/dba/dbops; $clone; $refused"; }
as_root() { machine "$1"; inside root "place=/srv/dbops; $clone; $demo"; }
suite() { machine "$1"; inside root "place=/srv/dbops; $clone; make test"; }

for release in "${releases[@]}"; do
    tree "$release"
    try "$release" "user without python3-venv is told to install it" no_venv "$release"
    try "$release" "demo, demo, demo-down as root" as_root "$release"
    try "$release" "demo, demo, demo-down as user" as_user "$release" /srv/dba/dbops python3-venv
    try "$release" "demo, demo, demo-down as user, with PgBouncer, in a path of ${#long} characters" as_user "$release" "$long" python3-venv pgbouncer
    [ -z "$tests" ] || try "$release" "make test as root" suite "$release"
done
echo "====="
printf '%s\n' "${results[@]}"
[ -z "$failed" ]
