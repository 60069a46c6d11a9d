"""Stores of the fleet database."""
