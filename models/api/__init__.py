"""For Python programs: AutoShape and the detections it returns."""
