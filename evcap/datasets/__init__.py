"""Readers of captions, boxes, name lists and named images; planned test scenes; drawn images."""
