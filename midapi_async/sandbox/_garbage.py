"""Bodies that no client should trust, by name."""

from collections.abc import Callable, Mapping
from typing import Final

_LOGIN_PAGE: Final = (
    b"<!DOCTYPE html><html><head><title>Sign in</title></head>"
    b"<body><form method=post><input name=user><input name=password></form></body></html>"
)
_DEPTH: Final = 100_000

GARBAGE: Final[Mapping[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "html": ("text/html", lambda _: _LOGIN_PAGE),
    "empty": ("application/json", lambda _: b""),
    "truncated": ("application/json", lambda body: body[: len(body) * 2 // 3]),
    "deep": ("application/json", lambda _: b"[" * _DEPTH + b"]" * _DEPTH),
    "duplicate_keys": ("application/json", lambda body: b'{"code":500,"code":400,' + body[1:]),
    "nan": ("application/json", lambda _: b'{"code":NaN,"msg":"success","data":-Infinity}'),
    "utf16": ("application/json", lambda body: body.decode("utf-8", "replace").encode("utf-16")),
    "not_utf8": ("application/json", lambda _: b'{"code":200,"msg":"\xff\xfe","data":{}}'),
    "array": ("application/json", lambda body: b"[" + body + b"]"),
    "number": ("application/json", lambda _: b"200"),
    "huge": ("application/json", lambda _: b'{"code":200,"msg":"' + b"x" * 4_000_000 + b'"}'),
}
"""Name to (content type, from the true body to the garbage)."""

STATUS_LINE: Final = b"HTP/one.1 OK 200 fine\r\nContent-Length: 2\r\n\r\n{}"
