"""Fingerprints: what kind of solution an optimizer finds, on one page beside a panel of known ones.

    target or run -> entry (a value per strip and seed) -> standing among the panel -> words, pages, figure, JSON

The panel ships as `panel.parquet`; `training` makes runs for targets that have none.
"""
