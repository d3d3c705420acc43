"""The prompt of every task of the catalogue, held to `prompts.json`: lmms-eval may change its own, and we ours.

A prompt is what the model's chat template gets, after the changes of `coremat.tasks.prompts`: role by role, with
`<image>` and `<video>` where one is shown; of each task that of the longest of its first questions in the mirrors.
A change that is meant is taken over by

    REWRITE_PROMPTS=1 pytest tests/tasks/test_prompts.py

and its reason belongs into the commit.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_answers import FAKE, FakeAnswer, install
from mirrors import write_mirrors

from coremat.tasks.catalogue import TASKS, TaskInfo
from coremat.tasks.lmms_eval.load import load_task
from coremat.tasks.lmms_eval.model import CoreMatchingLmms, NoStore, Question

GOLDEN = Path(__file__).parent / "prompts.json"
FIRST = 8  # questions of a task


class Asked(NoStore):
    """Remembers what is asked, and answers it, so that no model is."""

    def __init__(self) -> None:
        self.questions: list[Question] = []

    def get(self, question: Question) -> str:
        self.questions.append(question)
        return ""


def written(conversation: Sequence[dict[str, Any]]) -> str:
    return "\n".join(f"{message['role']}: {''.join(map(part_text, message['content']))}" for message in conversation)


def part_text(part: dict[str, Any]) -> str:
    return part["text"] if part["type"] == "text" else f"<{part['type']}>"


def prompts_of(info: TaskInfo, root: Path) -> Iterator[tuple[str, str]]:
    """lmms-eval's tasks behind a name, each with its prompt."""
    for task in load_task(info, FIRST, root if info.data else None):
        asked = Asked()
        model = CoreMatchingLmms(FAKE, store=asked)
        model.task_dict[task.name] = task.task.dataset
        task.task.build_all_requests(limit=task.size)
        model.answer_share(task.task.instances, 0, 1)
        yield task.name, max((written(question.conversation) for question in asked.questions), key=len)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    root = tmp_path_factory.mktemp("mirrors")
    write_mirrors(root)
    with pytest.MonkeyPatch.context() as patch:
        install(patch.setattr, FakeAnswer())
        found = {name: dict(sorted(prompts_of(info, root))) for name, info in TASKS.items()}
    if os.environ.get("REWRITE_PROMPTS"):
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


@pytest.mark.parametrize("name", TASKS)
def test_the_prompt_is_what_it_was(prompts: dict[str, dict[str, str]], name: str) -> None:
    assert prompts[name] == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


def test_every_prompt_belongs_to_a_task_of_the_catalogue() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert {name: set(prompts) for name, prompts in golden.items()} == {n: set(info.tasks) for n, info in TASKS.items()}
