"""Files into fewer files. Rewriting and maintenance of committed tables will live here; nothing does yet."""
