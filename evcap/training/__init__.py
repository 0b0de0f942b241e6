"""The training loop, its folder on disk, cached features, augmentation, first tensors."""
