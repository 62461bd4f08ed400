"""Model families, one file a family; strings that name one stand nowhere else."""
