"""A round's steering vector at its calibrated dose, as safetensors."""

from dataclasses import replace

from huggingface_hub import ModelCard, ModelCardData

from heal.errors import UserError
from heal.hub import metadata
from heal.hub.bundle import Bundle
from heal.hub.reproduction import HEADING, reproduction
from heal.hub.source import Source
from heal.markdown import escaped, fenced, inline_code, personas
from heal.run.best import meant_round
from heal.steering.vector import SteeringVector

FILE = "vector.safetensors"


def collect(source: Source, name: str) -> Bundle:
    """UserError where no round is finished, or the vector is damaged."""
    index, which = meant_round(source.folder, source.round)
    if index is None:
        raise UserError(f"{source.folder.path}: no finished round yet; start the run again to continue it")
    vector = SteeringVector.load(source.folder.round(index) / FILE)
    if vector.model != "embedded":  # a folder of this computer says nothing elsewhere
        vector = replace(vector, model=source.base or escaped(vector.model.rpartition("/")[2]))
    data = ModelCardData(
        base_model=source.base,
        base_model_relation="adapter" if source.base else None,
        library_name="heal",
        pipeline_tag="text-generation",
        tags=["heal", "activation-steering", "steering-vector", vector.method, source.trait.name],
    )
    made = reproduction(source)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(vector, source, which, name)}\n")
    metadata.describe(card, source)
    metadata.add(card, made.section, HEADING)
    return Bundle("model", {FILE: vector.to_bytes(), **made.files}, card, source.base)


def _text(vector: SteeringVector, source: Source, which: str, name: str) -> str:
    trait, target = source.trait, source.recipe.calibration.target
    blocks = ", ".join(map(str, sorted({site.layer for site in vector.states})))
    of = inline_code(source.base or vector.model)
    dose = f"c* = {vector.c_star:.4g}" if vector.c_star is not None else "not calibrated"
    contrast = "the contrast of two personas"
    if trait.parts:
        contrast = f"the contrasts of two personas of each of {len(trait.parts)} traits, added up at equal KL,"
    use = [
        "import heal",
        "from huggingface_hub import hf_hub_download",
        "",
        f"model = heal.load_model({vector.model!r})",
        f"vector = heal.SteeringVector.load(hf_hub_download({name!r}, {FILE!r}))",
        "with vector.applied(model, vector.c_star):",
        "    print(heal.answer(model, 'How was your day?'))",
    ]
    return "\n\n".join(
        [
            f"# {escaped(trait.name)}: a steering vector",
            f"{inline_code(vector.method)} of {contrast} on blocks {blocks} of {of}, from "
            f"{escaped(which)}. Dose: {dose}, at which the p95 of the KL per token along the steered path is "
            f"{target:g} nat. A vector of a later round was extracted from the student of the rounds before it.",
            f"## Trait: {escaped(trait.name)}",
            *personas(trait),
            "## Use",
            fenced("\n".join(use), "python"),
            "The file holds a tensor for each site, and method, blocks and dose in its metadata. `heal export "
            f"vector={FILE}` writes it as a PEFT adapter, where its method adds `c v`.",
            "## Limits",
            "- It is meant for the model that it was extracted from, whose licence and limits apply.\n"
            "- The dose says how far it moves the model, not whether the text stays intact.",
        ]
    )
