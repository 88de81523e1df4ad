"""Paired statistics over seeds: an exact test with its interval, corrected over a declared family of metrics."""
