#!/bin/sh
# A PostgreSQL under load: orders that come, change and go, a few dozen transactions a second, until it is ended: load_postgres.sh
# The database is that of libpq's variables (PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD). RATE is how many a second.
set -eu

programs=${POSTGRES_BIN:-$("$(dirname "$0")/install_postgres.sh")}
until "$programs/psql" --no-psqlrc --quiet --set=ON_ERROR_STOP=1 <<'SQL'
CREATE TABLE IF NOT EXISTS orders (
    id bigint PRIMARY KEY, customer text NOT NULL, total numeric(12, 2) NOT NULL, status text NOT NULL, placed_at timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS order_lines (
    order_id bigint, line_no int, sku text NOT NULL, quantity int NOT NULL, PRIMARY KEY (order_id, line_no)
);
SQL
do
    sleep 1
done
script=$(mktemp)
trap 'rm -f "$script"' EXIT
trap 'exit 0' INT TERM
cat >"$script" <<'SQL'
\set id random(1, 5000)
\set lines random(1, 5)
\set cents random(100, 100000)
\set kind random(1, 10)
BEGIN;
INSERT INTO orders VALUES (:id, 'customer ' || :id % 97, :cents / 100.0, 'new', clock_timestamp())
    ON CONFLICT (id) DO UPDATE SET status = CASE orders.status WHEN 'new' THEN 'paid' ELSE 'sent' END, total = excluded.total;
DELETE FROM order_lines WHERE order_id = :id AND line_no > :lines;
INSERT INTO order_lines SELECT :id, n, 'sku-' || (:cents + n) % 500, n FROM generate_series(1, :lines) n
    ON CONFLICT (order_id, line_no) DO UPDATE SET quantity = order_lines.quantity + 1;
DELETE FROM orders WHERE id = :id AND :kind = 1;
DELETE FROM order_lines WHERE order_id = :id AND :kind = 1;
COMMIT;
SQL
while :; do # It ends when the server is away for a moment.
    "$programs/pgbench" --no-vacuum --file="$script" --client=2 --rate="${RATE:-50}" --time=86400 >&2 &
    wait $! || sleep 1
done
