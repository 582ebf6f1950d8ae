"""End-to-end tests: real processes, a real S3-compatible server, real kills. `make e2e` runs them; `make faults` more of them.

E2E_ROUNDS is how many times each kill is made (see `conftest.rounds`).
"""
