"""Suite files: their schema, and how they are found, read, overridden from the command line, and written out."""

from optbench.suite.dump import dump_suite, suite_differences, suite_hash
from optbench.suite.load import load_suite
from optbench.suite.resolve import resolve_suite_path, shipped_suites
from optbench.suite.schema import Suite
from optbench.suite.variants import Variant, variants

__all__ = [
    "Suite",
    "Variant",
    "dump_suite",
    "load_suite",
    "resolve_suite_path",
    "shipped_suites",
    "suite_differences",
    "suite_hash",
    "variants",
]
