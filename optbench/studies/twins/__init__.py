"""Twins: how far two optimizers are from each other in weight space as training proceeds."""
