"""The Hugging Face hub: models as folders of its client's cache, each at one commit, and the
client's errors in words that a person can act on.

A revision is resolved once. Config, tokenizer and weights are of that commit, and what the cache
has of it needs no network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from sparta_bench.errors import log, reason_of

Kind = Literal["model", "dataset"]
Cause = Literal["access", "connection", "other"]  # terms or login; network and cache
MARKS: dict[Kind, str] = {"model": "config.json", "dataset": "README.md"}  # every one has it
NO_WEIGHTS = ["*.json", "*.model", "*.txt"]


@lru_cache
def snapshot(repo: str, revision: str) -> Path:
    """Return the folder of the cache with a model's files, weights aside; its name is the commit.

    Where the hub does not answer, it is the commit that the cache knows the revision by. Raises one
    of the client's errors, which `why` explains.
    """
    pinned = is_commit(revision) and try_to_load_from_cache(repo, MARKS["model"], revision=revision)
    commit, problem = (revision, None) if pinned else look(repo, revision, "model")
    for cache_only in (False, True) if commit else (True,):
        try:
            folder = snapshot_download(
                repo,
                revision=revision,  # the cache then knows it by this name
                allow_patterns=NO_WEIGHTS,
                ignore_patterns="*/*",
                local_files_only=cache_only,
                tqdm_class=Silent,
            )
        except Exception as error:  # the client raises many kinds
            if _is_of_connection(error):  # a file was cut off: what the cache has of it is a part
                raise
            problem = problem or error
        else:
            return Path(folder)
    assert problem is not None
    raise problem


def look(repo: str, revision: str, kind: Kind) -> tuple[str | None, Exception | None]:
    """Ask which commit a revision is at, for HF_HUB_ETAG_TIMEOUT seconds at most.

    Returns the commit and `None`, or `None` and the hub's refusal, if it gave one: then only the
    cache may know. Raises RevisionNotFoundError if there is no such revision.
    """
    try:
        url = hf_hub_url(repo, MARKS[kind], revision=revision, repo_type=kind)
        return get_hf_file_metadata(url).commit_hash, None
    except RevisionNotFoundError:
        raise
    except OfflineModeIsEnabled:
        return None, None
    except HfHubHTTPError as error:
        return None, error
    except Exception as error:
        if not _is_of_connection(error):
            raise
        _log_once(f"{endpoint()} does not answer ({type(error).__name__}); only the cache is used")
        return None, None


def download(repo: str, name: str, commit: str) -> None:
    """Download a file to a snapshot, unless it is there."""
    hf_hub_download(repo, name, revision=commit, tqdm_class=Bar)


@contextmanager
def cache_alone(wanted: bool) -> Iterator[None]:
    """Let `datasets`, which has no argument for it, ask no hub inside the block, if so wanted."""
    from datasets import config

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    try:
        if wanted:
            constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def endpoint() -> str:
    """The hub's host, without what else the address may hold, such as a password."""
    return urlsplit(constants.ENDPOINT).hostname or "the hub"


@lru_cache
def _log_once(line: str) -> None:
    log(line)


def is_commit(revision: str) -> bool:
    """Whether a revision is the full hash of a commit."""
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _is_of_connection(error: BaseException) -> bool:
    # the client's HTTP library has changed its name before
    family = type(error).__module__.partition(".")[0]
    return family.startswith("httpx") and not isinstance(error, HfHubHTTPError)


# ------------------------------------------------------------------------------- downloads
class Bar(tqdm):  # type: ignore[misc]
    """The progress of a download: a bar when someone is watching, a line at the start when not."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "disable": None, "leave": False})
        if self.disable:
            size = settings.get("total")
            known = f", {size / 1e6:,.1f} MB" if size else ""
            name = str(settings.get("desc")).rpartition("/")[2].partition(":")[0]
            log(f"downloading {name}{known}")

    def update_transfer(self, count: int) -> None:
        """With this the client's own store (Xet) has one bar, not two."""


class Silent(tqdm):  # type: ignore[misc]
    """No progress."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "disable": True})


# ---------------------------------------------------------------------------------- errors
def why(error: Exception) -> tuple[str, Cause]:
    """Explain what kept a thing from being had, and name the kind of cause."""
    # the client's own error among those that the libraries have raised over it
    kinds = HfHubHTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled
    root: BaseException | None = error
    while root is not None and not (isinstance(root, kinds) or _is_of_connection(root)):
        root = root.__cause__ or root.__context__
    if isinstance(root, GatedRepoError):
        return "its terms have not been accepted, or not with this login", "access"
    if isinstance(root, RepositoryNotFoundError):
        return "there is no such repository, or none that this login may see", "access"
    if isinstance(root, RevisionNotFoundError):
        return "it has no such revision", "other"
    if isinstance(root, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return f"{endpoint()} cannot be reached, and the cache does not have it", "connection"
    if isinstance(root, RemoteEntryNotFoundError):
        return f"it has no file {Path(root.response.url.path).name}", "other"
    if isinstance(root, HfHubHTTPError):
        status = root.response.status_code
        text = root.response.headers.get("X-Error-Message") or root.response.reason_phrase
        cause: Cause = "access" if status in (401, 403) else "other"
        return f"{endpoint()} answers {status}: {text}", cause
    if root is not None:
        kind = type(root).__name__
        return f"the connection broke off ({kind}); the same command tries again", "other"
    if isinstance(error, UnicodeEncodeError):  # on its way into a header
        return "the token (HF_TOKEN, or `hf auth login`) has letters that no token has", "access"
    return reason_of(error).rstrip("."), "other"


def ways_out(cause: Cause, page: str, without: str) -> str:
    """Say what a person can do. `page` is where terms are accepted; `without` needs no hub."""
    first = ""
    if cause == "access":
        first = f"accept its terms at {page}; log in with `hf auth login`; or "
    if cause == "connection":
        switch = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        first = (
            f"give the same command with a connection{', without HF_HUB_OFFLINE' * switch}; where "
            f"it is gated, accept its terms at {page} first and log in with `hf auth login`; or "
        )
    return f"Ways out: {first}{without}"
