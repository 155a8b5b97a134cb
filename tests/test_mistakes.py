"""Bad command lines, one after another: each is refused in one line with exit 2, and nothing is written."""

from pathlib import Path

import pytest

from heal.models import load as loading
from tests.cases import case
from tests.commanded import heal
from tests.reported import write_run

LONG = "x" * 10_000


@pytest.fixture
def here(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what a user may name by mistake; no command may get as far as a model's weights."""

    def read(*_):
        raise AssertionError("the weights are read")

    monkeypatch.setattr(loading, "_load_weights", read)
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "list.yaml": "- a\n- b\n",
        "text.yaml": "hello",
        "nokeys.yaml": "name: x\n",
        "empty.yaml": "",
        "scalar.yaml": "heal: 3\n",
        "intkey.yaml": "1: 2\n",
        "selfinclude.yaml": "include: selfinclude.yaml\n",
        "scenes.jsonl": "not json\n",
        "file": "x",
        "v.safetensors": "junk",
        "folder/thing": "mine",
        "broken/config.json": "{",
        "run/recipe.yaml": "heal: {tau: 1}\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    for name in ("dir.yaml", "nothing"):
        (tmp_path / name).mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "model").symlink_to(tiny_folder)
    write_run(tmp_path / "finished", rounds=1)
    return tmp_path


TRAIN = {  # words after `heal train recipe=smoke`
    "run.seed=-1": "out of range",
    "run.seed=1.5": "expected int",
    "run.seed=nan": "expected int",
    "run.seed=": "expected int",
    "run.seed=null": "expected int",
    "run.seed=[1]": "expected int",
    "run.seed={a: 1}": "run.seed",
    "run.rounds=0": "must be >= 1",
    "heal.learning_rate=nan": "finite",
    "heal.learning_rate=-1": "must be >= 0",
    "heal.learning_rate=inf": "finite",
    "heal.learning_rate=fast": "expected float",
    "heal.rank=1e99": "heal.rank=1e",
    "heal.band=[0.5]": "heal.band",
    "heal.band=[1,0]": "must not exceed",
    "heal.band=[nan,1]": "finite",
    "heal=3": "unknown key 'heal'",
    "heal..rank=3": "unknown key",
    "heal.rnk=3": "did you mean 'heal.rank'",
    "=3": "expected key=value",
    "seed": "expected key=value",
    "generation.alphas=[]": "at least one dose",
    "generation.alphas=[0]": "out of range",
    "tracking.to=nope": "tracking.to=",
    "tracking.project=a/b": "tracking.project=a/b",
    "steer.pairs=289": "<= 288",
    "steer.method=nope": "steer.method=nope",
    "evaluation.questions=241": "<= 240",
    "compute.threads=99999999999": "<= 4096",
    "generation.prompts=65": "generation.prompts=65: love has 64 generation prompts",
    "calibration.prompts=65": "calibration.prompts=65: love has 64 generation prompts",
    "evaluation.prompts=33": "evaluation.prompts=33: love has 32 held-out prompts",
    "evaluation.skip=30": "evaluation.prompts=4: love has 2 held-out prompts after evaluation.skip=30",
    "evaluation.vignettes=none/such": "no such file",
    "evaluation.vignettes=scenes.jsonl": "scenes.jsonl, line 1",
    "recipe=list.yaml": "a mapping of keys was expected",
    "recipe=text.yaml": "a mapping of keys was expected",
    "recipe=binary.yaml": "binary.yaml",
    "recipe=dir.yaml": "recipe=dir.yaml",
    "recipe=loop.yaml": "recipe=loop.yaml",
    "recipe=scalar.yaml": "unknown key 'heal'",
    "recipe=intkey.yaml": "unknown key '1'",
    "recipe=selfinclude.yaml": "cannot include",
    "recipe=": "no such recipe",
    "recipe=/": "no such file",
    f"recipe={LONG}": "File name too long",
    "trait=list.yaml": "a mapping of keys was expected",
    "trait=nokeys.yaml": "field 'positive' is missing",
    "trait=empty.yaml": "field 'name' is missing",
    "trait=": "no such trait",
    "run.root=file": "run.root=file: nothing can be written to file",
    "run.root=file/x": "nothing can be written to file",
    "run.root=/proc/x": "run.root=/proc/x: nothing can be written to /proc",
    "run.root=": "expected the path of a folder",
    "run.name=../up": "not the name of one folder",
    "run.name=/abs": "not the name of one folder",
    "run.name=a/b": "not the name of one folder",
    "run.name=..": "not the name of one folder",
    "run.name= ": "not the name of one folder",
    "run.name=a\nb": "not the name of one folder",
    f"run.name={'n' * 300}": "at most 200 bytes",
    f"run.name={'é' * 150}": "at most 200 bytes",
    "run.name=folder": "holds something that is not a run",
    "run.name=file": "a file is in the way",
    "run.name=dangling": "a file is in the way",
    "run.name=caf\udce9": "not UTF-8",
    "model.name=": "model.name=",
    "model.name=/no/such": "model.name=/no/such",
    "model.name=nothing": "model.name=nothing",
    "model.name=broken": "model.name=broken",
    "model.name=file": "model.name=file",
    "model.dtype=int8": "model.dtype=int8",
    "model.chat_template=/no": "no such file",
    "model.pad_token=nope": "not in the vocabulary",
}

