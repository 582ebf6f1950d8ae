"""Files into fewer files. What is worth a rewrite is planned here; rewriting and maintenance will live here too."""
