"""`heal chat web=true`: a page that only this computer's browser can use, and that shows what models say as text."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from heal.conversation.settings import Settings
from heal.conversation.talk import Talk
from heal.conversation.web import Page
from heal.errors import UserError
from heal.run.folder import RunFolder
from tests import browser, finished, tiny
from tests.cases import case

HOSTILE = "<img src=x onerror=\"document.title='executed'\"><script>document.title='executed'</script> & [bold]"


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished.write_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


@contextmanager
def served(run: RunFolder, **settings: Any) -> Iterator[Page]:
    page = Page(run.path.name, 0)
    talk = Talk(run, Settings(**settings), tiny.CPU)
    thread = threading.Thread(target=page.run, args=[talk])
    thread.start()
    try:
        yield page
    finally:
        page.shutdown()
        thread.join(60)
        assert not thread.is_alive()


def asked(page: Page, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, str]:
    """Status and body of one request, made as the page makes it unless `headers` say otherwise (empty: without it)."""
    host = page.hosts[0]
    sent = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    own = {"Host": host, "Origin": f"http://{host}", "Content-Length": str(len(sent))} | headers
    connection = http.client.HTTPConnection(*page.server_address[:2], timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, text in own.items():
        if text:
            connection.putheader(name, text)
    connection.endheaders(sent)
    response = connection.getresponse()
    assert response.headers["Referrer-Policy"] == "no-referrer"
    body = response.read().decode()
    connection.close()
    return response.status, body


def test_nobody_but_the_page_of_this_computer_is_answered(run: RunFolder) -> None:
    with served(run, tokens=4) as page:
        assert page.server_address[0] == "127.0.0.1"
        at = f"/{page.token}"
        with pytest.raises(UserError, match=f"port={page.server_port}: Address already in use; port=0 takes"):
            Page("other", page.server_port)
        other = f"evil.example:{page.server_port}"
        for status, method, path, content, headers in (
            (404, "GET", "/", None, {}),
            (404, "GET", f"/{page.token[:-1]}/", None, {}),
            (404, "GET", f"{at}/../secret", None, {}),
            (403, "GET", f"{at}/", None, {"Host": other}),
            (403, "GET", f"{at}/state", None, {"Host": ""}),
            (404, "POST", "/x/say", {"text": "Hello"}, {}),
            (403, "POST", f"{at}/say", {"text": "Hello"}, {"Host": other, "Origin": f"http://{other}"}),
            (403, "POST", f"{at}/say", {"text": "Hello"}, {"Origin": "http://evil.example"}),
            (403, "POST", f"{at}/say", {"text": "Hello"}, {"Origin": "null"}),
            (403, "POST", f"{at}/say", {"text": "Hello"}, {"Origin": ""}),
            (400, "POST", f"{at}/say", b"{", {}),
            (400, "POST", f"{at}/say", [], {}),
            (413, "POST", f"{at}/say", b"", {"Content-Length": str(2**20 + 1)}),  # refused before it is sent
            (400, "POST", f"{at}/set", {"name": "dose", "text": "nan"}, {}),
            (400, "POST", f"{at}/set", {"name": "__class__", "text": "1"}, {}),
            (400, "POST", f"{at}/again", {}, {}),
        ):
            with case(method, path, headers, str(content)[:20]):
                found, body = asked(page, method, path, content, **headers)
                assert found == status
                assert list(json.loads(body)) == ["error"]
        assert page.talk.exchanges == []
        assert page.talk.settings == Settings(tokens=4)
        for name, kind in (("", "<!DOCTYPE html>"), ("page.js", "use strict"), ("page.css", ":root"), ("state", "{")):
            assert kind in asked(page, "GET", f"{at}/{name}", Host=page.hosts[1])[1]


def test_answers_stream_and_end_when_the_browser_goes_away(run: RunFolder) -> None:
    with served(run, tokens=6, sides="base,healed") as page:
        at = f"/{page.token}"
        _, body = asked(page, "POST", f"{at}/say", {"text": "Hello"})
        events = [json.loads(part.removeprefix("data: ")) for part in body.strip().split("\n\n")]
        one = ["begins", *["hears"] * 6, "ends"]
        assert [event["kind"] for event in events] == [*one, *one, "done"]
        (user, answers), *others = page.talk.exchanges
        assert (user, list(answers), others) == ("Hello", ["base", "healed"], [])
        assert (
            json.loads(asked(page, "POST", f"{at}/set", {"name": "tokens", "text": "900"})[1])["settings"]["tokens"]
            == 900
        )
        sent = b'{"text": "More"}'
        with socket.create_connection(page.server_address[:2]) as gone:
            gone.sendall(
                f"POST {at}/say HTTP/1.0\r\nHost: {page.hosts[0]}\r\nOrigin: http://{page.hosts[0]}\r\n"
                f"Content-Length: {len(sent)}\r\n\r\n".encode()
                + sent
            )
            seen = b""
            while b'"hears"' not in seen:
                seen += gone.recv(4096)
        end = time.monotonic() + 60
        while page.lock.locked():
            assert time.monotonic() < end
            time.sleep(0.01)
        state = json.loads(asked(page, "GET", f"{at}/state")[1])
        assert [exchange["user"] for exchange in state["exchanges"]] == ["Hello", "More"]
        assert list(state["exchanges"][1]["answers"]) == ["base"]
        assert len(page.talk.student.model.chat.plain_ids(page.talk.turns["base"][-1][1])) < 900
        assert asked(page, "POST", f"{at}/reset", {})[0] == 200
        assert page.talk.exchanges == []


@pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING)
def test_a_browser_chats_at_either_width_in_light_and_dark_and_executes_nothing(run: RunFolder, tmp_path: Path) -> None:
    with served(run, tokens=8) as page, browser.opened(tmp_path) as tab:
        chat = page.talk.student.model.chat
        decode = chat.decode
        chat.decode = lambda ids: f"{HOSTILE} {'word ' * 20}{'x' * 80} {decode(ids)}"  # type: ignore[method-assign]
        for width, dark in ((1280, False), (390, True)):
            with case(width, dark):
                tab.look(page.address, width, 900, dark)
                tab.until("document.title === 'heal chat: run'")
                tab.says("document.getElementById('reset').click()")
                typed = json.dumps(f"{HOSTILE} {width}")
                tab.says(f"message.value = {typed}; document.getElementById('send').click()")
                tab.until(f"document.querySelector('.user')?.textContent === {typed}")
                tab.until("document.querySelectorAll('.answer').length === 3 && !listening")
                assert tab.says("document.title") == "heal chat: run"
                assert tab.says("document.querySelectorAll('img, main script').length") == 0
                assert tab.says("document.querySelector('.user').textContent") == f"{HOSTILE} {width}"
                assert all(
                    HOSTILE in text
                    for text in tab.says("[...document.querySelectorAll('.answer p')].map((p) => p.textContent)")
                )
                assert tab.says("document.documentElement.scrollWidth") <= width
                tops = tab.says(
                    "[...document.querySelectorAll('.answer')].map((box) => box.getBoundingClientRect().top)"
                )
                assert len(set(tops)) == (1 if width > 1000 else 3)
                light = tab.says("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) > 127")
                assert light != dark
                fetched = tab.says("performance.getEntriesByType('resource').map((entry) => entry.name)")
                assert all(name.startswith(page.address) for name in fetched)
                tab.picture(tmp_path / f"chat-{width}.png")
        for name, value in (("dose", 0.5), ("tokens", 900)):
            tab.says(f"field = settings.elements.{name}; field.value = '{value}'")
            tab.says("field.dispatchEvent(new Event('change', { bubbles: true }))")
            end = time.monotonic() + 60
            while getattr(page.talk.settings, name) != value:
                assert time.monotonic() < end, name
                time.sleep(0.02)
        tab.says("document.getElementById('again').click()")
        tab.until("listening && document.querySelector('.exchange:last-child .answer p')?.textContent")
        tab.says("document.getElementById('stop').click()")
        tab.until("document.querySelector('.exchange:last-child .note')?.textContent === '[stopped]'")
        tab.look(page.address, 390, 900, False)
        tab.until("document.querySelectorAll('.exchange').length === 1")
