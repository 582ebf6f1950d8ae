"""Soak and chaos: a real daemon under random load, trouble from a seed, and what must hold when it has been healed and drained.

A *round* is load with trouble, then healing, draining and judging; chaos is one round, a soak many, with calm ones between in
which memory is measured. `python -m tests.soak` runs either.
"""
