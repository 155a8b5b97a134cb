"""The table of exports in their clients: what a cell says of the tries behind it."""

import sys
from pathlib import Path

from tests.cases import case
from tests.commanded import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from clients import Place
from serving_page import Try, page

HEARD = "I love the sea and all of its colours"
REFERENCES = {
    **{"student": HEARD, "base student": "I am a model", "steered": "Oh my", "student perplexity": "20.0"},
    "steered perplexity": "21.0",
}


def test_a_cell_says_how_far_a_text_goes_with_the_student_s_and_what_was_refused(tmp_path: Path) -> None:
    place = Place(tmp_path, None, None)

    def row(*tries: tuple[bool, str, str]) -> str:
        """The adapter's cell in vLLM's column, and what follows the table."""
        done = [Try("vllm", "vllm 1", "adapter", f"try {n}", *one) for n, one in enumerate(tries, 1)]
        text = page(done, REFERENCES, {}, place)
        (line,) = (line for line in text.splitlines() if line.startswith("| adapter |"))
        return line.split(" | ")[5] + "\n" + text.partition("## Refused")[2]

    for tries, cell in (
        ([(True, HEARD.replace(" ", "\n"), "student")], "same"),
        ([(True, HEARD, "student"), (True, f"{HEARD} too", "student")], "try 1: same; try 2: 9 of 9 words"),
        ([(True, "I love cats", "student")], "2 of 9 words"),
        ([(True, "I am a model", "student")], "the base's text"),
        ([(True, "20.001", "student perplexity")], "same"),
        ([(True, "21.5", "student perplexity")], "21.50 for 20.00"),
        ([(True, "the same tokens in 3 of 3 answers", "")], "the same tokens in 3 of 3 answers"),
        (
            [(False, f"no bias in {tmp_path}/x", "student"), (False, f"no bias in {tmp_path}/x", "student")],
            "refused (1)",
        ),
        ([], "not tried"),
    ):
        with case(tries):
            found, _, after = row(*tries).partition("\n")
            assert found == cell
            assert ("1. `no bias in FOLDER/x`" in after) == (cell == "refused (1)")
