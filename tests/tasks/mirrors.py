"""Mirrors of the hub's datasets: folders that are laid out as a download of them is, with a few made-up rows each.

`write_mirrors(root)` gives `root/<hub id>/{README.md, <config>/<split>-00000-of-00001.parquet}`, and what
Video-LLaVA's evaluation distributes for MSVD-QA and MSRVTT-QA.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import mirrors_choice
import mirrors_open
import yaml
from datasets import Dataset
from mirrors_questions import QUESTIONS, scenes
from mirrors_table import Table
from video_files import write_video

TABLES: Mapping[str, Callable[[], list[Table]]] = {
    "vqav2": mirrors_open.vqav2,
    "gqa": mirrors_open.gqa,
    "vizwiz": mirrors_open.vizwiz,
    "sciqa": mirrors_choice.sciqa,
    "textvqa": mirrors_open.textvqa,
    "pope": mirrors_choice.pope,
    "mme": mirrors_choice.mme,
    "mmbench": mirrors_choice.mmbench,
    "seed": mirrors_choice.seed,
    "mmvet": mirrors_open.mmvet,
    "docvqa": mirrors_open.docvqa,
    "infovqa": mirrors_open.infovqa,
    "chartqa": mirrors_open.chartqa,
    "ocrbench": mirrors_open.ocrbench,
    "ai2d": mirrors_choice.ai2d,
    "activitynet-qa": mirrors_open.activitynet,
}
OWN_FOLDERS = {"msvd-qa": "MSVD_Zero_Shot_QA", "msrvtt-qa": "MSRVTT_Zero_Shot_QA"}
VIDEO_TASKS = ("activitynet-qa", *OWN_FOLDERS)
NAMES = (*TABLES, *OWN_FOLDERS)


def write_mirrors(root: Path, names: Sequence[str] = NAMES) -> None:
    """The datasets of these tasks, under their names in coremat."""
    tables = [table for name in names if name in TABLES for table in TABLES[name]()]
    for repo, parts in groupby(sorted(tables, key=lambda table: table.repo), lambda table: table.repo):
        write_dataset(root / repo, list(parts))
    if "activitynet-qa" in names:
        write_videos(root / "lmms-eval/ActivityNetQA/all_test", "activitynet-qa", "v_{}.mp4")
    for name in set(names) & set(OWN_FOLDERS):
        write_own(root / "GPT_Zero_Shot_QA" / OWN_FOLDERS[name], name)


def write_dataset(folder: Path, tables: Sequence[Table]) -> None:
    """The card lists each config's files by a pattern, as hubs write it."""
    configs: dict[str, list[dict[str, str]]] = {}
    for table in tables:
        path = folder / table.place
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(list(table.rows), features=table.features).to_parquet(path)
        pattern = table.place.replace("00000-of-00001.parquet", "*")
        configs.setdefault(table.config, []).append({"split": table.split, "path": pattern})
    head = {"configs": [{"config_name": name, "data_files": files} for name, files in configs.items()]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# A mirror\n")


def write_videos(folder: Path, name: str, pattern: str = "{}.mp4") -> None:
    """Each of two still scenes."""
    for video in {one.shown[0] for one in QUESTIONS[name]}:
        write_video(folder / pattern.format(video), [colour for colour in scenes(video) for _ in range(8)])


def write_own(folder: Path, name: str) -> None:
    """The questions and the answers, in files of their own that meet by the question's id."""
    write_videos(folder / "videos", name)
    asked = list(enumerate(QUESTIONS[name]))
    questions = [{"video_name": one.shown[0], "question": one.question, "question_id": str(n)} for n, one in asked]
    answers = [{"answer": one.right, "type": "0", "question_id": str(number)} for number, one in asked]
    (folder / "test_q.json").write_text(json.dumps(questions))
    (folder / "test_a.json").write_text(json.dumps(answers))
