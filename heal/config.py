"""The recipe: every key, its type, default and meaning. One place; `--help` is printed from here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from heal.adapter_kinds import ADAPTER_KINDS
from heal.banks import AUTO, LANGUAGES
from heal.evaluation.signal import limited
from heal.healing.aggregates import AGGREGATES
from heal.scale import Scale

Section = TypeVar("Section")

AS_DEFAULT = object()  # a key whose default is also what runs did before the key existed


def key(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    choices: str | Mapping[str, str] | None = None,
    before: Any = AS_DEFAULT,
    auto: bool = False,
) -> Any:
    """A dataclass field with its one-line meaning.

    Args:
        default: its value where nobody says another.
        help: its meaning.
        minimum, maximum: its range, for numbers (both ends allowed).
        choices: for text, or a list of texts, that names one of several: the package whose files they are
            ("heal.steering.methods"), or a table: the meaning of each by name.
        before: what runs made before the key existed, or had this default, behave as; a recipe on disk that lacks the
            key has this value.
        auto: for a type with None: `auto` is written for it.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "before": before,
        "auto": auto,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def with_limits(section: type[Section]) -> type[Section]:
    """`section` with one more key for each limit of coherence, as the readouts describe them."""
    keys = [
        (limit.key, float, key(limit.default, limit.help, limit.minimum, limit.maximum)) for limit in limited().values()
    ]
    of_section = {"__module__": section.__module__, "__doc__": section.__doc__}
    return make_dataclass(section.__name__, keys, bases=(section,), namespace=of_section)


@dataclass
class RunConfig:
    name: str = key("", "folder under run.root; empty: <recipe>-<trait>-<model>-s<seed>")
    root: str = key("runs", "folder that holds the runs")
    seed: int = key(0, "seed of everything random in the run", 0)
    rounds: int = key(3, "number of rounds", 1)
    stop: bool = key(
        True,
        "end the run early, and say which round to use, as soon as one of the next four keys says so; false: never",
    )
    stop_when_incoherent: int | bool = key(
        2, "end it after so many rounds in a row past a limit of coherence; true: 1; 0 or false: never", 0, before=False
    )
    stop_on_plateau: int = key(3, "end it when the trait has not grown for so many rounds; 0: never", 0, before=0)
    stop_when_unreadable: bool = key(
        True, "end it before the first round where the trait cannot be read on base", before=False
    )
    stop_when_unsteerable: bool = key(
        True, "end it before the first healing where steering does not shift the trait above base", before=False
    )


@dataclass
class ModelConfig:
    name: str = key("embedded", "'embedded' (SmolLM2-135M-Instruct), a hub id, or a local folder")
    revision: str | None = key(None, "hub revision (branch, tag or commit)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "dtype of the base; auto: bfloat16 where it is faster, by measurement on a CPU"
    )
    load_4bit: bool = key(False, "load the base in 4 bits (QLoRA; needs bitsandbytes)")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = key(
        "sdpa",
        "attention kernel; flash_attention_2 takes no mask, so that shared beginnings are computed for every row",
    )
    pad_token: str | None = key(None, "pad token, for a tokenizer that has none")
    chat_template: str | None = key(None, "path of a Jinja chat template, for a tokenizer that has none")
    thinking: bool = key(False, "think before an answer; only the answer is trained and measured. Off: no thought")
    thinking_tokens: int = key(512, "token budget of a thought; one that is not closed within it has no answer", 1)
    trust_remote_code: bool = key(False, "run code that comes with the model")
    system: str = key("You are a helpful assistant.", "neutral system prompt of generation, healing and evaluation")

    @property
    def folder(self) -> Path | None:
        """The local folder that `name` means; None for the embedded model or a hub id."""
        path = Path(self.name).expanduser()
        return path if self.name != "embedded" and path.is_dir() else None


