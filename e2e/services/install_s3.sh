#!/bin/sh
# Builds the S3-compatible server of the end-to-end tests (versitygw, plain files below a directory) and prints its path.
# Built once a version, into .services/ at the root of the checkout, or into the directory given. Needs Go.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.env"
target=${1:-$here/../../.services}
binary=$target/versitygw-$VERSITYGW_VERSION
mkdir -p "$target"
target=$(cd "$target" && pwd)
binary=$target/versitygw-$VERSITYGW_VERSION

# Two test runs at once must not build into one another.
exec 9>"$target/install.lock"
flock 9

if [ ! -x "$binary" ]; then
    if ! command -v go >/dev/null; then
        echo "install_s3.sh: Go $GO_VERSION_MIN or later is needed to build the S3 server: install it and put \`go\` on the PATH" >&2
        exit 3
    fi
    scratch=$(mktemp -d "$target/build.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    # Without cgo the binary runs in any image.
    CGO_ENABLED=0 GOBIN=$scratch GOTOOLCHAIN=${GOTOOLCHAIN:-auto} go install "$VERSITYGW_MODULE@$VERSITYGW_VERSION" >&2
    mv "$scratch/versitygw" "$binary"
fi
echo "$binary"
