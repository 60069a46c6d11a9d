"""The converter's cache by content."""

from __future__ import annotations

import os
import time

import pytest

from converters.cache import Cache, code_version, default_root, digest_of_form, key_of


@pytest.fixture
def said():
    return []


@pytest.fixture
def cache(tmp_path, said):
    return Cache(tmp_path / "cache", limit_mb=1, say=said.append)


def keep(cache, tmp_path, name: str, data: bytes = b"model") -> str:
    file = tmp_path / "model.onnx"
    file.write_bytes(data)
    key = key_of("build", {"name": name})
    cache.keep(key, [file], {"name": name})
    return key


def test_what_was_kept_comes_back_with_its_facts_and_nothing_else_does(cache, tmp_path):
    key = keep(cache, tmp_path, "a")

    assert cache.fetch(key, tmp_path / "out") == {"name": "a"}
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"model"
    assert cache.fetch(key_of("build", {"name": "b"}), tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("harm", ["file", "gone", "entry", "form"])
def test_a_damaged_entry_is_noticed_by_its_hash_removed_and_made_again(cache, tmp_path, said, harm):
    key = keep(cache, tmp_path, "a")
    folder = tmp_path / "cache" / key[:2] / key
    if harm == "file":
        (folder / "model.onnx").write_bytes(b"modem")
    elif harm == "gone":
        (folder / "model.onnx").unlink()
    elif harm == "entry":
        (folder / "entry.json").write_text("{")
    else:
        (folder / "entry.json").write_text('{"files": {"../../x": "0"}, "facts": {}}')

    assert cache.fetch(key, tmp_path / "out") is None
    assert not (tmp_path / "out").exists()
    assert not folder.exists()
    assert said == [f"  an entry of the cache was damaged and is made again ({key[:12]})"]
    keep(cache, tmp_path, "a")
    assert cache.fetch(key, tmp_path / "out") == {"name": "a"}


def test_the_entries_that_were_not_used_for_longest_make_room(cache, tmp_path):
    keys = [keep(cache, tmp_path, str(i), os.urandom(300_000)) for i in range(3)]
    for age, key in enumerate(reversed(keys)):
        os.utime(tmp_path / "cache" / key[:2] / key / "entry.json", (1000 - age, 1000 - age))
    assert cache.fetch(keys[0], tmp_path / "used") is not None

    newest = keep(cache, tmp_path, "new", os.urandom(300_000))

    alive = [cache.fetch(k, tmp_path / "out") is not None for k in (*keys, newest)]
    assert alive == [True, False, True, True]


def test_what_a_killed_process_left_unfinished_is_removed_after_a_day(cache, tmp_path):
    incoming = tmp_path / "cache" / ".incoming"
    for name, age in (("old", 2 * 86400), ("new", 60)):
        (incoming / name).mkdir(parents=True)
        os.utime(incoming / name, (time.time() - age,) * 2)

    keep(cache, tmp_path, "a")

    assert [p.name for p in incoming.iterdir()] == ["new"]


def test_a_folder_that_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, said):
    (tmp_path / "cache").write_text("a file")
    cache = Cache(tmp_path / "cache", limit_mb=1, say=said.append)

    for name in ("a", "b"):
        assert cache.fetch(keep(cache, tmp_path, name), tmp_path / "out") is None

    assert len(said) == 1
    assert said[0].endswith("cannot be written: Not a directory; going on without it")


def test_without_a_folder_nothing_is_kept(tmp_path, said):
    cache = Cache(None, limit_mb=1, say=said.append)
    assert cache.fetch(keep(cache, tmp_path, "a"), tmp_path / "out") is None
    assert not said


def test_a_key_is_of_its_kind_and_of_every_part_whatever_their_order():
    assert key_of("build", {"a": 1, "b": 2}) == key_of("build", {"b": 2, "a": 1})
    assert len({key_of("build", {"a": 1}), key_of("predict", {"a": 1}), key_of("build", {"a": 2})}) == 3


def test_the_weights_beside_an_openvino_file_count(tmp_path):
    xml = tmp_path / "m.xml"
    xml.write_text("<net/>")
    (tmp_path / "m.bin").write_bytes(b"1")
    before = digest_of_form(xml)
    (tmp_path / "m.bin").write_bytes(b"2")

    assert digest_of_form(xml) != before
    assert digest_of_form(tmp_path) != before


def test_the_cache_is_where_the_user_keeps_caches_and_knows_its_own_code(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "edge-sdk" / "convert"
    assert len(code_version()) == 64
