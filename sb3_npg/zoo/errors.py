"""What goes wrong before any training starts."""


class ZooError(ValueError):
    """Bad input to a command of the zoo: one line that names the key or the argument, the file, and the way out."""
