"""To Hugging Face's hub: a student, its model card and its ONNX files, in one commit."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdistill._printing import first_line
from segdistill.deploy.model_card import README, import_hub, model_card
from segdistill.engine.run_folder import STUDENT
from segdistill.engine.student import read_student

PUBLIC = "https://huggingface.co"


@dataclass(frozen=True)
class Upload:
    """A file that goes to the hub.

    Args:
        name: in the repository.
        content: its path, or what it holds.
    """

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def collect_uploads(run: str | Path, files: Sequence[str] = (), *, license: str | None = None) -> list[Upload]:
    """What a push of a run consists of: the student, README.md (the one in the folder, or a new card), ONNX files.

    Args:
        run: its folder.
        files: names or patterns of further files in it.
        license: of a new card.

    Raises:
        ValueError: if the student is missing or damaged, a pattern finds nothing, or a file is outside the folder.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no run folder")
    read_student(folder)  # nobody should download what is damaged
    found = {STUDENT: folder / STUDENT}
    found |= {path.name: path for path in sorted(folder.glob("*.onnx"))}
    for pattern in files:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ValueError(f"--files {pattern}: expected a name or pattern of files in {folder}")
        matched = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        if not matched:
            raise ValueError(f"--files {pattern}: no such file in {folder}")
        found |= {path.relative_to(folder).as_posix(): path for path in matched}
    own = folder / README
    readme: Path | bytes = own if own.is_file() else model_card(folder, license=license).encode()
    return [Upload(README, readme), *(Upload(name, path) for name, path in found.items() if name != README)]


def push(
    run: str | Path,
    repo: str,
    *,
    files: Sequence[str] = (),
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], Any] = print,
) -> str | None:
    """Put a student on the hub, in a repository that is made if it is missing.

    Args:
        run: the run's folder.
        repo: `user/name`.
        files: names or patterns of further files in the folder.
        license: of the card, if the folder has no README.md.
        private: whether a new repository is private.
        revision: branch, made if it is missing (default: main).
        token: with the right to write (default: HF_TOKEN, or that of `hf auth login`).
        dry_run: whether to say only what would be uploaded.
        say: prints a line.

    Returns:
        The address of the commit; None of a dry run. The hub's address is HF_ENDPOINT's, if that is set.

    Raises:
        ValueError: with one line, if something is missing, the hub cannot be reached or refuses.
    """
    hub = import_hub()
    endpoint = (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")
    with explained(hub, repo, endpoint):
        hub.utils.validate_repo_id(repo)
    if "/" not in repo:
        raise ValueError(f"{repo}: expected USER/NAME, or ORGANISATION/NAME")
    uploads = collect_uploads(run, files, license=license)
    where = f"{endpoint}/{repo}" + (f" ({revision})" if revision else "")
    total = sum(upload.size for upload in uploads)
    say(f"{len(uploads)} files, {_megabytes(total)}, to {where}:")
    for upload in uploads:
        say(f"  {upload.name}  {_megabytes(upload.size)}")
    if dry_run:
        say("nothing was uploaded")
        return None
    token = token or hub.get_token()
    if not token:
        raise ValueError(f"no token: set HF_TOKEN or give --token; {endpoint}/settings/tokens makes one that can write")
    api = hub.HfApi(endpoint=endpoint, token=token)
    operations = [
        hub.CommitOperationAdd(u.name, u.content if isinstance(u.content, bytes) else str(u.content)) for u in uploads
    ]
    with explained(hub, repo, endpoint):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        told = f"Upload {Path(run).resolve().name} with segdistill"
        made = api.create_commit(repo, operations, commit_message=told, revision=revision)
    return str(made.commit_url)


@contextmanager
def explained(hub: Any, repo: str, endpoint: str) -> Iterator[None]:
    """Turn what the hub, or the way to it, says into one line.

    Args:
        hub: huggingface_hub.
        repo: on which was worked.
        endpoint: of the hub.

    Raises:
        ValueError: instead of it.
    """
    refusals = {
        401: "the token is not valid there; make a new one, or set HF_TOKEN to it",
        403: "the token may not write there; it needs the right to write, and the repository to be yours",
        404: "there is no such repository or branch, or the token may not see it",
        409: "another commit came in between; try again",
        413: "the hub takes no files of that size",
        429: "too many requests; wait a while",
    }
    try:
        yield
    except hub.errors.HFValidationError as error:
        raise ValueError(f"{repo}: no name of a repository ({first_line(error).rstrip('.')})") from None
    except hub.errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        told = refusals.get(status, first_line(error))
        raise ValueError(f"{endpoint} refused {repo} with {status}: {told}") from error
    except Exception as error:
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(
            ("httpx", "httpcore")
        ):
            raise ValueError(
                f"cannot reach {endpoint} ({first_line(error)}); nothing is lost, the same command tries again"
            ) from error
        raise


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count / 1e3:.1f} kB"
