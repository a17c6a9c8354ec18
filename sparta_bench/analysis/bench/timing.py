"""What a step of each contender costs, ratios of these costs, and both as Markdown; and the chosen
entries of weight gradients, dense and sampled, by themselves."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparta_bench.analysis.bench.contenders import Ready, build, linear_layers, missing, read_name
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.models.counts import empty_backbone
from sparta_bench.models.source import load_architecture
from sparta_bench.models.tensor_memory import peak_of
from sparta_bench.paper import PAPER_DENSITIES
from sparta_bench.sparta.gradient import is_sampled, weight_gradient_at
from sparta_bench.sparta.sample import sample_indices
from sparta_bench.tables.table import Table, as_markdown, table_of

WARM_UP = 2  # steps before the clock runs; the first one makes the optimizer's state
SHAPE_KEYS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
CROSSOVER_DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
COLUMNS = (
    "contender", "trained", "step, ms", "quartiles", "fastest", "tokens/s", "TFLOP",
    "of product's speed", "backward/forward", "launches", "peak, MB", "merge", "gather",
    "gradient", "",
)  # fmt: skip


# ------------------------------------------------------------------------ seconds and FLOPs
def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds from the call until `device` has done all of it."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _product_flops_per_second(dtype: torch.dtype, device: torch.device) -> float:
    """What `device` reaches in a product of two square random matrices; median of five."""
    size = 8192 if device.type == "cuda" else 1024
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=draw, device=device).to(dtype) for _ in range(2))
    seconds_of(lambda: a @ b, device)  # to warm up
    return 2 * size**3 / statistics.median(seconds_of(lambda: a @ b, device) for _ in range(5))


def _kernel_launches(work: Callable[[], Any], device: torch.device) -> int | None:
    """How many kernels `work` starts on a GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        seconds_of(work, device)
    return sum("LaunchKernel" in event.name for event in profile.events())


def _attention_flops(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Scores of every query with every key, and the weighted values: two products."""
    rows, heads, queries, width = query
    return int(2 * 2 * rows * heads * queries * key[2] * width)


def _attention_backward_flops(grad: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Five products, of which one is the scores again."""
    return 5 * _attention_flops(query, key) // 2


# torch has no formulas for its attention on a CPU, and those for CUDA refuse models that have
# fewer heads of keys than of queries
KINDS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{suffix}"): formula
    for kind in KINDS
    for suffix, formula in (("", _attention_flops), ("_backward", _attention_backward_flops))
}


