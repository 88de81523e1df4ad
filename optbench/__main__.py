"""`python -m optbench`, for use if the `optbench` script is not installed."""

from __future__ import annotations

import sys

from optbench.script import main

# worker processes import this module again under another name
if __name__ == "__main__":
    sys.exit(main())
