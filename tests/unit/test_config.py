"""Files that people write: everything wrong is said at once."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from edge_sdk.config import load_toml, parse
from edge_sdk.errors import ConfigError
from edge_sdk.parsing import read_dataclass, write_dataclass


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Lamp:
    watt: float = field(metadata={"min": 0, "max": 100})
    colour: Colour = Colour.RED


@dataclass(frozen=True, kw_only=True)
class House:
    name: str
    floors: int = 1
    lit: bool = False
    roof: Literal["flat", "gable"] = "flat"
    path: Path | None = None
    lamps: tuple[Lamp, ...] = field(default=(), metadata={"key": "lamp"})
    rooms: dict[str, int] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.floors == 13:
            raise ValueError("13 floors bring bad luck")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "house.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_a_frozen_dataclass(tmp_path):
    house = load_toml(
        write(
            tmp_path,
            """
            name = "mill"
            roof = "gable"
            path = "a/b"
            rooms = { bath = 2 }
            free = { anything = [1, "x"] }
            [[lamp]]
            watt = 5
            colour = "blue"
            """,
        ),
        House,
    )
    lamp = Lamp(watt=5.0, colour=Colour.BLUE)
    assert house == House(
        name="mill",
        roof="gable",
        path=Path("a/b"),
        rooms={"bath": 2},
        free={"anything": [1, "x"]},
        lamps=(lamp,),
    )


def test_every_wrong_key_is_reported_at_once_with_its_path(tmp_path):
    path = write(
        tmp_path,
        """
        flors = 2
        lit = 1
        floors = true
        roof = "thatch"
        rooms = { bath = "two" }
        [[lamp]]
        watt = 500
        colour = "green"
        [[lamp]]
        colour = 3
        """,
    )
    with pytest.raises(ConfigError) as caught:
        load_toml(path, House)
    assert set(caught.value.problems) == {
        "flors: unknown key, did you mean `floors`?",
        "name: missing",
        "floors: expected an integer, found true or false True",
        "lit: expected true or false, found an integer 1",
        "roof: expected one of flat, gable, found a string 'thatch'",
        "rooms.bath: expected an integer, found a string 'two'",
        "lamp[0].watt: expected 0 to 100, found 500.0",
        "lamp[0].colour: expected one of red, blue, found a string 'green'",
        "lamp[1].watt: missing",
        "lamp[1].colour: expected one of red, blue, found an integer 3",
    }
    assert caught.value.message.startswith(f"{path}: 10 problems\n  ")
    assert caught.value.hint == "correct the keys named above"


def test_a_rule_of_the_dataclass_is_a_problem_too():
    with pytest.raises(ConfigError, match=r"house: 1 problem\n  top level: 13 floors bring bad luck"):
        parse({"name": "mill", "floors": 13}, House, where="house")


def test_infinity_is_not_a_number_that_a_file_may_have():
    with pytest.raises(ConfigError, match="watt: expected a number, found a number inf"):
        parse({"watt": float("inf")}, Lamp, where="lamp")


def test_an_array_where_a_table_belongs_is_named():
    with pytest.raises(ConfigError, match=r"rooms: expected a table, found an array \[1\]"):
        parse({"name": "mill", "rooms": [1]}, House, where="house")


def test_a_table_where_an_array_belongs_is_named():
    with pytest.raises(ConfigError, match="lamp: expected an array, found a table"):
        parse({"name": "mill", "lamp": {"watt": 1}}, House, where="house")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file: .*none.toml") as caught:
        load_toml(tmp_path / "none.toml", House)
    assert caught.value.hint == "check the path"


def test_a_file_that_is_not_toml_names_the_line(tmp_path):
    with pytest.raises(ConfigError, match="is not valid TOML: .*line 2"):
        load_toml(write(tmp_path, "name = 'mill'\nfloors = = 2"), House)


@pytest.mark.parametrize("make", [lambda p: p.write_bytes(b"name = '\xff'"), lambda p: p.mkdir()])
def test_a_file_that_cannot_be_read_says_why(tmp_path, make):
    path = tmp_path / "house.toml"
    make(path)
    with pytest.raises(ConfigError, match="cannot read .*house.toml: ") as caught:
        load_toml(path, House)
    assert caught.value.hint == "check that it is a readable UTF-8 text"


def test_writing_is_the_inverse_of_reading():
    house = House(name="mill", lamps=(Lamp(watt=2.0),), path=Path("x"), rooms={"bath": 1})
    data = write_dataclass(house)
    assert data["lamp"] == [{"watt": 2.0, "colour": "red"}]
    assert read_dataclass(data, House) == (house, [])


def test_an_absent_optional_is_left_out():
    assert "path" not in write_dataclass(House(name="mill"))


def test_a_long_wrong_value_is_shortened():
    _, problems = read_dataclass({"name": ["x" * 500]}, House)
    assert len(problems[0]) < 100
    assert problems[0].endswith("...")
