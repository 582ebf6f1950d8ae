"""Compaction and maintenance: fewer and better files with the same rows, and nothing kept that nobody needs.

plan          which files of a table are worth rewriting, from its manifests alone (choice, reach, sizes: what it decides by)
job           one rewrite as values: what goes in, what came out
rewrite       data files in, fewer out: deletes applied, rows sorted, and where each row went (reading, ordering, placing, gathering)
process       a rewrite in a process of its own
landing       what was rewritten becomes a snapshot, with the deletes that landed meanwhile carried over
compactor     these in their order, for one table
unreferenced  which objects nobody needs (grace: and for how long a reader still may)
purging       finds them, and deletes them
"""
