#!/bin/sh
# Installs Spark Connect beside Spark for the end-to-end tests and prints its directory: jars/ with the server, python/ with what its
# client needs. Done once for what the files in spark/connect/ pin, as install_spark.sh does it. Needs Maven; some 90 MB.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here/../../.services}
mkdir -p "$target"
target=$(cd "$target" && pwd)
pinned=$(cat "$here/spark/connect/pom.xml" "$here/spark/connect/requirements.txt" | sha256sum | cut -c1-12)
connect=$target/spark-connect-$pinned

# Two test runs at once must not install into one another.
exec 9>"$target/install.lock"
flock 9

if [ ! -e "$connect/installed" ]; then
    if ! command -v mvn >/dev/null; then
        echo "install_spark_connect.sh: mvn is needed to install Spark Connect (Debian: maven)" >&2
        exit 3
    fi
    rm -rf "$connect"
    mvn --quiet --batch-mode --file "$here/spark/connect/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
        -DoutputDirectory="$connect/jars" >&2
    "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target "$connect/python" \
        -r "$here/spark/connect/requirements.txt" >&2
    touch "$connect/installed"
fi
echo "$connect"
