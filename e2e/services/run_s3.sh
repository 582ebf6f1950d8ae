#!/bin/sh
# Runs the S3-compatible server in the foreground: run_s3.sh ADDRESS DIRECTORY [BUCKET...]
# Buckets are directories below DIRECTORY/buckets. Keys come from ROOT_ACCESS_KEY and ROOT_SECRET_KEY; `GET /health` answers when it is up.
# VERSITYGW names the binary; without it install_s3.sh is asked.
set -eu

address=$1
directory=$2
shift 2
: "${ROOT_ACCESS_KEY:?set ROOT_ACCESS_KEY and ROOT_SECRET_KEY, the keys that clients will use}"
: "${ROOT_SECRET_KEY:?set ROOT_ACCESS_KEY and ROOT_SECRET_KEY, the keys that clients will use}"
binary=${VERSITYGW:-$("$(dirname "$0")/install_s3.sh")}

mkdir -p "$directory/buckets" "$directory/accounts"
for bucket in "$@"; do
    mkdir -p "$directory/buckets/$bucket"
done
# With an account directory an unknown key is answered as Amazon does (InvalidAccessKeyId), without it as an admin's error.
exec "$binary" --quiet --keep-alive --health /health --port "$address" --region us-east-1 --iam-dir "$directory/accounts" \
    posix "$directory/buckets"
