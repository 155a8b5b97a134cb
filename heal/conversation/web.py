"""A chat in the browser of this computer: one page, and a server that only this computer and this page can use.

It listens on 127.0.0.1 alone. Who asks must know the token in the address; the Host and, for everything that acts, the
Origin must be the page's own, so that neither another site nor a name that is made to point here gets through. The page
fetches nothing from elsewhere and shows what a model says as text.
"""

import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from heal.conversation.settings import SIDES
from heal.conversation.talk import Listener, Reply, Stopped, Talk, printable
from heal.errors import RoundError, UserError
from heal.memory import memory_told
from heal.unforeseen import kept

_PAGE = Path(__file__).parent / "page"
_FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
_LONGEST = 2**20  # bytes of what a page sends
_PATIENCE = 10.0  # seconds; an answer that was stopped ends at its next token
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Page(ThreadingHTTPServer):
    """Serves one chat until it is told to stop, or the chat cannot go on."""

    daemon_threads = True

    talk: Talk

    def __init__(self, name: str, port: int):
        """Takes the port.

        Args:
            name: of the run.
            port: 0: any that is free.

        Raises:
            UserError: the port cannot be had.
        """
        self.name = name
        self.token = secrets.token_urlsafe(24)
        self.lock = threading.Lock()  # the model says one thing at a time
        self.closing = False
        self._failure: RoundError | None = None
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"port={port}: {error.strerror}; port=0 takes one that is free") from error

    @property
    def hosts(self) -> tuple[str, str]:
        """What a browser of this computer calls the server."""
        return f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def run(self, talk: Talk) -> None:
        """Serves a chat until Ctrl-C.

        Raises:
            RoundError: the chat cannot go on.
        """
        self.talk = talk
        try:
            self.serve_forever()
        finally:
            self.closing = True
            with self.lock:  # an answer ends at its next token
                self.server_close()
        if self._failure is not None:
            raise self._failure

    def fail(self, failure: RoundError) -> None:
        """Ends `run` with an error; called from another thread."""
        self._failure = failure
        threading.Thread(target=self.shutdown).start()

    def state(self) -> dict[str, Any]:
        """All that the page shows, as JSON has it."""
        talk = self.talk
        meant = {"round": str(talk.student.rounds[-1] + 1), "system": talk.system}
        return {
            "name": self.name,
            "which": talk.which,
            "rounds": talk.rounds,
            "sides": SIDES,
            "settings": asdict(talk.settings) | meant,
            "exchanges": [
                {"user": printable(user), "answers": {side: printable(text) for side, text in answers.items()}}
                for user, answers in talk.exchanges
            ],
        }


class _Events(Listener):
    """What is said, sent as server-sent events; a browser that went away stops it."""

    def __init__(self, send: Callable[..., None]):
        self._send = send

    def begins(self, side: str, head: str) -> None:
        self._send(kind="begins", side=side, head=head)

    def hears(self, side: str, text: str, thinking: bool) -> None:
        self._send(kind="hears", side=side, text=printable(text), thinking=thinking)

    def ends(self, side: str, reply: Reply) -> None:
        if not reply.stopped:
            self._send(kind="ends", side=side, text=printable(reply.text), note=reply.note)


class _Refused(Exception):
    """A request that is not served: status and reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Page
    timeout = 60  # seconds that a connection may say nothing

    def do_GET(self) -> None:
        """The page, its parts, and the state of the chat."""
        with self._answered():
            name = self._asked_for()
            if name == "state":
                self._json(self.server.state())
            elif name in _FILES:
                file, kind = _FILES[name]
                self._whole(200, kind, (_PAGE / file).read_bytes())
            else:
                raise _Refused(404, "no such page")

    def do_POST(self) -> None:
        """Everything that acts."""
        with self._answered():
            name = self._asked_for()
            if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
                raise _Refused(403, "not asked by the page of this chat")
            sent = self._sent()
            if not self.server.lock.acquire(timeout=_PATIENCE):
                raise _Refused(409, "an answer is being written: stop it first")
            try:
                self._act(name, sent)
            finally:
                self.server.lock.release()

    def _act(self, name: str, sent: dict[str, Any]) -> None:
        talk = self.server.talk
        if name == "set":
            text = sent.get("text")
            if sent.get("name") not in asdict(talk.settings) or not isinstance(text, str):
                raise _Refused(400, "expected the name of a setting, and a text")
            talk.change(str(sent["name"]), text)
            self._json(self.server.state())
        elif name == "reset":
            talk.reset()
            self._json(self.server.state())
        elif name == "say":
            self._say(str(sent.get("text", "")))
        elif name == "again":
            self._say(talk.take_back())
        else:
            raise _Refused(404, "no such page")

    def _say(self, user: str) -> None:
        """Streams what the sides say; a mistake is an event as well."""
        self.send_response(200)
        self._headers("text/event-stream")

        def send(**event: Any) -> None:
            if self.server.closing:
                raise Stopped
            try:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            except OSError as error:  # nobody listens any more
                raise Stopped from error

        with suppress(Stopped):
            try:
                with memory_told("in the chat"):
                    self.server.talk.say(user, _Events(send))
                send(kind="done")
            except UserError as error:
                send(kind="fails", text=str(error))
            except RoundError as error:
                self.server.fail(error)
                send(kind="fails", text=str(error))

    def _asked_for(self) -> str:
        """What is asked for, below the token."""
        if self.headers.get("Host") not in self.server.hosts:
            raise _Refused(403, f"open {self.server.hosts[0]} or {self.server.hosts[1]}, with the port that heal said")
        token, _, name = self.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(404, "no such page: use the whole address that heal said")
        return name

    def _sent(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LONGEST:
            raise _Refused(413, f"expected at most {_LONGEST} bytes of JSON")
        try:
            sent = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise _Refused(400, "expected JSON") from error
        if not isinstance(sent, dict):
            raise _Refused(400, "expected an object")
        return sent

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Turns what is refused or fails into an answer in one line."""
        try:
            with memory_told("in the chat"):
                yield
        except _Refused as error:
            self._json({"error": str(error)}, error.status)
        except UserError as error:
            self._json({"error": str(error)}, 400)
        except RoundError as error:
            self.server.fail(error)
            self._json({"error": str(error)}, 500)
        except OSError:  # nobody listens any more
            self.close_connection = True
        except Exception as error:
            self.server.fail(RoundError(kept(error), again=False))

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._whole(status, "application/json", json.dumps(content).encode())

    def _whole(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self._headers(f"{kind}; charset=utf-8")
        self.wfile.write(content)

    def _headers(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the address has the token in it."""
