# dolake in a container: `dolake serve`, not as root, with its data on a volume.
FROM python:3.11-slim

COPY requirements.lock /tmp/requirements.lock
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/requirements.lock && rm /tmp/requirements.lock
COPY pyproject.toml README.md /src/
COPY dolake /src/dolake
RUN pip install --no-cache-dir --no-deps /src && rm -rf /src \
    && useradd --uid 10001 --create-home dolake && install --directory --owner dolake /var/lib/dolake

USER dolake
ENV DOLAKE_DATA=/var/lib/dolake
VOLUME /var/lib/dolake
EXPOSE 8765 8181
# SIGTERM makes it flush before it ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["dolake"]
CMD ["serve"]
