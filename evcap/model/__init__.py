"""The image tower, the Q-Former, the name fusion, and EVCap, which chains them."""
