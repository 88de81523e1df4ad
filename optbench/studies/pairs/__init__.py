"""One solution against another, and against the same optimizer with its batches in another order."""
