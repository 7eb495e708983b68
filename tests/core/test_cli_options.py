"""The command line in the spellings that our users type."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistreamd.cli.options import Parser, UsageError, boolean, checked, integer, normalise, ports, seconds
from scistreamd.model import Uid

BOOLEANS = {"--mock", "--ssl", "--no-tls", "-v"}


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--num_conn 5", "--num-conn 5"),
        ("--num_conn=5_0", "--num-conn=5_0"),
        ("--label a_b", "--label a_b"),
        ("--mock", "--mock=True"),
        ("--mock True x", "--mock=True x"),
        ("--mock no x", "--mock=no x"),
        ("--mock x", "--mock=True x"),
        ("--mock=False x", "--mock=False x"),
        ("-v", "-v=True"),
        ("-v 0", "-v=0"),
        ("--nossl", "--ssl=False"),
        ("--no_ssl", "--ssl=False"),
        ("--no_tls", "--no-tls=True"),
        ("--nossl=1", "--nossl=1"),
        ("--notmock", "--notmock"),
        ("-- --a_b --mock", "-- --a_b --mock"),
        ("- @a_b", "- @a_b"),
    ],
)
def test_one_spelling(typed: str, read: str) -> None:
    assert normalise(typed.split(), BOOLEANS, {"--ssl"}) == read.split()


@given(st.lists(st.text()))
def test_normalise_takes_everything_and_settles(argv: list[str]) -> None:
    once = normalise(argv, BOOLEANS, {"--ssl"})
    assert normalise(once, BOOLEANS, {"--ssl"}) == once


def _parser() -> Parser:
    parser = Parser(prog="tool")
    parser.add_argument("uid")
    parser.add_argument("listener")
    parser.add_argument("--num-conn", type=integer(1, 9))
    parser.add_argument("--type", "-t")
    parser.add_boolean("--mock", help="m")
    parser.add_boolean("--ssl", default=True, negatable=True, help="s")
    return parser


@pytest.mark.parametrize(
    "typed",
    [
        "--num_conn 5 --mock u l",
        "u l --num-conn=5 --mock True",
        "u --mock --num_conn=5 l",
        "--mock yes u --num-conn 5 l",
    ],
)
def test_options_stand_anywhere(typed: str) -> None:
    options = _parser().parse(typed.split())
    assert (options.uid, options.listener, options.num_conn, options.mock) == ("u", "l", 5, True)


@pytest.mark.parametrize("typed", ["-t x", "-t=x", "-tx", "--type x", "--type=x"])
def test_short_names(typed: str) -> None:
    assert _parser().parse(["u", "l", *typed.split()]).type == "x"


@pytest.mark.parametrize(("typed", "value"), [("", True), ("--nossl", False), ("--ssl=False", False), ("--ssl", True)])
def test_negatable(typed: str, value: bool) -> None:
    assert _parser().parse(["u", "l", *typed.split()]).ssl is value


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        ("--num_con 5 u l", "unknown option --num-con", "did you mean --num-conn?"),
        ("--qqq u l", "unknown option --qqq", "see: tool --help"),
        ("-x u l", "unknown option -x", "see: tool --help"),
        ("u l m", "unexpected argument 'm'", "see: tool --help"),
        ("u", "the following arguments are required: listener", "see: tool --help"),
        ("u l --num-conn", "argument --num-conn: expected one argument", "see: tool --help"),
        ("u l --num-conn -1", "argument --num-conn: '-1' is not a whole number from 1 to 9", "see: tool --help"),
        ("u l --mock=maybe", "argument --mock: 'maybe' is neither True nor False", "see: tool --help"),
        ("u l --mock maybe", "unexpected argument 'maybe'", "see: tool --help"),
        ("u l --num 5", "unknown option --num", "did you mean --num-conn?"),
    ],
)
def test_mistakes(typed: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        _parser().parse(typed.split())
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("YES", True), ("1", True), ("No", False), ("0", False)])
def test_boolean(text: str, value: bool) -> None:
    assert boolean(text) is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90), ("90s", 90), ("90m", 5400), ("2h", 7200), ("1D", 86400),
        ("1h30m", 5400), ("2h 5min", 7500), ("1 day 2 hr", 93600),
    ],
)  # fmt: skip
def test_seconds(text: str, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "1w", "1.5h", "h", "٣", "1h30", "5ms", "30 20", "9999999999"])
def test_no_seconds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        seconds(text)


@pytest.mark.parametrize(("text", "value"), [("5001", (5001,)), ("2, 1", (2, 1)), ("7-9,3", (7, 8, 9, 3))])
def test_ports(text: str, value: tuple[int, ...]) -> None:
    assert ports(text) == value


@pytest.mark.parametrize("text", ["", "0", "65536", "1,", "9-7", "x", "1-65535", "-1", "1-2-3"])
def test_no_ports(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        ports(text)


def test_a_model_error_becomes_one_of_usage_and_shows_no_uid() -> None:
    with pytest.raises(UsageError) as caught:
        checked(Uid.parse)("4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c")
    assert "4f8583bc" not in caught.value.message + caught.value.hint
