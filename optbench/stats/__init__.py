"""Two optimizers over paired seeds: one exact test with its interval, corrected over a declared family of metrics."""
