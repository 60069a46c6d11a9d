"""Verbs that live on the device; one file each."""
