"""A grid's jobs through one of Hydra's launchers (joblib, submitit): other processes or machines.

Hydra's own multirun would compose everything again, know nothing of what is done, and stop at the
first job that fails; so its launcher is called as its sweepers call it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext

from sparta_bench.config.compose import is_of_hydra, our_hydra, parse_all, with_implied
from sparta_bench.config.conf_folder import search_path
from sparta_bench.errors import InputError, reason_of


def launcher_of(job: list[str]) -> str | None:
    """Return the launcher that the overrides choose; None for Hydra's basic one.

    Raises
    ------
    InputError
        If they choose that of Slurm, and this machine has no Slurm.
    """
    names = [
        str(override.value())
        for override in parse_all(job)
        if override.key_or_group == "hydra/launcher"
    ]
    if names[-1:] == ["submitit_slurm"] and shutil.which("srun") is None:
        raise InputError(
            f"hydra/launcher={names[-1]}: needs Slurm, and this machine has no srun; start it on "
            "a machine of the cluster"
        )
    return None if names[-1:] in ([], ["basic"]) else names[-1]


def launch(jobs: list[list[str]], task: Callable[[Any], Any]) -> None:
    """Give the jobs to the launcher that they choose, and wait for all of them.

    `task` gets Hydra's composed configuration; it must be a function of a module, so that another
    process can import it.

    Raises
    ------
    InputError
        If submitit could submit none of them.
    Exception
        One of the launcher's, for instance where a worker died.
    """
    own = [
        [text for text in with_implied(job) if not is_of_hydra(text.lstrip("+~"))] for job in jobs
    ]
    with our_hydra():
        config = hydra_compose("config", [*search_path(), *jobs[0]], return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=task,
            config=config,
        )
        try:
            launcher.launch(own, initial_job_idx=0)
        except Exception as error:
            # submitit gives a job's file this name when the cluster has taken the job
            folder = config.hydra.launcher.get("submitit_folder")
            if folder is None or any(Path(folder).parent.rglob("*_submitted.pkl")):
                raise
            name = config.hydra.runtime.choices["hydra/launcher"]
            raise InputError(
                f"hydra/launcher={name}: nothing could be submitted: {reason_of(error)}"
            ) from None
