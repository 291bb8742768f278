"""From an image to boxes: sources, streams, tracking, windows."""
