"""Measuring on another machine, against a real sshd on 127.0.0.1."""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import listens, pick_port, until

from converters.compilers.base import Tool, compile_model
from converters.remote import RemoteWorkshop
from edge_sdk.artifact import Artifact
from edge_sdk.cli import main
from edge_sdk.errors import BackendError, ConversionError, SyncError, UsageError
from edge_sdk.remote import Host, Remote, parse_host
from edge_sdk.testing import build_artifact

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host_key
AuthorizedKeysFile {root}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
CLIENT = """
Host *
    IdentityFile {root}/{key}
    IdentitiesOnly yes
    UserKnownHostsFile {root}/known_hosts
    StrictHostKeyChecking yes
    LogLevel ERROR
"""


@pytest.fixture(scope="module")
def sshd(tmp_path_factory) -> Iterator[Path]:
    """A folder with client configurations `config` and `stranger`, and the port in `port`."""
    if not Path(SSHD).exists():
        pytest.skip("no sshd on this machine: apt install openssh-server")
    root = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)], check=True)
    shutil.copy(root / "key.pub", root / "authorized")
    port = pick_port()
    (root / "port").write_text(str(port))
    host_key = (root / "host_key.pub").read_text().split()[:2]
    (root / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    (root / "sshd_config").write_text(CONFIG.format(port=port, root=root))
    (root / "config").write_text(CLIENT.format(root=root, key="key"))
    (root / "stranger").write_text(CLIENT.format(root=root, key="other"))
    (root / "unknown").write_text(CLIENT.format(root=root, key="key").replace("known_hosts", "nothing"))
    Path("/run/sshd").mkdir(exist_ok=True) if getpass.getuser() == "root" else None
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(root / "sshd_config")], stderr=subprocess.PIPE)
    until(lambda: process.poll() is not None or listens(port), "sshd")
    if process.poll() is not None:
        pytest.fail(f"sshd did not start: {process.communicate()[1].decode()}")
    yield root
    process.terminate()
    process.communicate(timeout=60)


def uri(root: Path, config: str = "config", python: str = sys.executable) -> str:
    port = (root / "port").read_text()
    return f"ssh://{getpass.getuser()}@127.0.0.1:{port}?python={python}&config={root / config}"


def left_behind() -> set[Path]:
    return set(Path("/tmp").glob("edge-sdk-????????"))


def test_a_bench_on_another_machine_brings_its_figures_and_its_name_back(sshd, tmp_path, capsys):
    artifact = build_artifact(tmp_path / "m.edge", task="detection")
    before = left_behind()

    code = main(
        ["bench", str(artifact.path), "--frames", "12", "--rounds", "2", "--json", "--on", uri(sshd)]
    )  # fmt: skip

    report = json.loads(capsys.readouterr().out)
    assert code == 0, report
    assert report["engine_cpu_ms"] > 0
    assert report["ratio"] > 0
    assert report["on"].endswith((sshd / "port").read_text())
    assert report["machine"]["cores"] >= 1
    assert left_behind() <= before


def test_a_pipeline_travels_with_the_files_beside_it(sshd, tmp_path, capsys):
    build_artifact(tmp_path / "models" / "m.edge", task="detection")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        cv2.imwrite(str(pictures / f"{i}.png"), np.full((40, 60, 3), 40 * i, np.uint8))
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(
        '[source]\nuri = "synthetic:64x48?n=20"\n[[stage]]\nname = "m"\nkind = "detect"\nmodel = "models/m.edge"\n'
    )

    words = ["bench", str(pipeline), "--rounds", "1", "--json", "--on", uri(sshd), "--source", str(pictures)]

    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 3


def test_a_pipeline_that_names_files_elsewhere_cannot_travel(tmp_path, capsys):
    artifact = build_artifact(tmp_path / "m.edge", task="detection")
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "p.toml").write_text(
        f'[source]\nuri = "synthetic:64x48?n=20"\n[[stage]]\nname = "m"\nkind = "detect"\nmodel = "{artifact.path}"\n'
    )

    assert main(["bench", str(folder / "p.toml"), "--on", "ssh://nowhere.invalid", "--json"]) == 2
    assert "which is outside its folder" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_the_error_there_is_the_error_here(sshd, tmp_path, capsys):
    artifact = build_artifact(tmp_path / "m.edge", task="detection")

    assert main(["bench", str(artifact.path), "--source", "/no/such.mp4", "--json", "--on", uri(sshd)]) == 6

    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "source"
    assert "/no/such.mp4" in error["message"]


def test_a_compiler_of_the_device_runs_there_and_its_file_comes_back(sshd, tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"weights")
    copy = "import sys, pathlib; pathlib.Path(sys.argv[2]).write_bytes(pathlib.Path(sys.argv[1]).read_bytes()[::-1])"
    tool = Tool(
        name="there", program="python", version=(sys.executable, "--version"), install="-", where="device",
        commands=((sys.executable, "-c", copy, "{input}", "{output}"),),
        output="{stem}.engine", reads=".onnx", precisions=("fp16",),
    )  # fmt: skip
    absent = replace(tool, version=("no-such-compiler", "--version"), program="no-such-compiler")
    broken = replace(tool, commands=((sys.executable, "-c", "raise SystemExit('no GPU')"),))
    with Remote(parse_host(uri(sshd))) as remote:
        made = compile_model(tool, model, tmp_path / "out", limit_s=60, remote=remote)
        with pytest.raises(BackendError, match="needs `no-such-compiler` on"):
            compile_model(absent, model, tmp_path / "out", limit_s=60, remote=remote)
        with pytest.raises(ConversionError, match=r"failed \(exit 1\): no GPU"):
            compile_model(broken, model, tmp_path / "out", limit_s=60, remote=remote)

    assert made.file.read_bytes() == b"sthgiew"
    assert made.step.startswith("there Python 3.")


