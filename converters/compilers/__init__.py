"""Vendors' compilers behind one contract: a program that turns a build into what an accelerator runs."""

from __future__ import annotations

from edge_sdk.registry import Plugin, Registry


def registry() -> Registry:
    """Return the table of compilers by the name that stands in a profile's `[[runtime]] compiler`.

    Each target is a `converters.compilers.base.Tool`; third parties add theirs by the entry point `edge_sdk.compiler`.
    """
    return Registry(
        "compiler",
        {
            name: Plugin(target=f"converters.compilers.tools:{name.upper()}")
            for name in ("edgetpu", "tensorrt", "rknn", "hailo")
        },
    )
