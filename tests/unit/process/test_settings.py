from pathlib import Path
from typing import ClassVar

import pydantic
import pytest

from shoal.core.errors import InvalidInput
from shoal.process.settings import RoleSettings


class FishSettings(RoleSettings):
    section: ClassVar[str] = "fish"
    port: int = pydantic.Field(7, ge=0, description="a port")
    lease_seconds: float = pydantic.Field(10, gt=0, description="a lease")


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "shoal.yaml"
    path.write_text("fish:\n  port: 3\n  lease_seconds: 3\n  log_level: debug\nmaster:\n  port: 99\n")
    return str(path)


def test_flags_win_over_environment_over_file_over_defaults(monkeypatch, file):
    monkeypatch.setenv("SHOAL_FISH_PORT", "2")
    monkeypatch.setenv("SHOAL_FISH_LEASE_SECONDS", "2")
    settings = FishSettings.load(["--config", file, "--port", "1"])
    assert (settings.port, settings.lease_seconds, settings.log_level, settings.log_format) == (
        1,
        2,
        "debug",
        "console",
    )
    assert type(settings) is FishSettings


def test_the_file_may_be_named_by_the_environment(monkeypatch, file):
    monkeypatch.setenv("SHOAL_CONFIG", file)
    assert FishSettings.load([]).port == 3


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (["--port", "-1"], {}, "setting port: .*--port, environment SHOAL_FISH_PORT"),
        ([], {"SHOAL_FISH_PORT": "x"}, "setting port: "),
        ([], {"SHOAL_FISH_PROT": "1"}, "environment variable SHOAL_FISH_PROT: no such setting; known: .*port"),
        (["--config", "/absent.yaml"], {}, "settings file /absent.yaml: No such file"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name(monkeypatch, arguments, environment, complaint):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=complaint) as caught:
        FishSettings.load(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fish:\n  prot: 1\n", "prot"),
        ("fish: [", "is not YAML"),
        ("- fish\n", "a mapping with a section 'fish:'"),
        ("fish: 3\n", "a mapping with a section 'fish:'"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, complaint):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=complaint) as caught:
        FishSettings.load([f"--config={path}"])
    assert "\n" not in str(caught.value)


def test_an_empty_file_and_a_missing_section_mean_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    for text in ("", "master:\n  port: 1\n", "fish:\n"):
        path.write_text(text)
        assert FishSettings.load(["--config", str(path)]).port == 7


def test_variables_that_kubernetes_or_a_client_sets_are_let_through(monkeypatch):
    class MasterLike(RoleSettings):
        section: ClassVar[str] = "master"

    monkeypatch.setenv("SHOAL_MASTER_ADDRESS", "127.0.0.1:7070")
    monkeypatch.setenv("SHOAL_MASTER_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("SHOAL_MASTER_PORT_7070_TCP", "tcp://10.0.0.1:7070")
    assert MasterLike.load([]).log_level == "info"
