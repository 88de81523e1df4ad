"""Optimizers that are switched during training: whose solution do the first steps decide?"""
