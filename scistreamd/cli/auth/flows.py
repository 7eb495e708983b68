"""How a user logs in: with a browser here, with a browser elsewhere, or by a code for a device."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import sys
import time
import webbrowser
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from scistreamd.cli import output
from scistreamd.cli.auth.provider import Provider
from scistreamd.cli.auth.store import Login
from scistreamd.errors import Code, ScistreamError

_SECONDS = 300.0
_REQUEST_LIMIT = 65536
_PAGE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n"
    b"Connection: close\r\n\r\n%s\n"
)


def by_code(provider: Provider, login: Login, *, browser: bool) -> Login:
    """Authorization code with PKCE (RFC 6749, 4.1; RFC 7636): the code comes to loopback (RFC 8252) or is pasted."""
    verifier = secrets.token_urlsafe(64)
    with contextlib.ExitStack() as undo:
        listener = None
        redirect = provider.fixed_redirect
        if not redirect:
            listener = undo.enter_context(socket.create_server(("127.0.0.1", 0)))
            redirect = f"http://127.0.0.1:{listener.getsockname()[1]}/callback"
        url, state = provider.authorization_url(login, redirect, verifier)
        output.result(f"Log in at this URL:\n\n{url}\n")
        if browser and _open(url):
            output.note("s2uc", "a browser was started")
        code = _await_code(listener, state, provider.issuer)
    return provider.redeem(login, code, redirect, verifier)


def by_device(provider: Provider, login: Login) -> Login:
    """A code that is typed on another device (RFC 8628)."""
    if not provider.device_flow:
        raise ScistreamError(
            Code.UNIMPLEMENTED,
            f"{provider.issuer} gives no codes for devices",
            "leave --device out: s2uc prints a URL for a browser anywhere, and takes the code that it shows",
        )
    started = provider.start_device(login)
    where = started.get("verification_uri_complete") or started["verification_uri"]
    where, code = output.printable(str(where)), output.printable(started["user_code"])
    output.result(f"Log in with any device at\n\n{where}\n\nand confirm the code {code}")
    return provider.finish_device(login, started)


def headless(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether no browser could show itself here."""
    return not any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _open(url: str) -> bool:
    if headless():
        return False
    with contextlib.suppress(webbrowser.Error):
        return webbrowser.open(url)
    return False


def _await_code(listener: socket.socket | None, state: str, issuer: str) -> str:
    """The code that the browser brings to ``listener``, or that is pasted: alone, or with the URL around it."""
    sources: list[socket.socket | int] = [listener] if listener else []
    if sys.stdin is not None and not sys.stdin.closed:
        sources.append(sys.stdin.fileno())
        whence = "Paste the code, or the address that the browser ends up at" if listener else "Paste the code"
        print(f"{whence}: ", end="", file=sys.stderr, flush=True)
    deadline = time.monotonic() + _SECONDS
    pasted = ""
    while sources and (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select(sources, [], [], left)
        if listener in ready and listener is not None:
            if query := _callback(listener):
                print(file=sys.stderr)  # the question stands open there
                return _code(query, state, issuer)
        elif ready:
            piece = os.read(sys.stdin.fileno(), 4096).decode("utf-8", "replace")
            pasted += piece
            if "\n" in pasted:
                return _pasted(pasted.partition("\n")[0].strip(), state, issuer)
            if not piece:
                sources.remove(sys.stdin.fileno())
    raise ScistreamError(
        Code.DEADLINE_EXCEEDED if sources else Code.CANCELLED, "no code came", "log in again: s2uc login"
    )


def _pasted(text: str, state: str, issuer: str) -> str:
    if "://" not in text:
        return text
    return _code(parse_qs(urlsplit(text).query), state, issuer)


def _callback(listener: socket.socket) -> dict[str, list[str]] | None:
    """The query of a browser's request for /callback; None for anything else that connects."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(5)
        request = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in request and len(request) < _REQUEST_LIMIT and (piece := connection.recv(4096)):
                request += piece
        words = request.split(b"\r\n")[0].decode("latin-1").split(" ")
        parts = urlsplit(words[1]) if len(words) == 3 and words[0] == "GET" else urlsplit("")
        found = parse_qs(parts.query) if parts.path == "/callback" else {}
        wanted = "state" in found
        text = b"You may close this page and go back to s2uc." if wanted else b"This is not what s2uc waits for."
        with contextlib.suppress(OSError):
            connection.sendall(_PAGE % text)
    return found if wanted else None


def _code(query: Mapping[str, list[str]], state: str, issuer: str) -> str:
    """The code of an answer that is one to our question (RFC 6749, 10.12; RFC 9207)."""
    if not secrets.compare_digest(query.get("state", [""])[0], state):
        raise ScistreamError(Code.UNAUTHENTICATED, "the answer is not one to this login", "log in again: s2uc login")
    if query.get("iss", [issuer])[0].rstrip("/") != issuer:
        raise ScistreamError(Code.UNAUTHENTICATED, "the answer is another provider's", "log in again: s2uc login")
    if "error" in query:
        why = " ".join([query["error"][0], *query.get("error_description", [])])
        raise ScistreamError(Code.UNAUTHENTICATED, f"{issuer} says: {output.harmless(why)}", "log in again: s2uc login")
    if not query.get("code"):
        raise ScistreamError(Code.UNAUTHENTICATED, "the answer has no code", "log in again: s2uc login")
    return query["code"][0]
