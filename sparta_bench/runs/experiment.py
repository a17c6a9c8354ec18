"""The experiment itself: data, model, method, training, scores, and what is saved of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparta_bench.adapters.export import check_whole, write_whole, write_whole_sharded
from sparta_bench.adapters.manifest import Manifest
from sparta_bench.config.presets import guessed_from, guessed_rate
from sparta_bench.data.examples import check_classes
from sparta_bench.data.tokenize import (
    BatchSource,
    EncodedSplits,
    cache_folder,
    evaluation_batches,
    shortest_and_longest,
    tokenizer_fingerprint,
)
from sparta_bench.devices import forget_peak, is_lack_of_memory, peak_bytes
from sparta_bench.errors import DivergedError, InputError, TrainingError, log, reason_of
from sparta_bench.files import whole_folder
from sparta_bench.methods import prepare
from sparta_bench.methods.trained import Trained
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.counts import count_parameters, draws_dropout, shapes_of
from sparta_bench.models.dropout import dropout_of
from sparta_bench.models.features import (
    FeatureClassifier,
    FeatureSet,
    cached_features,
    features_key,
    is_deterministic,
)
from sparta_bench.models.load import attention_of
from sparta_bench.models.source import is_local
from sparta_bench.models.tokens_once import TokensOnce, choose
from sparta_bench.records.read import read_json
from sparta_bench.records.record import METRICS, PROTOCOL, SAVED
from sparta_bench.records.write import (
    Findings,
    RunResult,
    RunSpec,
    density_of,
    environment,
    error_of,
    model_without_paths,
)
from sparta_bench.runs.assets import AssetCache
from sparta_bench.runs.lock import CHECKPOINT, agreed
from sparta_bench.runs.race import curve_of, why_hopeless
from sparta_bench.runs.trackers import final_values, tracked
from sparta_bench.sparta import store
from sparta_bench.training.checkpoint import Checkpoint
from sparta_bench.training.loop import HopelessError, Track, Training
from sparta_bench.training.progress import ProgressReporter, watched
from sparta_bench.training.steps import evaluation_size

MOST_UNKNOWN = 0.05  # of the training tokens, before a warning


class RunInterrupted(KeyboardInterrupt):
    """An interruption, with what the run had found before it."""

    def __init__(self, result: RunResult) -> None:
        super().__init__()
        self.result = result


def execute(spec: RunSpec, assets: AssetCache) -> RunResult:
    """Make the experiment. A failure is a result as well, with all that was found before it; an
    interruption is raised with it. InputError: model, data and configuration do not fit together.
    """
    findings = Findings()
    try:
        with tracked(spec) as track:
            _make(spec, assets, findings, track)
    except InputError:
        raise
    except HopelessError as end:
        return _stopped(findings, str(end), spec.config.search.rival)
    except KeyboardInterrupt:
        raise RunInterrupted(RunResult(findings, "interrupted")) from None
    except Exception as error:
        if isinstance(error, DivergedError) and spec.config.search.rival:
            return _stopped(findings, str(error), None)
        alone = spec.accelerator.num_processes > 1 and not isinstance(error, TrainingError)
        # under the same name, which Python deletes at the end: its traceback holds the model
        error = _explained(error, spec, findings)
        raise_after = error if alone else None
        return RunResult(findings, "failed", error_of(error), raise_after=raise_after)
    return RunResult(findings, "completed")


def _stopped(findings: Findings, reason: str, rival: str | None) -> RunResult:
    """A run that its race ended, with the dev scores of its best evaluation."""
    trained = [entry for entry in findings.history if entry["step"] > 0]
    if trained:
        best = min(trained, key=lambda entry: entry["dev_loss"])
        findings.dev = _dev_scores(best)
    return RunResult(findings, "stopped", rival=rival, reason=reason)


def _dev_scores(entry: Mapping[str, Any]) -> dict[str, float]:
    """What an entry of the history says of dev."""
    return {metric: entry[f"dev_{metric}"] for metric in METRICS}


def _make(spec: RunSpec, assets: AssetCache, findings: Findings, track: Track) -> None:
    config, precision, accelerator = spec.config, spec.precision, spec.accelerator
    device = accelerator.device
    facts = environment(device, precision, accelerator.num_processes)
    findings.environment = facts
    assets.keep_only(config, precision, device)
    forget_peak(device)

    data = assets.data(config)
    findings.data = data.summary
    log(*check_classes(config.task.name, data.summary["labels"]))
    unknown_share = data.summary["unknown_train_share"]
    if unknown_share is not None and unknown_share > MOST_UNKNOWN:
        log(
            f"{unknown_share:.0%} of the training tokens of {config.task.name} are unknown to the "
            f"tokenizer of {config.model.name}, which was made for other texts"
        )

    classifier = assets.take_classifier(config, precision, device)
    tokenizer = assets.tokenizer(config.model, config.task)
    facts["dropout"] = dropout_of(classifier.backbone)
    facts["attention"] = attention_of(classifier.backbone)
    if config.save == "full":
        try:
            check_whole(classifier, tokenizer, list(config.task.labels))
        except InputError as error:
            raise InputError(f"save=full: {error}") from None
    counts = count_parameters(
        shapes_of(classifier.backbone), len(config.task.labels), config.method
    )
    trained = prepare(classifier, config, precision)
    if config.search.name == "grid" and (rate := guessed_rate(config)) is not None:
        log(
            f"train.learning_rate={rate:g}: a guess from {guessed_from(config)}; give one, "
            "or let five race with train.learning_rate=search"
        )
    facts["kernels"] = trained.kernels
    findings.parameters = {
        **counts.as_dict(),
        "trainable": trained.trainable,
        "trainable_share": trained.trainable / counts.total,
        "sampled": trained.sampled,
    }
    once = _tokens_once(spec, classifier, data)
    facts["tokens_once"] = None
    if once is not None:
        classifier.pool, facts["tokens_once"] = once.pooled, once.as_dict()

    def save_it() -> None:
        if accelerator.is_main_process or classifier.sharded:
            save(spec, classifier, tokenizer, trained, once)

    # before test is scored, which may take long and be interrupted; but a run that is forced keeps
    # what it had until it is done, and a whole model's weights are merged, which may round
    early = config.save == "adapter" and not config.force
    before_test = save_it if early else None
    untrained = _untrained_key(spec, once, trained.only_head)
    known = assets.untrained.get(untrained)
    _train(spec, classifier, trained, data, facts, findings, before_test, track, known)
    if findings.history[0]["step"] == 0:
        assets.untrained[untrained] = _dev_scores(findings.history[0])
    if not early:
        save_it()
    assets.give_back(classifier, trained, config)


def _tokens_once(spec: RunSpec, classifier: Classifier, data: EncodedSplits) -> TokensOnce | None:
    """What of a batch is computed, tried on the shortest and the longest training example."""
    train, method = spec.config.train, spec.config.method
    if train.share_prefix is False:
        return None
    draws = draws_dropout(train, method)
    batch = shortest_and_longest(data.train)
    on_device = {name: tensor.to(spec.accelerator.device) for name, tensor in batch.items()}
    prefix = data.summary["shared_prefix_tokens"]
    once, why_not = choose(classifier, train.share_prefix, prefix, on_device, draws)
    if agreed(spec.accelerator, why_not) != why_not:
        raise RuntimeError("the processes of one run do not compute the same")
    if why_not is not None:
        log(f"train.share_prefix={train.share_prefix}: less is shared than asked for: {why_not}")
    return once


def _untrained_key(spec: RunSpec, once: TokensOnce | None, only_head: bool) -> Hashable:
    """What decides the dev scores before the first step. No method changes anything until then, so
    that the runs of a grid have them in common, but for heads that are drawn from the seed; a head
    on features of its own adds up in another order."""
    config = spec.config
    drawn = config.model.kind == "base" or config.task.separator == "sep_token"
    size = evaluation_size(config.train, spec.accelerator.device.type)
    data = config.model, config.task, config.limit, config.seed if drawn else None
    computed = spec.precision, size, config.train.sharding, only_head
    return (*data, *computed, once and (once.prefix_tokens, once.last_layer))


def _train(
    spec: RunSpec,
    classifier: Classifier,
    trained: Trained,
    data: EncodedSplits,
    facts: dict[str, Any],
    findings: Findings,
    before_test: Callable[[], None] | None,
    track: Track,
    untrained: Mapping[str, float] | None,
) -> None:
    """Train and score; a head alone on features where these are the same in every epoch."""
    config, accelerator = spec.config, spec.accelerator
    model: Classifier | FeatureClassifier = classifier
    sets: Sequence[BatchSource] = (data.train, data.dev, data.test)
    features_seconds = None
    if trained.only_head and config.train.dropout == 0 and is_deterministic(classifier):
        started = time.perf_counter()
        model = FeatureClassifier(classifier.head)
        sets = _features(spec, classifier, data, facts)
        features_seconds = round(time.perf_counter() - started, 3)
    train, dev, test = sets
    made_by = {"run_id": spec.run_id, "versions": facts["versions"]}
    checkpoint = Checkpoint(spec.folder / CHECKPOINT, made_by)
    if config.force:
        checkpoint.path.unlink(missing_ok=True)
    training = Training(
        accelerator, model, trained, train, dev, config.train, config.seed, checkpoint,
        untrained, track,
    )  # fmt: skip
    lost = None
    try:
        with ProgressReporter(training.plan.steps, accelerator.is_main_process) as reporter:
            progress = training.train(reporter, why_hopeless=_why_hopeless(spec))
            # of the state that was restored: it was evaluated when it was reached
            by_step = {entry["step"]: entry for entry in progress.history}
            findings.dev = _dev_scores(by_step[progress.best_step])
            unsaved = _fault_of(before_test)
            findings.test = training.evaluate(test, reporter.evaluating("test"))
            track(training.progress.step, final_values(findings.dev, findings.test))
            # of a sharded model not where a process has failed, which the others would wait for
            lost = trained.lost_to_rounding() if trained.sharded else None
            if unsaved is not None:
                raise unsaved
    finally:
        findings.training = {
            **training.summary(),
            "features_seconds": features_seconds,
            "peak_memory_bytes": peak_bytes(accelerator.device),
            "deltas_lost_to_rounding": lost if trained.sharded else trained.lost_to_rounding(),
        }
        findings.history = training.progress.history


def _fault_of(save_it: Callable[[], None] | None) -> OSError | None:
    """What keeps an adapter from being saved, a full disk say: test is scored all the same."""
    try:
        if save_it is not None:
            save_it()
    except OSError as error:
        return error
    return None


def _why_hopeless(spec: RunSpec) -> Callable[[Sequence[dict[str, Any]], int], str | None] | None:
    """What ends a run of a race early: a comparison with the run that the race has named."""
    search = spec.config.search
    if search.rival is None:
        return None
    record = read_json(spec.folder.parent / search.rival)
    rival = None if record is None or record["status"] != "completed" else curve_of(record)
    rival = agreed(spec.accelerator, rival)
    if rival is None:
        log(f"search.rival={search.rival}: has no completed record; the run goes on to its end")
        return None

    def ask(history: Sequence[dict[str, Any]], steps: int) -> str | None:
        curve = [(entry["step"] / steps, entry["dev_loss"]) for entry in history]
        return why_hopeless(curve, rival, search.margin)

    return ask


def _features(
    spec: RunSpec, classifier: Classifier, data: EncodedSplits, facts: dict[str, Any]
) -> list[FeatureSet]:
    """Features of train, dev and test; the backbone runs only for those not in the cache."""
    config, accelerator = spec.config, spec.accelerator
    size = evaluation_size(config.train, accelerator.device.type)
    identity = {
        "protocol": PROTOCOL,
        "base": spec.base_fingerprint,
        **{key: facts[key] for key in ("versions", "device", "dtypes")},
        "batch_size": size,  # examples and tokens
        **({"tokens_once": facts["tokens_once"]} if facts["tokens_once"] else {}),
        # the separator's own embedding is drawn from the seed, where the task has one
        "seed": config.seed if config.task.separator == "sep_token" else None,
    }
    sets = []
    for name, encoded in (("train", data.train), ("dev", data.dev), ("test", data.test)):
        batches = evaluation_batches(encoded.lengths(), *size)
        path = cache_folder(config) / f"features-{features_key(identity, encoded)}.safetensors"
        shown = watched(
            batches,
            f"features of {name}",
            accelerator.is_main_process,
            heading=", once for all epochs",
        )
        sets.append(cached_features(accelerator, classifier, encoded, shown, path))
    return sets


def save(
    spec: RunSpec,
    classifier: Classifier,
    tokenizer: Any,
    trained: Trained,
    once: TokensOnce | None = None,
) -> None:
    """Write what `save` asks for beside the record. Of a sharded model all processes have a part of
    that, and the main one writes."""
    manifest = _manifest(spec, tokenizer, trained.base_fingerprint, once)
    if spec.config.save == "adapter" and (adapter := trained.adapter()) is not None:
        tensors, about = adapter
        if not spec.accelerator.is_main_process:
            return
        with whole_folder(spec.folder / SAVED["adapter"]) as temporary:
            path = spec.config.model.path and str(Path(spec.config.model.path).resolve())
            store.write(temporary, tensors, {**manifest.as_dict(), **about}, path)
    elif spec.config.save == "full":
        trained.merge_and_unload()
        out = spec.folder / SAVED["full"]
        if classifier.sharded:
            main = spec.accelerator.is_main_process
            write_whole_sharded(classifier, tokenizer, manifest, out, writes=main)
            return
        with whole_folder(out) as temporary:
            write_whole(classifier, tokenizer, manifest, temporary)


def _manifest(
    spec: RunSpec, tokenizer: Any, base_fingerprint: str | None, once: TokensOnce | None
) -> Manifest:
    """What somebody needs to know to use what was trained; without paths, as the record."""
    config, task = spec.config, spec.config.task
    model = model_without_paths(config.model)
    if not is_local(model):
        model = replace(model, revision=spec.base_fingerprint.partition("+")[0])  # the commit
    return Manifest(
        method=config.as_dict()["method"],
        density=density_of(config),
        seed=config.seed,
        base_model={"name": model.name, "fingerprint": spec.base_fingerprint},
        task=task.name,
        labels=list(task.labels),
        columns=list(task.columns),
        prompt=task.prompt if model.kind == "instruct" else None,
        separator=task.separator,
        undo_spacing=task.undo_spacing,
        model=model,
        dtypes=spec.precision.as_dict(),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        base_fingerprint=base_fingerprint,
        tokens_once=once.as_dict() if once else None,
    )


def _explained(error: Exception, spec: RunSpec, findings: Findings) -> Exception:
    """Say what to try where memory does not suffice, and that another process has died."""
    reason, train = reason_of(error), spec.config.train
    processes = spec.accelerator.num_processes
    if is_lack_of_memory(error):
        data = findings.data or {}
        explained = TrainingError(
            f"out of memory with train.batch_size={train.batch_size} in "
            f"{train.accumulation_steps} part(s); try a larger train.accumulation_steps "
            "(same result, less memory), train.gradient_checkpointing=true, or a smaller "
            f"train.eval_tokens ({reason}; the longest training input has "
            f"{data.get('longest_train_tokens')} tokens, of dev and test "
            f"{data.get('longest_eval_tokens')})"
        )
    elif processes > 1 and any(word in reason for word in ("gloo", "NCCL")):
        explained = TrainingError(
            f"another of the {processes} processes of this run has died or does not answer; its "
            f"own output says why, and the same command goes on ({reason})"
        )
    else:
        return error
    return explained.with_traceback(error.__traceback__)
