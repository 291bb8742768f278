"""Bi-level routing attention."""
