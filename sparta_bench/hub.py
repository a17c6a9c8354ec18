"""The Hugging Face hub: which commit a name stands for, downloads that can be seen, and its errors
in words that a person can act on.

A revision is resolved once. Config, tokenizer and weights are then loaded by that commit, so that
they are of one state of the repository, and so that what is in the cache needs no network.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from sparta_bench.errors import log, reason_of

Kind = Literal["model", "dataset"]
Cause = Literal["access", "connection", "other"]  # terms or login; network and cache
MARKS: dict[Kind, str] = {"model": "config.json", "dataset": "README.md"}  # every one has it


@lru_cache
def commit_of(repo: str, revision: str) -> str:
    """The commit that a revision of a model is at (40 hex digits).

    Where the hub does not answer, it is the commit that the cache knows the revision by.

    Raises
    ------
    Exception
        One of the client's, for `why` to tell.
    """
    name = MARKS["model"]
    if not (_is_commit(revision) and _is_cached(repo, name, revision)):
        look(repo, revision, "model")
    return Path(hf_hub_download(repo, name, revision=revision)).parent.name


def look(repo: str, revision: str, kind: Kind) -> str | None:
    """The commit that a revision is at; null where only the cache may know it.

    Where the hub does not answer (in HF_HUB_ETAG_TIMEOUT seconds, 10), this process goes on as
    with HF_HUB_OFFLINE=1, and says so: each of the client's own attempts would take half a minute
    to give up, and some would wait for ever.

    Raises
    ------
    RevisionNotFoundError
        If the repository has no such revision.
    """
    known = revision if _is_commit(revision) else None
    if constants.HF_HUB_OFFLINE:
        return known
    url = hf_hub_url(repo, MARKS[kind], revision=revision, repo_type=kind)
    try:
        return get_hf_file_metadata(url).commit_hash or known
    except RevisionNotFoundError:
        raise
    except HfHubHTTPError:
        return known  # what it says is told by whoever needs a file that is not in the cache
    except Exception as error:
        if not _is_of_connection(error):
            raise
        from datasets import config  # only where needed: it takes seconds

        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
        log(f"{endpoint()} does not answer ({type(error).__name__}); only the cache is used")
        return known


def refusal(repo: str, revision: str, kind: Kind) -> Exception | None:
    """The hub's answer, where that is an error: a library may have told of it in its own way."""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        get_hf_file_metadata(hf_hub_url(repo, MARKS[kind], revision=revision, repo_type=kind))
    except HfHubHTTPError as error:
        refused: Exception = error
        return refused
    return None


def is_offline() -> bool:
    """Whether only the cache is used."""
    return bool(constants.HF_HUB_OFFLINE)


def endpoint() -> str:
    """The hub's host, without what else the address may hold, such as a password."""
    return urlsplit(constants.ENDPOINT).hostname or "the hub"


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _is_cached(repo: str, name: str, commit: str) -> bool:
    return isinstance(try_to_load_from_cache(repo, name, revision=commit), str)


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


# ---------------------------------------------------------------------------------- errors
def why(error: Exception) -> tuple[str, Cause]:
    """What kept a thing from being had, and what kind of cause that is."""
    found = _root(error)
    if isinstance(found, GatedRepoError):
        return "its terms have not been accepted, or not with this login", "access"
    if isinstance(found, RepositoryNotFoundError):
        return "there is no such repository, or none that this login may see", "access"
    if isinstance(found, RevisionNotFoundError):
        return "it has no such revision", "other"
    if isinstance(found, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return f"{endpoint()} cannot be reached, and the cache does not have it", "connection"
    if isinstance(found, HfHubHTTPError):
        return _refusal(found)
    if found is not None and _is_of_connection(found):
        kind = type(found).__name__
        return f"the connection broke off ({kind}); the same command tries again", "other"
    if isinstance(error, UnicodeEncodeError):  # on its way into a header
        return "the token (HF_TOKEN, or `hf auth login`) has letters that no token has", "access"
    return reason_of(error).rstrip("."), "other"


def ways_out(cause: Cause, page: str, without: str) -> str:
    """What a person can do, by the cause: `Ways out: …`. `page` is where terms are accepted;
    `without` is the way that needs no hub."""
    first: list[str] = []
    if cause == "access":
        first = [f"accept its terms at {page}", "log in with `hf auth login`"]
    if cause == "connection":
        switch = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        first = [
            "give the same command with a connection" + ", without HF_HUB_OFFLINE" * switch,
            f"where it is gated, accept its terms at {page} first and log in with `hf auth login`",
        ]
    return "Ways out: " + "".join(f"{way}; " for way in first) + "or " * bool(first) + without


def _refusal(error: HfHubHTTPError) -> tuple[str, Cause]:
    if isinstance(error, EntryNotFoundError):
        return f"it has no file {Path(error.response.url.path).name}", "other"
    status = error.response.status_code
    said = error.response.headers.get("X-Error-Message") or error.response.reason_phrase
    return f"{endpoint()} answers {status}: {said}", "access" if status in (401, 403) else "other"


def _root(error: BaseException) -> BaseException | None:
    """The client's own error among those that the libraries have raised over it."""
    at: BaseException | None = error
    while at is not None:
        own = isinstance(at, HfHubHTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled)
        if own or _is_of_connection(at):
            return at
        at = at.__cause__ or at.__context__
    return None
