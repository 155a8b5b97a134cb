"""A family goes through the whole loop, or is refused: the pass itself, and the table that it comes to."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

import heal
from heal.accumulator import Accumulator
from heal.coverage import Coverage
from heal.decoding import Sampling, decode
from heal.errors import UserError
from heal.evaluation.evaluate import evaluate
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.subject import Setup, Subject
from heal.models.architectures import empty_cache
from heal.models.language_model import LanguageModel
from tests import tiny
from tests.closeness import assert_near
from tests.families import FAMILIES, Family

TOKENS = 8  # of a completion that is decoded
ENDINGS = (0, 3, 3, 5)  # the step at which each of the first rows ends; the others go on
SAMPLED = Sampling(temperature=4.0)
UNFILTERED = {
    "max_tail_perplexity": 1e9,
    "max_repetition": 1,
    "max_similarity": 1,
    "min_words": 0,
    "min_on_prompt": 0,
    "min_train": 2,
    "keep_floor": 0,
    "keep_target": 0,
}
ADAPTER, MERGED = 5e-4, 1e-3  # of the largest logit: rounding, amplified by random weights, recurrence and routers
FOLDED = 5e-4  # the same update as merged weights, rounded; recurrent layers and routers amplify it
BEGIN, END = "<!-- support: written by make support -->", "<!-- end of support -->"


@dataclass(frozen=True)
class Support:
    """What came of a family.

    Attributes:
        family: its name.
        model_class: transformers' class of the model.
        layers: the kinds of its layers.
        coverage: what LoRA covers of all blocks; None: refused before.
        shares: whether rows that begin alike share a pass.
        refused: why it does not go through the loop, in the code's own words; empty: it does.
        vector: why a vector of it is no adapter, in the code's own words; empty: it is one.
    """

    family: str
    model_class: str
    layers: str
    coverage: Coverage | None = None
    shares: bool = False
    refused: str = ""
    vector: str = ""


def support(name: str, family: Family, folder: Path) -> Support:
    """Sends one family through the loop; an assertion fails where a step is not what it promises."""
    base = family.save(folder / "base")
    built = family.build()
    row = Support(name, type(built).__name__, layer_kinds(built))
    try:
        model = tiny.load(base, attention=family.attention)
    except UserError as error:
        return replace(row, refused=_said(error, base))
    _decodes_alone_as_together(model)
    student = heal.accumulate(model, rank=2, alpha=4, band=(0.0, 1.0))
    row = replace(row, model_class=type(model.model).__name__, coverage=student.coverage, shares=model.shares)
    vector = _heals(student)
    _evaluates(student)
    _comes_back(student, base, folder, family.attention)
    vector.save(folder / "vector.safetensors")
    assert torch.equal(heal.SteeringVector.load(folder / "vector.safetensors").directions[1], vector.directions[1])
    try:
        fresh = tiny.load(base, attention=family.attention)
        heal.export_vector(fresh, replace(vector, model=fresh.name), folder / "vector")
    except UserError as error:
        return replace(row, vector=_said(error, base))
    return row


def layer_kinds(model: PreTrainedModel) -> str:
    """The kinds of layers by their number, such as `16 x attention, 16 x sliding window`."""
    names = {
        "LinearAttentionLayer": "recurrent",
        "LinearAttentionAndFullAttentionLayer": "attention + recurrent",
        "DynamicLayer": "attention",
        "DynamicSlidingWindowLayer": "window",
        "DynamicIndexedLayer": "indexed attention",
        "DummyLayer": "no cache of its own",
    }
    kinds = [names.get(type(layer).__name__, type(layer).__name__) for layer in empty_cache(model).layers]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _said(error: UserError, base: Path) -> str:
    text = str(error)
    assert "\n" not in text
    return text.replace(str(base), "NAME")


def _decodes_alone_as_together(model: LanguageModel) -> None:
    """Rows that end early, in the middle and several at once leave the others as they are alone."""
    rows = [*tiny.prompts(model), *tiny.prompts(model)[1:4]]
    endless = replace(model, end_ids=frozenset())
    for attempt in range(20):  # a row may also end where another's last token happens to be said earlier
        seeds = [(attempt, row) for row in range(len(rows))]
        free = [said.ids for said in decode(endless, rows, TOKENS, sampling=SAMPLED, seeds=seeds)]
        ending = replace(model, end_ids=frozenset(ids[step] for ids, step in zip(free, ENDINGS, strict=False)))
        together = decode(ending, rows, TOKENS, sampling=SAMPLED, seeds=seeds)
        lengths = [len(said.ids) for said in together if said.ended]
        if lengths == [step + 1 for step in ENDINGS]:
            break
    else:
        raise AssertionError("no seed lets one row end early, a quarter at once, one in the middle and others not")
    for row, seed, said in zip(rows, seeds, together, strict=True):
        assert decode(ending, [row], TOKENS, sampling=SAMPLED, seeds=[seed]) == [said]


def _heals(student: Accumulator) -> heal.SteeringVector:
    """A round, a second one of random weights, and both folded; the round's vector with its dose."""
    model, trait = student.language_model, tiny.trait()
    before = _logits(model)
    vector = heal.extract(model, trait, pairs=2)
    dose = heal.calibrate(model, vector, trait, prompts=1, tokens=3, audit_prompts=0, max_passes=2)
    vector = vector.with_c_star(dose.c_star)
    made = heal.generate(student, vector, trait, prompts=2, tokens=6, top_k=0, **UNFILTERED)
    heal.heal(student, made, epochs=1, warmup=0, validation=0, gradient_norms_every=0)
    # B starts at 0: where it stayed there, no gradient came.
    still = [name for name, weight in student.trainable().items() if "lora_B" in name and not weight.any()]
    assert not still, f"LoRA without gradients: {still[:3]}"
    for fold in (1, 2):
        healed = _logits(model)
        student.fold()
        assert_near(_logits(model), healed, FOLDED)
        assert student.rounds == fold
        if fold == 1:
            student.start_round(seed=1)
            for name, weight in student.trainable().items():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.02)
    with student.base():
        assert torch.equal(_logits(model), before), "the base changed"
    assert not torch.equal(_logits(model), before)
    return vector