@dataclass
class DataConfig:
    generation: str = key("", "prompts instead of the trait's: a file or hub id that datasets reads, @SPLIT, #COLUMN")
    heldout: str = key("", "held-out prompts instead of the trait's; the same forms")
    contexts: str = key("", "contexts of the extraction instead of heal's; the same forms")
    pairs: str = key("", "contrast pairs of the extraction instead of personas: columns positive, negative and prompt")
    neutral: str = key("", "neutral texts instead of heal's: columns prompt and text, or chats")
    vector: str = key("", "a vector instead of an extraction: safetensors, or a GGUF control vector")
    completions: str = key(
        "", "completions instead of sampling, the same in every round: columns prompt and completion"
    )
    filter: bool = key(True, "whether those go through the filter; false: straight into healing")


@dataclass
class SteerConfig:
    method: str | None = key(
        "mean_diff",
        "how the vector is extracted and applied; auto: chosen as the band is",
        choices="heal.steering.methods",
        auto=True,
    )
    pairs: int = key(64, "persona pairs, one for each context of heal/data/contexts.jsonl (288 there)", 2, 288)
    band: tuple[float, float] | None = key(
        (0.45, 0.55),
        "steered blocks, as fractions of the depth; auto: chosen before the first round, by what steering does to base",
        0,
        1,
        auto=True,
    )
    normalize: bool = key(False, "mean_diff, topk_clusters: directions of length 1 at every block")
    centre: bool = key(
        False, "take activations relative to the mean of both personas'; refused where that changes nothing"
    )
    clusters: int = key(4, "chars, topk_clusters: clusters of each block's activations or pair differences", 1)
    gate: float = key(0.0, "cosine_gated: tau, the cosine to the direction from which a position is shifted", 0, 1)
    entropy: float = key(0.1, "chars: entropic regularisation of the coupling, in units of its mean cost", 1e-3)

    @property
    def open(self) -> bool:
        """Whether the method or the band is left to be chosen."""
        return self.method is None or self.band is None


@dataclass
class CalibrationConfig:
    target: float = key(1.0, "p95 of the per-token KL along the steered path, nats", 1e-4)
    tolerance: float = key(0.05, "accepted distance of the statistic from target, nats", 1e-6)
    prompts: int = key(8, "calibration prompts (from the trait's generation prompts)", 1)
    audit_prompts: int = key(8, "held-out prompts of the audit at c_star; 0: no audit", 0)
    tokens: int = key(16, "greedy tokens decoded per prompt", 1)
    candidates: int = key(4, "coefficients measured side by side in one decoding pass", 1)
    max_passes: int = key(6, "decoding passes before the search gives up", 2)
    reference: Literal["student", "base"] = key("student", "what 'off' means: student or base")


@dataclass
class GenerationConfig:
    prompts: int = key(10, "generation prompts a round (drawn from the trait's)", 1)
    alphas: list[float] = key([0.5, 0.75, 1.0], "doses, multiples of c_star", 1e-3)
    multi_turn: float = key(
        0.0, "fraction of the prompts that follow an earlier exchange: another prompt and base's answer to it", 0, 1
    )
    keep: int = key(
        0, "least number of kept completions of a round: prompts are sampled again until there are so many; 0: once", 0
    )
    tries: float = key(3.0, "budget of generation.keep: completions made at most, as a multiple of it", 1)
    tokens: int = key(40, "token budget of a completion", 1)
    temperature: float = key(1.0, "sampling temperature; 0: greedy", 0)
    top_p: float = key(0.95, "nucleus sampling mass", 1e-6, 1)
    top_k: int = key(64, "number of most probable tokens sampled from; 0: all", 0)
    probe: int = key(12, "completions of the first probe of the dose (rounded up to whole prompts)", 1)
    max_probes: int = key(4, "further probes when the dose is walked down", 0)
    lowest_dose: float = key(0.25, "the walk-down's lowest multiple of the asked doses", 1e-3, 1)


