"""The command line in a process of its own."""

MAIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a script inherits an ignored SIGINT
from optbench.cli import main
sys.exit(main(sys.argv[1:]))
"""
