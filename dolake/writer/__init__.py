"""The writer half: logs into lake tables. It reads what is synced in the logs, and nothing else."""
