"""A hub: what a repository holds, and one commit into it. Errors are one line, and no token is in them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from heal.errors import RoundError, UserError
from heal.hub.bundle import Bundle

Existing = Literal["refuse", "add", "replace"]
_REMARK = "Warnings while validating metadata"  # of huggingface_hub, before what the hub remarks on a card
_BY_THE_HUB = (".gitattributes",)  # what a hub puts into every repository


@dataclass(frozen=True)
class Repository:
    """One as it is on the hub; `commit` None: it is not there."""

    commit: str | None
    private: bool
    files: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Changes:
    """What a push does to a repository, by the names of its files."""

    new: tuple[str, ...]
    overwritten: tuple[str, ...]
    deleted: tuple[str, ...]
    left: tuple[str, ...]

    @staticmethod
    def of(bundle: Bundle, there: Repository, existing: Existing) -> "Changes":
        """With `existing=replace`, what the push does not bring is deleted; with `add` it is left."""
        ours = bundle.contents().keys()
        others = tuple(sorted(there.files - ours))
        replaces = existing == "replace"
        return Changes(
            new=tuple(name for name in ours if name not in there.files),
            overwritten=tuple(name for name in ours if name in there.files),
            deleted=others if replaces else (),
            left=() if replaces else others,
        )


@dataclass(frozen=True)
class Pushed:
    """A finished push: where to look, its commit, and what the hub remarked."""

    url: str
    commit: str
    remarks: tuple[str, ...]


class Hub:
    """The hub of HF_ENDPOINT, with the token of HF_TOKEN or of `hf auth login`."""

    def __init__(self) -> None:
        """Raises UserError where there is no token."""
        token = get_token()
        if token is None:
            raise UserError(
                "no access token of the hub: log in with `hf auth login`, or set HF_TOKEN; dry=true needs none"
            )
        self.token = token
        self.api = HfApi(token=token)

    def look(self, name: str, repo_type: str) -> Repository:
        """What is there; RoundError where the hub cannot be asked."""
        with self.told(name):
            try:
                found = self._info(name, repo_type)
            except RepositoryNotFoundError:
                return Repository(None, True)
        files = frozenset(file.rfilename for file in found.siblings or ()) - set(_BY_THE_HUB)
        return Repository(found.sha, bool(found.private), files)

    def push(self, bundle: Bundle, name: str, there: Repository, changes: Changes, private: bool, said: str) -> Pushed:
        """Makes the repository if need be, and puts everything into it in one commit, or nothing.

        Args:
            bundle: what is pushed.
            name: of the repository.
            there: what `look` found; a commit that came after it is refused by the hub.
            changes: what is to happen.
            private: of a new repository.
            said: the commit's message.

        Raises:
            UserError: the hub refuses token, name, or card.
            RoundError: the hub does not answer, or what it has afterwards is not what was pushed.
        """
        operations = [
            CommitOperationAdd(path_in_repo=file, path_or_fileobj=content)
            for file, content in bundle.contents().items()
        ] + [CommitOperationDelete(path_in_repo=file) for file in changes.deleted]
        with self.told(name), warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            if there.commit is None:
                self.api.create_repo(name, repo_type=bundle.repo_type, private=private)
            done = self.api.create_commit(
                name, operations, commit_message=said, repo_type=bundle.repo_type, parent_commit=there.commit
            )
            self._check(bundle, name, done.oid)
        url = f"{self.api.endpoint}/{'datasets/' if bundle.repo_type == 'dataset' else ''}{name}"
        texts = (" ".join(str(remark.message).split()) for remark in remarks)
        return Pushed(url, done.oid, tuple(text for text in texts if text.startswith(_REMARK)))

    def _check(self, bundle: Bundle, name: str, commit: str) -> None:
        """Raises RoundError unless the repository has every file at its size."""
        found = self._info(name, bundle.repo_type, commit)
        sizes = {file.rfilename: file.size for file in found.siblings or ()}
        for file, size in bundle.sizes().items():
            if sizes.get(file) != size:
                there = "not there" if file not in sizes else f"of {sizes[file]} bytes there"
                raise RoundError(f"{name}: {file} has {size} bytes and is {there} after the push")

    def _info(self, name: str, repo_type: str, commit: str | None = None) -> ModelInfo | DatasetInfo:
        """With the size of each file."""
        ask = self.api.dataset_info if repo_type == "dataset" else self.api.model_info
        return ask(name, revision=commit, files_metadata=True)

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        """Turns what the hub, or the way to it, says into one line."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise UserError(f"{name}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or dry=true") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            text = f"{name}: the hub answers {status} ({self._said(error)})"
            if status in (401, 403):
                raise UserError(f"{text}; is the token one that may write there?") from error
            if status < 500:
                raise UserError(text) from error
            raise RoundError(f"{text}.") from error
        except HTTPError as error:
            raise RoundError(f"{self.api.endpoint}: the hub cannot be reached ({self._said(error)}).") from error
        except ValueError as error:  # huggingface_hub's form of what the hub has against the card
            if not str(error).startswith("Invalid metadata"):
                raise
            raise UserError(f"{name}: {self._said(error)}") from error
        except RuntimeError as error:  # huggingface_hub's form of an upload that failed
            if not str(error).startswith("Error while uploading"):
                raise
            raise RoundError(f"{name}: {self._said(error)} ({self._said(error.__cause__)}).") from error

    def _said(self, error: BaseException | None) -> str:
        return " ".join(str(error).split()).replace(self.token, "***")