OTHERS = [  # the words, and what is said
    (["nope"], "no such command"),
    ([""], "no such command"),
    (["--frobnicate"], "no such command"),
    (["chat"], "run=... is needed"),
    (["chat", "run=none"], "not a run folder"),
    (["chat", "run=file"], "not a run folder"),
    (["chat", "run=run"], "facts.json is missing"),
    (["chat", "run=finished", "round=0"], "counted from 1"),
    (["chat", "run=finished", "round=99"], "round=99"),
    (["chat", "run=finished", "alpha=nan"], "finite"),
    (["chat", "run=finished", "tokens=0"], "tokens=0"),
    (["chat", "run=finished", "prompt= "], "the prompt is empty"),
    (["report"], "run=... is needed"),
    (["report", "run=folder"], "not a run folder"),
    (["report", f"run={LONG}"], "File name too long"),
    (["export"], "one of them is needed"),
    (["export", "run=a", "vector=b"], "not both"),
    (["export", "vector=none"], "none"),
    (["export", "vector=v.safetensors"], "v.safetensors"),
    (["export", "run=finished", "out=folder"], "not an export of heal"),
    (["export", "run=finished", "out=file"], "nothing can be written to file"),
    (["export", "run=finished", "out=file/x"], "nothing can be written to file"),
    (["export", "run=finished", "out="], "expected the path of a folder"),
    (["export", "run=finished", f"round={'9' * 5000}"], "expected a number"),
    (["export", "run=finished", "rank=0"], "rank=0"),
    (["export", "run=finished", "format=gguf"], "format=gguf"),
    (["compare"], "no runs given"),
    (["compare", "none"], "none"),
    (["compare", "folder"], "folder"),
    (["compare", "scenes.jsonl"], "scenes.jsonl"),
    (["compare", "finished", "resamples=1"], "resamples=1"),
    (["compare", "finished", "out=file"], "nothing can be written to file"),
    (["sweep", "seed=a,b"], "expected int"),
    (["sweep", "jobs=0", "seed=1"], "jobs=0"),
    (["sweep", "recipe=smoke", "seed=0,0"], "the same run"),
    (["sweep", "recipe=smoke,nope"], "no such recipe"),
    (["sweep", "recipe=smoke", "seed=0,1", "run.name=x"], "names one run"),
    (["calibrate", "method=nope"], "method=nope"),
    (["calibrate", "method="], "names no intervention"),
    (["calibrate", "signs=x"], "signs=x"),
    (["calibrate", "target_kl=-1"], "calibration.target=-1"),
    (["calibrate", "calibration.prompts=65"], "love has 64 generation prompts"),
    (["survival", "alphas=x"], "expected numbers"),
    (["survival", "alphas=-1"], "at least 0"),
    (["survival", "prompts=33"], "prompts=33: love has 32 held-out prompts"),
    (["interventions", "method=mean_diff,mean_diff"], "two interventions"),
    (["interventions", "evaluation.prompts=33"], "love has 32 held-out prompts"),
    (["coherence", "out=file"], "nothing can be written to file"),
    (["coherence", "out="], "out"),
    (["coherence", "evaluation.prompts=33"], "love has 32 held-out prompts"),
    (["weight-difference", "adapter=nope"], "adapter=nope"),
    (["weight-difference", "out=folder"], "that is a folder"),
    (["weight-difference", "generation.prompts=65"], "love has 64 generation prompts"),
    (["verify-serving"], "both are needed"),
    (["verify-serving", "export=none", "python=/no"], "none"),
    (["verify-serving", "export=none", "python=/no", "prompts=33"], "love has 32 held-out prompts"),
    (["bench", "nope"], "expected key=value"),
    (["bench", "device=gpu"], "device=gpu"),
    (["bench", "recipe=nope"], "no such recipe"),
    (["bench", "device=cpu", "shape=gemma-3-4"], "no shape 'gemma-3-4'; did you mean 'gemma-3-4b'?"),
]


def contents(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_every_bad_command_line_is_refused_in_one_line_and_writes_nothing(here: Path) -> None:
    before = contents(here)
    train = ["train", "recipe=smoke", "run.root=.", "model.name=model"]
    for words, said in [*(([*train, word], said) for word, said in TRAIN.items()), *OTHERS]:
        with case(*(word[:60] for word in words)):
            done = heal(*words)
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
            assert said in done.stderr
            assert contents(here) == before
