# What follows a PostgreSQL into dolake: its own client programs, and `dolake send`.
FROM python:3.11-slim-bookworm

RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-client && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /tmp/requirements.lock
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/requirements.lock && rm /tmp/requirements.lock
COPY pyproject.toml README.md /src/
COPY dolake /src/dolake
RUN pip install --no-cache-dir --no-deps /src && rm -rf /src && useradd --uid 10001 --create-home dolake
COPY e2e/services/follow_postgres.sh /usr/local/bin/

USER dolake
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/follow_postgres.sh"]
