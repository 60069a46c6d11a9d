"""`edge demo`: the whole line on this machine, every step asserting what it claims."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from edge_sdk.errors import EXIT_INTERRUPTED, EXIT_OK, BackendError, EdgeError, UsageError
from edge_sdk.output import Output

_NEEDS = ("torch", "sklearn", "onnx", "onnxruntime", "openvino", "nncf", "fastapi", "tuf", "paho", "cv2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep everything there; on a terminal the service runs until Ctrl-C"
    )
    parser.add_argument(
        "--broker", default="auto", metavar="auto|mosquitto|embedded|URL", help="as in `edge serve` (default: auto)"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="the console's port (default: a free one)")
    own = parser.add_argument_group("your own model, converted and run on your own video")
    own.add_argument("--model", type=Path, metavar="M.onnx", help="what `edge convert` reads; goes with --source")
    own.add_argument("--source", metavar="VIDEO", help="a video, or another source of `edge run`")
    own.add_argument("--calibration", type=Path, metavar="DIR", help="images that let int8 builds take part")
    own.add_argument("--golden", type=Path, metavar="DIR", help="labelled images that judge the builds")
    own.add_argument("--task", metavar="T", help="when the model does not say: classification, detection")


def run(args: argparse.Namespace, output: Output) -> int:
    if (args.model is None) != (args.source is None):
        raise UsageError("`edge demo` takes --model and --source together", hint="or neither, for the demo's own")
    _check_installed()
    with _room(args.keep) as root, _interruptible():
        return _own(args, output, root) if args.model is not None else _fleet(args, output, root)


def _fleet(args: argparse.Namespace, output: Output, root: Path) -> int:
    from cloud_sync.demo import config
    from cloud_sync.demo.display import Display
    from cloud_sync.demo.line import Line
    from cloud_sync.demo.steps import STEPS, summary

    output.note("The whole line on this machine: model, fleet, drift, retraining, rollout, rollback", "bold")
    output.note(config.shortened())
    display = Display(output, [(s.name, s.title) for s in STEPS])
    start = time.monotonic()
    error: BaseException | None = None
    with Line(root, display, broker=args.broker, port=args.port) as line:
        for step in STEPS:
            display.begin(step.name)
            try:
                display.end(step.run(line), ok=True)
            except (EdgeError, KeyboardInterrupt) as failure:
                error = failure
                display.end(str(failure).splitlines()[0] if str(failure) else "interrupted", ok=False)
                break
        display.close()
        seconds = time.monotonic() - start
        if error is None:
            _show(output, summary(line, kept=args.keep is not None), f"All of it in {seconds:.0f} s")
            if args.keep is not None:
                _keep_running(output, line)
    return _result(output, display.steps, error, {"seconds": round(seconds, 1), "console": line.url})


def _own(args: argparse.Namespace, output: Output, root: Path) -> int:
    from cloud_sync.demo import own
    from cloud_sync.demo.display import Display

    display = Display(output, own.STEPS)
    extra: list[str] = []
    for name in ("calibration", "golden", "task"):
        if getattr(args, name) is not None:
            extra += [f"--{name}", str(getattr(args, name))]
    error: BaseException | None = None
    try:
        lines = own.run(display, root, model=args.model, source=args.source, extra=extra)
    except (EdgeError, KeyboardInterrupt) as failure:
        error, lines = failure, []
        display.end(str(failure).splitlines()[0] if str(failure) else "interrupted", ok=False)
    display.close()
    if args.keep is not None and error is None:
        _show(output, lines, "Your model runs")
    return _result(output, display.steps, error, {})


def _result(output: Output, steps: list[Any], error: BaseException | None, more: dict[str, Any]) -> int:
    """Print the object of `--json`, or the failure for people, and return the exit code."""
    shown: dict[str, Any] = {"steps": [step.to_json() for step in steps], "ok": error is None, **more}
    if error is None:
        if output.as_json:
            output.result(shown)
        return EXIT_OK
    if not isinstance(error, EdgeError):
        if output.as_json:
            output.result(shown)
        output.note("interrupted")
        return EXIT_INTERRUPTED
    if output.as_json:
        output.result({**shown, "error": error.to_json()})
    else:
        output.note(f"{output.styled('error:', 'red')} {error.message}")
        if error.hint:
            output.note(f"{output.styled('hint:', 'yellow')} {error.hint}")
    return error.exit_code


def _show(output: Output, lines: list[str], title: str) -> None:
    output.note("")
    output.note(title, "bold")
    for line in lines:
        output.note(f"  {line}")


def _keep_running(output: Output, line: Any) -> None:
    """Leave service and devices running until Ctrl-C, where somebody sits at a terminal."""
    if not output.live or output.as_json:
        return
    output.note("")
    output.note("The service, the camera and the devices run on until Ctrl-C", "bold")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(1)
            line.check()


@contextlib.contextmanager
def _room(keep: Path | None) -> Iterator[Path]:
    """Yield the directory to work in; without `--keep` it is removed at the end."""
    if keep is not None:
        if keep.exists() and any(keep.iterdir()):
            raise UsageError(f"{keep} is not empty", hint="name a new directory for --keep, or remove this one")
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    root = Path(tempfile.mkdtemp(prefix="edge-demo-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does, so that it takes its processes with it."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in _NEEDS if find_spec(name) is None]
    if sys.version_info < (3, 11):
        raise BackendError("`edge demo` needs Python 3.11", hint="the base alone runs on Python 3.10")
    if missing:
        raise BackendError(
            f"`edge demo` needs `{missing[0]}`, which is not installed", hint="pip install 'edge-sdk[demo]'"
        )
