"""The frozen language model with its adapters and search, sentence embeddings, and what chooses among captions."""
