"""Choosing hyper-parameters fairly: the same budget for every optimizer, on seeds of their own."""