def flops_of(ready: Ready, batch: dict[str, Tensor]) -> dict[str, Any]:
    """FLOPs of matrix products and attention in a step, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as forward:
        loss = ready.forward(batch)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as backward:
        loss.backward()  # type: ignore[no-untyped-call]
    ready.update()
    ahead, back = forward.get_total_flops(), backward.get_total_flops()
    return {
        "forward_flops": ahead,
        "backward_flops": back,
        "total_flops": ahead + back,
        "backward_to_forward": back / ahead,
    }


# -------------------------------------------------------------------------- sampled gradient
def _layer_shapes(setting: Setting) -> Counter[torch.Size]:
    """How many linear layers there are of each shape (out_features, in_features)."""
    backbone = empty_backbone(load_architecture(setting.config.model))
    return Counter(layer.weight.shape for layer in linear_layers(backbone).values())


def gradient_seconds(
    setting: Setting, outs: int, ins: int, density: float, repeats: int
) -> dict[str, float]:
    """Median seconds, on random operands: the product alone, the dense and the sampled gradient."""
    draw = torch.Generator(setting.device).manual_seed(0)
    options: Any = {"generator": draw, "device": setting.device}
    count = setting.rows * setting.tokens
    dtype = setting.precision.model_dtype
    grad = torch.randn(count, outs, **options).to(dtype)
    x = torch.randn(count, ins, **options).to(dtype)
    indices = sample_indices(outs * ins, density, 0, "bench").to(setting.device)
    ways: dict[str, Callable[[], Tensor]] = {
        "product": lambda: grad.t() @ x,
        "dense": lambda: weight_gradient_at(grad, x, indices, sampled=False),
        "sampled": lambda: weight_gradient_at(grad, x, indices, sampled=True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, work in ways.items():
            seconds[way].append(seconds_of(work, setting.device))
    return {way: statistics.median(spent[1:]) for way, spent in seconds.items()}  # warm


def crossover(setting: Setting, repeats: int) -> dict[str, Any]:
    """Dense against sampled gradient, for each shape of linear layer and each density."""
    layers = []
    for outs, ins in _layer_shapes(setting):
        times = {d: gradient_seconds(setting, outs, ins, d, repeats) for d in CROSSOVER_DENSITIES}
        faster = [d for d, seconds in times.items() if seconds["sampled"] <= seconds["dense"]]
        layers.append({
            "out_features": outs,
            "in_features": ins,
            "seconds": {str(density): seconds for density, seconds in times.items()},
            "sampled_is_faster_up_to": max(faster, default=None),
        })  # fmt: skip
    tokens = setting.rows * setting.tokens
    return {"model": setting.config.model.name, "tokens": tokens, "layers": layers}


def _shares_of(
    step: float, merge: float, setting: Setting, density: float, repeats: int
) -> dict[str, Any]:
    """What merging, and the gradient of the chosen entries, take of a step of so many seconds.

    Gathering is what that gradient takes beyond the plain product that is a dense gradient; where
    sampling is quicker than the product, it is nothing.
    """
    gradient = gather = 0.0
    tokens, threads = setting.rows * setting.tokens, torch.get_num_threads()
    for shape, count in _layer_shapes(setting).items():
        times = gradient_seconds(setting, shape[0], shape[1], density, repeats)
        chosen = round(density * shape.numel())
        sampled = is_sampled("auto", shape, chosen, tokens, setting.device, threads)
        seconds = times["sampled" if sampled else "dense"]
        gradient += count * seconds
        gather += count * max(seconds - times["product"], 0.0)
    parts = {"merge": merge, "gather": gather, "gradient": gradient}
    return {f"{name}_seconds": seconds for name, seconds in parts.items()} | {
        f"{name}_share": seconds / step for name, seconds in parts.items()
    }


# --------------------------------------------------------------------------------- contenders
class Timed:
    """A contender, in memory from its first step until `free`, and its row of the JSON."""

    def __init__(self, name: str, setting: Setting, batch: dict[str, Tensor]) -> None:
        self.name, self.setting, self.batch = name, setting, batch
        status = missing(name, setting.device) or "measured"
        self.row: dict[str, Any] = {"name": name, "status": status}
        self.rounds: list[list[float]] = []  # seconds of each step
        self.merge_seconds: list[float] = []
        self._ready: Ready | None = None

    @property
    def measured(self) -> bool:
        return bool(self.row["status"] == "measured")

    def count(self) -> None:
        """Count scalars, FLOPs, kernel launches and peak memory, alone in memory."""
        ready, batch, device = self._warm(), self.batch, self.setting.device
        self.row |= {
            "trainable": sum(value.numel() for value in ready.values),
            "chosen": ready.chosen,
            "note": ready.note,
            **flops_of(ready, batch),
            "kernel_launches": _kernel_launches(lambda: ready.step(batch), device),
            "peak_memory_bytes": peak_of(lambda: ready.step(batch), device),
        }

    def time(self, steps: int) -> None:
        """Measure the seconds of some steps, and of merging alone."""
        ready, batch, device = self._warm(), self.batch, self.setting.device
        self.rounds.append([seconds_of(lambda: ready.step(batch), device) for _ in range(steps)])
        if ready.adapter is not None:
            merge = ready.adapter.merge
            self.merge_seconds += [seconds_of(merge, device) for _ in range(steps)]

    def _warm(self) -> Ready:
        if self._ready is None:
            self._ready = build(self.name, self.setting)
            for _ in range(WARM_UP):
                self._ready.step(self.batch)
        return self._ready

    def free(self) -> None:
        self._ready = None
        if "peft.tuners.shira.layer" in sys.modules:
            # peft keeps the SHiRA layers that it has warned about, and their weights with them
            sys.modules["peft.tuners.shira.layer"]._warn_once_about_module_hooks.cache_clear()
        gc.collect()
        if self.setting.device.type == "cuda":
            torch.cuda.empty_cache()

    def summarize(self, product_speed: float, repeats: int) -> None:
        seconds = [second for one in self.rounds for second in one]
        several = len(seconds) > 1
        quartiles = statistics.quantiles(seconds, method="inclusive") if several else seconds * 3
        low, step, high = quartiles
        self.row |= {
            "step_seconds": step,
            "step_seconds_quartiles": [low, high],
            "fastest_step_seconds": min(seconds),
            "tokens_per_second": self.setting.rows * self.setting.tokens / step,
            "share_of_peak": self.row["total_flops"] / step / product_speed,
        }
        if self.merge_seconds:
            merge = statistics.median(self.merge_seconds)
            density = float(read_name(self.name)[1])
            self.row |= _shares_of(step, merge, self.setting, density, repeats)


def measure(setting: Setting, contenders: Iterable[str], rounds: int, steps: int) -> dict[str, Any]:
    """Measure one setting; returns its part of the JSON: seconds, bytes, FLOPs, ratios."""
    batch = setting.batch()
    every = [Timed(name, setting, batch) for name in contenders]
    # a GPU holds one, and building it takes longer than its steps; a CPU's speed drifts, so that
    # all take turns there
    for group in [[one] for one in every] if setting.device.type == "cuda" else [every]:
        _take_turns(group, rounds, steps)
        for one in group:
            one.free()
    speed = _product_flops_per_second(setting.precision.model_dtype, setting.device)
    timed = {one.name: one for one in every if one.measured}
    for one in timed.values():
        one.summarize(speed, rounds)
    architecture = load_architecture(setting.config.model)
    shape, backbone = architecture.to_dict(), empty_backbone(architecture)
    head = len(setting.config.task.labels) * architecture.hidden_size
    parameters = head + sum(tensor.numel() for tensor in backbone.parameters())
    weights_bytes = parameters * setting.precision.model_dtype.itemsize
    return {
        "model": setting.config.model.name,
        "shape": {key: shape[key] for key in SHAPE_KEYS if key in shape},
        "parameters": parameters,
        "weights_bytes": weights_bytes,
        "rows": setting.rows,
        "tokens": setting.tokens,
        "product_flops_per_second": speed,
        "contenders": [one.row for one in every],
        "ratios": list(_ratios(timed, weights_bytes)),
    }


def _take_turns(group: list[Timed], rounds: int, steps: int) -> None:
    """Count each, then time all, round by round; whoever lacks memory is out."""
    for turn in range(-1, rounds):
        for one in group:
            if not one.measured:
                continue
            try:
                one.count() if turn < 0 else one.time(steps)
            except (torch.OutOfMemoryError, MemoryError):
                one.row["status"] = "out of memory"
            if not one.measured or (turn < 0 and len(group) > 1):  # the next is counted alone
                one.free()


def _ratios(timed: dict[str, Timed], weights_bytes: int) -> Iterator[dict[str, Any]]:
    """Every comparison whose two sides were measured."""
    sparta = [name for name in timed if name.startswith("sparta-")]
    comparisons = [
        *((mine, f"peft-{mine}") for mine in sparta),
        *((mine, "full_ft") for mine in sparta),
        (f"sparta-{PAPER_DENSITIES[-1]}", "lora"),  # about as many scalars
    ]
    for mine, other in comparisons:
        if mine in timed and other in timed:
            within = [
                statistics.median(a) / statistics.median(b)
                for a, b in zip(timed[mine].rounds, timed[other].rounds, strict=True)
            ]
            ours, theirs = (timed[name].row["fastest_step_seconds"] for name in (mine, other))
            yield {
                "what": f"step of {mine} / {other}",
                "value": statistics.median(within),
                "lowest_and_highest_round": [min(within), max(within)],
                "of_fastest_steps": ours / theirs,
            }
    for mine in sparta:
        row, other = timed[mine].row, f"peft-{mine}"
        if other in timed:
            less = timed[other].row["peak_memory_bytes"] - row["peak_memory_bytes"]
            what = f"peak memory of {mine} below {other}, in sizes of the weights"
            yield {"what": what, "value": less / weights_bytes}
        share = row["merge_share"] + row["gather_share"]
        yield {"what": f"merging and gathering / step of {mine}", "value": share}


# ----------------------------------------------------------------------------------- Markdown
def as_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    device, dtypes = report["device"], report["dtypes"]
    packages = report["versions"].items()
    lines = [
        f"{device['name']} ({device['type']}, {device['threads']} threads), {report['date']}",
        f"weights {dtypes['model']}, trained values {dtypes['trained']}; {report['rounds']} rounds",
        ", ".join(f"{name} {version or 'not installed'}" for name, version in packages),
    ]
    tables = [table for setting in report.get("settings", []) for table in _steps(setting)]
    tables += map(_crossover_table, report.get("crossover", []))
    return "\n".join([*lines, "", *map(as_markdown, tables)]).rstrip("\n")


def _steps(setting: dict[str, Any]) -> list[Table]:
    title = (
        f"{setting['model']}: {setting['parameters']:,} parameters, {setting['rows']} rows of "
        f"{setting['tokens']} tokens"
    )
    note = f"A plain matrix product reaches {setting['product_flops_per_second'] / 1e12:,.2f} TFLOP"
    ratios = []
    for ratio in setting["ratios"]:
        cells = [ratio["what"], f"{ratio['value']:.3f}", "", ""]
        if "of_fastest_steps" in ratio:
            cells[2] = " – ".join(f"{value:.3f}" for value in ratio["lowest_and_highest_round"])
            cells[3] = f"{ratio['of_fastest_steps']:.3f}"
        ratios.append(cells)
    return [
        table_of("steps", title, COLUMNS, map(_contender, setting["contenders"]), f"{note}/s."),
        table_of("ratios", "Ratios", ("ratio", "value", "rounds", "of fastest"), ratios),
    ]


def _contender(row: dict[str, Any]) -> list[str]:
    if "step_seconds" not in row:
        return [row["name"], *[""] * (len(COLUMNS) - 2), row["status"]]
    shares = [row.get(f"{part}_share") for part in ("merge", "gather", "gradient")]
    return [
        row["name"],
        f"{row['trainable']:,}",
        f"{row['step_seconds'] * 1e3:.1f}",
        " – ".join(f"{seconds * 1e3:.1f}" for seconds in row["step_seconds_quartiles"]),
        f"{row['fastest_step_seconds'] * 1e3:.1f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['total_flops'] / 1e12:.3f}",
        f"{row['share_of_peak']:.0%}",
        f"{row['backward_to_forward']:.3f}",
        "" if row["kernel_launches"] is None else f"{row['kernel_launches']:,}",
        f"{row['peak_memory_bytes'] / 1e6:,.1f}",
        *("" if share is None else f"{share:.1%}" for share in shares),
        row["note"] or "",
    ]


def _crossover_table(measured: dict[str, Any]) -> Table:
    rows = []
    for layer in measured["layers"]:
        ratios = [f"{times['sampled'] / times['dense']:.2f}" for times in layer["seconds"].values()]
        most = layer["sampled_is_faster_up_to"]
        shape = f"{layer['out_features']} × {layer['in_features']}"
        rows.append([shape, *ratios, "never" if most is None else f"{most:.2%}"])
    densities = (f"{float(density):.2%}" for density in measured["layers"][0]["seconds"])
    title = (
        f"{measured['model']}, {measured['tokens']:,} tokens: seconds of the sampled gradient / of "
        "the dense one, by layer (out × in) and density"
    )
    return table_of("crossover", title, ("layer", *densities, "faster up to"), rows)
