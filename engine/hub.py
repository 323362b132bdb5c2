"""Where a router's folder comes from: a path, the default router, or a repository of the Hugging Face hub.

Enters: what `Router.from_pretrained` was given. Leaves: a local folder. From the hub only safetensors and JSON files
are fetched: nothing that could run code when it is opened. Knows nothing of what the files hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from onebeat.engine.errors import ConfigError, FetchError
from onebeat.engine.router_files import HEAD_FILES, TEXT_FILES, WEIGHT_PATTERNS
from onebeat.engine.strict_json import shown

PREFIX = "hf:"
WHAT_A_ROUTER_IS = 'give a router\'s folder, "default", or hf:org/name for one on the hub'
WANTED = (*TEXT_FILES, *HEAD_FILES, *WEIGHT_PATTERNS)
"""At the top of the repository. The hub's own filter lets `*` match a slash, so folders are left out by `IGNORED`."""
IGNORED = ("*/*", "*.bin", "*.pt", "*.pkl")


@dataclass(frozen=True, slots=True)
class HubReference:
    """`hf:org/name@revision`, taken apart."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, source: str, revision: str | None = None) -> HubReference:
        """Raises `ConfigError` for a malformed reference, or two different revisions."""
        repository, _, pinned = source.removeprefix(PREFIX).partition("@")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", repository, re.ASCII):
            raise ConfigError(
                f"{shown(source)} is not a repository of the hub; write hf:org/name or hf:org/name@revision."
            )
        if "@" in source and not pinned:
            raise ConfigError(f"{shown(source)} has no revision after the @; write a branch, a tag or a commit.")
        for asked in (pinned or None, revision):
            if asked is not None and not re.fullmatch(r"[\w.][\w./+-]{0,254}", asked, re.ASCII):
                raise ConfigError(f"revision is {shown(asked)}; write a branch, a tag or a commit.")
        if pinned and revision is not None and pinned != revision:
            raise ConfigError(
                f"{shown(source)} pins revision {pinned!r} and revision is {revision!r}; give one of them."
            )
        return cls(repository, pinned or revision)


def router_folder(source: str | Path, *, revision: str | None = None, cache_folder: str | Path | None = None) -> Path:
    """The folder of `source`: "default", "hf:org/name@revision", or a path.

    Raises `FetchError` when it is not here and cannot be fetched, and `ConfigError` for a source that means nothing.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise ConfigError(f"the router is {shown(source)}; {WHAT_A_ROUTER_IS}.")
    if not isinstance(revision, str | None):
        raise ConfigError(f"revision is {shown(revision)}; write a branch, a tag or a commit.")
    if not isinstance(cache_folder, str | Path | None):
        raise ConfigError(f"cache_dir is {shown(cache_folder)}; give the path of a folder.")
    if isinstance(source, str) and source.startswith(PREFIX):
        where = Path(cache_folder) if cache_folder else None
        return fetch(HubReference.parse(source, revision), cache_folder=where)
    if revision is not None:
        raise ConfigError(f"revision is {revision!r} and {shown(source)} is not on the hub; write hf:org/name for one.")
    if source == "default":
        from onebeat.engine.default_router import default_router_folder

        return default_router_folder()
    try:
        folder = Path(source).expanduser()
        is_folder = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # A name too long for a file system, a user whom nobody knows.
        is_folder = False
    if not is_folder:
        raise ConfigError(f"{shown(str(source))} is not a folder; {WHAT_A_ROUTER_IS}.")
    return folder


def fetch(reference: HubReference, *, cache_folder: Path | None = None, endpoint: str | None = None) -> Path:
    """The repository's router files, fetched once and kept in the hub's cache. Raises `FetchError`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{PREFIX}{reference.repository}" + (f"@{reference.revision}" if reference.revision else "")
    try:
        return Path(
            snapshot_download(
                reference.repository,
                revision=reference.revision,
                cache_dir=cache_folder,
                endpoint=endpoint,
                allow_patterns=list(WANTED),
                ignore_patterns=list(IGNORED),
            )
        )
    except GatedRepoError:
        raise FetchError(f"{where} is gated; accept its licence on the hub and set HF_TOKEN to a token.") from None
    except RepositoryNotFoundError:
        raise FetchError(f"{where} is not on the hub, or is private; correct the name or set HF_TOKEN.") from None
    except RevisionNotFoundError:
        raise FetchError(f"{where}: the repository has no revision {reference.revision!r}; correct it.") from None
    except Exception as error:  # The hub's client hands on errors of a transport that changes between its versions.
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0].rstrip('.')}"
        raise FetchError(
            f"{where} could not be fetched ({reason}); check the network, or give a folder that holds the files."
        ) from error
