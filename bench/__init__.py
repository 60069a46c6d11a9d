"""Benchmarks: alternating runs, medians of CPU time, ratios; `make bench` writes bench/results/NAME.json."""
