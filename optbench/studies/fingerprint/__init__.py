"""Fingerprints: one page on the kind of solution that an optimizer finds, next to those of known optimizers.

The known optimizers form a panel. Each strip of the page shows one property.

    target or run -> entry (a value per strip and seed) -> standing in the panel -> words, pages, figure, JSON

The panel ships as `panel.parquet`; `training` trains targets that have no run yet.
"""
