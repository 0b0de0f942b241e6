"""Pictures too large to open: reading, division into tiles, retrieval and answers (extra `uhr`)."""
