"""From phrases to places: towers, galleries of labels, retrieval."""
