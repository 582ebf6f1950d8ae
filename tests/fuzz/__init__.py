"""Hostile bytes for every decoder: mutations of right ones, and what must hold whatever they are.

A *target* takes bytes and says in a word what became of them. An error of the kind that its caller expects is such a word; any
other exception, and a value that is not what was sent, is a *finding*. `pytest` tries a few hundred of each, always the same;
`python -m tests.fuzz --seconds N` as many as fit into the time, each target in a process of its own, as pyarrow may die.
"""
