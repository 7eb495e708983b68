"""The data servers that a tunnel can run on, as a visible list."""
