#!/bin/sh
# Follows a PostgreSQL database into dolake: follow_postgres.sh SOURCE [OPTION of dolake send...]
# The database is that of libpq's variables (PGHOST, PGDATABASE, PGUSER, PGPASSWORD, ...); SLOT names the replication slot, `dolake` unless
# set, and is made if it is not there: what was in the tables before that is not sent.
#
# Nothing is lost whatever is killed: the slot is advanced to what dolake has on its disk, and by nobody else. pg_recvlogical confirms
# what it has written to its pipe, which is not the same; so it is told to sync once in weeks, and ended by a SIGKILL. That is done each
# ROUND_S seconds, an hour unless set, so that the slot is advanced again and the server may let go of its write-ahead log.
set -u # Whatever fails in a round, the next one comes.

source=$1
shift
slot=${SLOT:-dolake}
scratch=$(mktemp -d) || exit
pipe=$scratch/changes
mkfifo "$pipe" || exit
recv= send= timer=
leave() {
    trap - EXIT INT TERM
    [ -z "$timer" ] || kill "$timer" 2>/dev/null
    [ -z "$recv" ] || kill -KILL "$recv" 2>/dev/null
    [ -z "$send" ] || wait "$send" # It sends what it has, and ends with the pipe.
    rm -rf "$scratch"
    exit "${1:-0}"
}
trap 'leave $?' EXIT
trap 'leave 0' INT TERM

ask() { psql --no-psqlrc --quiet --no-align --tuples-only --set=ON_ERROR_STOP=1 --set="slot=$slot" --set="lsn=${1:-}"; }

while :; do
    # Where an earlier run has come to; nothing, or the lsn of a commit and how many of its changes.
    lsn=$(dolake send - --source "$source" --format wal2json --resume lsn --json "$@" </dev/null | sed -n 's/.*"lsn": "\([0-9A-F/]*\)[+"].*/\1/p')
    if ! ask "$lsn" >"$scratch/columns" <<'SQL'
SELECT pg_create_logical_replication_slot(:'slot', 'wal2json') WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = :'slot') \g /dev/null
SELECT pg_replication_slot_advance(:'slot', nullif(:'lsn', '')::pg_lsn) FROM pg_replication_slots
 WHERE slot_name = :'slot' AND confirmed_flush_lsn < nullif(:'lsn', '')::pg_lsn \g /dev/null
SELECT json_build_object('action', 'R', 'schema', nspname, 'table', relname,
        'columns', json_agg(json_build_object('name', attname, 'type', format_type(atttypid, atttypmod)) ORDER BY attnum),
        'pk', coalesce(json_agg(json_build_object('name', attname, 'type', format_type(atttypid, atttypmod)) ORDER BY array_position(indkey::int[], attnum::int))
              FILTER (WHERE attnum = ANY (indkey)), '[]'))
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
  JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_index ON indrelid = pg_class.oid AND indisprimary
 WHERE relkind IN ('r', 'p') AND nspname NOT IN ('pg_catalog', 'information_schema') AND nspname NOT LIKE 'pg_toast%'
 GROUP BY nspname, relname, pg_class.oid;
SQL
    then
        sleep 1
        continue
    fi
    # Both ends are open before anybody is started: who opens one by himself waits for the other, who may be dead by then.
    exec 3<>"$pipe" 4<"$pipe" 5>"$pipe" 3>&-
    {
        cat "$scratch/columns"
        exec pg_recvlogical --dbname="${PGDATABASE:-}" --slot="$slot" --start --no-loop --file=- --fsync-interval=2000000 --status-interval="${STATUS_S:-10}" \
            --option=format-version=2 --option=include-transaction=1 --option=include-lsn=1 --option=include-xids=1 \
            --option=include-timestamp=1 --option=include-types=1 --option=include-pk=1
    } >&5 4<&- 5>&- &
    recv=$!
    dolake send - --source "$source" --format wal2json --resume lsn "$@" <&4 4<&- 5>&- &
    send=$!
    exec 4<&- 5>&-
    # Ended itself it takes its sleep along; left alone it ends nobody.
    (trap 'kill $!; exit' TERM; sleep "${ROUND_S:-3600}" & wait $!; kill -0 $$ && kill -KILL "$recv") 2>/dev/null &
    timer=$!
    wait "$send" # It says why itself; the next round goes on from what is durable.
    kill -KILL "$recv" 2>/dev/null
    kill "$timer" 2>/dev/null
    wait "$recv" "$timer"
    recv= send= timer=
    sleep "${AGAIN_S:-1}"
done
