"""Paired statistics over seeds: an exact test with its interval, and a correction for testing several metrics."""
