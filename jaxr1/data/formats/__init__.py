"""Formats of rows: a small file for each, and a table of them."""
