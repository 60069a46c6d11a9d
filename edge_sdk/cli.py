"""The command `edge`: finds a verb, imports only that verb, turns an EdgeError into one message and its exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from edge_sdk.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, BackendError, EdgeError, UsageError
from edge_sdk.output import Output


class Verb(NamedTuple):
    """A verb's module (with `add_arguments(parser)` and `run(args, output) -> int | None`), help line and extra."""

    module: str
    help: str
    group: str
    extra: str | None = None


VERBS: dict[str, Verb] = {
    "convert": Verb(
        "converters.verbs.convert", "convert a model to one artifact per device profile", "models", "convert"
    ),
    "inspect": Verb("edge_sdk.verbs.inspect", "print what an artifact is", "models"),
    "verify": Verb("edge_sdk.verbs.verify", "re-run an artifact's golden inputs on this machine", "models"),
    "profile": Verb("device_profiles.verbs", "list, show, check and probe device profiles", "models"),
    "bench": Verb("edge_sdk.verbs.bench", "measure engine, decode and pipeline cost", "device"),
    "run": Verb("edge_sdk.verbs.run", "run a model on a camera, video or image folder", "device"),
    "doctor": Verb("edge_sdk.verbs.doctor", "say what this machine can run and what is missing", "device"),
    "enroll": Verb("edge_sdk.verbs.enroll", "turn a claim token into this device's identity", "device", "agent"),
    "agent": Verb("edge_sdk.verbs.agent", "keep this device at its desired state", "device", "agent"),
    "serve": Verb("cloud_sync.verbs.serve", "run the cloud service and its console", "fleet", "cloud"),
    "device": Verb("cloud_sync.verbs.device", "add, list and show devices", "fleet"),
    "publish": Verb("cloud_sync.verbs.publish", "sign artifacts as a release", "fleet"),
    "rollout": Verb("cloud_sync.verbs.rollout", "create and steer staged rollouts", "fleet"),
    "drift": Verb("cloud_sync.verbs.drift", "show drift verdicts and their evidence", "fleet"),
    "trust": Verb("cloud_sync.verbs.trust", "TUF keys: create, rotate, expiry", "fleet", "cloud"),
    "retrain": Verb("cloud_sync.verbs.retrain", "run and show retraining", "fleet"),
    "demo": Verb("cloud_sync.verbs.demo", "the whole line on this machine, in under three minutes", "start", "demo"),
}
_GROUPS = {"start": "Start here", "models": "Models", "device": "On the device", "fleet": "The fleet"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edge` with `argv` (default: the process's) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    output = Output(as_json="--json" in words)
    try:
        code = _run(words, output)
        sys.stdout.flush()
        return code
    except EdgeError as error:
        _report(error, output)
        return error.exit_code
    except KeyboardInterrupt:
        output.note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _run(words: list[str], output: Output) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return EXIT_OK
    if words[0] in ("-V", "--version"):
        from edge_sdk import __version__

        sys.stdout.write(f"edge {__version__}\n")
        return EXIT_OK
    parser, module = verb_parser(words[0])
    args = parser.parse_args(words[1:])
    _logging(args)
    return int(module.run(args, output) or EXIT_OK)


def verb_parser(name: str) -> tuple[argparse.ArgumentParser, Any]:
    """Return the argument parser of verb `name` and its module.

    Raises:
        UsageError: there is no such verb; the hint has the nearest one.
        BackendError: a package the verb needs is not installed; the hint names the extra.
    """
    verb = _find(name)
    module = _import(name, verb)
    parser = _Parser(prog=f"edge {name}", description=verb.help, formatter_class=_Formatter)
    _common(parser)
    module.add_arguments(parser)
    _common_everywhere(parser)
    return parser, module


def _find(name: str) -> Verb:
    if name in VERBS:
        return VERBS[name]
    from importlib.metadata import entry_points

    for point in entry_points(group="edge_sdk.verbs", name=name):
        return Verb(point.value, "", "plug-in")
    from edge_sdk.registry import near_miss

    raise UsageError(f"unknown verb `{name}`", hint=near_miss(name, VERBS) or "`edge --help` lists the verbs")


def _import(name: str, verb: Verb) -> Any:
    try:
        return importlib.import_module(verb.module)
    except ModuleNotFoundError as error:
        missing = error.name or "a package"
        if missing.split(".")[0] in ("edge_sdk", "device_profiles", "converters", "cloud_sync"):
            raise
        extra = verb.extra or "all"
        raise BackendError(
            f"`edge {name}` needs `{missing}`, which is not installed", hint=f"pip install 'edge-sdk[{extra}]'"
        ) from None


def _report(error: EdgeError, output: Output) -> None:
    if output.as_json:
        output.result({"error": error.to_json()})
    else:
        output.error(error.message, error.hint)


def _overview() -> str:
    from edge_sdk import __version__

    lines = [
        f"edge {__version__}: from a trained vision model to a fleet that keeps answering rightly",
        "",
        "usage: edge VERB [--json] …",
        "",
    ]
    for group, title in _GROUPS.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<10}{verb.help}" for name, verb in VERBS.items() if verb.group == group]
        lines.append("")
    lines.append("`edge VERB --help` explains one verb. Exit codes: 0 ok, 1 bug, 2 usage, 3 back-end, 4 artifact,")
    lines.append("5 guardrail, 6 conversion or source, 7 sync, 130 interrupted.")
    return "\n".join(lines) + "\n"


def _common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print exactly one JSON object on stdout"
    )
    group.add_argument(
        "--verbose", "-v", action="count", default=argparse.SUPPRESS, help="log to stderr; twice for debug"
    )


def _common_everywhere(parser: argparse.ArgumentParser) -> None:
    """Give sub-verbs (`edge device add`) the same options, so that they may stand at the end."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in set(action.choices.values()):
                _common(sub)
                _common_everywhere(sub)


def _logging(args: argparse.Namespace) -> None:
    import logging

    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(getattr(args, "verbose", 0), 2)]
    package_logger = logging.getLogger("edge_sdk")
    for name in ("edge_sdk", "device_profiles", "converters", "cloud_sync"):
        package_logger = logging.getLogger(name)
        package_logger.setLevel(level)
        if not package_logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            package_logger.addHandler(handler)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are UsageErrors, so that `--json` holds for them too."""

    def error(self, message: str) -> Any:
        raise UsageError(message, hint=f"`{self.prog} --help` lists the arguments")


def run_and_exit() -> None:
    """Entry for `python -m edge_sdk`."""
    sys.exit(main())


__all__ = ["EXIT_BUG", "VERBS", "Verb", "main"]
