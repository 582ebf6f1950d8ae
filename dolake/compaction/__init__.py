"""Compaction and maintenance: fewer and better files with the same rows, and nothing kept that nobody needs.

plan       which files of a table are worth rewriting, from its manifests alone
job        one rewrite as values: what goes in, what came out
rewrite    data files in, fewer out: deletes applied, rows sorted, and where each row went
landing    what was rewritten becomes a snapshot, with the deletes that landed meanwhile carried over
"""
