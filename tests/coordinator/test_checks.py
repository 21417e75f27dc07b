"""What a device may say of itself."""

from typing import Any

import pytest

from coordinator.services.checks import checked_hello, printable
from headwater.errors import UsageError
from headwater.v1 import fleet_pb2 as pb


def hello(**changed: Any) -> pb.Hello:
    fields = {"client_id": "a" * 32, "instance_id": "b" * 32, "name": "pi", "hostname": "pi.local"}
    return pb.Hello(**fields | changed)


def test_a_proper_introduction_passes() -> None:
    profile = pb.DeviceProfile(runtime="onnxruntime", device="cpu", platform="Linux aarch64")
    checked_hello(hello(profile=profile))


@pytest.mark.parametrize("field", ["runtime", "device", "platform"])
@pytest.mark.parametrize("text", ["a\0b", "two\nlines", "\x1b[31mred", "x" * 101])
def test_a_profile_is_printable_and_short(field: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{field} must be printable and at most 100 characters"):
        checked_hello(hello(profile=pb.DeviceProfile(**{field: text})))


def test_what_a_device_wrote_is_made_printable() -> None:
    assert printable("its disk: 5 °C\n\0\x1b[2J") == "its disk: 5 °C\ufffd\ufffd\ufffd[2J"
