"""The tasks that have a name: what each asks of lmms-eval, how it is scored, and the paper's column that it stands for.

Names are the paper's; `coremat list tasks` prints this table. Where a score cannot be laid beside the paper's without
a remark, `unlike` is that remark. Any other task of lmms-eval goes by its own name; `lmms-eval:NAME` is lmms-eval's
where both have one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from coremat.errors import UnknownNameError

HERE = Path(__file__).parent
FOREIGN = "lmms-eval:"  # before a name that is lmms-eval's own
ASKED_OF = "a vision-language model, for the tasks ask about images and videos"
PERCENT, POINTS = 100.0, 1.0  # a share times 100; a number as lmms-eval gives it


@dataclass(frozen=True)
class Score:
    """A metric under lmms-eval's name; value * scale is what the record has; column: the paper's, if it has one."""

    metric: str
    scale: float = PERCENT
    column: str | None = None


@dataclass(frozen=True)
class Data:
    """A dataset as the hub has it: its id, and the splits that are asked, in each of `configs` ("": its only one).

    size: bytes to fetch, from the dataset's card or its list of files; None where neither is public. size_of: of what,
    where it is not the files of these splits. mixed: the splits hold other questions too.
    """

    path: str
    splits: tuple[str, ...]
    configs: tuple[str, ...] = ("",)
    size: int | None = None
    size_of: str = ""
    mixed: bool = False

    @property
    def readable_size(self) -> str:
        """In powers of ten, as hubs say it; "" if it is not known."""
        if self.size is None:
            return ""
        number, unit = (self.size / 1e9, "GB") if self.size >= 1e9 else (self.size / 1e6, "MB")
        return f"{number:.3g} {unit}" + (f" {self.size_of}" if self.size_of else "")


@dataclass(frozen=True)
class TaskInfo:
    """A task by its name here.

    tasks: lmms-eval's, one or several, which are averaged. folder: of their YAML. scores: the main one first; none: as
    the YAML has them. questions: in the whole split. prompt: what is put before or behind a question. judge: graded by
    another model. video: asks about videos. together: questions that are scored as one. caveat: why the score is not
    quite the paper's.
    """

    name: str
    summary: str
    folder: Path
    tasks: tuple[str, ...]
    scores: tuple[Score, ...] = ()
    data: Data | None = None
    questions: int | None = None
    prompt: str = ""
    judge: bool = False
    video: bool = False
    together: int = 1
    caveat: str = ""

    @property
    def needs_judge(self) -> bool:
        """Without one it has no score at all."""
        return self.judge and all(score.metric != "exact_match" for score in self.scores)

    @property
    def columns(self) -> dict[str, str]:
        """The paper's column of each metric that has one."""
        return {score.metric: score.column for score in self.scores if score.column}


def _bundled(name: str, folder: str, summary: str, questions: int, *metrics: str) -> TaskInfo:
    scores = tuple(Score(metric) for metric in metrics)
    return TaskInfo(name, summary, HERE / "bundled" / folder, (name,), scores, questions=questions)


def _lmms_eval(folder: str) -> Path:
    return _lmms_eval_roots()[0] / folder if _lmms_eval_roots() else Path(folder)


@cache
def _lmms_eval_roots() -> tuple[Path, ...]:
    """Where lmms-eval keeps its tasks, without importing it; nothing where it is not installed."""
    spec = find_spec("lmms_eval")
    return tuple(Path(root) / "tasks" for root in (spec.submodule_search_locations or ()) if spec) if spec else ()


HUB = "lmms-lab-encoder"
SHORT = "... a single word or phrase"  # the last words of the sentence that follows a question
LETTER = "... the option's letter directly"
SERVER = "the paper's {} is scored by a server; here {}"
VIDEOS = "GPT_Zero_Shot_QA"  # the folder of Video-LLaVA's evaluation
JUDGE = "the judge there was {}, and another one grades otherwise"
QUESTIONS_AS_THEY_ARE = "the question alone"


