"""Images too large for one look (ImageRAG): tiles, search, answers."""
