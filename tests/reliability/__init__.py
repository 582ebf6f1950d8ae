"""What is promised, how each promise is tested, and the figures of the last runs: `docs/reliability.md` is written from here."""
