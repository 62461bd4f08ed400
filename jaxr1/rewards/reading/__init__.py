"""Reading an answer as a typed value, and comparing two of them; `matching` begins."""
