"""Another machine over ssh: files go there, commands run there, answers come back. The system's ssh client does it."""

from __future__ import annotations

import io
import json
import logging
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from edge_sdk.errors import BackendError, SyncError, UsageError

logger = logging.getLogger(__name__)
FORM = "ssh://[user@]host[:port][?python=/path/to/python&config=/path/to/ssh_config]"
CONNECT_S = 15
_ALIVE_S = 15
_SSH_FAILED = 255
_NOT_FOUND = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where to go: `python` has edge-sdk installed there, `config` is a file for `ssh -F` here."""

    name: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    config: Path | None = None

    def label(self) -> str:
        return f"{f'{self.user}@' if self.user else ''}{self.name}{f':{self.port}' if self.port else ''}"


def parse_host(uri: str) -> Host:
    """Return the host of an `ssh://` URI.

    Raises:
        UsageError: it has another form, or carries a password.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"`{uri}` is not a host: {error}", hint=f"use {FORM}") from None
    if parts.scheme != "ssh" or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError(f"`{uri}` is not a host", hint=f"use {FORM}")
    if parts.password is not None:
        raise UsageError(
            f"the address of {parts.hostname} carries a password, ssh takes none there",
            hint="use a key: ssh-copy-id, or an IdentityFile in your ssh configuration",
        )
    if parts.hostname.startswith("-") or (parts.username or "").startswith("-"):
        raise UsageError(f"`{uri}` is not a host: a name cannot begin with `-`", hint=f"use {FORM}")
    words = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(words) - {"python", "config"})
    if unknown:
        raise UsageError(f"`{uri}` has the unknown parameter `{unknown[0]}`", hint=f"use {FORM}")
    return Host(
        name=parts.hostname,
        user=unquote(parts.username) if parts.username else None,
        port=port,
        python=words.get("python") or "python3",
        config=Path(words["config"]).expanduser() if words.get("config") else None,
    )


