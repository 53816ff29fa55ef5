"""Secrets of the environment and passwords in addresses reach no file and no line."""

import json
from pathlib import Path

import pytest

from kdbench.schema.secrets import looks_secret, masked

SMALL = ["dataset=synthetic", "dataset.num_train=20", "dataset.num_test=10", "student=resnet8"]
SMALL += ["runtime=cpu", "schedule.epochs=2"]
NAMES = ["HF_TOKEN", "MYSQL_PWD", "OPENAI_APIKEY", "PGPASSWORD", "AWS_KEY_ID", "apiKey", "SSH_PASS"]
NAMES += ["GITHUB_PAT", "MY-SECRET", "DB_PASS", "SENTRY_DSN", "AZURE_STORAGE_KEY_1", "DATABASE_URL"]


@pytest.mark.parametrize(
    ("key", "name"),
    [("runs_dir", "HF_TOKEN"), ("seed", "MYSQL_PWD"), ("dataset.name", "OPENAI_APIKEY")],
)
def test_no_setting_takes_a_variable_that_is_called_as_a_secret_is(command, monkeypatch, name, key):
    """Whatever it holds, be it short."""
    monkeypatch.setenv(name, "7")
    result = command("train", *SMALL, f"{key}=${{oc.env:{name}}}")
    assert result.code == 2
    assert f"${{oc.env:{name}}} is not allowed" in result.error_line
    assert not Path("runs").exists()


def test_a_variable_that_is_not_set_is_one_line(command, monkeypatch):
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    result = command("train", *SMALL, "runs_dir=${oc.env:NO_SUCH_PLACE}")
    assert result.code == 2
    line = "${oc.env:NO_SUCH_PLACE}: the environment variable NO_SUCH_PLACE is not set"
    assert line in result.error_line


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name):
    assert looks_secret(name)


@pytest.mark.parametrize("name", ["PWD", "HOME", "KDBENCH_DATA", "KEYBOARD", "MONKEY", "PATH"])
def test_honest_names_are_no_secrets(name):
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:password@host/a", "https://<user>@host/a"),
        ("see s3://KEY:SE:CR@ET@bucket/x", "see s3://<user>@bucket/x"),
        ("https://ghp_0123@host", "https://<user>@host"),
        ("https://host/a?token=abc&b=1", "https://host/a?token=<secret>&b=1"),
        ("https://host/a@b", "https://host/a@b"),
    ],
)
def test_addresses_lose_their_passwords(text, shown):
    assert masked(text) == shown


def test_an_address_in_a_setting_reaches_no_file(command):
    address = "https://user:password@host/x"
    result = command("train", *SMALL, f"schedule.name='{address}'", "logger=wandb")
    assert result.code == 0
    (folder,) = Path("runs").glob("*-s0-*")
    for name in ("config.json", "record.json"):
        assert json.loads((folder / name).read_text())
        assert "password" not in (folder / name).read_text()
    for path in folder.glob("wandb/*/*.wandb"):
        assert b"password" not in path.read_bytes()


def test_what_hydra_prints_is_masked(command):
    result = command("train", "runs_dir=https://user:password@host/x", "--cfg", "job", "--resolve")
    assert (result.code, "password" in result.out) == (0, False)
    assert "runs_dir: https://<user>@host/x" in result.out
