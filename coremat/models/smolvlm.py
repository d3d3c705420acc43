"""SmolVLM (`model_type` "smolvlm"): built as Idefics3. A video is a series of images to it, one for each frame."""

from coremat.models.idefics3 import Idefics3Adapter


class SmolVLMAdapter(Idefics3Adapter):
    takes_videos = True
