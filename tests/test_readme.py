"""The commands of README.md and docs/commands.md work as they stand there; links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from quick import FEW_ROWS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND_PAGES = README + (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", COMMAND_PAGES, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS = list(
    dict.fromkeys(line.partition("  #")[0].strip().partition(" # ")[0].strip() for line in LINES)
)
OURS = [command for command in COMMANDS if command.startswith("sparta-bench")]
# what needs a GPU, a hub or a cluster
ELSEWHERE = [
    command
    for command in OURS
    if any(word in command for word in ("gemma-2b", "table4", "--measure", "h100"))
]


def test_every_command_is_one_of_ours_or_a_target_of_the_makefile() -> None:
    makes = [command for command in COMMANDS if command.startswith("make ")]
    assert len(makes) + len(OURS) == len(COMMANDS) >= 30
    for command in makes:
        done = subprocess.run(
            ["make", "--dry-run", *shlex.split(command)[1:]],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)


def test_the_price_of_the_paper_is_one_command() -> None:
    words = [
        "make",
        "--no-print-directory",
        "--dry-run",
        "--old-file=.venv/ready",
        "paper",
        "ARGS=--plan --gpu h100",
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    sweeps = " ".join(f"+sweep=table{number}" for number in (3, 4, 5, 10, 11))
    assert done.stdout == f".venv/bin/sparta-bench plan -m {sweeps} --gpu h100\n"


def test_the_two_commands_come_first() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)h#][^)]*)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target.partition("#")[0]).exists(), target


def test_what_is_linked_within_the_page_is_a_heading() -> None:
    headings = [line.lstrip("# ").lower() for line in README.splitlines() if line.startswith("#")]
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading).replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(#([^)]+)\)", README)
    assert targets and set(targets) <= anchors


@pytest.mark.parametrize("command", ELSEWHERE)
def test_a_command_for_another_machine_can_be_read(command: str) -> None:
    from sparta_bench.cli.bench_command import read_options
    from sparta_bench.cli.memory_command import _parser
    from sparta_bench.cli.plan_command import _parser as plan_parser
    from sparta_bench.config.compose import compose
    from sparta_bench.config.sweeps import sweep_jobs

    words = shlex.split(command)[1:]
    if words[0] == "bench":
        assert read_options(words[1:]).out is not None
    elif words[0] == "plan":
        assert plan_parser().parse_intermixed_args(words[1:]).multirun
    elif words[0] == "memory":
        assert _parser().parse_intermixed_args(words[1:]).measure
    elif words[0] == "-m":
        assert compose(sweep_jobs(words[1:])[0]).train.epochs > 0
        assert len(sweep_jobs(words[1:])) in (9, 1323)
    else:
        assert compose(words).model.name == "gemma-2b-it"


@pytest.fixture(scope="session")
def known(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the README's capitals."""
    folder = tmp_path_factory.mktemp("readme")
    for method, *more in (("sparta",), ("sparta", "task=tiny-cola", "seed=1"), ("full_ft",)):
        run = trained(method, *more)[2].parent
        shutil.copytree(run, folder / "results" / "runs" / f"{method}-{run.name}")
    return {
        "ADAPTER": str(trained("sparta")[2]),
        "OTHER": str(trained("sparta", "task=tiny-cola", "seed=1")[2]),
        "NAME": "some/base",
        "BASE": "tiny-gemma",
        "TUNED": str(trained("full_ft")[2]),
        "RESULTS": str(folder / "results"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in OURS if command not in ELSEWHERE])
def test_a_command_of_the_readme_runs(command: str, known: dict[str, str], tmp_path: Path) -> None:
    places = {**known, "DIR": str(tmp_path / "out")}
    words = [places.get(word, word) for word in shlex.split(command)][1:]
    first = words[0] if words else ""
    if first in ("status", "tables", "report"):  # of records that are there
        words.append(str(ROOT / "results" / "tiny-sst2"))
        words += [] if first == "status" else ["--out", str(tmp_path)]
    elif first in ("", "-m") or "=" in first:
        # as it stands there, but with fewer steps
        words += ["train.max_steps=2", f"results_dir={tmp_path}"]
    elif words[:2] == ["merge", "pairs"]:
        words += FEW_ROWS  # on which these runs were scored
    rows = [f"the team won match {n},sport\nthe market fell {n} points,money" for n in range(40)]
    (tmp_path / "news.csv").write_text("\n".join(["headline,label", *rows]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sparta_bench.cli", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_example_with_the_trainer_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "trainer.py"), "--out", "adapter"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(base|trained|loaded again): (.*)$", done.stdout, re.MULTILINE))
    assert found["loaded again"] == found["trained"]
    accuracy = {
        name: float(re.search(r"accuracy ([\d.]+)%", line)[1]) for name, line in found.items()
    }
    assert accuracy["base"] < 60 and accuracy["trained"] > 90
    assert (tmp_path / "adapter" / "adapter.safetensors").is_file()
