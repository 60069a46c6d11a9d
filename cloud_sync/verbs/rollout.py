"""`edge rollout`: create and steer staged rollouts."""

from __future__ import annotations

import argparse
import time
from typing import Any
from urllib.parse import quote

from cloud_sync.client import Client, add_server_arguments, from_args
from cloud_sync.policies import RolloutPolicy
from edge_sdk.errors import UsageError
from edge_sdk.output import Output, table

_POLICY: dict[str, tuple[type, str]] = {
    "soak_s": (float, "seconds a stage rests after its last device"),
    "bake_s": (float, "seconds between the last stage and the held back devices"),
    "holdback": (float, "share of devices kept back until the bake is over"),
    "first_devices": (int, "least devices in the first stage, at most a fifth of the fleet"),
    "min_windows": (int, "telemetry windows that each device must send"),
    "min_stage_windows": (int, "windows that the stage must send together"),
    "min_expected_errors": (float, "errors to be expected before a stage passes"),
    "evidence_timeout_s": (float, "seconds without that evidence before it is held"),
    "silent_after_s": (float, "seconds after which a device counts as silent"),
    "failed_after_s": (float, "seconds after which a failed device counts as such"),
    "trial_s": (float, "seconds of trial on the device"),
    "alpha": (float, "chance of a false roll back by the statistical guards"),
    "max_failed": (float, "share of failed devices that is accepted"),
    "max_silent": (float, "share of silent devices that is accepted"),
    "max_slow": (float, "share of slow inferences that is accepted"),
    "max_error_share": (float, "share of failed frames that is accepted"),
    "max_confidence_drop": (float, "loss of mean confidence that is accepted"),
    "bin_s": (float, "seconds of a time bin in which devices are compared"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="create|show|list|approve|pause|resume|abort")
    create = verbs.add_parser("create", help="roll a release out in stages")
    create.add_argument("--release", required=True, metavar="R", help="the release (`edge publish` prints it)")
    create.add_argument("--stages", metavar="P,P,100", help="percentages of the fleet, rising to 100 (1,10,50,100)")
    create.add_argument("--device", action="append", metavar="D", help="only this device; may be repeated")
    create.add_argument("--only-profile", action="append", metavar="P", help="only devices of this profile")
    create.add_argument("--approval", action="store_true", default=None, help="wait for `edge rollout approve`")
    create.add_argument("--draft", action="store_true", default=None, help="only write it down; approve starts it")
    limits = create.add_argument_group(
        "limits", "what is not given is as in serve.toml, [rollout], else as in brackets"
    )
    defaults = RolloutPolicy()
    for name, (kind, text) in _POLICY.items():
        flag, default = f"--{name.replace('_', '-')}", getattr(defaults, name)
        limits.add_argument(flag, type=kind, metavar="X", help=f"{text} ({default:g})")
    shown = verbs.add_parser("list", help="every rollout")
    parts = [create, shown]
    for name, text in (
        ("show", "one rollout: stage, devices, guards, what it waits for"),
        ("approve", "let a rollout start that waits for approval"),
        ("pause", "tell no further devices; guards stay on"),
        ("resume", "go on after a pause or a hold, accepting silent devices"),
        ("abort", "end it; devices go back to what they had"),
    ):
        part = verbs.add_parser(name, help=text)
        part.add_argument("rollout", help="its id (`edge rollout list` shows them)")
        if name == "abort":
            part.add_argument("--keep", action="store_true", help="leave the devices with what they have")
        parts.append(part)
    for part in parts:
        add_server_arguments(part)


def run(args: argparse.Namespace, output: Output) -> int | None:
    client = from_args(args)
    if args.what == "list":
        found = client.get("/api/v1/rollouts")
        rows = [
            [r["id"], r["state"], _stage(r), _counts(r["devices"]), _tripped(r["guards"])] for r in found["rollouts"]
        ]
        text = table(rows, ["rollout", "state", "stage", "devices", "tripped"])
        output.result(found, text if rows else "no rollouts yet: `edge rollout create --release R`")
    elif args.what == "create":
        _show(client.post("/api/v1/rollouts", _order(args)), output)
    elif args.what == "show":
        _show(client.get(_path(args.rollout)), output)
    else:
        body = {"undo": not args.keep} if args.what == "abort" else {}
        _show(client.post(f"{_path(args.rollout)}/{args.what}", body), output)
    return None


def wait_for(client: Client, rollout: str, states: tuple[str, ...], *, timeout_s: float) -> dict[str, Any]:
    """Return the rollout once it is in one of `states`, or as it is when `timeout_s` is over."""
    end = time.monotonic() + timeout_s
    while True:
        row = client.get(_path(rollout))
        if row["state"] in states or time.monotonic() > end:
            return row
        time.sleep(0.25)


def _order(args: argparse.Namespace) -> dict[str, Any]:
    body: dict[str, Any] = {"release": args.release}
    if args.stages:
        try:
            body["stages"] = [int(p.strip().removesuffix("%")) for p in args.stages.split(",")]
        except ValueError:
            raise UsageError(
                f"--stages {args.stages!r} is not a list of percentages", hint="write it as --stages 1,10,50,100"
            ) from None
    body |= {"devices": args.device, "profiles": args.only_profile, "approval": args.approval, "draft": args.draft}
    body |= {name: getattr(args, name) for name in _POLICY}
    return {k: v for k, v in body.items() if v is not None}


def _show(row: dict[str, Any], output: Output) -> None:
    lines = [
        f"{row['id']}  {row['state']}  {_stage(row)}",
        f"  {row['reason']}",
        f"  release  {row['release']}",
        f"  devices  {_counts(row['devices'])}",
    ]
    if row.get("undo_release"):
        lines.append(f"  undone   {row['undo_release']}")
    if row.get("waits_for"):
        lines.append(f"  waits    {row['waits_for']}")
    for guard in row["guards"]:
        mark = "TRIPPED" if guard["tripped"] else "ok"
        lines.append(f"  {guard['name']:<12}{mark:<8} {guard['value']:.3g} of {guard['limit']:.3g}: {guard['detail']}")
    output.result(row, "\n".join(lines))


def _stage(row: dict[str, Any]) -> str:
    stages = row["stages"]
    if row["stage"] >= len(stages):
        return "bake"
    return f"stage {row['stage'] + 1} of {len(stages)} ({stages[row['stage']]} %)"


def _counts(devices: dict[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in devices.items()) or "none"


def _tripped(guards: list[dict[str, Any]]) -> str:
    return ", ".join(g["name"] for g in guards if g["tripped"])


def _path(rollout: str) -> str:
    return f"/api/v1/rollouts/{quote(rollout, safe='')}"
