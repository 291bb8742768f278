"""Which regions bi-level routing attention is routed to."""
