"""The ingest half: sockets into logs. Acks leave only for what is on disk."""
