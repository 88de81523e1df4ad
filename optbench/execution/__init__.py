"""Training the trials of a plan: the session that owns a run directory, the order of work, and worker processes."""
