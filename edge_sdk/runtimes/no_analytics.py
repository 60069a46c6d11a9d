"""Imported before openvino and nncf, so that they do not report their use to their maker.

`import openvino` otherwise forks this process, threads and all, to send a message over the network: on a device the
fork can hang for ever with the parent's files open.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it is an ImportError
