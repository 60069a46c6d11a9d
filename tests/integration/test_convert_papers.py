"""What a conversion leaves beside the model: manifest, evidence, card, bill of materials, report, delta."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("nncf")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import convert_parts as parts

from converters.reasons import Reason
from device_profiles.machine import this_machine
from edge_sdk import Artifact, cli

pytestmark = pytest.mark.slow
FLAGS = ["--color", "rgb", "--resize", "stretch", "--mean", "0", "--std", "255"]
CARD = Path(__file__).parents[2] / "docs" / "reference" / "model-card.schema.json"
HERE = """
name = "here"
arch = "{arch}"
isa = {isa}
cores = {cores}
[limits]
{limits}
[[runtime]]
name = "onnxruntime"
precisions = ["fp32", "int8"]
[[runtime]]
name = "openvino"
precisions = ["int8"]
"""


def profile_of_this_machine(path: Path, limits: str = "ram_mb = 4000") -> Path:
    here = this_machine()
    path.write_text(HERE.format(arch=here.arch, isa=json.dumps(list(here.isa)), cores=here.cores, limits=limits))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    parts.uneven(root / "m.onnx")
    parts.color_folders(root / "calibration", 24, seed=1)
    parts.color_folders(root / "golden", 30, seed=2)
    profile_of_this_machine(root / "here.toml")
    return root


def convert(capsys, world: Path, out: Path, *words) -> tuple[int, dict, str]:
    data = ["--calibration", world / "calibration", "--golden", world / "golden", "--out", out, *FLAGS]
    code = cli.main(["convert", *map(str, (world / "m.onnx", *data, *words)), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """One conversion for this machine, with a report: the answer, what was said, the report."""
    patch = pytest.MonkeyPatch()
    out = tmp_path_factory.mktemp("out")
    patch.setenv("XDG_CACHE_HOME", str(out / "cache"))

    answer, said = io.StringIO(), io.StringIO()
    words = ["--profile", world / "here.toml", "--report", out / "report.html"]
    data = ["--calibration", world / "calibration", "--golden", world / "golden", "--out", out, *FLAGS]
    with contextlib.redirect_stdout(answer), contextlib.redirect_stderr(said):
        code = cli.main(["convert", *map(str, (world / "m.onnx", *data, *words)), "--json"])
    patch.undo()
    assert code == 0, said.getvalue()
    return json.loads(answer.getvalue())["artifacts"][0], said.getvalue(), out / "report.html"


def test_int8_that_is_refused_is_rescued_by_the_layers_that_hurt(done):
    answer, said, _ = done
    rows = [c for c in answer["candidates"] if c["runtime"] == "openvino" and c["precision"] == "int8"]

    assert (rows[0]["status"], rows[0]["reason_kind"]) == ("refused", "collapsed")
    assert "openvino int8: error of " in said
    assert rows[-1]["status"] in ("passed", "chosen")
    assert 0 < len(rows[-1]["float_layers"]) <= 8
    assert rows[-1]["metric"]["value"] == 1.0


def test_every_row_has_a_word_for_its_reason_and_the_front_is_marked(done):
    rows = done[0]["candidates"]
    words = {r.value for r in Reason}

    assert all(c["reason_kind"] in words for c in rows if c["status"] != "chosen")
    assert any(c["pareto"] for c in rows)
    assert next(c for c in rows if c["status"] == "chosen")["pareto"]
    assert all({"runtime", "precision", "backend", "form", "status", "reason"} <= set(c) for c in rows)


def test_threads_and_memory_are_measured_where_the_profile_is_this_machine(done):
    chosen = done[0]["chosen"]
    cores = this_machine().cores

    assert chosen["ram_mb"]["kind"] == chosen["latency_ms"]["kind"] == "measured"
    assert chosen["ram_mb"]["peak"] > chosen["ram_mb"]["start"] > 1
    assert chosen["speedup"] > 0
    if cores > 1:
        assert {r["threads"] for r in chosen["threads"]} >= {1, min(cores, 8)}
        manifest = Artifact.open(done[0]["path"]).manifest
        assert manifest.runtime.options["threads"] == chosen["options"]["threads"]
        assert [r["chosen"] for r in chosen["threads"]].count(True) == 1


def test_the_manifest_carries_where_the_build_comes_from_and_no_time(done):
    artifact = Artifact.open(done[0]["path"])
    made = artifact.manifest.extra["conversion"]

    assert {"precision", "backend", "form", "method", "steps", "tools", "host", "seed", "golden", "file"} <= set(made)
    assert made["golden"]["n"] == 30
    assert len(made["golden"]["sha256"]) == len(made["source"]["sha256"]) == 64
    assert made["host"]["isa"] == list(this_machine().isa)
    assert made["tools"]["python"]
    assert made["file"]["format"] in ("onnx", "openvino")
    assert {"sqnr_db", "max_error"} <= set(made["deltas"]["outputs"][0])
    assert made["deltas"]["spans"]["scores"]
    assert len(artifact.manifest.metric.extra["drop_interval"]) == 2
    assert not re.search(r"seconds|latency|converted_at", artifact.manifest.to_json().decode())
    assert artifact.evidence["golden_looks"] >= 3
    assert artifact.evidence["of_source"]["latency_ms"]["p50"] > 0


def test_the_bill_of_materials_validates_against_cyclonedx(done):
    schemas = pytest.importorskip("cyclonedx.schema", reason="cyclonedx-python-lib brings the schema")
    import jsonschema
    from referencing import Registry, Resource

    root = Path(schemas.__file__).parent / "_res"
    known = [json.loads(path.read_text(encoding="utf-8")) for path in root.glob("*.schema.json")]
    registry = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in known if "$id" in s)
    schema = next(s for s in known if s.get("$id") == "http://cyclonedx.org/schema/bom-1.6.schema.json")
    bom = json.loads(Artifact.open(done[0]["path"]).read("bom.cdx.json"))

    jsonschema.Draft7Validator(schema, registry=registry).validate(bom)
    assert bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["type"] == "top1"


def test_the_front_matter_of_the_card_validates_against_its_schema(done):
    import jsonschema

    text = Artifact.open(done[0]["path"]).read("card.md").decode()
    _, front, body = text.split("---\n", 2)
    data = {key: json.loads(value) for key, _, value in (line.partition(": ") for line in front.splitlines())}

    jsonschema.validate(data, json.loads(CARD.read_text()))
    assert data["pipeline_tag"] == "image-classification"
    assert "Builds were judged on the golden set" in body
    assert "| output | signal to noise, dB |" in body


def test_the_report_is_one_file_with_plots_and_every_reason(done):
    answer, _, path = done
    text = path.read_text()

    assert text.startswith("<!doctype html>")
    assert "<script" not in text
    assert not re.search(r"(src|href)=", text)
    assert text.count("<svg") == 2
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)
    assert text.count("<tr class=") == len(answer["candidates"])
    assert "prefers-color-scheme:dark" in text
    assert "collapsed" in text


def test_a_report_is_written_when_everything_is_refused_too(capsys, world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tight = profile_of_this_machine(tmp_path / "tight.toml", "ram_mb = 2\nartifact_mb = 20")

    words = ["--profile", tight, "--report", tmp_path / "r.html", "--runtime", "onnxruntime", "--precision", "fp32"]
    code, data, _ = convert(capsys, world, tmp_path / "out", *words)

    assert code == 5
    assert re.search(
        r"onnxruntime fp32 refused: \d+ MiB resident, the profile `here` allows 2", data["error"]["message"]
    )
    assert "No build may be used" in (tmp_path / "r.html").read_text()
    assert not list((tmp_path / "out").iterdir())


def test_the_next_version_has_its_base_as_parent_and_a_small_delta(capsys, world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["--profile", world / "here.toml", "--runtime", "onnxruntime", "--precision", "int8", "--backend", "ort"]
    code, data, err = convert(capsys, world, tmp_path / "v1", *words)
    assert code == 0, err
    base = data["artifacts"][0]

    code, data, err = convert(
        capsys, world, tmp_path / "v2", *words, "--version", "2", "--base", base["path"], "--max-drop", "0.02"
    )

    assert code == 0, err
    after = data["artifacts"][0]
    assert after["parent"] == Artifact.open(after["path"]).manifest.parent == base["digest"]
    assert 0 < after["delta"]["bytes"] < after["chosen"]["size_bytes"]
    assert "a delta of " in err
    code, data, _ = convert(capsys, world, tmp_path / "v3", *words, "--base", world / "m.onnx")
    assert (code, data["error"]["kind"]) == (4, "artifact")
    code, data, _ = convert(capsys, world, tmp_path / "v3", *words, "--base", base["path"], "--color", "bgr")
    assert (code, "has the colour order rgb, the model bgr" in data["error"]["message"]) == (2, True)