def _paper_tasks() -> Iterable[TaskInfo]:
    """In the order of the paper's tables."""
    yield TaskInfo(
        "vqav2",
        "VQAv2: open questions on photographs",
        _lmms_eval("vqav2"),
        ("vqav2_val",),
        (Score("exact_match", column="vqav2"),),
        Data(f"{HUB}/VQAv2", ("validation",), size=44_800_000_000, size_of="with all splits"),
        214_354,
        SHORT,
        caveat=SERVER.format("test-dev", "validation"),
    )
    yield TaskInfo(
        "gqa",
        "GQA: compositional questions on scenes",
        _lmms_eval("gqa"),
        ("gqa",),
        (Score("exact_match", column="gqa"),),
        Data(f"{HUB}/GQA", ("testdev",), ("testdev_balanced_instructions", "testdev_balanced_images"), 67_700_000),
        12_578,
        SHORT,
    )
    yield TaskInfo(
        "sciqa",
        "ScienceQA, questions with an image",
        _lmms_eval("scienceqa"),
        ("scienceqa_img",),
        (Score("exact_match", column="sciqa"),),
        Data(f"{HUB}/ScienceQA", ("test",), ("ScienceQA-IMG",), 130_000_000),
        2_017,
        LETTER,
    )
    yield TaskInfo(
        "textvqa",
        "TextVQA: reading text in photographs",
        _lmms_eval("textvqa"),
        ("textvqa_val",),
        (Score("exact_match", column="textvqa"),),
        Data(f"{HUB}/textvqa", ("validation",), size=920_000_000),
        5_000,
        f"with the OCR tokens {SHORT}",
        caveat="a question is in small letters but for its first",
    )
    yield TaskInfo(
        "pope",
        "POPE: is an object there? mean F1 of the adversarial, popular and random split",
        _lmms_eval("pope"),
        ("pope_adv", "pope_pop", "pope_random"),
        (Score("pope_f1_score", column="pope"), Score("pope_accuracy")),
        Data(f"{HUB}/POPE", ("adversarial", "popular", "random"), ("Full",), 255_022_914),
        9_000,
        SHORT,
        caveat="an answer must be yes or no; the paper's evaluation searches its first sentence for a no",
    )
    yield TaskInfo(
        "mme",
        "MME, perception: 10 categories of pairs of yes/no questions, 2,000 points",
        _lmms_eval("mme"),
        ("mme",),
        (Score("mme_perception_score", POINTS, "mme"), Score("mme_cognition_score", POINTS)),
        Data(f"{HUB}/MME", ("test",), size=864_018_279),
        2_374,
        SHORT,
        together=2,
    )
    yield TaskInfo(
        "mmbench",
        "MMBench, English dev: multiple choice, each question in every rotation of its options",
        _lmms_eval("mmbench"),
        ("mmbench_en_dev_static",),
        (Score("gpt_eval_score", POINTS, "mmbench_en"),),
        Data(f"{HUB}/MMBench", ("dev",), ("en",), 96_600_000),
        4_329,
        LETTER,
        caveat="answers that name no option are matched by rules here, by a language model on the paper's server",
    )
    yield TaskInfo(
        "seed",
        "SEED-Bench, questions on images",
        _lmms_eval("seedbench"),
        ("seedbench",),
        (Score("seed_image", column="seed_image"),),
        Data(f"{HUB}/SEED-Bench", ("test",), size=27_000_000_000, mixed=True),
        14_233,
        LETTER,
    )
    yield TaskInfo(
        "vizwiz",
        "VizWiz: questions of blind people on their own photographs",
        _lmms_eval("vizwiz_vqa"),
        ("vizwiz_vqa_val",),
        (Score("exact_match", column="vizwiz"),),
        Data(f"{HUB}/VizWiz-VQA", ("val",), size=2_079_513_742),
        4_319,
        f"... insufficient, respond with 'Unanswerable' {SHORT}",
        caveat=SERVER.format("test-dev", "validation"),
    )
    yield TaskInfo(
        "mmvet",
        "MM-Vet: open questions that need several abilities, graded by a judge",
        _lmms_eval("mmvet"),
        ("mmvet",),
        (Score("gpt_eval_score", POINTS, "mmvet"),),
        Data(f"{HUB}/MMVet", ("test",), size=67_180_444),
        218,
        QUESTIONS_AS_THEY_ARE,
        judge=True,
        caveat=JUDGE.format("GPT-4"),
    )
    for name, summary, config, questions, size in (
        ("docvqa", "DocVQA: questions on scanned documents", "DocVQA", 5_349, 2_532_447_207),
        ("infovqa", "InfographicVQA: questions on infographics", "InfographicVQA", 2_801, 1_863_177_404),
    ):
        yield TaskInfo(
            name,
            summary,
            _lmms_eval(name),
            (f"{name}_val",),
            (Score("anls", column=name),),
            Data(f"{HUB}/DocVQA", ("validation",), (config,), size, "unpacked"),
            questions,
            SHORT,
            caveat="the paper names no split; here validation",
        )
    yield TaskInfo(
        "chartqa",
        "ChartQA: questions on charts, 5 % off is right",
        _lmms_eval("chartqa"),
        ("chartqa",),
        (
            Score("relaxed_overall", column="chartqa"),
            Score("relaxed_human_split"),
            Score("relaxed_augmented_split"),
        ),
        Data(f"{HUB}/ChartQA", ("test",), size=72_610_993),
        2_500,
        "... with a single word",
    )
    yield TaskInfo(
        "ocrbench",
        "OCRBench: reading text of all kinds, right answers of 1,000",
        _lmms_eval("ocrbench"),
        ("ocrbench",),
        (Score("ocrbench_accuracy", column="ocrbench"),),
        Data("echo840/OCRBench", ("test",), size=67_576_988),
        1_000,
        QUESTIONS_AS_THEY_ARE,
        caveat="divided by 1,000 also where --limit asks fewer",
    )
    yield TaskInfo(
        "ai2d",
        "AI2D: multiple choice on diagrams",
        _lmms_eval("ai2d"),
        ("ai2d",),
        (Score("exact_match", column="ai2d"),),
        Data(f"{HUB}/ai2d", ("test",), size=139_466_424),
        3_088,
        LETTER,
    )
    judged = (Score("judge_accuracy", column="{}_accuracy"), Score("judge_score", POINTS, "{}_score"))
    for name, folder, questions in (("msvd", "MSVD", 13_157), ("msrvtt", "MSRVTT", 72_821)):
        yield TaskInfo(
            f"{name}-qa",
            f"{folder}-QA: short questions on videos; exact match needs no judge",
            HERE / "bundled" / "video_qa",
            (f"{name}_qa",),
            (*(Score(s.metric, s.scale, (s.column or "").format(name)) for s in judged), Score("exact_match")),
            Data(f"{VIDEOS}/{folder}_Zero_Shot_QA", ("test",)),
            questions,
            QUESTIONS_AS_THEY_ARE,
            judge=True,
            video=True,
            caveat=JUDGE.format("GPT-3.5"),
        )
    yield TaskInfo(
        "activitynet-qa",
        "ActivityNet-QA: questions on long videos, graded by a judge",
        _lmms_eval("activitynetqa"),
        ("activitynetqa",),
        (
            Score("gpt_eval_accuracy", POINTS, "activitynet_accuracy"),
            Score("gpt_eval_score", POINTS, "activitynet_score"),
        ),
        Data("lmms-eval/ActivityNetQA", ("test",), size=68_600_000_000, size_of="or more, with the videos"),
        8_000,
        SHORT,
        judge=True,
        video=True,
        caveat=JUDGE.format("GPT-3.5"),
    )


