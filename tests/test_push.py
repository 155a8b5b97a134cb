"""`heal push`: what arrives on a hub, what is said of it, and what is refused. The hub is tests/hub.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard, constants

from heal.generation.collect import Collection
from heal.hub.source import EMBEDDED
from heal.recipe import load_recipe
from heal.records import read_record
from heal.run.facts import Exported
from heal.run.folder import EXPORT_RECORD, RunFolder
from heal.steering.vector import SteeringVector
from heal.trait import load_trait
from tests import finished, reported
from tests.cases import case
from tests.commanded import ROOT, heal, refused
from tests.hub import TOKEN, Hub, Repo, reached, served

BASE = "maker/tiny-llama"
ADAPTER, VECTOR, DATA = "user/adapter", "user/vector", "user/data"


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with both exports and completions."""
    folder = finished.write_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)
    rows = Collection(tuple(reported.completions("x")), 1.0).files()
    for index in range(finished.ROUNDS):
        for name, content in rows.items():
            (folder.round(index) / name).write_bytes(content)
    for format in ("adapter", "model"):
        done = heal("export", f"run={folder.path}", f"format={format}", "device=cpu")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with served() as hub:
        reached(hub, monkeypatch, str(tmp_path / "cache"))
        card = b"---\nlicense: other\nlicense_name: tiny-1.0\nlicense_link: LICENSE\n---\n"
        hub.repos[f"models/{BASE}"] = Repo(False, {"README.md": card})
        yield hub


def words(run: RunFolder, *more: str) -> list[str]:
    return ["push", f"run={run.path}", f"base={BASE}", *more]


def test_each_kind_arrives_whole_in_one_commit_with_a_card_that_says_what_it_is(
    run: RunFolder, hub: Hub, tmp_path: Path
) -> None:
    for kind, name, place, relation in (
        ("adapter", ADAPTER, f"models/{ADAPTER}", "adapter"),
        ("model", "user/model", "models/user/model", "finetune"),
        ("vector", VECTOR, f"models/{VECTOR}", "adapter"),
        ("dataset", DATA, f"datasets/{DATA}", None),
    ):
        with case(kind):
            done = heal(*words(run, f"what={kind}", f"to={name}"))
            assert done.returncode == 0, done.stderr
            assert f"pushed     {hub.url}/" in done.stdout
            repo = hub.repos[place]
            assert repo.private
            assert repo.messages == ["initial commit", f"heal push: {kind}"]
            assert repo.lfs == {file for file in repo.files if file.endswith(".safetensors")}
            card = (DatasetCard if kind == "dataset" else ModelCard)(repo.files["README.md"].decode())
            assert [card.data[key] for key in ("license", "license_name", "license_link")] == [
                "other",
                "tiny-1.0",
                "LICENSE",
            ]
            assert card.data["language"] == ["en"]
            assert {"heal", run.started().trait.name} <= set(card.data["tags"])
            if relation:
                assert (card.data["base_model"], card.data["base_model_relation"]) == (BASE, relation)
            for file, content in repo.files.items():
                for secret in (TOKEN, str(tmp_path.parent.parent), run.path.name + "/", str(Path.home())):
                    assert secret.encode() not in content, (file, secret)
            for file, content in repo.files.items():
                (tmp_path / kind).mkdir(exist_ok=True)
                (tmp_path / kind / file).write_bytes(content)
            assert TOKEN not in done.stdout + done.stderr


