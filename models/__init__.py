"""Networks: blocks, the detector, and what loads, wraps and exports it."""
