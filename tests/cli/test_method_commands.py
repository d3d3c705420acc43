"""Methods of one's own on the command line: they run and are recorded with their source; bad ones get one sentence."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
from said import Run, refused

import coremat.testing
from coremat.errors import UnknownNameError
from coremat.methods.base import Method
from coremat.methods.registry import GROUP
from coremat.results.record.eval import Record
from coremat.testing import Finding

FIXTURE = Path(__file__).parents[1] / "fixtures" / "mine.py"
MINE = f"{FIXTURE}:ShortKeys"
SHORT = ("eval", "--tasks", "shapes", "--limit", 4)


def test_eval_runs_a_method_of_ones_own(run: Run, tmp_path: Path) -> None:
    spec = f"{MINE}:tokens=9"
    code, out, err = run(*SHORT, "--methods", f"dense,{spec}", "--output", tmp_path)
    assert code == 0, err
    record = Record.read(tmp_path)
    assert {(row.image_tokens, row.image_tokens_kept) for row in record.rows if row.method == spec} == {(144, 9)}
    assert record.config["methods"][spec] == {
        "name": "ShortKeys",
        "options": {"tokens": 9, "prune_layer": 4},  # the bundled model's own layer
        "source": {"file": "mine.py", "sha256": hashlib.sha256(FIXTURE.read_bytes()).hexdigest()},
        "shortens": {"tokens": True, "neurons": False},
        "slot": "decoder layer",
    }
    assert "source" not in record.config["methods"]["dense"]
    assert "ShortKeys" in out


def test_a_method_of_ones_own_joins_and_takes_the_common_budget(run: Run, tmp_path: Path) -> None:
    methods = (f"{MINE}+core-neurons:beta=0.2", "core-tokens", "core-tokens:tokens=5", "core-neurons")
    code, _, err = run(*SHORT, "--methods", ",".join(methods), "--image-tokens", 12, "--output", tmp_path)
    assert code == 0, err
    rows = [row for row in Record.read(tmp_path).rows if row.metric == "accuracy"]
    assert [(row.image_tokens_kept, row.neurons_kept) for row in rows] == [(12, 70), (12, 352), (5, 352), (144, 140)]


def test_changed_code_is_another_run(run: Run, tmp_path: Path) -> None:
    file, folder = tmp_path / "changing.py", tmp_path / "run"
    command = (*SHORT, "--methods", f"{file}:ShortKeys", "--output", folder)
    file.write_text(FIXTURE.read_text())
    assert run(*command)[0] == 0
    assert run(*command)[0] == 0, "the same code is the same run"
    file.write_text(FIXTURE.read_text() + "\n# changed\n")
    assert "holds another run" in refused(run(*command))


def test_no_record_runs_a_file(run: Run, tmp_path: Path) -> None:
    """Tables and checks of a record read what it says of a method; the file may be gone, or be another."""
    file = tmp_path / "gone.py"
    file.write_text(FIXTURE.read_text())
    spec = f"{file}:ShortKeys"
    assert run(*SHORT, "--methods", f"dense,{spec}", "--output", tmp_path / "run")[0] == 0
    file.write_text("raise SystemExit('this file was run')\n")
    sys.modules.pop(next(name for name in sys.modules if name.startswith("coremat_method_")), None)
    record = tmp_path / "run"
    assert run("table", 2, "--record", record)[0] == 0
    code, out, err = run("check", record, "--baseline", record, "--min-speedup", 0.001)
    assert code == 0, err
    assert "first token speed-up" in out


# --- bad input -----------------------------------------------------------------------------------------------

HEAD = """
from dataclasses import dataclass
from coremat.methods.base import Method, Stage

@dataclass(frozen=True, kw_only=True)
class Bad(Method):
    tokens: int = 9
    def stages(self, layers):
        return (Stage(2, self.tokens),)
    def score(self, stage, layer):
        return -layer.keys.norm(dim=-1).mean(1)
