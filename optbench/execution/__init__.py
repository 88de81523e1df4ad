"""Training the trials of a plan: the session, the order of work, and the processes that do it.

schedule     which trials are left to train, in which pieces
preflight    everything that can be wrong is found before anything is trained; whose code a run uses
session      owns the run directory: hands pieces to workers and writes what they find
  directory  where it lies, and whether it may be continued here
  interrupts Ctrl-C never tears what is being written
  comparisons  solutions of one seed are compared once all of its trials have ended
  view       who watches
pool         worker processes, one thread each
  messages   what a worker is given, and what it answers
  work       what it does with a unit: trains a cohort as far as memory allows, or compares solutions
"""
