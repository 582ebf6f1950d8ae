"""Compaction and maintenance: fewer and better files with the same rows, and nothing kept that nobody needs.

plan       which files of a table are worth rewriting, from its manifests alone
job        one rewrite as values: what goes in, what came out
rewrite    data files in, fewer out: deletes applied, rows sorted, and where each row went
landing    what was rewritten becomes a snapshot, with the deletes that landed meanwhile carried over
unreferenced  which objects of a table's folder nobody needs, from their names and what its metadata reaches
grace      how long such an object stays for the sake of whoever reads it still
purging    reads what a table needs, lists its folder, and deletes the rest
"""