"""


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        (None, "Bad", "there is no file"),
        (HEAD, "Good", "has no class 'Good'; methods in it: Bad"),
        ("x = 1\nraise RuntimeError('no luck')", "Bad", "cannot be imported: RuntimeError in line 2: no luck"),
        ("def f(:", "Bad", "cannot be imported: SyntaxError in line 1"),
        ("class Bad: ...", "Bad", "Bad is no subclass of coremat.methods.base.Method"),
        (HEAD.replace("@dataclass(frozen=True, kw_only=True)", ""), "Bad", "put @dataclass(frozen=True, kw_only=True)"),
        (HEAD, "Bad:tokens=few", "tokens is 'few'; accepted: a whole number"),
        (HEAD, "Bad:tokens=0", "keep is 0; accepted: knee, all, a count of at least 1"),
        (HEAD, "Bad:beta=0.2", "unknown option of Bad 'beta': known are tokens"),
        (HEAD.replace("Stage(2", "Stage(99"), "Bad", "prunes after 99 decoder layers; accepted for this model of 6"),
        (
            HEAD.replace("(Stage(2", "(Stage(4, 20), Stage(2"),
            "Bad",
            "after layers [4, 2]; accepted: in ascending",
        ),
        (HEAD.replace("mean(1)", "mean(1)[:, 1:]"), "Bad", "one score per token"),
        (HEAD.replace("mean(1)", "mean(1) * float('nan')"), "Bad", "are NaN or infinite"),
        (HEAD, "Bad+fastv", "accepted: a method that prunes tokens alone + one of neurons"),
    ],
)
def test_a_bad_method_gets_one_sentence(run: Run, tmp_path: Path, code: str | None, name: str, said: str) -> None:
    file = tmp_path / "bad.py"
    if code is not None:
        file.write_text(code)
    assert said in refused(run(*SHORT, "--methods", f"{file}:{name}", "--output", tmp_path / "run"))
    assert not (tmp_path / "run" / "record.json").exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("fastv:alpha=0.9", "unknown option of fastv 'alpha': known are tokens, prune_layer, queries, earlier_cache"),
        ("dense:beta=0.2", "unknown option of dense 'beta': known are none"),
        ("fastv:tokens=2.5", "tokens is 2.5; accepted: a count of at least 1, a share in (0, 1]"),
        ("fastv:queries=first", "queries is 'first'; accepted: last, all"),
        ("fastv:tokens", "'tokens' where option=value was expected"),
        ("fastv+divprune", "joins decoder layer + before decoder"),
        ("no.such:Class", "there is no module 'no'"),
    ],
)
def test_a_bad_spec_gets_one_sentence(run: Run, tmp_path: Path, spec: str, said: str) -> None:
    assert said in refused(run(*SHORT, "--methods", spec, "--output", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_a_family_lacks_is_skipped_where_others_can_run(run: Run) -> None:
    asked = ("eval", "--dry-run", "--tasks", "shapes", "--model", "qwen2.5-vl-3b", "--methods")
    code, out, err = run(*asked, "dense,visionzip,divprune")
    assert code == 0, err
    assert "visionzip skipped: visionzip reads how a class token attends" in " ".join((out + err).split())
    assert "has no such tower" in refused(run(*asked, "visionzip"))


# --- list methods --------------------------------------------------------------------------------------------


def test_list_shows_one_method_with_its_options(run: Run) -> None:
    code, out, err = run("list", "methods", "fastv")
    assert code == 0, err
    said = " ".join(out.split())
    for part in ("slot: decoder layer", "ECCV 2024", "departures: ", "fastv.py", "queries last, all last"):
        assert part in said
    assert "tokens a count of at least 1, a share in (0, 1] 0.5" in said


def test_list_says_whose_times_mean_nothing(run: Run) -> None:
    lines = {line.split()[0]: line for line in run("list", "methods")[1].splitlines() if line.strip()}
    assert "accuracy only" in lines["oracle-neurons"]
    assert "accuracy only" not in lines["wina"]
    assert "accuracy only: its decode steps" in " ".join(run("list", "methods", "oracle-neurons")[1].split())


def test_list_shows_a_method_of_ones_own_for_a_model(run: Run) -> None:
    code, out, err = run("list", "methods", MINE, "--model", "llama-3.2-11b-vision")
    assert code == 0, err
    said = " ".join(out.split())
    assert "mine.py" in said
    assert "prune_layer a whole number, at least 1 2" in said
    assert "with llama-3.2-11b-vision: " in err
    assert "cross-attention" in err
    assert "fastv: " in (both := run("list", "methods", "fastv+core-neurons")[1])
    assert "core-neurons: " in both


def test_help_says_that_a_path_runs_code(run: Run) -> None:
    assert "runs that file's code" in " ".join(run("eval", "--help")[1].replace("│", " ").split())


# --- entry points --------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution as pip leaves it, with two methods: one is whole, of the other the module is broken."""
    meta = tmp_path / "short_keys-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: short-keys\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        f"[{GROUP}]\nshort-keys = short_keys_package:ShortKeys\nbroken-keys = broken_keys_package:Keys\n"
    )
    (tmp_path / "short_keys_package.py").write_text(FIXTURE.read_text())
    (tmp_path / "broken_keys_package.py").write_text("import there_is_no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"short-keys", "broken-keys"} <= {point.name for point in entry_points(group=GROUP)}
    return tmp_path


def test_an_installed_method_is_listed_and_runs(run: Run, installed: Path) -> None:
    code, out, err = run("list", "methods")
    assert code == 0, err
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "decoder layer" in lines["short-keys"]
    assert "cannot be imported" in lines["broken-keys"]
    code, _, err = run(*SHORT, "--methods", "short-keys:tokens=7", "--output", installed / "run")
    assert code == 0, err
    record = Record.read(installed / "run")
    assert record.rows[0].image_tokens_kept == 7
    assert record.config["methods"]["short-keys:tokens=7"]["source"]["file"] == "short_keys_package.py"


# --- check-method --------------------------------------------------------------------------------------------


def checks(*found: bool | None) -> SimpleNamespace:
    """In the place of `coremat.testing.check_method`: one finding for each verdict."""
    told = SimpleNamespace(asked=None)

    def check_method(method: Method | str, families: Sequence[str] | None = None) -> Iterator[Finding]:
        told.asked = (method, families)
        if families == ["lava"]:
            raise UnknownNameError("family", "lava", ["llava"])
        yield from (Finding("llava", f"invariant {nth}", ok, f"detail {nth}") for nth, ok in enumerate(found))

    told.check_method = check_method
    return told


def test_check_method_shows_every_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told = checks(True, None)
    monkeypatch.setattr(coremat.testing, "check_method", told.check_method)
    code, out, err = run("check-method", f"{MINE}:tokens=9", "--families", "llava,gemma3")
    assert code == 0, err
    assert [line.split() for line in out.splitlines()] == [
        ["llava", "invariant", "0", "holds:", "detail", "0"],
        ["llava", "invariant", "1", "not", "applicable:", "detail", "1"],
    ]
    assert "none of 1 checks failed, 1 not applicable" in " ".join(err.split())
    method, families = told.asked
    assert (type(method).__name__, method.tokens, families) == ("ShortKeys", 9, ["llava", "gemma3"])


def test_check_method_fails_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coremat.testing, "check_method", checks(True, False).check_method)
    code, out, err = run("check-method", "fastv")
    assert code == 1
    assert "FAILS: detail 1" in out
    assert "fastv: 1 of 2 checks failed" in err


def test_check_method_refuses(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coremat.testing, "check_method", checks().check_method)
    assert "unknown method 'fastvv'" in refused(run("check-method", "fastvv"))
    assert "unknown family 'lava'" in refused(run("check-method", "fastv", "--families", "lava"))


def test_check_method_on_a_real_family(run: Run) -> None:
    """What is found is told by the exit code, whatever it is."""
    code, out, err = run("check-method", MINE, "--families", "llava")
    lines = out.splitlines()
    assert {line.split()[0] for line in lines} == {"llava"}
    failed = sum(" FAILS" in line for line in lines)
    assert code == (1 if failed else 0)
    assert f"ShortKeys: {failed or 'none'} of {len(lines)} checks failed" in " ".join(err.split())


def test_the_method_that_readme_shows_is_the_one_that_is_tested() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"```python\n# mine.py\n{FIXTURE.read_text()}```" in readme
