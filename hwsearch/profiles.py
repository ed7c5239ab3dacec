"""Profiles on disk: those that come with hwsearch, and one's own, which take the place of shipped ones by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import platformdirs

from hwsearch.device import DeviceProfile
from hwsearch.errors import ProfileError


def data_folder(name: str) -> Path:
    """A folder of data that ships with the package: inside it in a wheel, beside it in a checkout."""
    package = Path(str(resources.files("hwsearch")))
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def user_folder() -> Path:
    """Where profiles of one's own live; they take the place of shipped ones of the same name."""
    return platformdirs.user_data_path("hwsearch") / "device_profiles"


def own_tables() -> Path:
    """Where latency tables of one's own live."""
    return platformdirs.user_data_path("hwsearch") / "latency_tables"


def profile_files() -> Iterator[Path]:
    """Files of all profiles, one's own before those that come with hwsearch."""
    own = sorted(user_folder().glob("*.toml"))
    yield from own
    yield from (
        path for path in sorted(data_folder("device_profiles").glob("*.toml")) if path.name not in {p.name for p in own}
    )


def load_profile(path: Path) -> DeviceProfile:
    """Read one profile.

    Raises:
        ProfileError: the file cannot be read, is not TOML, or an entry is missing, unknown, of a wrong type or out of
            range.
    """
    import tomllib

    try:
        with path.open("rb") as file:
            profile = msgspec.convert(tomllib.load(file), DeviceProfile)
        check_name(profile.name)
        return profile
    except ProfileError as error:
        raise ProfileError(f"broken profile {path}: {error}") from error
    except OSError as error:
        raise ProfileError(f"cannot read the profile {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"the profile {path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ProfileError(f"broken profile {path}: {error}") from error


def file_named(name: str, to: Path | None = None) -> Path | None:
    """The file of the device of that very name, if there is one: the one in the folder `to`, where it is, before
    others."""
    own = [to / f"{name}.toml"] if to else []
    return next((path for path in (*own, *profile_files()) if path.stem == name and path.is_file()), None)


def known_profile(device: str, to: Path | None = None) -> DeviceProfile | None:
    """The profile of the device of that very name, found as `file_named`; None where there is none.

    Raises:
        ProfileError: its file is broken, or is of a device of another name.
    """
    if (path := file_named(device, to)) is None:
        return None
    profile = load_profile(path)
    if profile.name != device:
        raise ProfileError(f"{path} is the profile of {profile.name!r}: call it {profile.name}.toml")
    return profile


def find_profile(device: str) -> DeviceProfile:
    """The profile of a device by name, alias or path of a TOML file.

    Raises:
        ProfileError: nothing by that name, or a broken file.
    """
    return load_profile(find_file(device))


def find_file(device: str) -> Path:
    """The file of a device's profile, by name, alias or path. What another file has wrong is no matter.

    Raises:
        ProfileError: nothing by that name.
    """
    if device.endswith(".toml") or "/" in device:
        return Path(device)
    wanted = device.lower()
    if (path := file_named(wanted)) is not None:
        return path
    known, broken = list[str](), list[str]()
    for path in profile_files():
        try:
            profile = load_profile(path)
        except ProfileError:
            broken.append(str(path))
            continue
        if wanted in (profile.name, *map(str.lower, profile.aliases)):
            return path
        known += [profile.name, *profile.aliases]
    unread = f"; not read, for they are broken: {', '.join(broken)}" if broken else ""
    raise ProfileError(
        f"unknown device {device!r} (have: {', '.join(sorted(known))}, host{unread}). "
        "Give one of these or the path of a profile; a board of your own begins with hwsearch profile --kit or --ssh"
    )


def full_name(device: str) -> str:
    """A device's own name, where it was called by an alias; a device that nothing is known of is called as it is."""
    if device.endswith(".toml") or "/" in device:
        return device
    try:
        return find_file(device).stem
    except ProfileError:
        return device


def save_profile(profile: DeviceProfile, template: Path, to: Path) -> None:
    """Write the parameters, fits and notes of `profile` into a copy of the file `template`, whose facts, order and
    comments stay."""
    import tomlkit

    from hwsearch.files import write_text

    document = tomlkit.parse(template.read_text(encoding="utf-8"))
    runtimes: Any = document["runtimes"]
    for name, runtime in profile.runtimes.items():
        for part in ("parameters", "fit"):
            runtimes[name].pop(part, None)
            plain = msgspec.to_builtins(getattr(runtime, part))
            if plain is not None:
                runtimes[name][part] = _without_none(plain)
        _renote(runtimes[name], runtime.note)
    _renote(document, profile.note)
    # What was taken out leaves its blank lines behind.
    write_text(to, re.sub(r"\n{3,}", "\n\n", tomlkit.dumps(document)))


def _renote(entries: Any, note: str) -> None:
    """A note in the place of one that is there."""
    if entries.get("note", note) != note:
        entries["note"] = note


def check_name(device: str) -> None:
    """Raise unless a device may be called so: its name is a file's.

    Raises:
        ProfileError: it may not.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", device):
        raise ProfileError(f"a device's name has small letters, digits, '-', '_' and '.'; got {device!r}")


def write_profile(profile: DeviceProfile, to: Path) -> None:
    """Write a whole profile, facts and all.

    Raises:
        ProfileError: its name cannot be a file's.
    """
    import tomlkit

    from hwsearch.files import write_text

    check_name(profile.name)
    write_text(to, tomlkit.dumps(_without_none(msgspec.to_builtins(profile))))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value
