"""Fingerprints: the kind of solution that an optimizer finds, on one page, compared with a panel of known optimizers.

    target or run -> entry (a value per strip and seed) -> standing in the panel -> words, pages, figure, JSON

The panel ships as `panel.parquet`; `training` trains targets that have no run yet.
"""
