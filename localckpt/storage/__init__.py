"""Which bytes, where: arrays in files, files in directories. Knows neither Firedrake nor the tape."""
