"""Looking at data before a run: what is in it, what is twice, what a held-out set has too."""
