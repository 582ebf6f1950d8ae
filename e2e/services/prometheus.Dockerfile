# Prometheus as Debian has it, with the configuration that scrapes dolake and the alerts on it.
FROM debian:bookworm-slim

RUN apt-get update && apt-get install --yes --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner prometheus /data
COPY e2e/services/run_prometheus.sh /usr/local/bin/
COPY e2e/services/prometheus /etc/dolake-prometheus

USER prometheus
ENV PROMETHEUS_BIN=/usr/bin
VOLUME /data
EXPOSE 9090
ENTRYPOINT ["/usr/local/bin/run_prometheus.sh"]
