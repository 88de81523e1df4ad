"""Paired statistics over seeds: an exact test and its confidence interval, corrected over a declared set of metrics."""
