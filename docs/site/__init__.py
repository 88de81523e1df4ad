"""Pages generated when the site is built, each by a function that returns Markdown.

They are generated from the definitions that the program itself uses (the suite's schema, the registries, the catalog),
so they always agree with the program. `tables` writes its part of docs/run-directory.md, and a test checks this part.
"""
