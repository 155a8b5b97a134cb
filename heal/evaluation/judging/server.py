"""A number between 0 and 100 from an OpenAI-compatible server: expected over its probabilities where it gives them."""

import http.client
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from heal.errors import RoundError, UserError

KEY = "OPENAI_API_KEY"  # the environment variable with the server's key, if it asks for one
LEAST_MASS = 0.25  # of the first token on numbers, below which the answer is no score
_NUMBER = re.compile(r"\s*(\d{1,3})\b")
_TOKENS = 8
_ALTERNATIVES = 20  # first tokens whose probabilities are asked for; the most that OpenAI's API gives
_TIMEOUT = 120.0  # s
_PAUSES = (1.0, 4.0, 15.0, 45.0)  # s before each further try
_LATER = (408, 409, 425, 429)  # statuses after which the same request may succeed, beside those of the server's own

How = Literal["expected", "said", "none"]


@dataclass(frozen=True)
class Score:
    """A score, 0 to 100, and where it comes from.

    Attributes:
        value: NaN where there is none.
        how: expected: the mean over the numbers that the first token may be, by their probabilities; said: the number
            that was written, where a number is several tokens or the server gives no probabilities.
    """

    value: float
    how: How

    @property
    def given(self) -> bool:
        return self.how != "none"


NO_SCORE = Score(math.nan, "none")


@dataclass(frozen=True)
class Server:
    """One model of a server.

    Attributes:
        url: what `/chat/completions` follows, as in http://localhost:8000/v1.
        model: its name there.
        pauses: seconds before each further try where the server is not reached or busy.
    """

    url: str
    model: str
    pauses: Sequence[float] = _PAUSES

    def score(self, question: str) -> Score:
        """The number that answers `question`.

        Raises:
            UserError: the server refuses the request: no such model, no right key ...
            RoundError: it is not reached, or what it says is no completion.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": _TOKENS,
        }
        return score_of(self._asked(body | {"logprobs": True, "top_logprobs": _ALTERNATIVES}, body))

    def _asked(self, body: Mapping[str, Any], plain: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """The choice that the server made; a server that refuses probabilities is asked as in `plain`, without."""
        try:
            content = self._answered(body)
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode("utf-8", "replace").split())[:300]
            if plain is not None and error.code in (400, 422) and "logprobs" in said:
                return self._asked(plain)
            raise UserError(f"{self._said}: the server refuses (HTTP {error.code}: {said})") from error
        try:
            choice = dict(json.loads(content)["choices"][0])
            str(choice["message"]["content"])
        except (ValueError, LookupError, TypeError) as error:
            start = " ".join(content.decode("utf-8", "replace").split())[:200]
            raise RoundError(f"{self._said}: what the server says is no chat completion ({start})") from error
        return choice

    def _answered(self, body: Mapping[str, Any]) -> bytes:
        """The server's answer; asked again after a pause where it is not reached, or says that it is busy."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        place = f"{self.url.rstrip('/')}/chat/completions"
        for pause in (*self.pauses, None):
            request = urllib.request.Request(place, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in _LATER:
                    raise
                cause = f"HTTP {error.code}"
            except (OSError, http.client.HTTPException) as error:
                cause = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
            if pause is not None:
                time.sleep(pause)
        raise RoundError(
            f"{self._said}: not reached ({cause}, {len(self.pauses) + 1} tries); what was judged is kept, and the same "
            "command goes on"
        )

    @property
    def _said(self) -> str:
        return f"evaluation.judge.url={self.url}, model={self.model}"


def score_of(choice: Mapping[str, Any]) -> Score:
    """The score in a choice of a chat completion.

    Where a first token may be a number of several digits, the server's numbers are single tokens, and the score is
    their mean by probability, as long as they have LEAST_MASS in all. Else it is the number that the answer begins
    with.
    """
    content = (choice.get("logprobs") or {}).get("content") or []
    mass: dict[int, float] = {}
    for alternative in content[0].get("top_logprobs") or [] if content else []:
        token = str(alternative["token"]).strip()
        if token.isascii() and token.isdigit() and int(token) <= 100:
            mass[int(token)] = mass.get(int(token), 0.0) + math.exp(alternative["logprob"])
    if any(number >= 10 for number in mass):
        total = sum(mass.values())
        if total < LEAST_MASS:
            return NO_SCORE
        return Score(sum(number * p for number, p in mass.items()) / total, "expected")
    found = _NUMBER.match(choice["message"]["content"] or "")
    if found is None or int(found[1]) > 100:
        return NO_SCORE
    return Score(float(found[1]), "said")
