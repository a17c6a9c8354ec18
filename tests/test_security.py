"""What SECURITY.md promises, each with a file or a name that tries the contrary."""

from __future__ import annotations

import ast
import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from forged_records import forge, write
from fuzzing import TINY, Told, command
from quick import FEW_ROWS
from safetensors.torch import load_file

import sparta_bench.runs.experiment as experiment
from sparta_bench.config.compose import compose
from sparta_bench.errors import one_line
from sparta_bench.files import whole_file
from sparta_bench.records.record import MERGE
from sparta_bench.runs.lock import run_lock
from sparta_bench.runs.run import run
from sparta_bench.sparta import store
from sparta_bench.tables.table import Heading, Table, as_csv

PACKAGE = Path(experiment.__file__).parents[1]
UP = ("../out", "..", "/etc/passwd", "a/../../b", "C:\\x", "x\0y", "\ud800", ".", "", "~root")
SECRET = "hf_canaryABCDEFGHIJKLMNOP"
QUICK = ["train.max_steps=1", "train.eval_every=1", *FEW_ROWS]


def refused(told: Told, *parts: str) -> None:
    assert told.code == 2, told
    assert all(part in told.err for part in parts), told.err


def tree(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: contents of files, targets of links."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in paths
    }


def changed(path: Path, **values: Any) -> None:
    """Give a JSON file other values; a double underscore goes one deeper."""
    whole = json.loads(path.read_text())
    for key, value in values.items():
        *above, last = key.split("__")
        part = whole
        for name in above:
            part = part[name]
        part[last] = value
    path.write_text(json.dumps(whole))


@pytest.fixture
def copied(tmp_path: Path, trained: Callable[..., Any]) -> Callable[..., Path]:
    """`copied("sparta", …)`: a copy of what such a run saved."""

    def make(method: str, *overrides: str) -> Path:
        folder = tmp_path / f"copy-{method}"
        shutil.copytree(trained(method, *overrides)[2], folder)
        return folder

    return make


# ------------------------------------------------------------------------ pickles and code
class Canary:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "run")


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a module, with what is called as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_source_neither_unpickles_nor_runs_what_it_reads() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "np.load", "numpy.load",
                 "yaml.load", "yaml.unsafe_load", "joblib.load"}  # fmt: skip
    modules = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "runpy"}
    loads, pretrained = [], []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(module) if isinstance(node, ast.Import)
                    for alias in node.names}  # fmt: skip
        imported |= {str(n.module) for n in ast.walk(module) if isinstance(n, ast.ImportFrom)}
        assert not modules & imported, path
        for name, call in calls(module):
            settings = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert name not in forbidden, f"{path}: {name}"
            assert "shell" not in settings, f"{path}: {name}"
            if name == "torch.load":
                loads.append(settings)
            if name.startswith("Auto") and name.endswith(".from_pretrained"):
                pretrained.append((path.name, settings.get("trust_remote_code")))
    assert [settings["weights_only"] for settings in loads] == ["True"]
    assert pretrained and {trust for _, trust in pretrained} == {"False"}, pretrained


@pytest.mark.parametrize("name", ["sparse_deltas", "head_init"])
@pytest.mark.parametrize("allowed", [[], ["--allow-pickle"]])
def test_a_malicious_pickle_never_runs(
    tmp_path: Path, trained: Callable[..., Any], name: str, allowed: list[str]
) -> None:
    folder, canary = tmp_path / "theirs", tmp_path / "canary"
    out = ["--layout", "peft-sparta", "--base-name", "x/y", "--out", str(folder)]
    assert command(["merge", "export", str(trained("sparta")[2]), *out]).code == 0
    (folder / f"{name}.safetensors").unlink()
    (folder / f"{name}.pt").write_bytes(pickle.dumps(Canary(canary)))
    refused(command(["predict", str(folder), "--base", TINY, *allowed, "a film"]), f"{name}.pt")
    torch.save({"head": Canary(canary)}, folder / f"{name}.pt")
    refused(command(["predict", str(folder), "--base", TINY, *allowed, "a film"]), f"{name}.pt")
    assert not canary.exists()
    torch.load(folder / f"{name}.pt", weights_only=False)  # what it would have done
    assert canary.read_text() == "run"


