#!/bin/sh
# Make a virtual environment ready: tools/bootstrap.sh demo|test|molecule|lint|importer|docs|patroni|awx|partsmith|reladiff|datadiff
#
# demo, test and molecule share .venv, each adds to the one before; molecule also installs the Debian packages that make
# hosts. The linters live in .venv-lint, Sphinx in .venv-docs, the collection awx.awx in .venv-awx, what benchmarks are compared with in a
# place of its own each, and
# galaxy-importer, whose pins break the others, in .venv-importer. Patroni, in .venv-patroni, is a program the lab starts: as
# root under another user, who can start no python3 but the system's. Nothing is done when the requirements, the interpreter and the place
# of the checkout are those of the last time, so that every make target can call this first.
set -eu
cd "$(dirname "$0")/.."

die() { echo "bootstrap: $*" >&2; exit 1; }

# apt_install PACKAGE...: as root, on a Debian. Shows nothing unless it fails.
apt_install() {
    echo "bootstrap: installing $*"
    log=$(mktemp)
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -o DPkg::Lock::Timeout=300 --no-install-recommends "$@"; } \
        >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; rm "$log"; die "apt-get could not install $*"; }
    rm "$log"
}

what=${1:-}
case $what in
    demo) venv=.venv sets="demo" ;;
    test) venv=.venv sets="demo test" ;;
    molecule) venv=.venv sets="demo test molecule" ;;
    lint) venv=.venv-lint sets="demo test lint" ;;
    importer) venv=.venv-importer sets="importer" ;;
    docs) venv=.venv-docs sets="docs" ;;
    patroni) venv=.venv-patroni sets="patroni" ;;
    awx) venv=.venv-awx sets="awx" ;;
    partsmith|reladiff|datadiff) venv=.venv-$what sets=$what ;;
    *) die "usage: tools/bootstrap.sh demo|test|molecule|lint|importer|docs|patroni|awx|partsmith|reladiff|datadiff" ;;
esac
# shellcheck disable=SC2086 # one file per word
files=$(printf ' requirements/%s.txt' $sets)

python=${PYTHON:-python3}
if [ "$what" = patroni ] && [ "$(id -u)" = 0 ]; then python=/usr/bin/python3; fi
# sys.executable is the real interpreter behind a pyenv shim, whose version the current folder may decide.
interpreter=$("$python" -c 'import sys; print(sys.executable, sys.version.split()[0]); sys.exit(sys.version_info < (3, 11))') ||
    die "found ${interpreter:-no working $python}, expected Python 3.11 or newer. Install it, or set PYTHON=/path/to/python3."

# What makes hosts (tests/lab/hosts.py names what is missing where this cannot install it).
if [ "$what" = molecule ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    for program in mmdebstrap systemd-nspawn ip ssh; do
        command -v "$program" >/dev/null || { apt_install mmdebstrap systemd-container iproute2 openssh-client; break; }
    done
fi

# Tests of hosts that cannot be reached try to reach them.
if [ "$what" = test ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v ssh >/dev/null; then
    apt_install openssh-client
fi

exec 9>"$venv.lock"
flock 9

# Scripts in a virtual environment hold its path, so a moved or copied checkout needs a new one.
place="$interpreter in $PWD"
stamp="$venv/.ready-$what"
# shellcheck disable=SC2086 # a list of file names without blanks
wanted="$place $(cat $files | cksum)"
[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || exit 0

if [ "$(cat "$venv/.place" 2>/dev/null)" != "$place" ]; then
    # Debian's python3 comes without ensurepip; it is in the package python3-venv.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            die "$python has no ensurepip, which makes virtual environments. As root: apt-get install python3-venv"
        fi
        apt_install python3-venv
    fi
    echo "bootstrap: making $venv with $interpreter"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo "$place" >"$venv/.place"
fi

echo "bootstrap: installing$files into $venv"
# shellcheck disable=SC2046,SC2086 # one -r per set
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input $(printf -- ' -r requirements/%s.txt' $sets)

# The checkout under the name that Ansible and Python import it by.
mkdir -p "$venv/collections/ansible_collections/stateful"
ln -sfn ../../../.. "$venv/collections/ansible_collections/stateful/dbops"
echo "$wanted" >"$stamp"
