import contextlib
import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from hwsearch import profiles as profiles_module
from hwsearch.architecture import Architecture, uniform_layers
from hwsearch.cli import cli
from hwsearch.device import DeviceProfile
from hwsearch.errors import ProfileError
from hwsearch.latency.estimator import Estimator
from hwsearch.precision import Precision
from hwsearch.profiles import (
    find_file,
    find_profile,
    full_name,
    known_profile,
    load_profile,
    profile_files,
    save_profile,
)
from hwsearch.workload import Workload

FILES = list(profile_files())
SHAPE = Architecture("encoder", 64, 16, uniform_layers(2, 4, 4, 256, [(Precision.FP32, Precision.INT8)] * 2))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_profile_loads_and_every_runtime_has_parameters(path: Path) -> None:
    profile = load_profile(path)
    assert profile.name == path.stem
    for name, runtime in profile.runtimes.items():
        assert profile.target(name).runtime == name
        assert runtime.fit is not None
        assert runtime.precisions


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_of_a_shipped_profile_has_a_source(path: Path) -> None:
    profile = load_profile(path)

    def figures(value: object) -> list[dict[str, object]]:
        if isinstance(value, dict):
            own = [value] if "value" in value else []
            return own + [figure for item in value.values() for figure in figures(item)]
        return []

    found = figures(msgspec.to_builtins(profile))
    assert len(found) > 10
    assert all(str(figure["source"]).strip() for figure in found)
    assert not profile.board_at_hand
    assert "at hand" in profile.note


@pytest.mark.parametrize(
    ("alias", "name"), [("jetson-orin", "jetson-agx-orin-64gb"), ("arm-cpu", "raspberry-pi-5"), ("T4", "t4")]
)
def test_devices_are_found_by_alias(alias: str, name: str) -> None:
    assert find_profile(alias).name == name


