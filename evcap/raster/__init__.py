"""Rasters of any size and kind: windows of them as RGB pixels, and where they lie on the ground."""
