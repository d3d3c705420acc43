"""What lmms-eval finds under the entry point `lmms_eval.models`: `lmms-eval --model coremat` is `CoreMatchingLmms`."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFESTS = [ModelManifest(model_id="coremat", chat_class_path="coremat.tasks.lmms_eval.model.CoreMatchingLmms")]
