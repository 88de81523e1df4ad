"""A program that runs the command line in a separate process."""

MAIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a script inherits an ignored SIGINT
from optbench.cli import main
sys.exit(main(sys.argv[1:]))
"""