def test_what_arrived_is_what_the_run_holds(run: RunFolder, hub: Hub, tmp_path: Path, tiny_folder: Path) -> None:
    for kind in ("adapter", "vector", "dataset"):
        assert heal(*words(run, f"what={kind}", f"to=user/{kind}")).returncode == 0
    adapter = hub.repos["models/user/adapter"].files
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    assert adapter["adapter_model.safetensors"] == weights
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == BASE
    for name, content in adapter.items():
        (tmp_path / name).write_bytes(content)
    from heal.export.folder import check_whole

    check_whole(tmp_path)
    assert read_record(Exported, tmp_path / EXPORT_RECORD).rounds == (0, 1)

    card = ModelCard(adapter["README.md"].decode())
    last = finished.round_metrics(1)
    found = {result.metric_type: result for result in card.data["eval_results"]}
    assert set(found) == set(last.valid)
    for name, result in found.items():
        figures = last.healed[name]
        assert result.metric_value == figures.value
        assert result.metric_args["interval"] == [figures.low, figures.high]
        assert result.metric_args["difference_interval"] == [figures.delta.low, figures.delta.high]

    again = load_recipe([f"recipe={tmp_path / 'recipe.yaml'}"])
    assert (again.model.name, again.heal, again.steer) == (BASE, run.recipe().heal, run.recipe().steer)
    assert load_trait(tmp_path / again.trait) == run.started().trait

    vector = tmp_path / "vector.safetensors"
    vector.write_bytes(hub.repos["models/user/vector"].files["vector.safetensors"])
    loaded, own = SteeringVector.load(vector), SteeringVector.load(run.round(1) / "vector.safetensors")
    assert (loaded.model, loaded.c_star) == (BASE, own.c_star)
    assert all(loaded.directions[layer].equal(own.directions[layer]) for layer in own.directions)

    data = hub.repos["datasets/user/dataset"].files
    rows = [json.loads(line) for line in data["completions.jsonl"].splitlines()]
    completions = reported.completions("x")
    kept = [completion.text for completion in completions if completion.kept]
    assert [row["completion"] for row in rows if row["kept"]] == kept * finished.ROUNDS
    assert sum(bool(row["dropped"]) for row in rows) == (len(completions) - len(kept)) * finished.ROUNDS


def test_a_repository_that_is_there_changes_only_as_was_said(run: RunFolder, hub: Hub) -> None:
    place, to = f"models/{VECTOR}", ["what=vector", f"to={VECTOR}"]

    def there(private: bool = True) -> Repo:
        hub.repos[place] = Repo(private, {"notes.md": b"mine", "README.md": b"old"})
        return hub.repos[place]

    repo = there()
    refused(words(run, *to), "the repository holds 2 files (README.md, notes.md)", partly=True)
    assert repo.files == {"notes.md": b"mine", "README.md": b"old"}

    repo = there()
    done = heal(*words(run, *to, "existing=add"))
    assert (done.returncode, repo.files["notes.md"]) == (0, b"mine"), done.stderr
    assert "overwrites README.md" in done.stdout
    assert repo.files["README.md"] != b"old"

    repo = there()
    done = heal(*words(run, *to, "existing=replace"))
    assert done.returncode == 0, done.stderr
    assert "deletes    notes.md" in done.stdout
    assert "notes.md" not in repo.files
    assert "vector.safetensors" in repo.files

    there(private=False)
    refused(words(run, *to, "existing=add"), "the repository is public; private=false pushes to it", partly=True)
    assert heal(*words(run, *to, "existing=add", "private=false")).returncode == 0

    hub.repos[place] = Repo(True)  # as a push leaves it that was stopped after it was made
    assert heal(*words(run, *to)).returncode == 0
    again = heal(*words(run, *to, "existing=add"))  # the same again is no commit
    assert (again.returncode, len(hub.repos[place].files)) == (0, 5), again.stderr