@pytest.mark.parametrize("where", ["alone", "index", "config.json"])
def test_a_base_of_pickles_is_not_read(
    tmp_path: Path, copied: Callable[..., Path], where: str
) -> None:
    base, canary = tmp_path / "base", tmp_path / "canary"
    shutil.copytree(TINY, base)
    name = "adapter_model.bin" if where == "config.json" else "pytorch_model.bin"
    (base / name).write_bytes(pickle.dumps(Canary(canary)))
    if where == "config.json":  # which transformers would follow
        changed(base / "config.json", transformers_weights=name)
    else:
        tensors = load_file(base / "model.safetensors")
        (base / "model.safetensors").unlink()
    if where == "index":
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(command(["predict", str(copied("head")), "--base", str(base), "a film"]), str(base))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_never_runs(
    tmp_path: Path, copied: Callable[..., Path], name: str
) -> None:
    folder, canary = copied("full_ft"), tmp_path / "canary"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').write('run')\n")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    code = dict.fromkeys(kinds, "own.X") | {"AutoTokenizer": ["own.X", "own.X"]}
    changed(folder / name, auto_map=code)
    assert command(["predict", str(folder), "a film"]).code == 0  # as without that code
    changed(folder / name, model_type="own", tokenizer_class="X")
    assert command(["predict", str(folder), "a film"]).code in (0, 2)
    assert not canary.exists()


