"""Opening pictures and clips, or a clear refusal."""