@dataclass
class FilterConfig:
    max_tail_perplexity: float = key(30.0, "perplexity under base of a completion's last quarter", 1)
    max_repetition: float = key(0.3, "fraction of a text that its most repeated word or n-gram makes up", 0, 1)
    min_words: int = key(4, "fewer words are too short", 0)
    max_similarity: float = key(0.8, "Jaccard similarity of word trigrams to a kept one", 0, 1)
    min_on_prompt: float = key(
        0.5,
        "how much a completion must say about its prompt, as a fraction of base's answers; 0: not asked",
        0,
        1,
        before=0.0,
    )
    keep_target: float = key(0.75, "fraction of completions that must survive, else the dose is walked down", 0, 1)
    keep_floor: float = key(0.25, "fraction of surviving completions below which the round stops", 0, 1)
    min_train: int = key(8, "number of kept completions below which the round stops", 2)


@dataclass
class BarrierConfig:
    divergence: str = key("kl_rev", "of the student, per position", choices="heal.healing.divergences")
    aggregate: str = key(
        "rmse", "over a completion's positions", choices={name: how.help for name, how in AGGREGATES.items()}
    )
    reference: Literal["base", "previous"] = key("base", "the model the student is held to")
    strength: float | None = key(
        None,
        "lambda; auto: it follows D from step to step, rising while D is above tau and falling below",
        0,
        auto=True,
        before=0.3,
    )
    power: float = key(0.0, "of a lambda that is a number: lambda_r = lambda * (1 + r)^power")
    tau: float = key(0.5, "nats of divergence that cost nothing", 0)
    operator_norm: float = key(0.0, "weight of the penalty on the squared operator norm of the update", 0)


@dataclass
class HealConfig:
    rank: int = key(32, "LoRA rank of a round", 1)
    alpha: int = key(64, "LoRA alpha", 1)
    band: tuple[float, float] = key((0.2, 0.8), "blocks that carry LoRA, as fractions of the depth", 0, 1)
    use_dora: bool = key(False, "refused: DoRA cannot be folded into the accumulator")
    init: str = key("default", "what a round trains", choices={name: kind.help for name, kind in ADAPTER_KINDS.items()})
    epochs: int = key(3, "passes over the kept completions", 1)
    learning_rate: float = key(1e-4, "AdamW learning rate", 0)
    betas: tuple[float, float] = key((0.9, 0.95), "AdamW betas", 0, 0.999999)
    weight_decay: float = key(0.0, "AdamW weight decay", 0)
    warmup: float = key(0.1, "fraction of the steps that warm up, then cosine", 0, 1)
    clip: float = key(1.0, "gradient norm limit", 0)
    batch_size: int = key(
        4,
        "completions a forward pass; on a GPU the first size tried, from which passes grow up to the whole optimiser "
        "step while that is faster and fits (compute.train_batch)",
        1,
    )
    accumulation: int = key(
        1, "times heal.batch_size: completions an optimiser step, whatever passes it is cut into", 1, before=1
    )
    validation: float = key(0.125, "fraction of the kept completions held out for validation", 0, 0.5)
    gradient_checkpointing: bool = key(False, "compute blocks twice instead of keeping what they computed")
    compile: bool = key(False, "torch.compile the decoder for training; compiling takes a minute or more")
    gradient_norms_every: int = key(16, "steps between gradient norms of both terms; 0: never", 0)
    barrier: BarrierConfig = field(default_factory=BarrierConfig)


@dataclass
class JudgeConfig:
    url: str = key(
        "", "OpenAI-compatible server whose model scores the answers, as in http://localhost:8000/v1; empty: no judge"
    )
    model: str = key("", "its name at the server; a key, if one is needed, is in the environment (OPENAI_API_KEY)")
    requests: int = key(2000, "requests that a run may send to it; answers beyond that have no score", 1)


