"""Greedy tokens from vLLM: run as a script by the interpreter of an environment that has vLLM, without heal.

    python vllm_tokens.py request.json answer.json

The request: `model`, `adapter` (or null), `rank` (the largest to expect), `tokens`, `dtype`, `prompts` (token ids). The
answer: `architecture`, and the tokens of each prompt without (`base`) and with (`adapter`) the adapter.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    request = json.loads(Path(sys.argv[1]).read_text())
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    longest = max(len(ids) for ids in request["prompts"]) + request["tokens"] + 1
    lora = {}
    if request["adapter"]:
        lora = {"enable_lora": True, "max_lora_rank": request["rank"]}
    llm = LLM(
        model=request["model"],
        dtype=request["dtype"],
        enforce_eager=True,
        max_model_len=longest,
        max_num_seqs=len(prompts),
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 0, "video": 0, "audio": 0},  # of a multimodal model the text part alone
        **lora,
    )
    sampling = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True)

    def said(adapter: LoRARequest | None) -> list[list[int]]:
        outputs = llm.generate(prompts, sampling, lora_request=adapter, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    answer = {"architecture": llm.model_config.architectures[0], "base": said(None), "adapter": None}
    if request["adapter"]:
        answer["adapter"] = said(LoRARequest("adapter", 1, request["adapter"]))
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
