"""`edge profile list | show NAME | probe | check FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edge_sdk.output import Output, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the profiles that ship")
    show = commands.add_parser("show", help="one profile with the evidence for each figure")
    show.add_argument("name", metavar="NAME", help="a shipped profile, or the path of a .toml file")
    probe = commands.add_parser("probe", help="measure this machine and write its profile")
    probe.add_argument("--out", type=Path, metavar="FILE", help="write the profile there (default: stdout)")
    probe.add_argument("--name", help="name of the profile (default: made from the CPU's)")
    check = commands.add_parser("check", help="say what is wrong with a profile file")
    check.add_argument("file", type=Path, metavar="FILE", help="a profile in TOML")


def run(args: argparse.Namespace, output: Output) -> int | None:
    return {"list": _list, "show": _show, "probe": _probe, "check": _check}[args.command](args, output)


def _list(_: argparse.Namespace, output: Output) -> None:
    from device_profiles.machine import this_machine
    from device_profiles.probe import runs_here
    from device_profiles.profile import builtin_names, load

    machine = this_machine()
    profiles = [load(name) for name in builtin_names()]
    rows = [
        (p.name, p.arch, " ".join(p.isa), ", ".join(r.name for r in p.runtimes), "yes" if runs_here(p, machine) else "")
        for p in profiles
    ]
    data = [{**_short(p), "this_machine": runs_here(p, machine)} for p in profiles]
    output.result({"profiles": data}, table(rows, ("name", "arch", "isa", "runtimes", "this machine")))


def _show(args: argparse.Namespace, output: Output) -> None:
    from device_profiles.profile import load, to_toml

    profile = load(args.name)
    output.result(profile.to_json(), to_toml(profile))


def _probe(args: argparse.Namespace, output: Output) -> None:
    from device_profiles.files import atomic_write
    from device_profiles.probe import probe
    from device_profiles.profile import to_toml

    if args.name is not None:
        from edge_sdk.errors import UsageError
        from edge_sdk.schemas.ids import ID

        if not ID.fullmatch(args.name):
            raise UsageError(f"--name `{args.name}` is not an id", hint="use a-z, 0-9, `_` and `-`, at most 63")
    profile = probe(args.name)
    text = to_toml(profile)
    if args.out is not None:
        atomic_write(args.out, text.encode())
        output.note(f"wrote {args.out}")
    output.result(profile.to_json() | {"path": str(args.out) if args.out else None}, text)


def _check(args: argparse.Namespace, output: Output) -> None:
    from device_profiles.profile import load_file, missing_evidence

    profile = load_file(args.file)
    missing = missing_evidence(profile)
    for key in missing:
        output.note(f"no evidence for `{key}`: say in [evidence] whether it is measured, cited or estimated")
    text = f"{args.file}: {profile.name} is a valid profile" + (
        f", {len(missing)} figure(s) without evidence" if missing else ""
    )
    output.result({**_short(profile), "ok": not missing, "missing_evidence": list(missing)}, text)


def _short(profile: Any) -> dict[str, Any]:
    data = profile.to_json()
    return {key: data.get(key, {}) for key in ("name", "arch", "isa", "runtimes", "limits")}
