"""MSVD-QA and MSRVTT-QA, short questions on videos, which lmms-eval lacks: data, prompt and scores."""
