#!/bin/sh
# Finds PostgreSQL's server programs, or installs them from Debian's packages where they are missing (as root), and prints
# their directory. Nothing is started: the package's own cluster is never made.
set -eu

find_programs() {
    for directory in ${POSTGRES_BIN:-} /usr/lib/postgresql/*/bin; do
        if [ -x "$directory/initdb" ] && [ -x "$directory/pg_ctl" ]; then
            found=$directory # The last is the newest.
        fi
    done
    [ -n "${found:-}" ]
}

if ! find_programs; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install_postgres.sh: install PostgreSQL's server (Debian: postgresql), or set POSTGRES_BIN to the directory of initdb" >&2
        exit 3
    fi
    # Without this the package would make a cluster and start it.
    mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends postgresql; } >&2
    find_programs
fi
echo "$found"
