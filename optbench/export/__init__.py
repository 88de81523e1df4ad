"""Export of a run's tables to the files of an experiment tracker. Nothing is sent anywhere.

`run_log` defines the data that every tracker receives, one module per tracker writes its files, and `trackers` lists
the trackers.
"""
