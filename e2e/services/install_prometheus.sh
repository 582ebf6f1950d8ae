#!/bin/sh
# Fetches Prometheus from Debian's packages and prints the directory of its programs. Nothing is installed, nothing is started.
# Fetched once, into .services/ at the root of the checkout, or into the directory given. PROMETHEUS_BIN names programs that are there.
set -eu

if [ -n "${PROMETHEUS_BIN:-}" ]; then
    echo "$PROMETHEUS_BIN"
    exit
fi
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here/../../.services}
mkdir -p "$target"
target=$(cd "$target" && pwd)

# Two test runs at once must not fetch into one another.
exec 9>"$target/install.lock"
flock 9

if [ ! -x "$target/prometheus/usr/bin/prometheus" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "install_prometheus.sh: set PROMETHEUS_BIN to the directory of prometheus and promtool" >&2
        exit 3
    fi
    scratch=$(mktemp -d "$target/fetch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    chmod 755 "$scratch"
    { (cd "$scratch" && apt-get download prometheus) || (apt-get update && cd "$scratch" && apt-get download prometheus); } >&2
    rm -rf "$target/prometheus"
    dpkg-deb --extract "$scratch"/prometheus_*.deb "$scratch/unpacked"
    mv "$scratch/unpacked" "$target/prometheus"
fi
echo "$target/prometheus/usr/bin"
