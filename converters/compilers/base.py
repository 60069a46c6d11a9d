"""The contract of a compiler: what it reads, the commands that run it, its version, its cache key, where it runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from converters.cache import Cache
from edge_sdk.errors import BackendError, ConversionError
from edge_sdk.remote import Remote

VERSION_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A compiler. In `commands` and `output` these words stand for paths and values:

    `{input}` the model, `{folder}` where to work, `{stem}` the model's name without its suffix, `{output}` the file it
    must leave, and each key of `options`.

    Args:
        program: what must be on PATH where it runs.
        version: the command that prints its version.
        commands: run one after the other; each must end with 0.
        output: name of the compiled file, in `{folder}`.
        reads: suffix of the build it takes; `precisions`: those it takes.
        where: on the workstation, or on the device (then `--on` is needed).
        device_only: what it makes runs nowhere but on the device, so it is verified there or not used.
        install: how to get the program.
        options: values for `commands`, which a profile's `compiler_options` may replace.
    """

    name: str
    program: str
    version: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    output: str
    reads: str
    precisions: tuple[str, ...]
    install: str
    where: Literal["workstation", "device"] = "workstation"
    device_only: bool = True
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """The file a compiler made, the step that made it, and whether it came from the cache."""

    file: Path
    step: str
    key: str
    cached: bool = False


def absent(tool: Tool) -> str | None:
    """Return why a workstation's compiler cannot run here, or None."""
    if tool.where == "device" or shutil.which(tool.program):
        return None
    return f"needs the compiler `{tool.program}`, which is not installed here: {tool.install}"


def compile_model(
    tool: Tool,
    model: Path,
    out: Path,
    *,
    options: Mapping[str, str] | None = None,
    limit_s: float,
    cache: Cache | None = None,
    remote: Remote | None = None,
) -> Compiled:
    """Compile `model` into the folder `out`; equal inputs, options and tool versions come from `cache`.

    Raises:
        BackendError: the program is absent, does not take such a file, or an option is unknown.
        ConversionError: it failed, took longer than `limit_s`, or left no file.
    """
    values = _values(tool, options or {})
    if model.suffix != tool.reads:
        raise BackendError(f"the compiler `{tool.name}` reads {tool.reads} files, not `{model.name}`")
    if tool.where == "device" and remote is None:
        raise BackendError(
            f"the compiler `{tool.name}` runs on the device itself", hint="name the device: --on ssh://HOST"
        )
    place = _There(tool, remote) if remote is not None and tool.where == "device" else _Here(tool)
    version = place.version()
    key = cache_key(tool, model, values, version)
    target = out / tool.output.format(stem=model.stem)
    step = f"{tool.name} {version}: {'; '.join(' '.join(c) for c in _shown(tool, values))}"
    if cache is not None and cache.fetch(key, out) is not None and target.is_file():
        return Compiled(file=target, step=step, key=key, cached=True)
    out.mkdir(parents=True, exist_ok=True)
    place.run(model, target, values, limit_s)
    if not target.is_file() or target.stat().st_size == 0:
        raise ConversionError(
            f"the compiler `{tool.name}` ended well and left no `{target.name}`", hint="run it by hand on the model"
        )
    if cache is not None:
        cache.keep(key, [target], {})
    return Compiled(file=target, step=step, key=key)


