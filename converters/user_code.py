"""Functions of the user's own, named as `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from edge_sdk.errors import UsageError
from edge_sdk.registry import near_miss


def load(text: str, flag: str) -> Any:
    """Import the function that `text` names, from the current folder or PYTHONPATH; runs the module's code.

    Raises:
        UsageError: it has another form, cannot be imported, is absent, or cannot be called.
    """
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{flag} `{text}` names no function", hint=f"{flag} package.module:function")
    here = os.getcwd()  # noqa: PTH109 (sys.path holds text)
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except BaseException as error:
        raise UsageError(
            f"cannot import `{module_name}` of {flag} {text}: {said(error)}",
            hint="run from the folder that holds it, or set PYTHONPATH",
        ) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = near_miss(part, [n for n in vars(found) if not n.startswith("_")])
            raise UsageError(f"`{module_name}` has no `{attribute}`", hint=near or f"{flag} package.module:function")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"`{text}` is a {type(found).__name__}, expected a function", hint=f"{flag} package.module:fn")
    return found


def said(error: BaseException) -> str:
    """Return the type and the first line of an error that a user's code raised."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
