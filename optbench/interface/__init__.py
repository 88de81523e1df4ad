"""The Python interface: the commands as functions for scripts and notebooks, which also accept objects."""
