"""A run as the files of an experiment tracker: made of its tables when it is over, and sent nowhere.

`trial_log` is what any tracker is given of a trial; a file for each tracker writes it, and `trackers` lists them.
"""
