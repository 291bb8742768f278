"""Several processes: rank, votes, shares, shared memory, batch norm over all of them."""
