"""Device profiles: files, evidence, probing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device_profiles import kernel, profile
from device_profiles.machine import Machine, parse_cpuinfo
from device_profiles.probe import measure_int8, probe, runs_here
from edge_sdk import runtimes
from edge_sdk.errors import ConfigError, ProfileError

VNNI = Machine(arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni", "fma"), cpu="c", cores=2, ram_mb=8000, runtimes={})


@pytest.mark.parametrize("name", profile.builtin_names())
def test_every_shipped_profile_is_valid_and_says_where_each_figure_comes_from(name):
    shipped = profile.load(name)

    assert shipped.name == name
    assert profile.missing_evidence(shipped) == ()


@pytest.mark.parametrize("name", profile.builtin_names())
def test_a_profile_written_as_toml_reads_back_the_same(name, tmp_path):
    shipped = profile.load(name)
    (tmp_path / "p.toml").write_text(profile.to_toml(shipped))

    assert profile.load(tmp_path / "p.toml") == shipped


def test_an_unknown_profile_gets_the_nearest_name():
    with pytest.raises(ProfileError) as caught:
        profile.load("raspberrypi-5")

    assert "unknown profile `raspberrypi-5`" in caught.value.message
    assert "raspberry-pi-5" in (caught.value.hint or "")


def test_a_profile_file_that_is_absent_is_named():
    with pytest.raises(ProfileError, match="no such profile file: nowhere.toml"):
        profile.load("nowhere.toml")


def test_every_wrong_key_of_a_profile_is_reported_at_once(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('name = "x"\narch = "mips"\ncorse = 4\n[[runtime]]\nname = "onnxruntime"\nprecisions = ["int4"]\n')

    with pytest.raises(ConfigError) as caught:
        profile.load(path)

    assert len(caught.value.problems) == 3
    assert "corse: unknown key, did you mean `cores`?" in caught.value.message


def test_wrong_names_flags_and_version_ranges_are_reported_together(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('name = "Bad Name"\narch = "any"\nisa = ["avx3"]\n[[runtime]]\nname = "a"\nversions = "1.2"\n')

    with pytest.raises(ConfigError) as caught:
        profile.load(path)

    assert [p.split(":")[0] for p in caught.value.problems] == ["name", "isa", "runtime[0].versions"]


def test_int8_weights_keep_seven_bits_where_sums_may_saturate():
    assert profile.load("x86-64-avx2").int8_scheme("onnxruntime").reduce_range
    assert profile.load("generic-cpu").int8_scheme("onnxruntime").reduce_range
    assert profile.load("x86-64-avx2").int8_scheme("openvino").reduce_range
    assert not profile.load("intel-n100").int8_scheme("openvino").reduce_range
    assert not profile.load("raspberry-pi-5").int8_scheme("onnxruntime").reduce_range


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("generic-cpu", True),
        ("x86-64-avx512-vnni", True),
        ("x86-64-avx2", False),
        ("intel-n100", False),
        ("raspberry-pi-5", False),
    ],
)
def test_figures_are_measured_only_for_profiles_whose_arithmetic_is_this_machines(name, here):
    assert runs_here(profile.load(name), VNNI) is here


def test_isa_flags_are_read_from_x86_and_arm_cpuinfo():
    x86 = "model name\t: Some CPU\nflags\t\t: fpu avx2 fma avx512_vnni\n"
    arm = "Model\t: Raspberry Pi 5\nFeatures\t: fp asimd asimdhp asimddp\n"

    assert parse_cpuinfo(x86) == (("avx2", "avx512_vnni", "fma"), "Some CPU")
    assert parse_cpuinfo(arm) == (("dotprod", "fp16", "neon"), "Raspberry Pi 5")


def test_the_measured_kernels_are_valid_onnx():
    onnx = pytest.importorskip("onnx")
    for data in (kernel.convolution(int8=False), kernel.convolution(int8=True), kernel.saturating()):
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)


def test_probing_writes_a_profile_of_this_machine_with_measured_int8():
    pytest.importorskip("onnxruntime")
    found = probe("here")

    assert found.name == "here"
    assert profile.missing_evidence(found) == ()
    assert found.evidence["runtime.onnxruntime"].kind == "measured"
    assert "int8 / fp32" in found.evidence["runtime.onnxruntime"].source


def test_saturation_is_measured_as_the_isa_says():
    pytest.importorskip("onnxruntime")
    from device_profiles.machine import this_machine

    figures = measure_int8(runtimes.registry().load("onnxruntime"))

    assert figures.ratio > 0
    if set(this_machine().isa) & profile.INT8_DOT_FLAGS:
        assert not figures.saturates


def test_a_profile_without_runtimes_is_refused(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(profile.to_toml(replace(profile.load("generic-cpu"), runtimes=())))

    with pytest.raises(ConfigError, match="a device that runs nothing"):
        profile.load(path)


def test_the_decoder_that_a_profile_names_needs_evidence_too():
    shipped = profile.load("raspberry-pi-4")
    assert shipped.decode == "v4l2m2m"
    bare = replace(shipped, evidence={k: v for k, v in shipped.evidence.items() if k != "decode"})
    assert profile.missing_evidence(bare) == ("decode",)


def test_a_decoder_that_is_none_is_a_wrong_key(tmp_path):
    text = profile.to_toml(profile.load("raspberry-pi-4")).replace('decode = "v4l2m2m"', 'decode = "gpu"')
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError, match="decode: expected one of vaapi, v4l2m2m, nvdec"):
        profile.load(tmp_path / "p.toml")
