"""The external visual-name memory: entries, names, retrieval, indexes, and its folder on disk."""
