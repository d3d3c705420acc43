"""The tiny LLaVA-1.5 of the other tests, as one of the families."""

import torch
from family import IMAGE, WIDE, Family, Inputs, Prompt
from tiny import make_inputs, tiny_llava


def inputs(prompts: list[Prompt], dtype: torch.dtype) -> Inputs:
    return make_inputs(*[[IMAGE if part == WIDE else part for part in prompt] for prompt in prompts], dtype=dtype)


FAMILIES = {"llava": Family("llava", tiny_llava, inputs)}
