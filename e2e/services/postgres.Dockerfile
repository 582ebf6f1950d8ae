# The PostgreSQL server of the end-to-end tests, installed and run by the same scripts.
FROM debian:bookworm-slim

COPY e2e/services/install_postgres.sh e2e/services/run_postgres.sh e2e/services/load_postgres.sh /usr/local/bin/
RUN install_postgres.sh && install --directory --owner postgres /data

USER postgres
VOLUME /data
EXPOSE 5432
# SIGINT disconnects everybody and ends in order.
STOPSIGNAL SIGINT
ENTRYPOINT ["/usr/local/bin/run_postgres.sh"]
