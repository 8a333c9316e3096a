"""Doors for other libraries: each module imports its library, and is imported by no other."""
