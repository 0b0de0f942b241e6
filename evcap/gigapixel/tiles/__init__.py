"""Tile plans, and the index of their query features."""
