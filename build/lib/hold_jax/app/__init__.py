"""The program: the config, what it builds, and the modes of `main.py`."""
