"""Scores of captions, names, places and answers, and the files they are kept in."""