class Remote:
    """A session on a host with a folder of its own there, which `close` removes.

    Raises:
        BackendError: there is no ssh here.
        SyncError: the host cannot be reached or refuses the key.
    """

    def __init__(self, host: Host) -> None:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise BackendError(
                "no `ssh` on this machine", hint="install the OpenSSH client: apt install openssh-client"
            )
        self.host = host
        self._local = tempfile.mkdtemp(prefix="edge-ssh-")
        self._base = [ssh, *self._options()]
        self.folder = ""
        try:
            self.folder = self.text(["mktemp", "-d", "/tmp/edge-sdk-XXXXXXXX"], timeout_s=CONNECT_S + 5).strip()
        except BaseException:
            self.close()
            raise

    def _options(self) -> list[str]:
        host = self.host
        pairs = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "ServerAliveInterval": str(_ALIVE_S),
            "ServerAliveCountMax": "4",
            "ControlMaster": "auto",
            "ControlPath": f"{self._local}/c",
            "ControlPersist": "30",
        }
        words = ["-F", str(host.config)] if host.config else []
        for key, value in pairs.items():
            words += ["-o", f"{key}={value}"]
        words += ["-p", str(host.port)] if host.port else []
        words += ["-l", host.user] if host.user else []
        return [*words, "--", host.name]

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the local command line that runs `words` there."""
        return [*self._base, shlex.join(words)]

    def run(
        self, words: Sequence[str], *, data: bytes | None = None, timeout_s: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command there and return how it ended, whatever its exit code.

        Raises:
            SyncError: ssh itself failed, or the time was up.
        """
        try:
            done = subprocess.run(self.command(words), input=data, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise SyncError(
                f"{self.host.label()} did not finish `{words[0]}` within {timeout_s:.0f} s",
                hint="give it more time, or look there what it does",
            ) from None
        if done.returncode == _SSH_FAILED:
            raise self._unreachable(done.stderr)
        return done

    def text(self, words: Sequence[str], *, timeout_s: float) -> str:
        """Run a command there that must succeed and return its output.

        Raises:
            SyncError: it cannot be run, or failed.
        """
        done = self.run(words, timeout_s=timeout_s)
        if done.returncode != 0:
            raise SyncError(
                f"`{words[0]}` failed on {self.host.label()} (exit {done.returncode}): {_tail(done.stderr)}"
            )
        return done.stdout.decode(errors="replace")

    def _unreachable(self, said: bytes) -> SyncError:
        text = _tail(said)
        hint = f"`ssh {self.host.label()} true` must work without a question"
        if "host key" in text.lower():
            hint = f"run `ssh {self.host.label()}` once and accept its key"
        return SyncError(f"cannot reach {self.host.label()} by ssh: {text}", hint=hint)

    def put(self, files: Mapping[str, Path | bytes], *, timeout_s: float = 600) -> None:
        """Copy files into the folder there; the keys are names in it, with `/` for folders."""
        command = self.command(["tar", "-x", "-f", "-", "-C", self.folder])
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
            assert process.stdin is not None
            broken = False
            try:
                _write_tar(process.stdin, files)
            except BrokenPipeError:
                broken = True
            finally:
                try:
                    process.stdin.close()
                except BrokenPipeError:
                    broken = True
                try:
                    code = process.wait(timeout=timeout_s)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
            if broken or code != 0:
                errors.seek(0)
                raise SyncError(
                    f"cannot copy {len(files)} file(s) to {self.host.label()}: {_tail(errors.read())}",
                    hint="check the space in /tmp there",
                )

    def get(self, name: str, target: Path, *, timeout_s: float = 600) -> None:
        """Copy one file of the folder there to `target`."""
        done = self.run(["cat", f"{self.folder}/{name}"], timeout_s=timeout_s)
        if done.returncode != 0:
            raise SyncError(f"cannot copy `{name}` from {self.host.label()}: {_tail(done.stderr)}")
        target.write_bytes(done.stdout)

    def python(self, words: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """Run `python words…` there, in the folder.

        Raises:
            BackendError: there is no such python, or it has not edge-sdk.
        """
        script = f"cd {shlex.quote(self.folder)} && exec {shlex.join([self.host.python, *words])}"
        done = self.run(["sh", "-c", script], timeout_s=timeout_s)
        if done.returncode == _NOT_FOUND:
            raise BackendError(
                f"no `{self.host.python}` on {self.host.label()}",
                hint="name the python of its virtual environment: ssh://host?python=/opt/edge/bin/python",
            )
        if done.returncode != 0 and b"No module named" in done.stderr and b"edge_sdk" in done.stderr:
            raise BackendError(
                f"`{self.host.python}` on {self.host.label()} has not edge-sdk",
                hint="pip install 'edge-sdk[ort]' there, or name another python: ssh://host?python=/opt/edge/bin/python",
            )
        return done

    def edge(self, words: Sequence[str], *, timeout_s: float) -> dict[str, Any]:
        """Run `edge words… --json` there and return its object.

        Raises:
            EdgeError: the error it gave there, or it could not be run.
        """
        from edge_sdk.agent.process import error_from_json

        done = self.python(["-m", "edge_sdk", *words, "--json"], timeout_s=timeout_s)
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            raise SyncError(
                f"`edge {words[0]}` on {self.host.label()} gave no JSON (exit {done.returncode}): {_tail(done.stderr)}",
                hint="is the edge-sdk there as new as this one?",
            ) from None
        if not isinstance(answer, dict):
            raise SyncError(f"`edge {words[0]}` on {self.host.label()} gave no JSON object")
        if done.returncode != 0 and isinstance(answer.get("error"), dict):
            raise error_from_json(answer["error"])
        return answer

    def close(self) -> None:
        """Remove the folder there and end the connection; a host that is gone is not an error."""
        try:
            if self.folder:
                self.run(["rm", "-rf", "--", self.folder], timeout_s=CONNECT_S)
        except SyncError as error:
            logger.warning("left %s on %s: %s", self.folder, self.host.label(), error.message)
        finally:
            self.folder = ""
            if Path(self._local, "c").exists():
                subprocess.run(
                    [*self._base[:-2], "-O", "exit", *self._base[-2:]], capture_output=True, timeout=10, check=False
                )
            shutil.rmtree(self._local, ignore_errors=True)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write_tar(out: IO[bytes], files: Mapping[str, Path | bytes]) -> None:
    with tarfile.open(fileobj=out, mode="w|") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o600
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.size = content.stat().st_size
                with content.open("rb") as file:
                    tar.addfile(info, file)


def _tail(said: bytes, lines: int = 3) -> str:
    text = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return " / ".join(text[-lines:]) or "it said nothing"