# ------------------------------------------------------------------------------------ paths
@pytest.mark.parametrize("name", UP)
def test_a_base_is_never_read_from_where_an_adapter_says(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Its files would load: only that the adapter names them is refused."""
    # what other tests trained on a base in a folder, this machine remembers
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, tmp_path / "out")
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    folder = copied("sparta")
    config = folder / store.CONFIG
    changed(config, model__embedded=False, model__hub_id=name)
    refused(command(["predict", str(folder), "a film"]), "model.hub_id=")
    changed(config, model__hub_id=None, model__path=name)
    refused(command(["predict", str(folder), "a film"]))
    changed(config, model__embedded=True, model__path=None, model__name=name)
    refused(command(["predict", str(folder), "a film"]))
    changed(config, model__name="tiny-gemma", model__tokenizer=name)
    refused(command(["predict", str(folder), "a film"]))


def test_a_folder_with_the_name_of_a_repository_is_not_taken_for_it(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, tmp_path / "google" / "gemma-2b")
    folder = copied("sparta")
    changed(folder / store.CONFIG, model__embedded=False, model__hub_id="google/gemma-2b")
    refused(command(["predict", str(folder), "a film"]), "google/gemma-2b cannot be loaded from")


@pytest.mark.parametrize("name", [*UP, TINY])
def test_the_authors_layout_names_no_folder(
    tmp_path: Path, trained: Callable[..., Any], name: str
) -> None:
    folder = tmp_path / "theirs"
    out = ["--layout", "peft-sparta", "--base-name", "x/y", "--out", str(folder)]
    assert command(["merge", "export", str(trained("sparta")[2]), *out]).code == 0
    changed(folder / "config.json", sparta_pretrained_model=name)
    told = command(["predict", str(folder), "a film"])
    refused(told, "no folder that an adapter names is opened; say with --base DIR")
    assert command(["predict", str(folder), "--base", TINY, "a film"]).code == 0


@pytest.mark.parametrize(
    "name", ["../base/model.safetensors", "{base}/model.safetensors", "..", "x"]
)
@pytest.mark.parametrize("ranks", [True, False])
def test_shards_lie_beside_their_index(
    tmp_path: Path, copied: Callable[..., Path], name: str, ranks: bool
) -> None:
    base, model = tmp_path / "base", tmp_path / "model"
    shutil.copytree(TINY, base)
    shutil.copytree(TINY, model)
    (model / "model.safetensors").unlink()
    names = load_file(base / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name.format(base=base))}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    predict = ["predict", str(copied("head")), "--base", str(model), "a film"]
    told = command(["ranks", str(base), str(model)] if ranks else predict)
    refused(told, "and shards are .safetensors beside it")


@pytest.mark.parametrize("key", ["gguf_file", "tokenizer_file", "vocab_file"])
def test_a_tokenizer_is_read_from_its_folder_alone(
    tmp_path: Path, copied: Callable[..., Path], key: str
) -> None:
    folder, elsewhere = copied("full_ft"), tmp_path / "tokenizer.json"
    shutil.copy(folder / "tokenizer.json", elsewhere)
    changed(folder / "tokenizer_config.json", **{key: str(elsewhere)})
    assert command(["predict", str(folder), "a film"]).code == 0  # its own is there
    (folder / "tokenizer.json").rename(folder / "vocab.txt")
    refused(command(["predict", str(folder), "a film"]), f"{key} points elsewhere")


def test_names_in_records_name_no_files(tmp_path: Path) -> None:
    """Whatever model, task, method or id a record has, only the folders asked for are written."""
    inside = tmp_path / "inside"
    for number, name in enumerate(UP):
        record = forge(method="lora") | dict.fromkeys(("model", "task", "run_id"), name)
        place = inside / str(number)
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    (tmp_path / "outside").write_text("x")
    before = tree(tmp_path)
    assert command(["tables", str(inside), "--out", str(out / "tables")]).code == 0
    assert command(["report", str(inside), "--out", str(out / "report")]).code == 0
    assert command(["status", str(inside)]).code == 0
    after = tree(tmp_path)
    assert before == {path: content for path, content in after.items() if path in before}
    new = [Path(path).relative_to(out).parts for path in after if path not in before]
    assert len(new) > 40
    assert {parts[:-1] for parts in new} == {("tables",), ("report",), ("report", "figures")}


def test_merged_pairs_are_written_below_their_folder(
    tmp_path: Path, trained: Callable[..., Any]
) -> None:
    for task in ("tiny-sst2", "tiny-cola"):
        for seed in (0, 1):
            folder = trained("sparta", f"task={task}", f"seed={seed}")[2].parent
            place = tmp_path / "in" / "runs" / folder.name
            shutil.copytree(folder, place)
            changed(
                place / "result.json",
                model="../../../out",
                task=task.removeprefix("tiny-"),
                config__model__embedded=False,  # else it may stand in no table
                config__task__generated=None,
            )
    told = command(["merge", "pairs", str(tmp_path / "in")])
    refused(told, "../../../out cannot name a folder")
    assert not list(tmp_path.rglob(MERGE)) and {p.name for p in tmp_path.iterdir()} == {"in"}


def test_a_list_of_tables_deletes_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", forge())
    others = [tmp_path / "x.md", folder / "x.md", folder / "tables" / "mine.txt"]
    assert command(["tables", str(folder)]).code == 0
    for other in others:
        other.write_text("x")
    names = ["../x.md", "../../x.md", str(tmp_path / "x.md"), "mine.txt", "a\0.md", "", "."]
    (folder / "tables" / ".sparta-bench-tables").write_text("\n".join(names))
    assert command(["tables", str(folder)]).code == 0
    assert all(other.read_text() == "x" for other in others)


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("x")
    folder = write(tmp_path / "in", forge())
    for name in ("tables/tables.md", "report/report.html"):
        (folder / name).parent.mkdir()
        (folder / name).symlink_to(mine)
    assert command(["tables", str(folder)]).code == 0
    assert command(["report", str(folder), "--page-only"]).code == 0
    assert mine.read_text() == "x"
    assert not (folder / "tables/tables.md").is_symlink()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("x")
    (tmp_path / ".lock").symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"), run_lock(tmp_path, Accelerator(), False):
        pass
    assert mine.read_text() == "x"


def test_what_is_no_file_is_not_read_as_a_record(tmp_path: Path) -> None:
    """A pipe and a device have no end."""
    folder = write(tmp_path, forge())
    for name in ("pipe", "device"):
        (folder / name).mkdir()
    os.mkfifo(folder / "pipe" / "result.json")
    (folder / "device" / "result.json").symlink_to("/dev/zero")
    told = command(["tables", str(folder)])
    assert told.code == 0 and "- left out, 2: is no JSON" in told.out


# ---------------------------------------------------------------------------------- secrets
@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HF_TOKEN}",
        "x${ oc.env:HF_TOKEN}",
        "${oc.env:NOT_THERE,x}",
        "${oc.${seed}:HF_TOKEN}",
    ],
)
@pytest.mark.parametrize("before", [["plan"], [], ["-m"]])
def test_the_environment_is_not_interpolated(
    monkeypatch: pytest.MonkeyPatch, before: list[str], value: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    told = command([*before, f"task.prompt.instruction='{value}'"])
    refused(told, "task.prompt.instruction=", "the environment is not read")
    assert SECRET not in told.out + told.err


def test_neither_records_nor_logs_hold_what_the_environment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "WANDB_API_KEY", "UNRELATED"):
        monkeypatch.setenv(name, f"{SECRET}{name}")
    places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    told = command([*places, *QUICK])
    assert told.code == 0
    files = tree(tmp_path)
    assert any(path.endswith("result.json") for path in files)
    assert not any(SECRET.encode() in content for content in files.values() if content)  # type: ignore[operator]
    assert SECRET not in told.out + told.err


def test_a_secret_in_a_librarys_error_is_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)

    def fails(*_: Any) -> None:
        raise RuntimeError(f"GET https://me:pass@hub.example/x: Bearer {SECRET}")

    monkeypatch.setattr(experiment, "prepare", fails)
    places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    told = command([*places, *QUICK])
    assert told.code == 1
    said = "GET https://hub.example/x: Bearer <HF_TOKEN>"
    (path,) = tmp_path.rglob("result.json")
    assert json.loads(path.read_text())["error"]["message"] == said
    assert said in told.out
    assert SECRET not in told.out + told.err + path.read_text() and ":pass" not in told.err
    assert one_line(f"hf download: {SECRET}") == "hf download: <HF_TOKEN>"


@pytest.mark.slow
def test_a_local_run_asks_no_network(tmp_path: Path, trained: Callable[..., Any]) -> None:
    """Nor does a prediction; in a process that may, since the client reads HF_HUB_OFFLINE once."""
    script = (
        "import socket, sys\n"
        "def asked(*where): open(sys.argv[1], 'a').write(f'{where[1:]}\\n'); raise OSError('no')\n"
        "socket.socket.connect = asked; socket.getaddrinfo = asked\n"
        "from sparta_bench.cli.main import main\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    canary = tmp_path / "asked"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(canary), "predict", str(trained("sparta")[2]), "a film"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not canary.exists(), canary.read_text()


# ---------------------------------------------------------------- what is written for others
ATTACKS = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
    "</style><svg onload=alert(1)>", "javascript:alert(1)", "=cmd|' /C calc'!A0", "+1+cmd|x",
    "-2+3|x", "@SUM(1)", "\t=1+1", "[x](javascript:alert(1))", "![x](http://x)",
    "\\input{/etc/passwd}", "$\\write18{id}$", "\x1b]0;x\x07", "\u202e<b>",
)  # fmt: skip


def attacked(record: Any, attack: str, path: str = "") -> Any:
    """The record with the attack in every text that may be any."""
    fixed = {".status", ".config.model.kind", ".config.method.targets", ".config.method.density_of"}
    if isinstance(record, dict):
        return {
            (f"{key}{attack}" if path == ".environment.versions" else key): attacked(
                value, attack, f"{path}.{key}"
            )
            for key, value in record.items()
        }
    if isinstance(record, list):
        return [attacked(value, attack, path) for value in record]
    return f"{record}{attack}" if isinstance(record, str) and path not in fixed else record


class Page(HTMLParser):
    """Collects what a page could do."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {str(value) for name, value in attrs if name in ("href", "src", "xlink:href")}


def page_of(folder: Path) -> Page:
    assert command(["report", str(folder), "--page-only"]).code == 0
    page = Page()
    page.feed((folder / "report" / "report.html").read_text(encoding="utf-8"))
    return page


def real_records(trained: Callable[..., Any]) -> list[dict[str, Any]]:
    """One with all that a run writes, and one that failed."""
    done = trained("sparta")[1] | {"model": "other", "task": "other"}
    done["config"] = json.loads(json.dumps(done["config"]))
    done["config"]["model"]["embedded"], done["config"]["task"]["generated"] = False, None
    error = {"type": "X", "message": "y", "traceback": "z"}
    return [done, done | {"run_id": "f", "status": "failed", "error": error}]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_record_becomes_part_of_the_page(
    tmp_path: Path, trained: Callable[..., Any], attack: str
) -> None:
    records = real_records(trained)
    for name in ("plain", "attacked"):
        for number, record in enumerate(records):
            (tmp_path / name / str(number)).mkdir(parents=True)
            text = json.dumps(attacked(record, attack) if name == "attacked" else record)
            (tmp_path / name / str(number) / "result.json").write_text(text)
    plain, page = page_of(tmp_path / "plain"), page_of(tmp_path / "attacked")
    assert (page.tags, page.attributes) == (plain.tags, plain.attributes)
    assert not any(name.startswith("on") for name in page.attributes)
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    text = (tmp_path / "attacked" / "report" / "report.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text and "\u202e" not in text and "\x1b" not in text


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_record_is_a_formula_a_command_or_a_link(tmp_path: Path, attack: str) -> None:
    done = forge(model=attack, task=attack, method="lora") | {"model": attack, "task": attack}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "result.json").write_text(json.dumps(done))
    told = command(["tables", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert told.code == 0 and "\x1b" not in told.out
    tables = sorted((tmp_path / "out").glob("*.csv"))
    assert len(tables) >= 2
    for path in tables:
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines()):
            formulas = [cell for cell in row if cell[:1] in tuple("=+@\t\r")]
            assert not formulas and not any(cell.startswith("-2+3|") for cell in row)
    for path in (tmp_path / "out").glob("*.tex"):
        assert "\\input" not in path.read_text() and "\\write18" not in path.read_text()
    for path in (tmp_path / "out").glob("*.md"):
        text = path.read_text(encoding="utf-8").replace("\\[", "").replace("&lt;", "")
        assert "[" not in text and "<" not in text


def test_numbers_with_a_sign_stay_numbers_in_csv() -> None:
    cells = ("-0.12", "+1,200", "-0.5 ± 0.1 (3)", "-3.1%", "-", "-x", "=1", "2", "+")
    table = Table("k", "t", ((*map(Heading, cells),),), (cells,))
    row = as_csv(table).splitlines()[1]
    assert row == "-0.12,\"+1,200\",-0.5 ± 0.1 (3),-3.1%,-,'-x,'=1,2,+"


@pytest.mark.parametrize(
    "text", ["\x1b[2J\x1b]0;owned\x07", "a\nsparta-bench: all is well", "\u202e"]
)
def test_messages_hold_no_control_characters(text: str, copied: Callable[..., Path]) -> None:
    folder = copied("head")
    changed(folder / store.CONFIG, model__path=text, base_fingerprint=text)
    for words in (["predict", str(folder), "x"], ["predict", str(folder), "--base", TINY, "x"]):
        told = command(words)
        assert told.code == 2 and text not in told.err
        assert told.err.count("\n") == 1 and told.err[:-1].isprintable()
    refused(command(["plan", f"seed={text}"]))
    assert command([text]).err[:-1].isprintable()


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    """Else a link of that name, put there by another, would be written through."""
    seen = []

    for _ in range(2):
        with whole_file(tmp_path / "a") as temporary:
            seen.append(temporary)
            temporary.write_text("x")
    assert len(set(seen)) == 2


def test_sweeping_up_follows_no_link(tmp_path: Path, tiny_config: Any) -> None:
    config = tiny_config(*QUICK)
    _, path, _ = run(config)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("x")
    path.unlink()
    (path.parent / ".x.tmp").symlink_to(mine)
    (path.parent / ".result.json.x.tmp").symlink_to(mine / "file")
    run(config)
    assert (mine / "file").read_text() == "x"


def test_what_is_saved_names_no_folder_of_this_machine(
    tmp_path: Path, trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    record, path, _ = run(compose([*QUICK, *places, "model=local", f"model.path={base}"]))
    assert record["status"] == "completed"
    for file in path.parent.rglob("*.json"):
        assert str(tmp_path) not in file.read_text(), file
    told = command(["predict", str(path.parent / "adapter"), "x"])
    assert told.code == 0  # this machine remembers, in its user's cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    refused(command(["predict", str(path.parent / "adapter"), "x"]), "say with --base DIR where")
