"""Examples: each is a script and a module with a ``main`` function."""
