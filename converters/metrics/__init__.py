"""Task metrics on the golden set, the interval of their drop, and guards that no mean can hide."""
