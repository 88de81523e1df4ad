"""Export a run to the files of an experiment tracker. The files are made from the run's tables and not sent anywhere.

`run_log` defines the data that every tracker receives, one module per tracker writes its files, and `trackers` lists
the trackers.
"""
