"""Benchmarks: `python -m bench` measures, prints a table and writes JSON. Nothing here asserts a time.

`--small` runs everything in a few seconds; a test runs that, so that the benchmarks cannot rot.
"""
