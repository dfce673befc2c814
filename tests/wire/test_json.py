"""JSON is read strictly: whatever another program would read differently is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from midapi_async._wire.json import DEEPEST, dumps, loads


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"null", None),
        (b' {"a": [1, 2.5, "x", true]}\n', {"a": [1, 2.5, "x", True]}),
        (b"\xef\xbb\xbf{}", {}),
        ("{}", {}),
        ('"\\ud83e\\udd8a"', "🦊"),
        (b'"\\ud83e"', "\ud83e"),
        (b'"\\u0000"', "\0"),
        (b"1" * 4000, int("1" * 4000)),
        (b"[" * DEEPEST + b"]" * DEEPEST, ...),
        (b"[" + b"{}," * 1000 + b"{}]", [{}] * 1001),
    ],
)
def test_json_is_read(text: bytes | str, expected: object) -> None:
    """UTF-8 with or without a mark, up to the documented depth, however wide."""
    assert loads(text) == expected or expected is ...


@pytest.mark.fault("S11")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b'{"a": 1',
        b"{}x",
        b"{'a': 1}",
        b"<html></html>",
        b"NaN",
        b'{"a": Infinity}',
        b"[-Infinity]",
        b"1e999",
        b"[-1e999]",
        b'{"a": 1, "a": 1}',
        b'{"b": {"a": 1, "\\u0061": 2}}',
        b'"\x00"',
        b"\xff\xfe{\x00}\x00",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"),
        '{"a": 1}'.encode("utf-32"),
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"1" * 5000,
        b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1),
        b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1),
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'[{"a":' * 50_000 + b"1" + b"}]" * 50_000,
    ],
    ids=str,
)
def test_what_is_not_json_is_a_value_error(text: bytes) -> None:
    """Cut, deep, doubled names, NaN, UTF-16, huge numbers: one kind of error."""
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.fault("S11")
@hypothesis_settings(deadline=None)
@given(st.binary() | st.text(st.sampled_from('{}[]":,0129.eE-\\nulltrueNaN \ud800')))
def test_any_bytes_are_read_or_refused(text: bytes | str) -> None:
    """There is no third outcome, and what is read can be written."""
    try:
        value = loads(text)
    except ValueError:
        return
    assert value == loads(json.dumps(value, allow_nan=False))


def test_json_is_written_compact_in_utf_8() -> None:
    """No blanks, no escapes: a prompt costs its bytes."""
    assert '{"a":["狐",1]}'.encode() == dumps({"a": ["狐", 1]})
