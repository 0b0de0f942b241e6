"""Many images into memory keys, resumed after a kill, in this process or on a Ray cluster."""
