"""Servers that the project starts for itself."""
