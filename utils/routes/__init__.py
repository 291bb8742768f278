"""Where bi-level routing attention looks."""
