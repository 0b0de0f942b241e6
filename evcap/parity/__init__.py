"""Comparison with recordings of the public releases that evcap follows, made on small random weights."""
