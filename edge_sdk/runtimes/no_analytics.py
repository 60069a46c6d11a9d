"""Imported before openvino, nncf and onnxruntime, so that they do not report their use to their maker.

`import onnxruntime` otherwise starts a reporter with a file `.ses` in the temporary folder, whatever
`disable_telemetry_events` is told later. `import openvino` otherwise forks this process, threads and all, to send a
message over the network: on a device the fork can hang for ever with the parent's files open.
"""

from __future__ import annotations

import os
import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it is an ImportError
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
