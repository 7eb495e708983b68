#!/bin/sh
# What tests, demo and benchmarks need: Debian packages, and a virtual environment in .venv; with the word `demo`
# no more of that than the demo needs. Does nothing where all of it is there. Run by make.
set -eu
cd "$(dirname "$0")/.."

# A C compiler, for the library for Stunnel is built with the virtual environment.
packages="haproxy nginx-light libnginx-mod-stream stunnel4 iperf iperf3 openssl iproute2 procps python3-venv gcc libc6-dev"
[ "${1-}" = demo ] || packages="$packages
rpm rpmlint buildah mmdebstrap systemd-container dbus-daemon polkitd zsh fish lowdown man-db nftables
dpkg-dev debhelper dh-python lintian testssl.sh"
missing=
for package in $packages; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
# npm's provider of tokens needs node 18 or newer, from wherever it is.
[ "${1-}" = demo ] || { command -v node >/dev/null && command -v npm >/dev/null; } || missing="$missing nodejs npm"
if [ -n "$missing" ]; then
    as_root=
    if [ "$(id -u)" != 0 ]; then
        as_root=sudo
        command -v sudo >/dev/null || { echo "not root, and no sudo: have these installed first:$missing" >&2; exit 1; }
    fi
    echo "installing (the first time this takes minutes):$missing"
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    # shellcheck disable=SC2086  # one word a package
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
fi

# Made anew when the list of dependencies or the library for Stunnel changes, or when it is another machine's or a
# copied tree's.
environment() { # DIRECTORY EXTRA [CONSTRAINTS]
    stamp=$1/complete
    if [ "$(cat "$stamp" 2>/dev/null)" != "$PWD" ] || [ -n "$(find pyproject.toml setup.py scistreamd/dataserver/*.c -newer "$stamp")" ] ||
        { [ -n "${3-}" ] && [ "$3" -nt "$stamp" ]; } || ! "$1/bin/python" -c '' 2>/dev/null; then
        echo "making the virtual environment $1"
        python3 -m venv --clear "$1"
        # As newer versions of pip always do; Debian 12's own warns of the old way.
        PIP_USE_PEP517=1 "$1/bin/pip" install --quiet --disable-pip-version-check ${3:+--constraint "$3"} --editable ".[$2]"
        echo "$PWD" >"$stamp"
    fi
}
environment .venv dev
[ "${1-}" != demo ] || exit 0

# For `make test` alone: our libraries in the oldest versions that are supported.
environment .venv-oldest test tests/oldest.txt

# The OpenID provider that the tests log in at, as tests/oidc/package-lock.json pins it.
provider=tests/oidc/node_modules
if ! cmp -s tests/oidc/package-lock.json "$provider/complete"; then
    echo "installing the tests' OpenID provider"
    (cd tests/oidc && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null)
    cp tests/oidc/package-lock.json "$provider/complete"
fi
