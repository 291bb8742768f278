"""The parts of the server: what clients send, what waits, the detector, the web application and its page, HTTP."""