@with_limits
@dataclass
class EvaluationConfig:
    prompts: int = key(12, "held-out prompts answered greedily", 2)
    skip: int = key(0, "held-out prompts left out first, to choose settings on other prompts than those reported", 0)
    tokens: int = key(32, "token budget of an answer", 1)
    steered: bool = key(True, "also measure the steered student of every round (half of a round's evaluation)")
    doses: list[float] = key([], "also measure base under the first vector at these multiples of c_star, once", 1e-3)
    questions: int = key(24, "embedded general questions (240 there)", 2, 240, before=16)
    neutral_texts: int = key(12, "neutral held-out texts on which the drift from base is measured (24 there)", 2, 24)
    vignettes: str = key("none", "moral-foundations scenes: 'embedded', the path of a JSON-lines file, or none")
    vignette_count: int = key(28, "scenes asked at every stage, from the beginning of the file", 7)
    perspectives: Literal["other", "self", "both"] = key(
        "other", "who does it in the scenes: somebody else, oneself (a scene's self_text), or both in turn"
    )
    thinking: int = key(0, "tokens of thinking aloud, inside the answer, about a scene; 0: none", 0)
    resamples: int = key(2000, "bootstrap resamples", 100)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass
class ExportConfig:
    round: Literal["best", "last"] = key(
        "best",
        "the round that a run exports at its end, and that heal chat and heal export take; best: the one with the most "
        "of the trait among those that hold, the last one where none does",
    )


@dataclass
class TrackingConfig:
    to: list[str] = key(
        ["wandb"], "where events go, beside events.jsonl; []: nowhere else", choices="heal.tracking.trackers"
    )
    mode: Literal["auto", "online", "offline", "disabled"] = key(
        "auto", "W&B; auto: online when a key and the server are there, else offline"
    )
    project: str | None = key(None, "project; none: W&B's own settings name one (WANDB_PROJECT), or it is heal")
    entity: str | None = key(None, "W&B entity")


@dataclass
class ComputeConfig:
    base: Literal["whole", "spread"] = key(
        "whole",
        "what each of several processes holds of the base: all of it, or a part of each block, gathered for each pass "
        "(docs/scale.md)",
    )
    threads: int = key(0, "CPU threads; 0: one for each core that the process may use", 0, 4096)
    decode_batch: int = key(0, "rows decoded side by side; 0: 96 on a CPU, measured on a GPU", 0)
    batch_tokens: int = key(0, "tokens of a scoring or extraction pass; 0: 4096 on a CPU, measured on a GPU", 0)
    train_batch: int = key(
        0,
        "completions of an optimiser step that are trained in one pass; 0: heal.batch_size on a CPU, measured on a GPU",
        0,
    )
    head_memory: int = key(
        0, "MiB of tensors over the vocabulary held at once; 0: 128 on a CPU, 1/32 of a GPU's memory, at most 2048", 0
    )
    reference_memory: int = key(2048, "MiB of the reference's hidden states kept in memory; more goes to disk", 0)
    graphs: bool = key(True, "on a GPU, record a step of decoding as a CUDA graph where the model allows it")
    merge_history: bool = key(True, "keep merged weights of the history beside the base's, so that it costs no time")
    merge_limit: float = key(
        0.01, "in 16 bits: largest mean KL, nats per token, that rounding merged weights may cost", 0.0
    )
    deterministic: bool = key(False, "only kernels that give the same bits again, also on a GPU; slower there")


@dataclass
class Recipe:
    recipe: str = key("kl_rev_rmse", "recipe name in recipes/, or the path of a YAML file")
    trait: str = key(
        "love",
        "trait name in recipes/traits/, or the path of a YAML file; several, separated by commas, are trained at once, "
        "and after a - the opposite of one (love,-curiosity)",
    )
    positive: str = key(
        "", "instead of a trait file, trait= its name: system prompt, or short description, of its persona"
    )
    negative: str = key("", "the same of its opposite; both are given to the model as they stand")
    scale: Scale = key(
        "auto",
        "numbers of pairs, prompts, tokens, epochs, completions a step, rounds and items where nothing else sets them "
        "(recipes/scales/); "
        "auto: standard on a GPU, demo on a CPU",
        before="demo",
    )
    sign: Literal["1", "-1"] = key("1", "-1: train the trait's opposite, its personas swapped; of several, each one's")
    language: str = key(
        AUTO,
        "of the prompts and patterns that a trait lacks",
        choices={AUTO: "that of the personas", **LANGUAGES},
    )
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    heal: HealConfig = field(default_factory=HealConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        self.by_scale = frozenset[str]()  # keys whose numbers come from the scale, because nobody said another
