"""Device profiles: the shipped ones, a user's own, and each way in which one can be wrong."""

import json
from dataclasses import asdict, replace

import pytest

from coremat.errors import ConfigError, DataError, UnknownNameError, UnsupportedError
from coremat.hardware.profiles import DTYPES, NEEDED, device_rows, matches, profile_of, shipped_devices

SHIPPED = ("a100", "h100", "h200", "rtx4090", "rtx6000", "titanxp")
OWN = {
    "name": "own",
    "memory_gib": 16,
    "bandwidth_gb_s": 320.0,
    "tflops": {"float32": 8.1, "float16": 65},
    "link_gb_s": 15.75,
    "compute_efficiency": 0.5,
    "link_efficiency": 0.4,
    "overhead_s": 0.03,
    "sources": ["data sheet"],
}


def own_profile(tmp_path, **changes):
    """A user's file; a change to None leaves the field out."""
    document = {name: value for name, value in (OWN | changes).items() if value is not None}
    path = tmp_path / "own.json"
    path.write_text(json.dumps(document))
    return profile_of(str(path))


def test_shipped_devices():
    assert tuple(shipped_devices()) == SHIPPED
    for name, profile in shipped_devices().items():
        assert profile.name == name
        assert profile.sources
        assert "calibrated" in profile.note, "the file says where its efficiencies are from"


def test_titan_xp_by_its_data_sheet():
    device = profile_of("titanxp")
    assert device.memory_gib == 12
    assert device.bandwidth == pytest.approx(547.7e9)
    assert device.peak_rate("float16") == device.peak_rate("float32") == 12.1e12
    with pytest.raises(UnsupportedError, match=r"titanxp has no bfloat16 arithmetic; accepted: float32, float16\."):
        device.rate("bfloat16")


def test_figures_of_a_users_own_file(tmp_path):
    device = own_profile(tmp_path, reserved_gib=2, gpu_names=["Own Card"])
    assert device.usable_bytes == 14 * 2**30
    assert device.link == pytest.approx(6.3e9)
    assert device.rate("float16") == pytest.approx(32.5e12)
    assert own_profile(tmp_path).usable_bytes == 16 * 2**30


def test_a_profile_as_a_file_has_it(tmp_path):
    device = profile_of("titanxp")
    path = tmp_path / "copy.json"
    path.write_text(json.dumps(asdict(device)))
    assert profile_of(str(path)) == device


@pytest.mark.parametrize(
    ("device", "gpu_name"),
    [
        ("titanxp", "NVIDIA TITAN Xp"),
        ("rtx6000", "Quadro RTX 6000"),
        ("a100", "NVIDIA A100-SXM4-80GB"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("h200", "NVIDIA H200"),
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
    ],
)
def test_a_card_is_its_own_profile_and_no_other(device, gpu_name):
    assert [name for name, profile in shipped_devices().items() if matches(profile, gpu_name)] == [device]


@pytest.mark.parametrize(
    "gpu_name",
    ["NVIDIA RTX 6000 Ada Generation", "NVIDIA A100-SXM4-40GB", "NVIDIA H100 PCIe", "NVIDIA TITAN X (Pascal)", ""],
)
def test_a_card_of_a_similar_name_is_another(gpu_name):
    assert not any(matches(profile, gpu_name) for profile in shipped_devices().values())


def test_rows_list_what_a_device_lacks_as_none():
    rows = {row["name"]: row for row in device_rows()}
    assert tuple(rows) == SHIPPED
    assert [rows["titanxp"][f"{dtype}_tflops"] for dtype in DTYPES] == [12.1, 12.1, None]
    assert rows["h200"]["memory_gib"] == 141
    assert rows["titanxp"]["overhead_ms"] == profile_of("titanxp").overhead_s * 1000


# --- what is refused ----------------------------------------------------------------------------------------------


def test_unknown_device():
    with pytest.raises(UnknownNameError, match="unknown device 'titanx': did you mean 'titanxp'"):
        profile_of("titanx")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the device profile .*none\.json: No such file"):
        profile_of(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("text", "message"), [(b"{", "it is not JSON"), (b"\xff\xfe", "it is not JSON"), (b"[1]", "no object but a list")]
)
def test_a_file_that_is_no_profile(tmp_path, text, message):
    path = tmp_path / "own"  # any name, if there is such a file
    path.write_bytes(text)
    with pytest.raises(DataError, match=message):
        profile_of(str(path))


@pytest.mark.parametrize("field", NEEDED)
def test_a_missing_field_is_named_with_all_that_are_needed(tmp_path, field):
    with pytest.raises(DataError, match=rf"lacks {field}; a device profile needs {', '.join(NEEDED)}\."):
        own_profile(tmp_path, **{field: None})


def test_needed_fields_are_those_of_the_example():
    assert set(NEEDED) == set(OWN)


def test_an_unknown_field(tmp_path):
    with pytest.raises(UnknownNameError, match="'memory_gb': did you mean 'memory_gib'"):
        own_profile(tmp_path, memory_gb=16)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("memory_gib", -12, "a number above 0"),
        ("memory_gib", "12GB", "a number above 0"),
        ("bandwidth_gb_s", 0, "a number above 0"),
        ("link_gb_s", True, "a number above 0"),
        ("link_gb_s", float("inf"), "a number above 0"),
        ("compute_efficiency", 1.2, "a number above 0 and up to 1"),
        ("link_efficiency", 0, "a number above 0 and up to 1"),
        ("overhead_s", -0.1, "a number from 0"),
        ("reserved_gib", 17, "a number from 0 and up to 16"),
        ("tflops", {}, "a rate for some of float32, float16, bfloat16"),
        ("tflops", 12.1, "a rate for some of float32, float16, bfloat16"),
        ("name", 5, "a text"),
        ("note", [], "a text"),
        ("sources", "data sheet", "a list of texts"),
        ("gpu_names", [5], "a list of texts"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(tmp_path, field, value, accepted):
    with pytest.raises(ConfigError, match=rf"^{field} of the device profile is .*; accepted: {accepted}\.$"):
        own_profile(tmp_path, **{field: value})


def test_a_wrong_rate(tmp_path):
    with pytest.raises(ConfigError, match=r"tflops of float16 of the device profile is -1; accepted: a number above 0"):
        own_profile(tmp_path, tflops={"float16": -1})
    with pytest.raises(UnknownNameError, match="'fp16'"):
        own_profile(tmp_path, tflops={"fp16": 65})


def test_a_profile_is_checked_when_it_is_changed():
    with pytest.raises(ConfigError, match="overhead_s"):
        replace(profile_of("h200"), overhead_s=-1)
