#!/bin/sh
# Runs a PostgreSQL server in the foreground: run_postgres.sh ADDRESS:PORT DIRECTORY DATABASE [OPTION...]
# The first time it makes the cluster DIRECTORY/data with the user `lake`, whose password is POSTGRES_PASSWORD, and the database.
# OPTIONs are the server's own (-c name=value). POSTGRES_BIN names the programs' directory; without it install_postgres.sh is asked.
set -eu

address=${1%:*}
port=${1##*:}
directory=$2
database=$3
shift 3
: "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD, the password that clients will use}"
programs=${POSTGRES_BIN:-$("$(dirname "$0")/install_postgres.sh")}

if [ ! -e "$directory/data/made" ]; then
    rm -rf "$directory/data" # A start that was cut short left half of it.
    (umask 077 && printf '%s' "$POSTGRES_PASSWORD" >"$directory/password")
    "$programs/initdb" -D "$directory/data" -U lake --pwfile "$directory/password" --auth=scram-sha-256 --encoding=UTF8 --locale=C \
        --no-sync >&2
    rm "$directory/password"
    echo "host all all all scram-sha-256" >>"$directory/data/pg_hba.conf"
    [ "$database" = postgres ] || echo "CREATE DATABASE \"$database\"" | "$programs/postgres" --single -D "$directory/data" postgres >&2
    sync -f "$directory/data"
    touch "$directory/data/made"
fi
exec "$programs/postgres" -D "$directory/data" -h "$address" -p "$port" -k "$directory" "$@"
