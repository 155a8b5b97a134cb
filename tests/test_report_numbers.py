"""What the report says in numbers and words: what was found, what moved beside it, what is not valid."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from heal.evaluation.metrics import BaselineMetrics, FoundationFigures, RoundMetrics
from heal.evaluation.signal import TRAIT, Validity, signals
from heal.evaluation.surgical import SurgicalInformedness
from heal.records import records_bytes
from heal.report.build import build_report
from heal.report.completions import samples
from heal.report.page import render
from heal.report.reading import notes, reading
from heal.report.results import Answer, Results, read_results
from heal.report.signals import decides
from heal.report.tables import ROWS, folded, prominent, round_table, stage_rows
from heal.report.words import audits, glossary, remarks, settings
from heal.run.folder import RunFolder
from tests.reported import (
    HOSTILE,
    PROMPTS,
    SCRIPT,
    Page,
    asking,
    completions,
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
    for index in run.rounds():
        metrics = RoundMetrics.load(run.round(index))
        for summary in (metrics.steered, metrics.healed):
            assert summary is not None
            trait, delta = summary[TRAIT], summary[TRAIT].delta
            assert f"{trait.value:.3f}" in text
            assert f"[{trait.low:.3f}, {trait.high:.3f}]" in text
            assert f"{delta.value:+.3f} [{delta.low:+.3f}, {delta.high:+.3f}]" in text
        assert metrics.verdict.reason in text
        assert metrics.coh_cost is not None
        assert f"{metrics.coh_cost.ratio:.3f}" in text
    for piece in ("18 of 24", "0.988", "0.870", "0.432", "25 %", "1.550", "repetition", "narration", "learning_rate"):
        assert piece in text, piece
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
    assert "Use no round: none of 1 holds." in page.text
    assert "nan" not in page.text.lower().replace("finance", "")


def test_every_completion_is_on_the_page_or_where_there_is_no_room_some_with_every_reason(tmp_path: Path) -> None:
    rounds = read_results(write_run(tmp_path / "run", rounds=1)).rounds
    for room, count in ((1_000_000, 24), (8_000, 12), (1, 4)):
        (sample,) = samples(rounds, room)
        assert (sample.kept + sample.dropped, sample.all_kept, sample.all_dropped) == (len(sample.rows), 18, 6)
        assert len(sample.rows) <= count, room
        assert sample.kept > 0, room
        reasons = {reason for row in sample.rows for reason in row.dropped}
        assert reasons == {"narration", "repetition", "tail perplexity"}, room
        assert samples(rounds, room) == [sample]
    assert len(samples(rounds)[0].rows) == 24


def test_the_page_of_eight_rounds_stays_under_three_megabytes_however_much_was_written(tmp_path: Path) -> None:
    results = read_results(write_run(tmp_path / "run", rounds=8))
    rows, rounds = tuple(completions("<i>much</i> & more " * 40, count=400)), []
    for finished in results.rounds:
        answers = {
            stage: [replace(each, text=HOSTILE * 150) for each in said] for stage, said in finished.answers.items()
        }
        collection = replace(finished.collection, rows=rows)
        rounds.append(replace(finished, collection=collection, answers=answers))
    html = render(replace(results, rounds=tuple(rounds)))
    assert 1_500_000 < len(html) < 3_000_000
    text = plain(html.decode())
    assert "of 300 kept" in text
    assert "more prompts, whose answers were damaged less" in text


def test_the_counts_are_those_of_what_was_asked_and_not_of_what_the_recipe_asks_for(tmp_path: Path) -> None:
    results = read_results(write_run(tmp_path / "run", rounds=1, prompts=10))
    assert (results.recipe.evaluation.prompts, results.recipe.evaluation.questions) == (12, 24)
    told, meant = dict(settings(results)), dict(glossary(results))
    assert told["Evaluation"].startswith("4 answers, 4 general questions, 6 neutral texts;")
    assert told["Completions"].startswith("4 prompts at ")
    assert told["Dose"].endswith("8 prompts of 16 tokens")
    assert meant["Trait"].endswith("(n = 4 answers)")
    assert meant["p_ans_any"].endswith("1 is intact; floor 0.85 (n = 4 general questions)")
    assert meant["audit"].endswith("on 2 other prompts")


def test_an_audit_for_which_no_prompts_were_left_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1, prompts=8)
    why = "no prompts were left for it: the calibration took all 8 generation prompts of the trait"
    assert why in audits(read_results(folder))
    titles = {attributes.get("title") for attributes in Page(page_of(folder)).all("span")}
    assert f"no audit ({why})" in titles


def test_a_completion_shows_how_much_it_says_about_its_prompt_where_that_was_asked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    assert "on prompt" not in plain(section(page_of(folder), "completions"))
    rows = [
        replace(row, on_prompt=0.625, dropped=("off prompt",) if row.dropped else ()) for row in completions("plain")
    ]
    rewrite(folder, "completions.jsonl", records_bytes(rows))
    text = plain(section(page_of(folder), "completions"))
    assert text.count("on prompt 0.62") == text.count("tail perplexity") > 0
    assert "dropped: off prompt" in text


def test_an_answer_says_what_it_would_be_dropped_for_and_the_most_damaged_prompt_comes_first(tmp_path: Path) -> None:
    def written(results: Results, texts: dict[tuple[int, str], str], least: float) -> Results:
        """With other answers of the healed student by round and prompt, and a least share that names the prompt."""
        rounds = []
        for finished in results.rounds:
            healed = []
            for answer in finished.answers["healed"]:
                text = texts.get((finished.number, answer.prompt), f"Something about {answer.prompt}")
                loops = {"repetition_share": float(text == loop)}
                healed.append(replace(answer, text=text, signals=answer.signals | loops))
            collection = replace(finished.collection, off_prompt_below=least)
            rounds.append(replace(finished, answers=finished.answers | {"healed": healed}, collection=collection))
        return replace(results, rounds=tuple(rounds))

    loop, refusal = "I love you. " * 6, "As an AI language model, I cannot answer this."
    said = {(2, PROMPTS[1]): loop, (3, PROMPTS[1]): loop, (3, PROMPTS[2]): f"Well, Something about {PROMPTS[3]}"}
    said |= {(1, PROMPTS[0]): refusal, (3, PROMPTS[3]): f"Well, Something about {PROMPTS[3]}"}
    whole = written(read_results(write_run(tmp_path / "run", rounds=3)), said, least=0.0)
    found = {item.prompt: item.summary for item in reading(whole).items}
    assert found[PROMPTS[1]] == "rounds 2 and 3 (repetition)"
    assert found[PROMPTS[0]] == "round 1 (refusal)"
    assert found[PROMPTS[3]] == "round 3 (duplicate)"  # of what another prompt was answered
    assert {*[*found][:2]} == {
        PROMPTS[1],
        PROMPTS[3],
    }  # damage in a round that is neither the best nor the last is less
    text = plain(section(render(whole).decode(), "answers"))
    assert all(f"would be dropped after {summary}" in text for summary in found.values() if summary)

    astray = reading(written(whole, {}, least=1e6)).items
    assert all("off prompt" in said.dropped for item in astray for course in item.courses for said in course.said)
    few = reading(whole, room=1)
    assert (few.items, few.left_out) == (reading(whole).items[:1], len(PROMPTS) - 1)


def test_under_an_answer_stand_its_trait_tail_and_relevance_and_of_a_fraction_only_what_is_bad() -> None:
    def under(**signals: float) -> str:
        measured = {TRAIT: 0.125, "tail_perplexity": 2.5, "relevance": 0.25, "answer_tokens": 9.0}
        return plain(notes(Answer("healed", "?", "!", True, measured | signals)))

    whole = "trait +0.125, tail perplexity 2.50, relevance 0.250"
    assert under(identified_share=1.0, repetition_share=0.0, ended_share=0.0, refusal_share=1.0) == whole
    bad = under(identified_share=0.0, repetition_share=1.0)
    assert {*bad.split(", ")} == {*whole.split(", "), "not on prompt", signals()["repetition_share"].term}
    assert under(identified_share=float("nan")) == whole


# Ways of asking.


def test_every_way_of_asking_is_listed_with_its_figures_and_the_chosen_one_marked(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path / "run", rounds=1))
    part = section(html, "asking")
    listed = re.split('<th scope="rowgroup"', part)[1:]
    assert [plain(f"<p{group}".partition("</th>")[0]) for group in listed] == [*asking("plain")]
    for group, (question, chosen) in zip(listed, asking("plain").items(), strict=True):
        lines = rows_of(group)
        assert [*lines] == [*chosen.tried], question
        for (label, tried), (head, cells) in zip(chosen.tried.items(), lines.values(), strict=True):
            assert ("chosen" in plain(head)) == (label == chosen.label)
            one, other = ("\N{EN DASH}" if math.isnan(half) else f"{half:+.2f}" for half in tried.halves)
            mass = "\N{EN DASH}" if tried.mass is None else f"{tried.mass:.2f}"
            valid = "valid" if tried.valid else "not valid"
            figures = [shown(tried.informedness, 2, "+"), f"{one}, {other}", mass, f"{tried.accuracy:.2f}"]
            assert cells == [*figures, str(tried.informedness.n), valid]
            assert f'title="{tried.why}"' in group
    assert 'title="no slot, so no mass"' in part
    assert 'href="#asking">Ways of asking<' in html


def test_the_names_and_reasons_of_hostile_ways_are_text_and_nothing_else(html: str) -> None:
    part = Page(section(html, "asking"))
    assert part.text.count(SCRIPT) == sum(1 + len(chosen.tried) for chosen in asking(HOSTILE).values())
    assert not part.all("script")
    assert not part.all("img")
    assert not any(name.startswith("on") for _, attributes in part.elements for name in attributes)
    reasons = [attributes["title"] for attributes in part.all("span") if SCRIPT in (attributes.get("title") or "")]
    assert len(reasons) == sum(len(chosen.tried) for chosen in asking(HOSTILE).values())


def test_a_run_without_ways_of_asking_has_no_such_section(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    edit_baseline(folder, lambda metrics: replace(metrics, asking={}))
    html = page_of(folder)
    assert 'id="asking"' not in html
    assert "#asking" not in html
    assert "Ways of asking" not in html


# Surgical informedness.


def test_two_sided_one_armed_and_older_values_of_surgical_informedness_never_share_a_line(tmp_path: Path) -> None:
    results = read_results(write_run(tmp_path / "run", rounds=4))
    labels = {"base as the other side": 1.25, "one-armed": 2.5, "two-sided": 5.0}
    told = [
        SurgicalInformedness(1.25, 0.1, 0.0, 1.0, "k=2, unweighted", 9, other_side="base"),
        SurgicalInformedness(2.5, 0.2, math.nan, 1.0, "k=2, unweighted", 9, arms=1),
        SurgicalInformedness(5.0, 0.3, 0.4, 1.0, "k=2, unweighted", 9),
    ]
    found = [FoundationFigures(1.0, {each.variant: each} if each else {}) for each in (*told, None)]
    rounds = [
        replace(finished, metrics=replace(finished.metrics, foundations=figures))
        for finished, figures in zip(results.rounds, found, strict=True)
    ]
    (group,) = [group for group in round_table(replace(results, rounds=rounds)) if group.title == "Moral foundations"]
    lines = {line.label: [plain(cell) for cell in line.cells] for line in group.lines}
    for place, (label, value) in enumerate(labels.items()):
        cells = ["\N{EN DASH}"] * 4
        cells[place] = f"{value:.1f}"
        assert lines[f"SI, {label}"] == cells
    assert len(lines) == 1 + len(labels)


# Side effects, and what is not valid.


def test_side_effects_are_shown_with_their_difference_and_trait_and_coherence_in_the_table_of_stages(
    run: RunFolder, html: str
) -> None:
    base, healed = BaselineMetrics.load(run.baseline).base, RoundMetrics.load(run.round(1)).healed
    rows = rows_of(section(html, "side-effects"))
    effects = [signals()[name] for name in base if not decides(signals()[name])]
    assert {"question_informedness", "neutral_kl_p95", "answer_tokens"} < {signal.name for signal in effects}
    for signal in effects:
        before, after = (shown(summary[signal.name], signal.digits) for summary in (base, healed))
        difference = shown(healed[signal.name].delta, signal.digits, "+")
        assert rows[signal.title][1] == [before, after, difference, str(base[signal.name].n)], signal.name
    assert len(rows) == len(effects)

    stages, effects = section(html, "stages"), section(html, "side-effects")
    measured = [signals()[name] for name in BaselineMetrics.load(run.baseline).base]
    beside = [signal for signal in measured if signal.role == "trait" or signal.limit is not None]
    least = {TRAIT, "p_ans_any", "repetition_share", "tail_perplexity", "alive_share", "scaffold_nats"}
    assert least <= {signal.name for signal in beside}
    for signal in beside:
        assert f">{signal.title}<" in stages, signal.name  # as a column, or in the line of those that never change
        assert f">{signal.title}<" not in effects, signal.name
    assert "opposite persona" in stages


def test_a_long_run_shows_ten_rounds_and_the_rest_one_click_away(tmp_path: Path) -> None:
    results = read_results(write_run(tmp_path / "run", rounds=13))
    rows = stage_rows(results)
    rounds = [row for row in rows if row.name.startswith("round")]
    assert len(rounds) == 26
    shown_rounds = {row.finished.number for row in rounds if row.shown and row.finished}
    assert shown_rounds == prominent(results)
    assert len(shown_rounds) == sum(row.shown for row in rounds) == ROWS
    assert {1, 13, results.shown.number} <= shown_rounds
    assert prominent(results, 3) == {1, 13, results.shown.number} or results.shown.number == 13
    html = page_of(RunFolder(tmp_path / "run"))
    assert section(html, "stages").count('<tr class="healed more">') == 3
    assert section(html, "stages").count('<tr class="steered more">') == 13
    assert "16 more stages of the rounds" in html
    assert "3 more rounds" in section(html, "rounds")


def test_what_never_changes_is_one_line_and_where_everything_is_valid_nothing_is_flagged(
    run: RunFolder, html: str
) -> None:
    vary, still = folded(read_results(run))
    assert {"alive_share", "repetition_share"} <= {column.signal.name for column in still}
    assert TRAIT in {column.signal.name for column in vary}
    table, line = section(html, "stages").split("</table>")
    assert "The same at every stage: " in plain(line)
    for column in still:
        assert f">{column.signal.title}<" not in table
        assert column.signal.title in line
    table, line = section(html, "rounds").split("</table>")
    assert "cosine to round 1 0.988" in plain(line)
    assert "cosine" not in table

    assert 'class="invalid"' not in html
    assert not any("Not valid" in text for text in remarks(read_results(run)))


def test_coherence_goes_by_its_own_name(html: str) -> None:
    assert not re.search(r"coherence,? (of )?p_ans_any|p_ans_any,? coherence", plain(html))


def test_a_signal_that_is_not_valid_is_flagged_with_its_reason_wherever_it_stands(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1, mass=0.4)
    useless = {"answer_tokens": Validity(False, "of no use here")}
    edit_baseline(folder, lambda metrics: replace(metrics, validity=metrics.validity | useless))
    html = page_of(folder)
    judged = BaselineMetrics.load(folder.baseline).validity
    named = re.findall(r"<th scope=\"(?:col|row)\">([^<]+)(<small.*?)</th>", html, re.DOTALL)
    flags = {
        title.strip(): attributes["title"]
        for title, head in named
        for attributes in Page(head).all("small")
        if attributes.get("class") == "invalid"
    }
    doubted = ("alive_share", "probe_mass", "scaffold_nats", "answer_tokens")
    assert flags == {signals()[name].title: judged[name].why for name in doubted}
    assert html.count('class="invalid"') == len(doubted)
    noted = [text for text in remarks(read_results(folder)) if text.startswith("Not valid for this model")]
    assert all(judged[name].why in " ".join(noted) for name in doubted)
    assert all(text in plain(html) for text in noted)


def test_a_hostile_reason_is_text_and_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    hostile = {"alive_share": Validity(False, HOSTILE)}
    edit_baseline(folder, lambda metrics: replace(metrics, validity=metrics.validity | hostile))
    html = page_of(folder)
    page = Page(html)
    assert len(page.all("script")) == 1
    assert "<img src=x" not in html
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(SCRIPT) == 1
