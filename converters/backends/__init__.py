"""Makers of candidate builds, one file per back-end."""
