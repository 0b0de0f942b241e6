"""Regions of a photo (DynRefer): nested views of each, fused into the patch tokens of one image, and heads on top."""
