"""Export of a run to files for an experiment tracker, made from the run's tables. Nothing is sent anywhere.

`run_log` defines the data that every tracker receives, one module per tracker writes its files, and `trackers` lists
the trackers.
"""
