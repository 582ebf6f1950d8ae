"""dolake: a streaming lakehouse ingestion daemon."""
