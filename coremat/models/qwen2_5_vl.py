"""Qwen2.5-VL (`model_type` "qwen2_5_vl"): Qwen2-VL with windows, and gated FFNs, inside the vision tower."""

from coremat.models.qwen2_vl import Qwen2VLAdapter


class Qwen25VLAdapter(Qwen2VLAdapter):
    """Everything is where Qwen2-VL has it; the tower's windows never reach the decoder."""
