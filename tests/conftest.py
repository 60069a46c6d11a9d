"""What every test may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edge_sdk.runtimes.no_analytics  # noqa: F401  (before openvino and nncf, which tests import, too)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for what tests share: support, pipeline_parts, …


@pytest.fixture(scope="session", autouse=True)
def signals_reach_processes() -> None:
    """Undo that whoever started the tests in the background let them, and so all that they start, ignore signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real models, data sets, videos and broken inputs (`EDGE_TESTDATA`)."""
    path = Path(os.environ.get("EDGE_TESTDATA", ROOT.parent / "shared" / "testdata"))
    if not (path / "manifest.json").is_file():
        pytest.skip(f"no test material at {path}: set EDGE_TESTDATA")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what conversions cache apart from this user's; environments that were made stay found."""
    here = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_ENVIRONMENTS", os.environ.get("EDGE_ENVIRONMENTS", str(here / "edge-sdk" / "environments")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def coco_labels(testdata: Path) -> tuple[str, ...]:
    """The 80 class names of COCO detectors."""
    text = (testdata / "datasets" / "coco128_train2017" / "classes.yaml").read_text()
    rows = [line.strip().partition(":") for line in text.splitlines() if line.strip()[:1].isdigit()]
    return tuple(name.strip() for _, _, name in rows)


@pytest.fixture(scope="session")
def real_artifact(testdata: Path, tmp_path_factory: Any) -> Callable[..., Path]:
    """A function that packs a model of the test material as it is published; its engine is the file's own.

    `image` are keys of the manifest's `input`, such as `color` (default rgb), `resize`, `mean`, `std`.
    """
    from edge_sdk import runtimes
    from edge_sdk.artifact import write_artifact
    from edge_sdk.tasks import decoders
    from edge_sdk.testing import tiny_manifest

    folder = tmp_path_factory.mktemp("real")

    def pack(file: str, decoder: str, *, labels: Any = (), params: Any = None, **image: Any) -> Path:
        source = testdata / "models" / file
        engine = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert"}[source.suffix]
        if runtimes.registry().missing(engine):
            pytest.skip(f"{engine} is not installed")
        runtime = runtimes.registry().load(engine)(source, {})
        spec = runtime.inputs[0]
        shape = [d or 1 for d in spec.shape]
        outputs = [{"name": o.name, "shape": [d or 1 for d in o.shape], "dtype": o.dtype} for o in runtime.outputs]
        for given, output in zip(runtime.outputs, outputs, strict=True):
            if given.scale is not None:
                output |= {"scale": given.scale, "zero": given.zero}
        runtime.close()
        layout = "NHWC" if shape[3] in (1, 3) else "NCHW"
        form = {"name": spec.name, "shape": shape, "dtype": spec.dtype, "layout": layout, "color": "rgb"}
        manifest = tiny_manifest(
            decoders().plugin(decoder).capabilities["task"],
            name=source.stem.replace(".", "-").lower(),
            input=form | {"resize": {"mode": "stretch"}} | image,
            outputs=outputs,
            decoder={"name": decoder, "params": params or {}},
            runtime={"name": engine, "options": {"threads": 1}},
        )
        entries = {f"model/{source.name}": source, "labels.txt": "".join(f"{name}\n" for name in labels).encode()}
        path = folder / f"{source.stem}-{len(list(folder.iterdir()))}.edge"
        return write_artifact(path, manifest=manifest, entries=entries, evidence={}).path

    return pack


@pytest.fixture(scope="session")
def tflite_python() -> Path:
    """The Python of the environment with tflite-runtime 2.14 and numpy 1, which `make tflite-env` makes."""
    from converters.environments import environment, find

    python = find(environment("tflite-runtime"), ROOT / ".venv" / "environments")
    if python is None:
        pytest.skip("no tflite-runtime environment: `make tflite-env` makes it (needs a network and Python 3.11)")
    return python


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listened on a moment ago."""
    from support import pick_port

    return pick_port()


class RtspCamera:
    """A real RTSP server in a process of its own, which can freeze, die and come back on its port.

    `/main` is 640x480 and `/sub` 320x240 at `fps`, for `admin` with the password `s3cret`.
    """

    def __init__(self, port: int, *, fps: int = 25, auth: str = "digest") -> None:
        self.port = port
        self._words = ["/usr/bin/python3", str(ROOT / "tests" / "rtsp_server.py"), str(port), "--fps", str(fps)]
        self._words += ["--user", "admin", "--password", "s3cret", "--auth", auth]
        self._process: subprocess.Popen[bytes] | None = None

    def on(self) -> None:
        self._process = subprocess.Popen(self._words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def off(self) -> None:
        """Die as a camera without power does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def uri(self, path: str = "sub", *, password: str = "s3cret") -> str:
        return f"rtsp://admin:{password}@127.0.0.1:{self.port}/{path}"


@pytest.fixture(scope="session")
def rtsp_packages() -> None:
    """GStreamer's RTSP server for the system's Python."""
    probe = 'import gi; gi.require_version("GstRtspServer", "1.0"); from gi.repository import GstRtspServer'
    try:
        done = subprocess.run(["/usr/bin/python3", "-c", probe], capture_output=True, check=False)
    except OSError:
        pytest.skip("no /usr/bin/python3 to run an RTSP server")
    if done.returncode:
        pytest.skip("no RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-ugly …")


@pytest.fixture
def rtsp(rtsp_packages: None, free_port: int) -> Iterator[RtspCamera]:
    """An RTSP camera that is on."""
    camera = RtspCamera(free_port)
    camera.on()
    yield camera
    camera.off()
