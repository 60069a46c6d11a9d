"""`python -m converters.environments NAME…`: make environments ahead of time and print their Pythons."""

from __future__ import annotations

import sys

from converters.environments import TABLE, environment
from converters.environments.make import ensure
from edge_sdk.errors import EdgeError


def main(names: list[str]) -> int:
    """Make each of `names`; without names, say what there is."""
    if not names:
        for known in TABLE.values():
            sys.stdout.write(f"{known.name}\t{known.disk_mb} MB\t{known.about}\n")
        return 0
    try:
        for name in names:
            python = ensure(environment(name), say=_say)
            sys.stdout.write(f"{python}\n")
    except EdgeError as error:
        sys.stderr.write(f"{error.message}\n{error.hint or ''}\n")
        return error.exit_code
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
