"""No engine reports its use over the network."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WATCH = """
import os, sys
forks = []
real = os.fork
os.fork = lambda: forks.append(1) or real()
import {module}
print(forks, sys.modules.get("openvino_telemetry"))
"""


@pytest.mark.parametrize("module", ["edge_sdk.runtimes.openvino", "converters.backends.openvino"])
def test_importing_openvino_forks_nothing_and_sends_nothing(module):
    pytest.importorskip("openvino", reason="openvino is not installed")
    code = WATCH.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[] None\n", done.stderr


def test_onnxruntime_starts_no_reporter(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"TMPDIR": str(tmp_path)}
    code = "import edge_sdk.runtimes.ort"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
