"""Who writes the words of a caption or an answer: EVCap itself, BLIP-2 as published, an image-text model, an endpoint.

Each is told the names that the visual memory gave. `generator` says what they have in common, `options` how one is named.
"""
