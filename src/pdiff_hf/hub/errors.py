"""Errors of the Hub in one line each: what happened, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import hf_raise_for_status

# Seconds to wait for a connection and for the next bytes of an answer; huggingface_hub would often wait for ever.
TIMEOUT = 8.0
# Seconds that the Hub may work on what it was sent, a large commit for instance.
COMMIT_TIMEOUT = 120.0
# huggingface_hub waits as long as the Hub asks for; beyond this, whoever waits should know.
MAX_RETRY_AFTER = 15

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None, writing: bool = False) -> Iterator[None]:
    """Turn every error of the Hub's clients into a `ValueError` of one line, and bound how long they wait.

    The line names the repository and its revision, says what to do for reading or `writing`, and never shows a token.
    """
    client = get_session()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _bound_timeouts],
        "response": [*hooks["response"], _refuse_long_waits],
    }
    try:
        yield
    except (HTTPError, OSError, RuntimeError, EntryNotFoundError, RevisionResolutionError, HFValidationError) as error:
        # The error and what led to it, the outermost first.
        chain = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(cause)
        known = [e for e in chain if isinstance(e, (HTTPError, OfflineModeIsEnabled, HFValidationError))]
        # Without a number it is no error of the operating system: a file that is not cached, or came incomplete.
        missing = (EntryNotFoundError, RevisionResolutionError)
        local = [e for e in chain if isinstance(e, missing) or (isinstance(e, OSError) and not e.errno)]
        cause = next(iter(known or local), None)
        if cause is None:
            raise
        # Not chained: an answer of the Hub may repeat what it was sent.
        text = _explain(cause, repo_id, revision, writing)
        raise ValueError(re.sub(r"hf_\w+|(?<=Bearer )\S+", "hf_…", text)) from None
    finally:
        client.event_hooks = hooks


def _bound_timeouts(request) -> None:
    read = TIMEOUT if request.method in ("GET", "HEAD") else COMMIT_TIMEOUT
    default = {"connect": TIMEOUT, "read": read, "write": TIMEOUT, "pool": COMMIT_TIMEOUT}
    given = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {key: given.get(key) or value for key, value in default.items()}


def _refuse_long_waits(response) -> None:
    wait = response.headers.get("retry-after", "").strip()
    quota = re.search(r"\br=0\s*;\s*t=(\d+)", response.headers.get("ratelimit", ""))
    seconds = int(quota[1]) if quota else int(wait) if wait.isdigit() else 0
    if response.is_error and seconds > MAX_RETRY_AFTER:
        response.read()
        hf_raise_for_status(response)


def _explain(error: BaseException, repo_id: str, revision: str | None, writing: bool) -> str:
    where = repo_id if revision is None else f"{repo_id} at revision {revision!r}"
    again = "push again: what was uploaded is not sent twice" if writing else "try again"
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no name of a repository; expected user/name: {str(error).splitlines()[0]}"
    if isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, (LocalEntryNotFoundError, RevisionResolutionError)) and constants.is_offline_mode()
    ):
        if writing:
            return f"{where}: cannot push while HF_HUB_OFFLINE=1; unset it."
        return f"{where} is not in the cache, and HF_HUB_OFFLINE=1; unset it to download."
    if isinstance(error, GatedRepoError):
        return f"{where}: access is restricted; ask for it at {constants.ENDPOINT}/{repo_id} and {LOGIN}."
    if isinstance(error, HfHubHTTPError):
        return _explain_status(error, where, again, writing)
    if isinstance(error, HTTPError):
        reason = str(error).splitlines()[0] if str(error) else "no answer"
        return (
            f"{where}: no connection to {constants.ENDPOINT} or it was cut ({type(error).__name__}: {reason}); "
            f"check the network and {again}."
        )
    return f"{where}: {str(error).splitlines()[0]}; check the network, the name and the revision, and {again}."


def _explain_status(error: HfHubHTTPError, where: str, again: str, writing: bool) -> str:
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return f"{where}: the Hub has no such revision (404); check the branch, tag or commit."
    if isinstance(error, EntryNotFoundError):
        path = error.response.request.url.path.rpartition("/resolve/")[2].partition("/")[2]
        return f"{where}: the Hub has no file {path!r} there (404); is it an artefact of pdiff?"
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"{where}: the Hub does not accept the token, or there is none (401); {LOGIN} to a valid one."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{where}: the Hub shows no such repository ({status}); check the name, and if it is private, {LOGIN}."
    if status == 403:
        right = "write to" if writing else "read"
        return f"{where}: the token may not {right} it (403); ask its owner, or use a token with that right."
    if status in (409, 412):
        return f"{where}: somebody else is changing it ({status}); nothing was committed, {again}."
    if status == 429:
        wait = error.response.headers.get("retry-after")
        after = f"in {wait} seconds" if wait and wait.isdigit() else "later"
        return f"{where}: too many requests (429); {after}, {again}."
    if status >= 500:
        return f"{where}: the Hub has a fault ({status}); later, {again}."
    message = (error.server_message or "no reason given").splitlines()[0][:200]
    return f"{where}: the Hub refuses the request ({status}: {message})."