def test_what_the_hub_or_the_way_to_it_refuses_is_one_line_without_the_token(
    run: RunFolder, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    to = ["what=vector", f"to={VECTOR}", "license=mit"]
    for begins, answer, status, said in (
        ("GET /api/models/user", (500, "down TOKEN"), 1, "the hub answers 500"),
        ("POST /api/repos/create", (403, "not yours TOKEN"), 2, "is the token one that may write there?"),
        ("POST /api/repos/create", (409, "taken TOKEN"), 2, "the hub answers 409"),
        ("POST /api/validate-yaml", (400, "TOKEN"), 2, "Invalid metadata in README.md"),
        ("PUT /lfs/", (403, "TOKEN"), 1, "Error while uploading 'vector.safetensors' to the Hub."),
        ("POST /api/models/user/vector/commit", (412, "a commit has happened since TOKEN"), 2, "the hub answers 412"),
    ):
        with case(begins, answer):
            hub.repos.pop(f"models/{VECTOR}", None)
            hub.answers = {begins: answer}
            done = heal(*words(run, *to))
            assert done.returncode == status, done.stderr
            assert said in done.stderr
            assert done.stderr.count("\n") == 1
            assert TOKEN not in done.stdout + done.stderr
            assert "vector.safetensors" not in getattr(hub.repos.get(f"models/{VECTOR}"), "files", {})
    hub.answers = {}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    done = heal(*words(run, *to))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "http://127.0.0.1:9: the hub cannot be reached" in done.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(words(run, *to), "HF_HUB_OFFLINE is set", partly=True)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(words(run, *to), "no access token of the hub: log in with `hf auth login`, or set HF_TOKEN")


def test_a_dry_run_says_what_would_go_where_and_asks_nobody(run: RunFolder, hub: Hub) -> None:
    done = heal(*words(run, f"to={ADAPTER}", "dry=true"))
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    for said in (
        f"to         {ADAPTER}, a model repository, private if it is new",
        "file       adapter_model.safetensors (",
        f"base       {BASE}, adapter",
        f"licence    that of {BASE}, which the push asks the hub for",
        "language   en",
        "measured   5 signals with intervals in the model-index",
        "nothing was pushed",
    ):
        assert said in done.stdout, said
    readme = run.adapter / "README.md"
    before = readme.read_text()
    try:
        readme.write_text(before.replace("pipeline_tag", "license: apache2\nlanguage: English\npipeline_tag"))
        said = "license: apache2: no licence of the hub's list; did you mean 'apache-2.0'?"
        refused(words(run, f"to={ADAPTER}", "dry=true"), said)
        refused(words(run, f"to={ADAPTER}", "dry=true"), "language: English: expected a code of ISO 639")
        readme.write_text(f"{before}\n{TOKEN}\n")
        refused(words(run, f"to={ADAPTER}", "dry=true"), "README.md: there is an access token of the hub in it")
    finally:
        readme.write_text(before)
    assert hub.requests == []


def test_a_mistake_in_the_command_s_words_is_one_line(run: RunFolder) -> None:
    for more, said in (
        (["to=name"], "to=name: expected user/name"),
        (["to=user/na--me"], "Cannot have -- or .. in repo_id"),
        ([f"to={VECTOR}", "what=vectr"], "did you mean 'vector'"),
        ([f"to={VECTOR}", "round=1"], "says nothing but of what=vector"),
        ([f"to={VECTOR}", "export=x"], "not both"),
        ([f"to={VECTOR}", "license=apache2"], "did you mean 'apache-2.0'?"),
        ([f"to={VECTOR}", "dry=true"], "say what the hub calls it with base=user/name"),
        ([f"to={VECTOR}", "base=none", "dry=true"], "the licence of the base is not known: give license=..."),
        ([f"to={VECTOR}", "token=x"], "unknown key 'token'"),
    ):
        refused(["push", f"run={run.path}", *more], said)
    refused(["push", f"export={run.path}", f"to={VECTOR}"], "not an export of heal; heal export writes one")


def test_a_process_of_its_own_pushes_to_the_hub_that_the_environment_names(run: RunFolder, tmp_path: Path) -> None:
    with served() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "heal", "push", f"export={run.adapter}", f"to={ADAPTER}", f"base={EMBEDDED}"]
        done = subprocess.run(
            [*command, "private=false"], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not hub.repos[f"models/{ADAPTER}"].private
        assert ModelCard(hub.repos[f"models/{ADAPTER}"].files["README.md"].decode()).data["license"] == "apache-2.0"
        assert TOKEN not in done.stdout + done.stderr
