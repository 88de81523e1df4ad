"""Paired statistics over seeds: an exact test and its interval, corrected for multiple testing of declared metrics."""
