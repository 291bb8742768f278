"""Geometry of boxes: conversions, overlaps and the losses built on them, suppression."""
