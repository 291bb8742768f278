"""Hyper-parameters by --evolve."""
