"""Tuning: which setting of each optimizer a tuning run chooses, and what choosing has cost."""
