"""The public surface of the distribution."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import edge_sdk

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("edge_sdk", "device_profiles", "converters", "cloud_sync")


def test_the_public_names_are_these():
    assert edge_sdk.__all__ == [
        "Artifact",
        "Cameras",
        "Classes",
        "Detections",
        "EdgeError",
        "Model",
        "Pipeline",
        "__version__",
    ]


def test_every_public_name_is_there():
    for name in edge_sdk.__all__:
        assert getattr(edge_sdk, name)
    assert dir(edge_sdk) == sorted(edge_sdk.__all__)


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module `edge_sdk` has no attribute `Pipelin`"):
        _ = edge_sdk.Pipelin


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, edge_sdk; print(sorted({m.split('.')[0] for m in sys.modules} & {'numpy', 'cv2', 'argparse'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


def test_the_version_is_said_once():
    assert importlib.metadata.version("edge-sdk") == edge_sdk.__version__


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    "path",
    sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py")),
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_every_module_says_what_it_is(path):
    text = path.read_text().lstrip()
    assert not text or text.startswith(('"""', 'r"""')), f"{path} has no docstring"


def test_the_base_needs_two_packages():
    needs = [r for r in importlib.metadata.requires("edge-sdk") or [] if "extra ==" not in r]
    assert [r.split(">")[0] for r in needs] == ["numpy", "opencv-python-headless", "tomli"]


def test_the_licence_is_apache():
    assert importlib.metadata.metadata("edge-sdk")["License-Expression"] == "Apache-2.0"
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in (ROOT / "LICENSE").read_text()
