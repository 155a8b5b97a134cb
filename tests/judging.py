"""A small OpenAI-compatible server that runs a model for real, in a thread of the test."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import torch

from heal.models.language_model import LanguageModel

MODEL = "tiny-judge"


@dataclass
class Served:
    """What a server is and was asked.

    Attributes:
        model: that answers.
        logprobs: whether it gives probabilities; None: it refuses a request for them.
        failures: statuses that it answers the next requests with instead.
        key: that it requires; empty: none.
        questions: what it was asked, in order of arrival.
    """

    model: LanguageModel
    logprobs: bool | None = True
    failures: list[int] = field(default_factory=list)
    key: str = ""
    questions: list[str] = field(default_factory=list)
    url: str = ""
    lock: Lock = field(default_factory=Lock)

    def answer(self, body: dict[str, Any], authorization: str | None) -> tuple[int, dict[str, Any]]:
        """Status and content of a reply."""
        if self.key and authorization != f"Bearer {self.key}":
            return 401, {"error": {"message": "Incorrect API key provided"}}
        if self.failures:
            return self.failures.pop(0), {"error": {"message": "busy"}}
        if body["model"] != MODEL:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist"}}
        if self.logprobs is None and body.get("logprobs"):
            return 400, {"error": {"message": "logprobs are not supported"}}
        (message,) = body["messages"]
        self.questions.append(message["content"])
        ids, said = self.model.chat.ids("", message["content"]), list[int]()
        first = torch.empty(0)
        for _ in range(body["max_tokens"]):
            logprob_V = self.next(ids + said)
            first = logprob_V if not said else first
            said.append(int(logprob_V.argmax()))
            if said[-1] in self.model.end_ids:
                break
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": self.model.chat.decode(said)}}
        if self.logprobs and body.get("logprobs"):
            top = first.topk(body["top_logprobs"])
            listed = [
                {"token": self.token(int(index)), "logprob": float(value)}
                for value, index in zip(top.values, top.indices, strict=True)
            ]
            choice["logprobs"] = {"content": [{"top_logprobs": listed}]}
        return 200, {"object": "chat.completion", "model": MODEL, "choices": [choice]}

    @torch.inference_mode()
    def next(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities of the next token, `[V]`."""
        return torch.log_softmax(self.model.model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)

    def token(self, index: int) -> str:
        return str(self.model.chat.tokenizer.decode([index]))


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """The server, at `served.url` as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                status, content = 404, {"error": {"message": f"no such path: {self.path}"}}
                if self.path == "/v1/chat/completions":
                    status, content = served.answer(body, self.headers["Authorization"])
            reply = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
