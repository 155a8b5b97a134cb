"""A linear read-out of a Linear's inputs that is nearly constant: it replaces a bias where an engine accepts none.

Some directions of the inputs hardly vary from token to token. `a` is chosen so that `a . x ~ 1` on one set of
texts and evaluated on another; see docs/method.md, Steering.

Shape suffixes: N positions, I inputs of the Linear, T positions of a text.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from heal.models.batching import in_parts
from heal.models.language_model import LanguageModel
from heal.models.packing import halves_of_trees

RIDGE = 1.0  # with less, `a` overfits the texts that it was chosen on (SmolLM2-135M)


@dataclass(frozen=True)
class Gate:
    """`a`, and how constant `a . x` is on held-out texts.

    Attributes:
        a_I: float32, on the CPU.
        kind: "least squares", or "coordinate i" when a single input is read.
        mean, sd, p5, p95: of `a . x` over the positions of the held-out texts without their first ones.
        first: mean of `a . x` over their first positions, where many models have activations of their own.
    """

    a_I: Tensor
    kind: str
    mean: float
    sd: float
    p5: float
    p95: float
    first: float


def constant_gate(fit: Sequence[Tensor], held_out: Sequence[Tensor]) -> Gate:
    """The better of the two read-outs by the mean of `(a . x - 1)^2` on the held-out texts, first positions included.

    Args:
        fit: inputs `[T, I]` of each text that `a` is chosen on.
        held_out: inputs of each text that it is evaluated on.
    """
    fit_NI, held_out_NI = torch.cat(list(fit)).double(), torch.cat(list(held_out)).double()
    candidates = {"least squares": least_squares(fit_NI)}
    coordinate, a_I = best_coordinate(fit_NI)
    candidates[f"coordinate {coordinate}"] = a_I
    kind = min(candidates, key=lambda kind: float((held_out_NI @ candidates[kind] - 1).square().mean()))
    return judged(candidates[kind].float(), kind, held_out)


def judged(a_I: Tensor, kind: str, held_out: Sequence[Tensor]) -> Gate:
    """`a` with its statistics on the held-out texts (inputs `[T, I]` of each, at least two positions)."""
    values = [x_TI.double() @ a_I.double() for x_TI in held_out]
    later_N = torch.cat([value_T[1:] for value_T in values])
    p5, p95 = torch.quantile(later_N, torch.tensor([0.05, 0.95], dtype=later_N.dtype)).tolist()
    first = float(torch.stack([value_T[0] for value_T in values]).mean())
    return Gate(a_I, kind, float(later_N.mean()), float(later_N.std(unbiased=False)), p5, p95, first)


def least_squares(x_NI: Tensor, ridge: float = RIDGE) -> Tensor:
    """`argmin_a ||x a - 1||^2 + ridge s ||a||^2`, `[I]`, float64; `s` is the median `|x|^2` times N / I.

    The median, because the few positions with huge activations would otherwise set the regularisation of all others.
    """
    x_NI = x_NI.double()
    count, width = x_NI.shape
    strength = ridge * float(x_NI.square().sum(1).median()) * count / width
    if count < width:  # the same `a` from the smaller system
        gram_NN = x_NI @ x_NI.T
        gram_NN.diagonal().add_(strength)
        return x_NI.T @ torch.linalg.solve(gram_NN, x_NI.new_ones(count))
    gram_II = x_NI.T @ x_NI
    gram_II.diagonal().add_(strength)
    return torch.linalg.solve(gram_II, x_NI.sum(0))


def best_coordinate(x_NI: Tensor) -> tuple[int, Tensor]:
    """The single input i with the smallest `||x a - 1||^2`, and the `a` along it; `[I]`, float64."""
    sum_I, square_I = x_NI.double().sum(0), x_NI.double().square().sum(0)
    explained_I = torch.where(square_I > 0, sum_I.square() / square_I, 0.0)
    index = int(explained_I.argmax())
    a_I = torch.zeros_like(sum_I)
    if explained_I[index] > 0:
        a_I[index] = sum_I[index] / square_I[index]
    return index, a_I


@torch.no_grad()
def inputs_of(
    language_model: LanguageModel, modules: Mapping[int, nn.Module], rows: Sequence[Sequence[int]]
) -> dict[int, list[Tensor]]:
    """Inputs of each of `modules` at every position of each row, `[T, I]`, float32, on the CPU.

    Args:
        language_model: the model as it stands (steering is the caller's).
        modules: by a number of the caller's choice.
        rows: token ids; none may be empty.
    """
    inputs_by_key: dict[int, list[Tensor]] = {key: [torch.empty(0)] * len(rows) for key in modules}
    batching = language_model.batching

    def read(trees: Sequence[Sequence[int]]) -> None:
        packed = language_model.pack(rows, trees)
        members = [row for tree in trees for row in tree]

        def keeper(key: int) -> Callable:
            def keep(module, inputs) -> None:
                x_MI = inputs[0].reshape(-1, inputs[0].shape[-1])
                for row, nodes in zip(members, packed.nodes, strict=True):
                    inputs_by_key[key][row] = x_MI[nodes].float().cpu()

            return keep

        with ExitStack() as stack:
            for key, module in modules.items():
                stack.callback(module.register_forward_pre_hook(keeper(key)).remove)
            language_model.hidden_states(packed)

    shrink = partial(batching.shrink_tokens, batching.tokens)
    for trees in language_model.plan(rows, batching.tokens):
        in_parts(trees, read, shrink, halves_of_trees)
    return inputs_by_key
