"""The Python interface, for scripts and notebooks: the commands as functions that also accept objects."""
