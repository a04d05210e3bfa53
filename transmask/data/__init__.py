"""Data that ships with the package: the trained checkpoint of ``transmask demo``."""