_BUNDLED = (
    _bundled("easyvqa", "easyvqa", "easy-VQA, test: questions on single shapes", 9_673, "accuracy"),
    _bundled("shapes", "shapes", "scenes of two to four objects, test", 2_400, "accuracy", "listing_f1"),
    _bundled("shapes_validation", "shapes", "the same, validation", 1_200, "accuracy", "listing_f1"),
)
TASKS: Mapping[str, TaskInfo] = MappingProxyType({task.name: task for task in (*_BUNDLED, *_paper_tasks())})
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "paper-table-2": (
            "vqav2",
            "gqa",
            "sciqa",
            "textvqa",
            "pope",
            "mme",
            "mmbench",
            "seed",
            "vizwiz",
            "mmvet",
        ),
        "paper-table-4": ("docvqa", "infovqa", "chartqa", "ocrbench", "ai2d"),
        "paper-table-5": ("docvqa", "infovqa", "chartqa", "ocrbench", "ai2d"),
        "paper-table-6": ("msvd-qa", "msrvtt-qa", "activitynet-qa"),
        "paper-table-8": ("textvqa", "mme", "vqav2", "vizwiz", "pope", "gqa"),
    }
)
# By a task's name, ours or lmms-eval's, and its metric. What is not here stays as lmms-eval gives it.
SCALES: Mapping[tuple[str, str], float] = MappingProxyType(
    {
        (name, score.metric): score.scale
        for task in TASKS.values()
        for name in (task.name, *task.tasks)
        for score in task.scores
    }
)

_NAME = re.compile(r"^(?:task|group)[ \t]*:[ \t]*[\"']?([\w.-]+)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)


def resolve_tasks(names: Iterable[str]) -> tuple[TaskInfo, ...]:
    """The tasks of these names, those of a group in its place, each once. UnknownNameError with the nearest name."""
    single = (task for name in names for task in GROUPS.get(name, (name,)))
    return tuple(resolve_task(name) for name in dict.fromkeys(single))


def resolve_task(name: str) -> TaskInfo:
    """The task of this name, ours or lmms-eval's. UnknownNameError with the nearest name."""
    if name in TASKS:
        return TASKS[name]
    folders, own = lmms_eval_tasks(), name.removeprefix(FOREIGN)
    if own not in folders:
        raise UnknownNameError("task", name, (*TASKS, *GROUPS, *sorted(folders)))
    return TaskInfo(name, "from lmms-eval", folders[own], (own,), caveat="asked as lmms-eval asks")


@cache
def lmms_eval_tasks() -> Mapping[str, Path]:
    """The folder of every task and group of lmms-eval, read off its YAML files without loading them: 0.2 s."""
    files = (path for root in _lmms_eval_roots() for path in root.rglob("*.yaml"))
    return {name: path.parent for path in files for name in _NAME.findall(path.read_text(encoding="utf-8"))}
