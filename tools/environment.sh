#!/bin/sh
# Make .venv hold the pinned environment; do nothing if it already does. Every failure is one plain message.
set -u

fail() {
    printf '\nsimba-lab: %s\n' "$1" >&2
    exit 1
}

find_python() {
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
        echo "$candidate"
        return
    done
}

want=$(cat requirements.txt pyproject.toml tools/environment.sh | cksum)" ${TORCH:-}"
stamp=.venv/simba-lab.stamp
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && [ -x .venv/bin/python ] && exit 0

python=$(find_python)
if [ -z "$python" ]; then
    [ -n "${PYTHON:-}" ] && fail "'$PYTHON' is not a Python from 3.11 to 3.13. Set PYTHON to one that is."
    command -v python3 >/dev/null 2>&1 || fail "no Python found. Install Python 3.11, 3.12 or 3.13 and run make again."
    fail "$(python3 --version 2>&1) is not supported. Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3.12"
fi

free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "${free:-99}" -ge 4 ] || fail "only $free GiB free here. The environment and the book need 4 GiB; free some and run make again."

log=$(mktemp) || fail "no temporary file can be made; is the disk full?"
pins=$log.txt
trap 'rm -f "$log" "$pins"' EXIT
rm -f "$stamp"
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "Creating .venv with $("$python" --version 2>&1)"
    rm -rf .venv
    "$python" -m venv .venv >"$log" 2>&1 || fail "python -m venv failed; on Debian and Ubuntu install the package python3-venv.
$(tail -n 3 "$log")"
fi

install() {
    echo "Installing $1"
    shift
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-compile "$@" >"$log" 2>&1 && return
    grep -v '^WARNING' "$log" | tail -n 5 >&2
    if grep -qiE 'no space left' "$log"; then
        fail "the disk is full. Free 4 GiB and run make again; what is already installed is kept."
    elif grep -qiE 'failed to establish|name resolution|connection (broken|refused|reset|aborted)|timed? ?out|proxy|NewConnectionError|network is unreachable|from versions: none' "$log"; then
        fail "packages cannot be downloaded. Check the network (or pip's index settings) and run make again."
    fi
    fail "installation failed; pip's last lines are above."
}

# Torch first: the plain package of some indexes is a CUDA build of several gigabytes.
# shellcheck disable=SC2086  # TORCH may hold pip options
install "torch (${TORCH:-torch})" ${TORCH:-torch}
# Another build of torch is not to be replaced by the pinned one.
grep -v '^torch==' requirements.txt >"$pins"
install "the pinned packages of requirements.txt" -r "$pins"
install "simba-lab" --no-deps --no-build-isolation --editable .
# Compiled on all cores, once: pip does it on one, and where Python may not write later every start would pay for it.
echo "Compiling the packages"
.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || :  # some packages carry files of other versions
printf '%s' "$want" >"$stamp"
