#!/bin/sh
# Installs Spark with Iceberg for the end-to-end tests and prints its directory: venv/ with PySpark, jars/ with what is laid beside it.
# Done once for what the files in spark/ pin, into .services/ at the root of the checkout, or into the directory given. Needs Java 17
# or 11, Maven, and Python's venv; some 500 MB.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here/../../.services}
mkdir -p "$target"
target=$(cd "$target" && pwd)
pinned=$(cat "$here/spark/pom.xml" "$here/spark/requirements.txt" | sha256sum | cut -c1-12)
spark=$target/spark-$pinned

# Two test runs at once must not install into one another.
exec 9>"$target/install.lock"
flock 9

if [ ! -e "$spark/installed" ]; then
    for program in java mvn python3; do
        if ! command -v "$program" >/dev/null; then
            echo "install_spark.sh: $program is needed to install Spark (Debian: openjdk-17-jdk-headless, maven, python3-venv)" >&2
            exit 3
        fi
    done
    rm -rf "$spark"
    # A client that AWS's SDK would choose before the plain one, and what Spark brings itself, stay out.
    mvn --quiet --batch-mode --file "$here/spark/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
        -DincludeScope=runtime -DexcludeGroupIds=io.netty,org.slf4j,org.apache.httpcomponents.core5,org.apache.httpcomponents.client5 \
        -DexcludeArtifactIds=netty-nio-client,apache5-client -DoutputDirectory="$spark/jars" >&2
    "${PYTHON:-python3}" -m venv "$spark/venv"
    "$spark/venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$here/spark/requirements.txt" >&2
    touch "$spark/installed"
fi
echo "$spark"