def test_aliases_are_unique() -> None:
    profiles = [load_profile(path) for path in FILES]
    names = [name for profile in profiles for name in (profile.name, *profile.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("value = 65,", 'value = "fast",', r"float.*\$\.peaks"),
        ("value = 65,", "value = -65,", "positive"),
        ("[power_modes.default]", "[power_modes.default]\ncolour = 3", "unknown field `colour`"),
        ('name = "t4"\n', "", "missing required field `name`"),
        ('name = "t4"\n', 'name = "../t4"\n', "a device's name has small letters"),
        ('name = "t4"\n', f"name = {'[' * 5000}\n", "is not TOML"),
        ('precisions = ["fp32", "fp16", "int8"]', 'precisions = ["int8"]', "float precision"),
        ("[runtimes.onnxruntime", '[runtimes."../onnxruntime"', "a runtime's name has letters"),
        ("coverage = ", "coverage = 7 # ", "its coverage between 0 and 1"),
        ("[peaks]", "[peaks", "not TOML"),
        (', source = "NVIDIA Tesla T4 announcement 2018-09-13, quoted by geektopia.es"', ', source = ""', "source"),
    ],
)
def test_a_broken_profile_says_where(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = find_file("t4").read_text()
    assert old in text
    broken = tmp_path / "t4.toml"
    broken.write_text(text.replace(old, new))
    with pytest.raises(ProfileError, match=says) as error:
        find_profile(str(broken))
    assert str(broken) in str(error.value)


def test_a_covariance_is_one() -> None:
    fit = find_profile("t4").runtimes["tensorrt"].fit
    assert fit is not None
    (first, second, *rest), (one, *_) = fit.covariance, fit.covariance[0]
    for rows, says in (
        (((-one, *first[1:]), second, *rest), "variances between 0 and 10000"),
        (((1e300, *first[1:]), second, *rest), "variances between 0 and 10000"),
        (((first[0], first[1] + 0.5, *first[2:]), second, *rest), "symmetric"),
        (((first[0], 9.0, *first[2:]), (9.0, *second[1:]), *rest), "no combination of parameters has a negative"),
    ):
        with pytest.raises(ValueError, match=says):
            replace(fit, covariance=rows)


def test_a_precision_that_a_runtime_has_no_more_says_nothing_of_the_others() -> None:
    profile = find_profile("t4")
    runtime = profile.runtimes["tensorrt"]
    narrow = replace(runtime, precisions=(Precision.FP16, Precision.INT8))
    less = replace(profile, runtimes={**profile.runtimes, "tensorrt": narrow})
    plan = [(Precision.FP16, Precision.INT8)] * 2
    shape = Architecture("encoder", 64, 16, uniform_layers(2, 4, 4, 256, plan)).with_float(Precision.FP16)
    whole, part = (Estimator(p, p.target("tensorrt"), Workload(1, 128)).one(shape) for p in (profile, less))
    assert part == whole


def test_a_file_is_called_as_its_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(profiles_module, "user_folder", lambda: tmp_path)
    text = find_file("t4").read_text().replace('name = "t4"', 'name = "my-t4"').replace("tesla-t4", "My-Card")
    (tmp_path / "card.toml").write_text(text)
    assert find_profile("my-card").name == "my-t4"
    with pytest.raises(ProfileError, match=r"card\.toml is the profile of 'my-t4': call it my-t4\.toml"):
        known_profile(full_name("my-t4"))
    (tmp_path / "card.toml").rename(tmp_path / "my-t4.toml")
    known = known_profile(full_name("MY-CARD"))
    assert known is not None
    assert known.name == "my-t4"
    assert known_profile("nobody") is None


def test_unknown_names_are_errors_with_a_way_out() -> None:
    with pytest.raises(ProfileError, match=r"unknown device 'jetson-nano'.*t4"):
        find_profile("jetson-nano")
    profile = find_profile("t4")
    with pytest.raises(ProfileError, match=r"no runtime 'ncnn'.*hwsearch profile"):
        profile.target("ncnn")
    with pytest.raises(ProfileError, match="no power mode"):
        profile.target(power_mode="turbo")
    with pytest.raises(ProfileError, match="cannot read"):
        find_profile("no/such.toml")


def test_a_profile_of_ones_own_takes_the_place_of_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    own = tmp_path / "hwsearch" / "device_profiles" / "t4.toml"
    profile = msgspec.structs.replace(
        find_profile("t4"), runtimes={"tensorrt": find_profile("t4").runtimes["tensorrt"]}
    )
    text = find_file("t4").read_text().split("[runtimes.tensorrt-unfused]")[0]
    template = tmp_path / "facts.toml"
    template.write_text(text)
    save_profile(profile, template, own)
    assert list(find_profile("tesla-t4").runtimes) == ["tensorrt"]


def test_saving_keeps_facts_and_comments(tmp_path: Path) -> None:
    template = tmp_path / "t4.toml"
    template.write_text("# made by hand\n" + find_file("t4").read_text())
    profile = load_profile(template)
    save_profile(profile, template, tmp_path / "out.toml")
    assert (tmp_path / "out.toml").read_text().startswith("# made by hand")
    assert load_profile(tmp_path / "out.toml") == profile
    save_profile(profile, tmp_path / "out.toml", tmp_path / "again.toml")
    assert (tmp_path / "again.toml").read_text() == (tmp_path / "out.toml").read_text()


def test_free_text_names_a_power_mode() -> None:
    orin: DeviceProfile = find_profile("jetson-orin")
    named = {
        "MaxN (NVIDIA MaxP setting)": "MAXN",
        "MaxQ (GPU 1032.75MHz EMC 2133MHz)": "MaxQ",
        "30W": "30W",
        "30 W": "30W",
        "not stated": "MAXN",
        "": "MAXN",
    }
    assert {text: orin.power_mode_of(text) for text in named} == named
    assert orin.named_power_mode("MODE_40W") is None
    assert find_profile("jetson-orin-nx").power_mode_of("MAXN SUPER (JetPack 6.2)") == "MAXN_SUPER"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('order = ["pass_us"', 'order = ["pass_uz"', "pass_uz"),
        ("[runtimes.tensorrt.fit.hulls.fp16]", "[runtimes.tensorrt.fit.hulls.fp17]", "fp17"),
        ("[runtimes.tensorrt.parameters.ramp_us.fp16]", "[runtimes.tensorrt.parameters.ramp_us.fp17]", "ramp_us.fp16"),
        ("fused_attention = true\n", 'fused_attention = true\nborrows = ["nope"]\n', "borrows from 'nope'"),
        ("fused_attention = true\n", 'fused_attention = true\nborrows = ["tensorrt"]\n', "circle"),
        ("fused_attention = true\n", "fused_attention = true\nalignment = 0\n", "alignment"),
        ("covariance = [[", "covariance = [[nan, ", "covariance"),
        ("\nnoise = ", "\nnoise = -", "noise is 0 at least"),
    ],
)
def test_a_profile_that_does_not_hold_together_says_where(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = find_file("t4").read_text()
    assert old in text
    broken = tmp_path / "t4.toml"
    broken.write_text(text.replace(old, new, 1))
    with pytest.raises(ProfileError, match=re.escape(says)):
        find_profile(str(broken))


def test_a_broken_profile_of_ones_own_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-board.toml").write_text('name = "my-board"\nof_another_version = 1\n')
    monkeypatch.setattr(profiles_module, "user_folder", lambda: tmp_path)
    assert find_file("jetson-orin") == find_file("jetson-agx-orin-64gb")
    assert full_name("jetson-orin") == "jetson-agx-orin-64gb"
    with pytest.raises(ProfileError, match=r"unknown device 'nope' \(have: .*, host; not read, .*my-board.toml"):
        find_file("nope")
    with pytest.raises(ProfileError, match="broken profile"):
        find_profile("my-board")
    found = CliRunner().invoke(cli, ["devices"])
    assert found.exit_code == 0
    assert "t4" in found.stdout
    assert found.stderr.startswith("left out: broken profile")


def test_a_profile_that_lacks_anything_loads_or_says_so(tmp_path: Path) -> None:
    """Every line left out in turn: nothing but a ProfileError, now or when an architecture is priced."""
    lines = find_file("graviton3").read_text().splitlines()
    path = tmp_path / "graviton3.toml"
    for i in range(len(lines)):
        path.write_text("\n".join([*lines[:i], *lines[i + 1 :]]))
        with contextlib.suppress(ProfileError):
            profile = find_profile(str(path))
            Estimator(profile, profile.target(), Workload()).one(SHAPE)


def test_threads_are_those_that_a_device_has() -> None:
    with pytest.raises(ProfileError, match="no threads to choose"):
        find_profile("t4").target(threads=8)
    with pytest.raises(ProfileError, match="has 4 cores; got 64 threads"):
        find_profile("arm-cpu").target(threads=64)
    assert find_profile("arm-cpu").target(threads=2).threads == 2
