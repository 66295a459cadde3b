"""The processes of a launch; the only package that calls collectives."""