def test_builds_are_answered_and_timed_by_the_worker_there(sshd, tmp_path):
    artifact = build_artifact(tmp_path / "m.edge", task="detection")
    model = artifact.extract_model(tmp_path / "files")
    manifest = json.loads(artifact.read("manifest.json"))
    images = []
    for i in range(3):
        images.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(images[-1], np.full((40, 60, 3), 80 * i, np.uint8))
    common = {"manifest": manifest, "model": str(model), "labels": list(artifact.labels)}
    before = left_behind()
    workshop = RemoteWorkshop(parse_host(uri(sshd)), job_limit_s=120, memory_mb=4096)
    try:
        reply = workshop.call("predict", **common, images=images, out=str(tmp_path / "out.npz"))
        timed = workshop.call("measure", builds=[common | {"key": "a"}], image=images[0], seconds=0.1)
        with pytest.raises(ConversionError, match="a device does not do the step `build`"):
            workshop.call("build")
    finally:
        workshop.close()

    assert reply["n"] == 3
    assert set(np.load(tmp_path / "out.npz").files) >= {"score", "class_id"}
    assert timed["latency_ms"]["a"]["p50"] > 0
    assert workshop.machine.cores >= 1
    assert left_behind() <= before


def test_a_conversion_is_verified_and_timed_on_the_device_that_it_is_for(sshd, tmp_path, capsys):
    pytest.importorskip("onnx")
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import convert_parts as parts

    model = parts.classifier(tmp_path / "colors.onnx")
    images = parts.color_folders(tmp_path / "golden", 12, seed=1)
    before = left_behind()

    code = main(
        ["convert", str(model), "--profile", "generic-cpu", "--golden", str(images), "--runtime", "onnxruntime",
         "--precision", "fp32", "--color", "rgb", "--std", "255", "--mean", "0", "--resize", "stretch",
         "--out", str(tmp_path / "out"), "--no-cache", "--json", "--on", uri(sshd)]
    )  # fmt: skip

    said = capsys.readouterr()
    assert code == 0, said.err
    assert "builds are verified and timed on" in said.err
    artifact = Artifact.open(json.loads(said.out)["artifacts"][0]["path"])
    assert artifact.evidence["device"].endswith((sshd / "port").read_text())
    assert json.loads(said.out)["artifacts"][0]["chosen"]["latency_ms"]["kind"] == "measured"
    assert left_behind() <= before


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [("stranger", "cannot reach .* by ssh: .*Permission denied", "without a question"),
     ("unknown", "cannot reach .*[Hh]ost key", "accept its key")],
)  # fmt: skip
def test_a_host_that_does_not_let_us_in_is_named_with_what_ssh_said(sshd, config, message, hint):
    with pytest.raises(SyncError, match=message) as caught:
        Remote(parse_host(uri(sshd, config)))
    assert hint in str(caught.value.hint)


def test_a_host_that_nobody_answers_on_is_a_sync_error(free_port):
    with pytest.raises(SyncError, match=r"cannot reach 127\.0\.0\.1:\d+ by ssh: .*refused"):
        Remote(Host(name="127.0.0.1", port=free_port))


def test_a_python_that_is_absent_or_without_the_sdk_is_said(sshd):
    with pytest.raises(BackendError, match="no `/no/python` on"):
        RemoteWorkshop(parse_host(uri(sshd, python="/no/python")), job_limit_s=9, memory_mb=999)
    with Remote(replace(parse_host(uri(sshd)), python="/usr/bin/python3")) as bare:
        if bare.python(["-c", "print(1)"], timeout_s=30).returncode != 0:
            pytest.skip("no bare python on this machine")
        with pytest.raises(BackendError, match="has not edge-sdk"):
            bare.edge(["doctor"], timeout_s=30)


def test_a_command_that_takes_too_long_is_given_up(sshd):
    with Remote(parse_host(uri(sshd))) as remote, pytest.raises(SyncError, match="did not finish `sleep` within 1 s"):
        remote.run(["sleep", "30"], timeout_s=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pi@cam", "is not a host"),
        ("ssh://", "is not a host"),
        ("ssh://host/path", "is not a host"),
        ("ssh://host:99999", "is not a host: Port out of range"),
        ("ssh://me:secret@host", "the address of host carries a password"),
        ("ssh://-oProxyCommand=x", "a name cannot begin with `-`"),
        ("ssh://host?key=1", "unknown parameter `key`"),
    ],
)
def test_an_address_of_another_form_is_refused(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_host(text)
    assert "secret" not in caught.value.message


def test_an_address_is_read():
    host = parse_host("ssh://pi@cam-7:2222?python=/opt/edge/bin/python")
    assert (host.name, host.user, host.port, host.python) == ("cam-7", "pi", 2222, "/opt/edge/bin/python")
    assert host.label() == "pi@cam-7:2222"