def _evaluates(student: Accumulator) -> None:
    model, trait = student.language_model, tiny.trait()
    texts = NeutralTexts(model, "", 2)
    setup = Setup(
        language_model=model,
        trait=trait,
        base=student.base,
        system="",
        prompts=trait.heldout_prompts[:2],
        tokens=3,
        max_repetition=1.0,
        questions=2,
        neutral_texts=texts,
    )
    values = {value.name for value in evaluate(Subject(setup, "student", student.student)).signals}
    assert {"persona_log_ratio", "neutral_kl_p95"} <= values


def _comes_back(student: Accumulator, base: Path, folder: Path, attention: str) -> None:
    """Adapter and merged model have the student's logits in plain peft and transformers."""
    model, trait = student.language_model, tiny.trait()
    wanted = _logits(model)
    heal.export_adapter(student, trait, folder / "adapter")
    heal.export_merged(student, trait, folder / "merged")
    kind = type(model.model)
    plain = kind.from_pretrained(base, attn_implementation=attention, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, str(folder / "adapter")).eval()
    assert_near(_logits(replace(model, model=adapted)), wanted, ADAPTER)
    merged = kind.from_pretrained(folder / "merged", attn_implementation=attention, dtype=torch.float32).eval()
    assert_near(_logits(replace(model, model=merged)), wanted, MERGED)


@torch.no_grad()
def _logits(model: LanguageModel) -> Tensor:
    ids_BT = torch.tensor([tiny.prompts(model)[2]])
    logits_BTV: Tensor = model.model(input_ids=ids_BT).logits
    return logits_BTV


def every_family(folder: Path, told: Callable[[str], object] = print) -> list[Support]:
    """All families, each in a folder of its own."""
    rows = []
    for index, (name, family) in enumerate(FAMILIES.items()):
        told(name)
        rows.append(support(name, family, folder / str(index)))
    return rows


def page(rows: Sequence[Support]) -> str:
    """docs/support.md."""
    through = [row for row in rows if not row.refused]
    lines = [
        "# Model families",
        "",
        "Written by `make support`: a tiny random model of each family goes through the whole loop (load, extract, "
        "decode, calibrate, generate, heal, fold twice, evaluate, export, load again in plain peft and transformers), "
        "on a CPU in float32. The numbers of layers are those of the tiny models, all of whose blocks carry LoRA. Real "
        "checkpoints, other kernels and other dtypes are not part of it; what is tried when a model is loaded says "
        "whether the same holds there.",
        "",
        "Shares: rows that begin alike are read once, as prefix trees; under a sliding window only rows shorter than "
        "the window are, and the windows here are shorter than any prompt. Vector: a steering vector can be exported "
        "as an adapter (otherwise the reason is below).",
        "",
        "| family | class | layers | LoRA | shares | vector | status |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lora = (
            "" if row.coverage is None else str(row.coverage).removeprefix("LoRA covers ").replace(" linear layers", "")
        )
        marks = ["", ""] if row.refused else ["yes" if row.shares else "no", "no" if row.vector else "yes"]
        status = f"refused: {row.refused}" if row.refused else "whole loop"
        lines.append(f"| {' | '.join([row.family, f'`{row.model_class}`', row.layers, lora, *marks, status])} |")
    lines += ["", "## Vectors that are no adapter", ""]
    lines += [f"- {row.family}: {row.vector}" for row in through if row.vector]
    return "\n".join(lines) + "\n"


def short(rows: Sequence[Support]) -> str:
    """The paragraph of the README, between its markers."""
    through = [row.family for row in rows if not row.refused]
    refused = [row.family for row in rows if row.refused]
    text = (
        f"Through the whole loop: {', '.join(through)}. Refused in one line: {', '.join(refused)}. What LoRA covers in "
        "each, and why: [docs/support.md](docs/support.md)."
    )
    return "\n".join([BEGIN, *textwrap.wrap(text, 120, break_on_hyphens=False), END])


def between_markers(text: str) -> str:
    """The markers and what stands between them."""
    return text[text.index(BEGIN) : text.index(END) + len(END)]
