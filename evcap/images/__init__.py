"""Photos in: finding files, opening them safely as RGB, the tensor that an image tower takes."""
