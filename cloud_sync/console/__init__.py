"""The pages operators look at."""
