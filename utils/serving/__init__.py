"""The parts of the server: limits, pictures from strangers, batches, metrics, the web application and its page."""
