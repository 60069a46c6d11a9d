"""`python -m edge_sdk` is `edge`."""

from edge_sdk.cli import run_and_exit

run_and_exit()
