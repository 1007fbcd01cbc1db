"""Site settings: from the environment or .env, never in a key, never printed when secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Opd

from opd_evolver.errors import SetupError
from opd_evolver.params import Params
from opd_evolver.settings import Settings, known_names, load_settings
from opd_evolver.step import Job

VALUES = {
    "OPD_ARTIFACT_ROOT": "elsewhere",
    "OPD_DEVICE": "cuda:1",
    "OPD_DISPLAY": "plain",
    "OPD_PREFECT_PORT": "4321",
    "OPD_MLFLOW_PORT": "4322",
    "OPD_MLFLOW_TRACKING_URI": "http://127.0.0.1:4322",
    "OPD_WEAVIATE_URL": "http://127.0.0.1:8080",
    "OPD_WEAVIATE_API_KEY": "very-secret-key",
    "OPD_EMBEDDINGS_URL": "http://127.0.0.1:8000/v1",
    "OPD_EMBEDDINGS_API_KEY": "very-secret-key",
    "OPD_EMBEDDINGS_BATCH": "64",
    "OPD_EMBEDDINGS_TIMEOUT_S": "5",
    "OPD_EMBEDDINGS_PATIENCE_S": "10",
    "OPD_ENDPOINT_URL": "http://127.0.0.1:8000/v1",
    "OPD_ENDPOINT_API_KEY": "very-secret-key",
    "OPD_ENDPOINT_HEADERS": '{"X-Key": "very-secret-key"}',
}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_setting_comes_from_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(VALUES) <= known_names()
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    found = load_settings()
    assert found.prefect_port == 4321 and found.device == "cuda:1" and found.artifact_root == Path("elsewhere")
    assert found.weaviate_api_key is not None and found.weaviate_api_key.get_secret_value() == "very-secret-key"


def test_dotenv_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("# ours\nexport OPD_DEVICE='cuda:0'\nOPD_DISPLAY=quiet\nOTHER=1\n")
    monkeypatch.setenv("OPD_DISPLAY", "bars")
    assert (load_settings().device, load_settings().display) == ("cuda:0", "bars")


@pytest.mark.parametrize("where", ["environment", "dotenv", "exported"])
def test_an_unknown_name_names_the_nearest(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "environment":
        monkeypatch.setenv("OPD_DEVIC", "cpu")
    else:
        (tmp_path / ".env").write_text(("export " if where == "exported" else "") + "OPD_DEVIC=cpu\n")
    with pytest.raises(SetupError, match=r"unknown setting OPD_DEVIC;.*did you mean `OPD_DEVICE`") as error:
        load_settings()
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "name, value", [("OPD_PREFECT_PORT", "many"), ("OPD_PREFECT_PORT", "70000"), ("OPD_DISPLAY", "loud")]
)
def test_a_wrong_value_names_its_setting(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=f"{name} is not valid"):
        load_settings()


def test_a_secret_is_never_printed(monkeypatch: pytest.MonkeyPatch, opd: Opd) -> None:
    for name, value in VALUES.items():
        if "very-secret-key" in value:
            monkeypatch.setenv(name, value)
    found = load_settings()
    for text in (repr(found), str(found), found.model_dump_json(), str(found.model_dump())):
        assert "very-secret-key" not in text
    monkeypatch.setenv("OPD_PREFECT_PORT", "very-secret-key")
    load_settings.cache_clear()
    said = opd("rounds")
    assert said.code == 2 and "very-secret-key" not in said.out + said.err


def test_settings_enter_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def job() -> Job:
        return Job(step="gate", lineage="a", round=1, root=".", out="o", params=Params().model_dump(mode="json"))

    digest, key = Params().digest(), job().key()
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    assert load_settings() != Settings.model_construct()
    assert (Params().digest(), job().key()) == (digest, key)
    assert not set(Settings.model_fields) & set(Params.model_fields)
