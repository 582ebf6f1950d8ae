"""Rows into files: declared types, events as Arrow columns, Arrow as Parquet."""
