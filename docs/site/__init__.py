"""The pages of the site that are generated when it is built: functions without arguments that return Markdown.

They read what the program reads (the suite's schema, registries, catalog, table rows), so that they cannot drift.
"""