def cache_key(tool: Tool, model: Path, values: Mapping[str, str], version: str) -> str:
    """Return the SHA-256 over everything that the compiled file depends on."""
    facts = {
        "kind": "compiled",
        "tool": tool.name,
        "version": version,
        "commands": [list(c) for c in tool.commands],
        "options": dict(sorted(values.items())),
        "model": hashlib.sha256(model.read_bytes()).hexdigest(),
        "stem": model.stem,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _values(tool: Tool, options: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(options) - set(tool.options))
    if unknown:
        known = ", ".join(tool.options) or "none"
        raise BackendError(f"the compiler `{tool.name}` has no option `{unknown[0]}`", hint=f"known: {known}")
    return {**tool.options, **{k: str(v) for k, v in options.items()}}


def _shown(tool: Tool, values: Mapping[str, str]) -> list[list[str]]:
    """Return the commands as evidence shows them: options filled in, paths left out."""
    filled = _filled(tool, {"input": "MODEL", "folder": "DIR", "output": "OUT", "stem": "model", **values})
    return [["SCRIPT" if "\n" in word else word for word in command] for command in filled]


def _filled(tool: Tool, words: Mapping[str, str]) -> list[list[str]]:
    return [[w.format(**words) for w in command] for command in tool.commands]


def _paths(model: str, target: Path, folder: str) -> dict[str, str]:
    return {"input": model, "stem": Path(model).stem, "output": f"{folder}/{target.name}", "folder": folder}


class _Here:
    """Runs a compiler on this machine, each command in a process group that ends with it."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        missing = absent(tool)
        if missing is not None:
            raise BackendError(
                f"the compiler `{tool.name}` needs `{tool.program}`, which is not installed here", hint=tool.install
            )

    def version(self) -> str:
        try:
            done = subprocess.run(self.tool.version, capture_output=True, text=True, timeout=VERSION_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _mute(self.tool, str(error)) from None
        return _version(self.tool, done.returncode, done.stdout or done.stderr)

    def run(self, model: Path, target: Path, values: Mapping[str, str], limit_s: float) -> None:
        with tempfile.TemporaryDirectory(prefix="edge-compile-") as folder:
            output = Path(folder) / target.name
            for command in _filled(self.tool, {**values, **_paths(str(model.resolve()), target, folder)}):
                self._one(command, folder, limit_s)
            if output.is_file():
                shutil.move(output, target)

    def _one(self, command: Sequence[str], folder: str, limit_s: float) -> None:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
            try:
                code = process.wait(timeout=limit_s)
            except BaseException as error:
                _end(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise _slow(self.tool, limit_s) from None
                raise
            if code != 0:
                said.seek(0, os.SEEK_END)
                said.seek(max(0, said.tell() - 4000))
                raise _failed(self.tool, code, said.read())


class _There:
    """Runs a compiler on the device; the model goes there, the compiled file comes back."""

    def __init__(self, tool: Tool, remote: Remote) -> None:
        self.tool = tool
        self.remote = remote

    def version(self) -> str:
        done = self.remote.run(self.tool.version, timeout_s=VERSION_S)
        if done.returncode == 127:
            raise BackendError(
                f"the compiler `{self.tool.name}` needs `{self.tool.program}` on {self.remote.host.label()}",
                hint=self.tool.install,
            )
        return _version(self.tool, done.returncode, (done.stdout or done.stderr).decode(errors="replace"))

    def run(self, model: Path, target: Path, values: Mapping[str, str], limit_s: float) -> None:
        self.remote.put({model.name: model})
        folder = self.remote.folder
        for command in _filled(self.tool, {**values, **_paths(f"{folder}/{model.name}", target, folder)}):
            done = self.remote.run(command, timeout_s=limit_s)
            if done.returncode != 0:
                raise _failed(self.tool, done.returncode, done.stderr or done.stdout)
        self.remote.get(target.name, target)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _version(tool: Tool, code: int, text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if code != 0 or not lines:
        raise _mute(tool, lines[-1] if lines else f"exit {code}")
    return lines[0][:120]


def _mute(tool: Tool, why: str) -> BackendError:
    return BackendError(f"`{tool.program}` does not say its version: {why}", hint=f"try `{' '.join(tool.version)}`")


def _slow(tool: Tool, limit_s: float) -> ConversionError:
    return ConversionError(
        f"the compiler `{tool.name}` took longer than {limit_s:.0f} s and was stopped",
        hint="give it more with `job_limit_s` in the recipe",
    )


def _failed(tool: Tool, code: int, said: bytes) -> ConversionError:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return ConversionError(
        f"the compiler `{tool.name}` failed (exit {code}): {' / '.join(lines[-3:])[:300] or 'it said nothing'}",
        hint="run it by hand on the model to see all it says",
    )
