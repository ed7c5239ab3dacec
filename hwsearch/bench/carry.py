"""A kit is run: here, or on a board and back by ssh, with nothing there but an OpenSSH server, tar and Python."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from hwsearch.bench import weights
from hwsearch.bench.answers import LARGEST
from hwsearch.bench.kit import read_manifest
from hwsearch.errors import CasesError


def run_over_ssh(host: str, folder: Path, say: Callable[[str], None] = lambda _: None, python: str = "python3") -> Path:
    """Copy a kit to a board, run it there, fetch its results and remove it there. Cut off, the same call goes on.

    Nothing of the arguments reaches a shell unquoted; the folder on the board is named after the kit's hash.

    Args:
        host: as ssh takes it, "user@board".
        folder: of the kit.
        say: told what the board says, line by line.
        python: on the board.

    Returns: the folder of the results, in the kit.

    Raises:
        CasesError: the host's name is none, ssh fails, or the board does.
    """
    check_host(host)
    _, digest = read_manifest(folder)
    name = shlex.quote(f"hwsearch-kit-{digest[:12]}")
    say(f"copying the kit to {host}")
    _ssh(host, f"mkdir -p {name}/results && tar -xf - -C {name}", _pack(folder))
    status, last = _lines(_command(host, f"cd {name} && exec {shlex.quote(python)} run.py"), say)
    results = folder / "results"
    fetched = status != 255 and _unpack(_ssh(host, f"tar -cf - -C {name} results", b""), results)
    if status:
        kept = f"what it measured is in {results}" if fetched else "what it measured is kept there"
        raise CasesError(f"the kit ended with status {status} on {host}: {last}; {kept}, and the same command goes on")
    _ssh(host, f"rm -rf {name}", b"")  # the next kit of these models is measured anew
    return results


def run_here(folder: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Run a kit on this machine. Cut off, the same call goes on.

    Args:
        folder: of the kit.
        say: told what it says, line by line.

    Returns: the folder of the results, in the kit.

    Raises:
        CasesError: the kit's runtime is not there, or it failed.
    """
    status, last = _lines([sys.executable, str(folder / "run.py")], say)
    if status:
        raise CasesError(last.removeprefix("error: "))
    return folder / "results"


def check_host(host: str) -> None:
    """See that it is a host's name and nothing else.

    Raises:
        CasesError: ssh could take it for an option, or a shell for more than a name.
    """
    plain = r"[A-Za-z0-9_\[][A-Za-z0-9_.:%+\[\]/-]*"
    if not re.fullmatch(rf"({plain}@)?{plain}", host):
        raise CasesError(f"a host is given as user@board, in letters, digits and . _ - : %; got {host!r}")


def _command(host: str, command: str) -> list[str]:
    return ["ssh", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15", "--", host, command]


def _ssh(host: str, command: str, data: bytes) -> bytes:
    try:
        done = subprocess.run(_command(host, command), input=data, capture_output=True, check=False)  # noqa: S603
    except OSError as error:
        raise CasesError(
            f"cannot run ssh: {error.strerror}; install an OpenSSH client, or copy the kit by hand"
        ) from error
    if done.returncode:
        raise CasesError(
            f"ssh {host} failed with status {done.returncode}: {_last(done.stderr.decode(errors='replace'))}"
        )
    return done.stdout


def _lines(command: list[str], say: Callable[[str], None]) -> tuple[int, str]:
    """The command's status and its last line; every line is said as it comes."""
    last = ""
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = _last(line.decode(errors="replace")) or last
            say(last)
    return process.returncode, last


def _last(text: str) -> str:
    """The last line that says something, without what a terminal would obey."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return "".join(letter for letter in lines[-1].strip() if letter.isprintable())


def _pack(folder: Path) -> bytes:
    """The kit as an archive, without results and whatever else came to lie in its folder."""
    names = ["manifest.json", "run.py", "README.txt", "board", "graphs"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(path for name in names for path in [folder / name, *(folder / name).glob("*.*")]):
            inside = path.relative_to(folder).as_posix()
            if path.is_file() and path.name != weights.NAME:
                told = tarfile.TarInfo(inside)
                told.size, told.mode, told.mtime = path.stat().st_size, 0o644, int(path.stat().st_mtime)
                with path.open("rb") as file:
                    archive.addfile(told, file)
    return buffer.getvalue()


def _unpack(data: bytes, results: Path) -> bool:
    """Put the results of an archive in place of what was there; only files that a kit writes, by name."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                name = re.fullmatch(r"(?:\./)?results/(board\.json|\d{4,6}\.(?:json|onnx))", member.name)
                file = archive.extractfile(member) if name and member.isreg() and member.size <= LARGEST else None
                if name and file:
                    found[name.group(1)] = file.read()
    except tarfile.TarError as error:
        raise CasesError(f"the board sent no archive of results: {error}; run the same command again") from error
    results.mkdir(parents=True, exist_ok=True)
    if found:  # nothing of an earlier session stays beside it
        for path in results.iterdir():
            if path.name not in found:
                path.unlink()
    for inside, content in found.items():
        part = results / f".{inside}.part"
        part.write_bytes(content)
        part.replace(results / inside)
    return bool(found)
