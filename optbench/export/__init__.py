"""Export a run to the files of an experiment tracker. They are made from the run's tables and not sent anywhere.

`run_log` defines the data that every tracker receives; one file per tracker writes them, and `trackers` lists the
trackers.
"""
