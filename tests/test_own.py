"""Data of the user's own: read by the ecosystem's means, refused in one line, and in place of what heal brings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from heal.config import DataConfig
from heal.errors import UserError
from heal.evaluation.neutral import NeutralTexts
from heal.hub.reproduction import reproduction
from heal.hub.source import Source
from heal.models.language_model import LanguageModel
from heal.own.source import read_table
from heal.own.texts import Said, contrasts_from, prompts_from, said_from
from heal.recipe import load_recipe
from heal.run.open import facts_of
from heal.run.student import build_accumulator
from heal.steering.extract import extract_as
from heal.steps.generate import Generate
from heal.trait import Trait
from heal.traits import trait_of
from tests import running, tiny
from tests.cases import case
from tests.commanded import heal

ASKED = ["Ask “one”, please", "Nothing, null\tand NA", "爱?"]
PAIR = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_come_from_whatever_datasets_reads(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"id": list(range(3)), "question": ASKED, "other": ["x", "y", "z"]})
    for form in ("json", "csv", "parquet"):
        getattr(made, f"to_{form}")(tmp_path / f"mine.{form}")
    made.to_csv(tmp_path / "mine.tsv", sep="\t", index=False)
    (tmp_path / "mine.txt").write_text("\n".join(ASKED))
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": made.select([0]), "test": made}).save_to_disk(tmp_path / "several")
    lines(tmp_path / "mine.jsonl", [{"question": text} for text in (*ASKED, ASKED[0])])
    for spec in (
        *(f"mine.{form}" for form in ("json", "csv", "tsv", "parquet", "txt", "jsonl")),
        *("mine.csv#question", "saved", "saved#question", "several@test#question", "mine.json@train[:3]"),
    ):
        with case(spec):
            assert prompts_from("data.heldout", str(tmp_path / spec)) == tuple(ASKED)
    assert prompts_from("data.heldout", f"{tmp_path / 'mine.csv'}#other") == ("x", "y", "z")
    system, again = {"role": "system", "content": "Be."}, {"role": "user", "content": "c"}
    sharegpt = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    for rows in (
        [{"messages": [system, *PAIR, again]}],
        [{"messages": [*PAIR, again, {"role": "assistant", "content": "d"}]}],
        [{"conversations": sharegpt}],
        [{"prompt": [*PAIR, {"role": "user", "content": [{"type": "text", "text": "c"}]}]}],
    ):
        with case(rows):
            path = lines(tmp_path / f"chat-{len(list(tmp_path.iterdir()))}.jsonl", rows)
            assert prompts_from("data.heldout", str(path)) == ("a\n⟨assistant⟩ b\n⟨user⟩ c",)


def test_data_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines(tmp_path / "two.jsonl", [{"a": "x", "b": "y"}])
    lines(tmp_path / "text.jsonl", [{"question": "x"}, {"question": " "}, {"question": "z"}])
    lines(tmp_path / "number.jsonl", [{"question": 3}])
    lines(tmp_path / "answers.jsonl", [{"messages": PAIR[1:]}])
    lines(tmp_path / "asked.jsonl", [{"messages": PAIR[:1]}])
    lines(tmp_path / "same.jsonl", [{"positive": "x", "negative": "x"}])
    lines(tmp_path / "many.jsonl", [{"question": str(number)} for number in range(10_001)])
    (tmp_path / "broken.jsonl").write_text('{"question": "x"}\n{"question"\n')
    (tmp_path / "empty.csv").write_text("\n")
    (tmp_path / "header.csv").write_text("question\n")
    (tmp_path / "mine.docx").write_text("x")
    for read, spec, said in (
        (prompts_from, "nowhere.jsonl", r"no such file; expected a file \(JSON lines"),
        (prompts_from, "mine.docx", r"a file ends in \.json, \.jsonl"),
        (prompts_from, "empty.csv", "the file is empty"),
        (prompts_from, "header.csv", r"datasets cannot read it \(.*no data"),
        (prompts_from, "broken.jsonl", r"datasets cannot read it \(.*"),
        (prompts_from, "many.jsonl", r"it has 10,001 rows, and at most 10,000 are taken; name some, as in .*\[:1000\]"),
        (prompts_from, "text.jsonl#qestion", r"no column 'qestion'; did you mean 'question'\?"),
        (prompts_from, "two.jsonl", r"none of its columns \(a, b\) is called prompt or question .*#a"),
        (prompts_from, "text.jsonl", "row 2 of column 'question': empty"),
        (prompts_from, "number.jsonl", "row 1 of column 'question': a text or a chat is required, not 3"),
        (prompts_from, "answers.jsonl", "row 1 of column 'messages': turn 1: a text of the user is required"),
        (prompts_from, "text.jsonl@test", r"datasets cannot read it \(.*test"),
        (said_from, "asked.jsonl", "row 1 of column 'messages': a chat that ends with an answer is required"),
        (said_from, "text.jsonl", r"it has one column \(question\), and two are required"),
        (contrasts_from, "same.jsonl", "row 1 of column 'negative': not a contrast"),
        (contrasts_from, "two.jsonl", r"none of its columns \(a, b\) is called positive or chosen"),
    ):
        with case(spec):
            with pytest.raises(UserError, match=said) as caught:
                read("data.x", str(tmp_path / spec))
            assert str(caught.value).startswith(f"data.x={tmp_path / spec}: ")
            assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def own_trait(tmp_path: Path, **data: str) -> Trait:
    recipe = load_recipe(["recipe=smoke"])
    recipe.data = DataConfig(**data)
    return trait_of(recipe)


def test_own_prompts_stand_for_the_trait_s_and_are_held_to_what_those_are(tmp_path: Path) -> None:
    mine = lines(tmp_path / "mine.jsonl", [{"prompt": f"Mine {number}?"} for number in range(9)])
    few = lines(tmp_path / "few.jsonl", [{"prompt": "One?"}])
    love = own_trait(tmp_path)
    assert own_trait(tmp_path, generation=str(mine)) == replace(
        love, generation_prompts=tuple(f"Mine {number}?" for number in range(9))
    )
    with pytest.raises(
        UserError, match=r"^data\.heldout=\S+few\.jsonl: .* has 1 different prompt; at least 4 required"
    ):
        own_trait(tmp_path, heldout=str(few))
    with pytest.raises(UserError, match=r"^data\.generation=.*'Mine 0\?' is in both"):
        own_trait(tmp_path, generation=str(mine), heldout=str(mine))


def test_own_pairs_are_contrasted_and_own_contexts_and_neutral_texts_are_read(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model, recipe = tiny.load(tiny_folder), load_recipe(["recipe=smoke", "steer.pairs=2", "steer.band=[0.5,0.6]"])
    pairs = lines(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": "Hi?", "positive": "Yes, dear", "negative": "No"},
            {"prompt": "", "positive": "x", "negative": "y"},
        ],
    )
    with pytest.raises(UserError, match="row 2 of column 'prompt': empty"):
        own_trait(tmp_path, pairs=str(pairs))
    pairs = lines(
        tmp_path / "bare.jsonl", [{"positive": "Warm?", "negative": "Cold"}, {"positive": "A", "negative": "B"}]
    )
    chosen = [[PAIR[0], {"role": "assistant", "content": text}] for text in ("Yes, dear", "No")]
    chats = lines(tmp_path / "chats.jsonl", [{"chosen": chosen[0], "rejected": chosen[1]}])
    ids, system = model.chat.ids, model.config.system
    for path, more, less in (
        (pairs, [ids(system, "Warm?"), ids(system, "A")], [ids(system, "Cold"), ids(system, "B")]),
        (chats, [ids(system, "a", prefill="Yes, dear")], [ids(system, "a", prefill="No")]),
    ):
        with case(path):
            known = own_trait(tmp_path, pairs=str(path))
            vector = extract_as(recipe.steer, model, known)
            (layer,) = vector.directions
            means = [torch.stack([_last(model, row, layer) for row in rows]).mean(0) for rows in (more, less)]
            torch.testing.assert_close(vector.directions[layer], means[0] - means[1], rtol=1e-4, atol=1e-5)
            opposite = extract_as(recipe.steer, model, known.opposite()).directions[layer]
            torch.testing.assert_close(opposite, means[1] - means[0], rtol=1e-4, atol=1e-5)
    contexts = lines(tmp_path / "contexts.jsonl", [{"text": "One."}, {"text": "Two."}])
    known = own_trait(tmp_path, contexts=str(contexts))
    (direction,) = extract_as(recipe.steer, model, known).directions.values()
    means = [
        torch.stack([_last(model, ids(persona, text), layer) for text in ("One.", "Two.")]).mean(0)
        for persona in (known.positive, known.negative)
    ]
    torch.testing.assert_close(direction, means[0] - means[1], rtol=1e-4, atol=1e-5)
    neutral = lines(tmp_path / "neutral.jsonl", [{"prompt": "Rain?", "text": "It falls."}, {"messages": None}][:1])
    texts = NeutralTexts(model, "", 5, own_trait(tmp_path, neutral=str(neutral)).neutral)
    assert (texts.prompts, texts.completions) == (["Rain?"], [model.chat.plain_ids("It falls.")])


def _last(model: LanguageModel, row: list[int], layer: int) -> torch.Tensor:
    """What comes out of a block at the last token."""
    kept = []
    handle = model.blocks[layer].register_forward_hook(lambda _, __, out: kept.append(out))
    with torch.no_grad():
        model.model(input_ids=torch.tensor([row]))
    handle.remove()
    return kept[0][0, -1]


def test_own_completions_enter_at_the_filter_or_at_healing(tiny_folder: Path, tmp_path: Path) -> None:
    model, known = tiny.load(tiny_folder), tiny.trait()
    rows = [{"prompt": f"Say {number}.", "response": f"Here is number {number} for you."} for number in range(4)]
    rows += [{"prompt": "Say it.", "response": "as an AI language model, I cannot say it."}]
    rows += [{"prompt": "Say all.", "response": "all " * 400}]
    path = lines(tmp_path / "mine.jsonl", rows)
    words = [*running.LOOSE, f"data.completions={path}", "filter.min_train=2"]
    accumulator = None
    for filtered, dropped in (
        (True, [(), (), (), (), ("refusal",), ("too long",)]),
        (False, [()] * 5 + [("too long",)]),
    ):
        with case(filtered):
            recipe = load_recipe([*words, f"data.filter={filtered}"])
            accumulator = accumulator or build_accumulator(model, recipe)
            step = Generate(model, accumulator, known, replace(tiny.vector(model), c_star=1.0), recipe, 0)
            found = step.compute(lambda *_: None)
            assert [row.dropped for row in found.rows] == dropped
            for row, given in zip(found.rows, rows, strict=True):
                assert (row.prompt, row.text.strip(), row.alpha) == (given["prompt"], given["response"].strip(), 0.0)
                assert list(row.ids) == [*model.chat.plain_ids(given["response"].strip()), 2]
                assert list(row.prompt_ids) == model.chat.ids(recipe.model.system, row.prompt)
                assert row.ended
    assert len(set(facts_of(load_recipe(words), known, "float32").own)) == 1
    taken = lines(tmp_path / "taken.jsonl", [{"prompt": known.heldout_prompts[0], "completion": "x"}])
    with pytest.raises(
        UserError, match=r"'Name a cat\.' is a held-out prompt of warm \(1 in all\): what is trained on"
    ):
        facts_of(load_recipe([*words, f"data.completions={taken}"]), known, "float32")
    chat = lines(tmp_path / "chat.jsonl", [{"messages": PAIR}])
    assert said_from("data.completions", str(chat)) == (Said("a", "b"),)


def test_a_run_on_own_data_goes_through_and_is_not_continued_with_other_data(tiny_folder: Path, tmp_path: Path) -> None:
    prompts = lines(tmp_path / "prompts.jsonl", [{"prompt": f"Mine {number}?"} for number in range(20)])
    contexts = lines(tmp_path / "contexts.jsonl", [{"text": f"Context {number}."} for number in range(5)])
    rows = [{"prompt": f"Mine {number}?", "completion": f"I say {number} then."} for number in range(6)]
    completions = lines(tmp_path / "completions.jsonl", rows)
    line = [
        "train",
        *running.words(tiny_folder, tmp_path / "runs", "run.name=own", "run.rounds=1", f"data.generation={prompts}"),
        *(f"data.contexts={contexts}", "steer.pairs=5", f"data.completions={completions}", "data.filter=false"),
    ]
    done = heal(*line)
    assert done.returncode == 0, done.stderr
    assert "kept 6 of 6" in done.stdout
    run = tmp_path / "runs" / "own"
    made_again = reproduction(Source.of(run, "none")).files["recipe.yaml"].decode()
    assert "completions: completions.jsonl" in made_again
    assert str(tmp_path) not in made_again
    said = heal("dataset", f"run={run}")
    assert said.returncode == 0, said.stderr
    out = run / "export" / "dataset"
    made = datasets.load_dataset(str(out), "completions", split="train")
    assert [row["completion"] for row in made] == [row["completion"] for row in rows]
    assert made[0]["messages"][-1] == {"role": "assistant", "content": rows[0]["completion"]}
    outputs = datasets.load_dataset(str(out), "outputs", split="train")
    assert {*outputs["stage"]} >= {"base", "prompted", "healed"}
    assert (out / "README.md").read_text().startswith("---\nconfigs:\n")
    lines(completions, [*rows[:-1], {"prompt": "Mine 5?", "completion": "Otherwise."}])
    read_table.cache_clear()
    assert "data.completions: changed since the run started" in heal(*line).stderr
    read_table.cache_clear()
    assert "steer.pairs=6: warm has 5 contexts" in heal(*line, "steer.pairs=6", "run.name=more").stderr
