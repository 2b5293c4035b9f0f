"""The Ray lane: the local lane's worker on a node of a Ray cluster."""
