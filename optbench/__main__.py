"""`python -m optbench`, which runs the command `optbench`."""

import sys

from optbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
