"""Weights on disk, read without trust."""
