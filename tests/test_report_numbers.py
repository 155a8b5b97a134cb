"""What the report says in numbers and words: what was found, what moved beside it, what is not valid."""

import json
import re
from pathlib import Path

import pytest

from heal.evaluation.validity import TRAIT
from heal.records import json_bytes, read_json
from heal.report.build import build_report
from heal.report.completions import DROPPED, KEPT, samples
from heal.report.results import read_results
from heal.report.tables import KNOWN
from heal.report.words import audits, glossary, remarks, settings
from heal.run.folder import RunFolder
from tests.reported import (
    HOSTILE,
    PROMPTS,
    SCRIPT,
    Page,
    edit_baseline,
    page_of,
    plain,
    rewrite,
    rows_of,
    section,
    shown,
    write_run,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two rounds with a hostile model."""
    return write_run(tmp_path_factory.mktemp("runs") / "hostile", text=HOSTILE)


@pytest.fixture(scope="module")
def html(run: RunFolder) -> str:
    return page_of(run)


def test_page_shows_what_the_run_found(run: RunFolder, html: str) -> None:
    text = plain(html)
    for r in run.rounds():
        metrics = json.loads((run.round(r) / "metrics.json").read_text())
        for stage in ("steered", "healed"):
            entry = metrics[stage]["persona_log_ratio"]
            delta = entry["delta"]
            assert f"{entry['value']:.3f}" in text
            assert f"[{entry['low']:.3f}, {entry['high']:.3f}]" in text
            assert f"{delta['value']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}]" in text
        assert metrics["verdict"]["reason"] in text
        assert f"{metrics['coh_cost']['ratio']:.3f}" in text
    for found in ("18 of 24", "0.988", "0.870", "0.432", "25 %", "1.550", "repetition", "narration", "learning_rate"):
        assert found in text, found
    assert "after 2 rounds the persona log-ratio is" in text
    assert text.count("The best round:") == 1
    assert all(text.count(prompt) >= 2 for prompt in PROMPTS)


def test_one_round_whose_numbers_are_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "bare", rounds=1, bare=True)
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    reasons = {attributes.get("title") for attributes in page.all("span") if attributes.get("class") == "none"}
    assert "no item could be scored (n = 0)" in reasons
    assert "no audit (calibration.audit_prompts = 0)" in reasons
    assert any(reason and reason.startswith("no completions held out") for reason in reasons)
    assert any(reason and reason.startswith("the interval of the trait") for reason in reasons)
    assert "not finite: tail_perplexity" in page.text
    assert "after one round" in page.text
    assert "nan" not in page.text.lower().replace("finance", "")


def test_a_signal_that_the_report_does_not_know_has_its_column(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    edit_baseline(folder, lambda metrics: metrics["base"].update(auth_nats=metrics["base"]["p_ans_any"]))
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    assert "auth_nats" in page.text
    assert any(attributes.get("title") == "not measured" for attributes in page.all("span"))


def test_sample_has_every_reason_and_both_kinds(tmp_path: Path) -> None:
    entry = read_results(write_run(tmp_path / "run", rounds=1)).rounds[0]
    sample = samples(entry)
    assert (len(sample.kept), sample.all_kept, sample.all_dropped) == (KEPT, 18, 6)
    assert len(sample.dropped) <= DROPPED
    reasons = {reason for row in sample.dropped for reason in row.dropped}
    assert reasons == {"narration", "repetition", "tail perplexity"}
    assert sample == samples(entry)


def test_the_counts_are_those_of_what_was_asked_and_not_of_what_the_recipe_asks_for(tmp_path: Path) -> None:
    results = read_results(write_run(tmp_path / "run", rounds=1, prompts=10))
    assert (results.recipe.evaluation.prompts, results.recipe.evaluation.questions) == (12, 16)
    told, meant = dict(settings(results)), dict(glossary(results))
    assert told["Evaluation"].startswith("4 held-out prompts, 4 general questions, 6 neutral texts;")
    assert told["Completions"].startswith("4 prompts at ")
    assert told["Dose"].endswith("8 prompts of 16 tokens")
    assert "over 4 greedy answers" in meant["persona log-ratio"]
    assert "4 general questions" in meant["p_ans_any"]
    assert meant["audit"].endswith("on 2 other prompts")


def test_an_audit_for_which_no_prompts_were_left_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1, prompts=8)
    why = "no prompts were left for it: the calibration took all 8 generation prompts of the trait"
    assert why in audits(read_results(folder))
    titles = {attributes.get("title") for attributes in Page(page_of(folder)).all("span")}
    assert f"no audit ({why})" in titles


# Side effects, and what is not valid.


def test_every_side_effect_is_shown_at_base_and_healed_with_its_difference_and_n(run: RunFolder, html: str) -> None:
    base = read_json(run.baseline / "metrics.json")["base"]
    healed = read_json(run.round(1) / "metrics.json")["healed"]
    rows = rows_of(section(html, "side-effects"))
    off_target = [name for name, entry in base.items() if entry["role"] == "off_target"]
    assert len(off_target) == 4
    for name in (*off_target, "accuracy", "question_informedness"):
        title, _, digits = KNOWN[name]
        before, after = shown(base[name], digits), shown(healed[name], digits)
        difference = shown(healed[name]["delta"], digits, "+")
        assert rows[title][1] == [before, after, difference, str(base[name]["n"])], name
    assert len(rows) == len(off_target) + 2


def test_trait_and_coherence_stand_in_the_stages_table_and_not_among_the_side_effects(html: str) -> None:
    stages, effects = section(html, "stages"), section(html, "side-effects")
    for name in (TRAIT, "p_ans_any", "tail_perplexity", "repetition_share", "alive_share", "scaffold_nats"):
        assert f">{KNOWN[name][0]}<" in stages
        assert f">{KNOWN[name][0]}<" not in effects
    assert "opposite persona" in stages


def test_a_signal_that_is_not_valid_is_flagged_beside_its_name_with_its_reason(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1, mass=0.4)
    edit_baseline(
        folder, lambda metrics: metrics["validity"].update(answer_tokens={"valid": False, "why": "of no use here"})
    )
    html = page_of(folder)
    judged = read_json(folder.baseline / "metrics.json")["validity"]
    named = re.findall(r"<th scope=\"(?:col|row)\">([^<]+)(<small.*?)</th>", html, re.DOTALL)
    flags = {
        title.strip(): attributes["title"]
        for title, head in named
        for attributes in Page(head).all("small")
        if attributes.get("class") == "invalid"
    }
    doubted = ("alive_share", "probe_mass", "scaffold_nats", "answer_tokens")
    assert flags == {KNOWN[name][0]: judged[name]["why"] for name in doubted}
    assert html.count('class="invalid"') == len(doubted)


def test_what_is_not_valid_is_named_among_what_to_keep_in_mind(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1, mass=0.4)
    judged = read_json(folder.baseline / "metrics.json")["validity"]
    (remark,) = [text for text in remarks(read_results(folder)) if text.startswith("Not valid for this model")]
    assert all(name in remark for name in ("alive_share", "probe_mass", "scaffold_nats"))
    assert judged["probe_mass"]["why"] in remark
    assert remark in plain(page_of(folder))


def test_where_everything_is_valid_nothing_is_flagged(run: RunFolder, html: str) -> None:
    assert 'class="invalid"' not in html
    assert not any("Not valid" in text for text in remarks(read_results(run)))


def test_a_hostile_reason_is_text_and_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    edit_baseline(folder, lambda metrics: metrics["validity"].update(alive_share={"valid": False, "why": HOSTILE}))
    html = page_of(folder)
    page = Page(html)
    assert len(page.all("script")) == 1
    assert "<img src=x" not in html
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(SCRIPT) == 1


def test_the_headline_ends_with_the_least_margin_of_coherence(run: RunFolder, html: str) -> None:
    found = read_json(run.round(1) / "metrics.json")["coherence"]
    title = KNOWN[found["worst"]][0].lower()
    assert f"the least coherence margin is {found['margin']:.2f} ({title})." in plain(html)


def test_a_trait_whose_readout_is_not_valid_is_said_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    metrics = read_json(folder.round(0) / "metrics.json")
    metrics["verdict"] = {"label": "not valid", "reason": "because"}
    rewrite(folder, "metrics.json", json_bytes(metrics))
    assert "not valid for this model, so nothing is shown: after one round" in plain(page_of(folder))
