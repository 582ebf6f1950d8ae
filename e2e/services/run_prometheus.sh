#!/bin/sh
# Runs Prometheus in the foreground: run_prometheus.sh ADDRESS:PORT DIRECTORY CONFIGURATION
# PROMETHEUS_BIN names the programs' directory; without it install_prometheus.sh is asked.
set -eu

programs=${PROMETHEUS_BIN:-$("$(dirname "$0")/install_prometheus.sh")}
exec "$programs/prometheus" --web.listen-address="$1" --storage.tsdb.path="$2" --config.file="$3"
