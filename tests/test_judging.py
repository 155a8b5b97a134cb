"""An LLM as a judge: scores from a real model behind a real local server, kept, counted and shown."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from heal.errors import RoundError, UserError
from heal.evaluation.judging.judge import CACHE, Judge
from heal.evaluation.judging.server import LEAST_MASS, Server, score_of
from heal.models.chat import Chat
from heal.models.language_model import LanguageModel
from heal.records import read_jsonl
from tests import running, tiny
from tests.asked import refusal
from tests.cases import case
from tests.commanded import heal
from tests.judging import MODEL, Served, serving

NUMBERS = (("1", "0"), ("2", "0"), ("3", "0"), ("5", "0"), ("7", "0"), ("9", "0"), ("10", "0"))  # single tokens
SAID = [("Who?", "Me, dear."), ("Why?", "No idea."), ("Where?", "")]


def judging(folder: Path, numbers: bool = True, nats: float = 9.0) -> LanguageModel:
    """A model that mostly answers with numbers, which are single tokens or digits, and depend on what it is asked."""
    model = tiny.load(folder)
    model = replace(model, chat=Chat(tiny.tokenizer(merges=NUMBERS if numbers else ())))
    spoken = "".join(left + right for left, right in NUMBERS) if numbers else "1234"
    tiny.lean(model, spoken, nats)
    return model


def test_a_score_is_the_mean_over_the_number_s_probabilities_where_the_server_gives_them(tiny_folder: Path) -> None:
    model = judging(tiny_folder)
    with serving(Served(model)) as served:
        for question in ("How much?", "And this?"):
            with case(question):
                score = Server(served.url, MODEL).score(question)
                p_V = served.next(model.chat.ids("", question)).exp()
                listed = [int(index) for index in p_V.topk(20).indices]
                mass = {
                    int(served.token(index)): float(p_V[index])
                    for index in listed
                    if served.token(index).isascii() and served.token(index).isdigit()
                }
                assert sum(mass.values()) > LEAST_MASS
                expected = sum(number * p for number, p in mass.items()) / sum(mass.values())
                assert score.how == "expected"
                assert score.value == pytest.approx(expected, rel=1e-4)


def test_a_number_of_several_tokens_or_without_probabilities_is_what_was_said_and_no_number_is_no_score(
    tiny_folder: Path,
) -> None:
    digits, silent = judging(tiny_folder, numbers=False, nats=40.0), tiny.load(tiny_folder)
    for model, logprobs in ((digits, True), (digits, False), (digits, None), (judging(tiny_folder), False)):
        with case(logprobs), serving(Served(model, logprobs)) as served:
            score = Server(served.url, MODEL).score("How much?")
            choice = served.answer(
                {"model": MODEL, "messages": [{"role": "user", "content": "How much?"}], "max_tokens": 8}, None
            )[1]["choices"][0]
            assert score == score_of(choice)
            assert score.how in ("said", "none")
    with serving(Served(silent)) as served:
        assert not Server(served.url, MODEL).score("How much?").given
    for said, value in (
        ("85", 85.0),
        (" 7.", 7.0),
        ("100\n", 100.0),
        ("101", None),
        ("1000", None),
        ("ninety", None),
        ("", None),
        ("85%", 85.0),
    ):
        with case(said):
            score = score_of({"message": {"content": said}})
            assert (score.value, score.how) == (value, "said") if value is not None else not score.given


def test_scores_are_kept_on_disk_and_asked_once_within_the_budget(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / CACHE
    with serving(Served(judging(tiny_folder))) as served:
        judge = Judge(Server(served.url, MODEL), tiny.trait(), 4, path)
        scores = judge.scores("trait", SAID)
        assert all(0 <= score <= 100 for score in scores)
        assert judge.scores("trait", [*SAID, SAID[0]]) == [*scores, scores[0]]
        assert len(served.questions) == len(read_jsonl(path)) == 3
        again = Judge(Server(served.url, MODEL), tiny.trait(), 4, path)
        assert again.scores("trait", SAID) == scores
        coherence = again.scores("coherence", SAID)
        assert [math.isnan(score) for score in coherence] == [False, True, True]
        assert len(served.questions) == 4
        assert all(text in "\n".join(served.questions) for text in (*SAID[0], *SAID[1], "Be warm.", "Be cold."))
    path.write_text('{"asked": 3}\n')
    with pytest.raises(UserError, match=r"judge\.jsonl, line 1"):
        Judge(Server("http://localhost:1/v1", MODEL), tiny.trait(), 4, path).scores("trait", SAID)


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_or_is_not_there_is_one_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(Served(judging(tiny_folder))) as served:
        server = Server(served.url, MODEL, pauses=(0.0, 0.0))
        calm = server.score("How?")
        served.failures = [503, 429]
        assert server.score("How?") == calm
        served.failures = [500, 502, 503]
        with pytest.raises(RoundError, match=r"not reached \(HTTP 503, 3 tries\); what was judged is kept"):
            server.score("How?")
        path = tmp_path / CACHE
        served.failures = [400] * 9
        with pytest.raises(UserError, match=r"the server refuses \(HTTP 400: .*busy"):
            Judge(server, tiny.trait(), 9, path).scores("trait", SAID)
        served.failures = []
        for other, said in (
            (replace(server, model="gpt"), r"HTTP 404: .*`gpt` does not exist"),
            (replace(server, url=f"{served.url}/x"), r"HTTP 404: .*no such path: /v1/x/chat/completions"),
        ):
            with case(other), pytest.raises(UserError, match=said):
                other.score("How?")
        served.key = "secret"
        with pytest.raises(UserError, match=r"HTTP 401: .*Incorrect API key"):
            server.score("How?")
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        assert server.score("How?") == calm
    with pytest.raises(RoundError, match=r"^evaluation\.judge\.url=http://127\.0\.0\.1:\d+/v1, model=tiny-judge: not "):
        server.score("How?")


def test_a_judge_is_a_model_of_a_server(recipe_file: Path) -> None:
    for words, said in (
        (["evaluation.judge.url=http://localhost/v1"], "without evaluation.judge.model="),
        (["evaluation.judge.model=x"], "without evaluation.judge.url="),
        (["evaluation.judge.url=localhost:8000", "evaluation.judge.model=x"], "not the address of a server"),
    ):
        with case(words):
            assert said in refusal(recipe_file, *words)


def test_a_run_is_judged_at_every_stage_and_its_report_says_how_far_the_judge_agrees(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with serving(Served(judging(tiny_folder))) as served:
        line = running.words(
            tiny_folder,
            tmp_path / "runs",
            *("run.name=judged", "run.rounds=1", "evaluation.steered=false", f"evaluation.judge.url={served.url}"),
            *(f"evaluation.judge.model={MODEL}", "evaluation.judge.requests=26"),
        )
        done = heal("train", *line)
        assert done.returncode == 0, done.stderr
        asked = len(served.questions)
    run = tmp_path / "runs" / "judged"
    assert 8 < asked == len(read_jsonl(run / "baseline" / CACHE)) <= 26
    metrics = json.loads((run / "rounds" / "00" / "metrics.json").read_text())["healed"]
    outputs = read_jsonl(run / "rounds" / "00" / "outputs.jsonl")
    for name in ("judged_trait", "judged_coherence"):
        scores = [row[name] for row in outputs if row["stage"] == "healed" and math.isfinite(row[name])]
        assert metrics[name]["n"] == len(scores)
        assert metrics[name]["value"] == pytest.approx(sum(scores) / len(scores))
    page = (run / "report" / "index.html").read_text()
    assert "Agreement of the judge tiny-judge with the persona log-ratio" in page
    assert "Judged coherence" in page
