"""Regions of images described: DynRefer (arXiv 2405.16071)."""
