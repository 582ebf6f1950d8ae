#!/bin/sh
# Finds PostgreSQL's server programs and wal2json, or installs them from Debian's packages where they are missing (as root), and prints
# the programs' directory. Nothing is started: the package's own cluster is never made.
set -eu

find_programs() {
    for directory in ${POSTGRES_BIN:-} /usr/lib/postgresql/*/bin; do
        if [ -x "$directory/initdb" ] && [ -x "$directory/pg_ctl" ]; then
            found=$directory # The last is the newest.
        fi
    done
    [ -n "${found:-}" ]
}

has_wal2json() {
    [ -e "${found%/bin}/lib/wal2json.so" ]
}

install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install_postgres.sh: install PostgreSQL's server and wal2json (Debian: postgresql, postgresql-NN-wal2json), or set" \
            "POSTGRES_BIN to the directory of initdb" >&2
        exit 3
    fi
    # Without this the package would make a cluster and start it.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends "$1"; } >&2
}

find_programs || { install postgresql && find_programs; }
has_wal2json || install "postgresql-$(basename "${found%/bin}")-wal2json"
echo "$found"
