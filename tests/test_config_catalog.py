"""`[catalog]`: which catalog, what belongs to which type, and that no password is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from dolake.config import CatalogSettings, Settings
from dolake.errors import ConfigurationError
from tests.test_config import load, mistakes

PASSWORD = "pa55-w0rd"
URI = f"postgresql://lake:{PASSWORD}@db.example:5432/lake"


def test_a_file_in_the_data_directory_unless_set(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.catalog_uri == f"sqlite:///{tmp_path}/catalog.db"
    assert (settings.catalog.type, settings.catalog.name) == ("sql", "dolake")


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////var/lib/lake/catalog.db",
        URI,
        f"{URI}?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgresql://lake@[::1]/lake",
        "postgresql:///lake?host=/run/postgresql",
        "postgresql://lake:p%40ss%2Fword@db/lake",
    ],
)
def test_a_database_is_named_by_its_uri(tmp_path: Path, uri: str) -> None:
    assert load(tmp_path, environment={"DOLAKE_CATALOG_URI": uri}).catalog_uri == uri


def test_another_catalog_is_told_what_pyiceberg_calls_it(tmp_path: Path) -> None:
    toml = """
    [catalog]
    type = "rest"
    name = "prod"
    [catalog.properties]
    uri = "https://catalog.example"
    token = "t0ken"
    "rest.sigv4-enabled" = true
    "rest-page-size" = 100
    [catalog.properties.auth]
    type = "basic"
    basic = {username = "u", password = "pa55"}
    """
    catalog = load(tmp_path, toml).catalog
    assert catalog.properties == {
        "uri": "https://catalog.example",
        "token": "t0ken",
        "rest.sigv4-enabled": "true",
        "rest-page-size": "100",
        "auth": {"type": "basic", "basic": {"username": "u", "password": "pa55"}},
    }
    assert sorted(catalog.secrets) == ["pa55", "t0ken"]


def test_in_the_environment_properties_are_a_json_object(tmp_path: Path) -> None:
    environment = {"DOLAKE_CATALOG_TYPE": "glue", "DOLAKE_CATALOG_PROPERTIES": '{"glue.region": "eu-west-1"}'}
    settings = load(tmp_path, environment=environment)
    assert settings.catalog.properties == {"glue.region": "eu-west-1"}
    assert Settings.from_json(settings.to_json()) == settings


WRONG = {
    "a database of another make": (f'uri = "mysql://u:{PASSWORD}@h/d"', "catalog.uri", "must be sqlite:////absolute/path or postgresql://"),
    "a driver of another make": (f'uri = "postgresql+psycopg2://u:{PASSWORD}@h/d"', "catalog.uri", "must be sqlite:////"),
    "a relative file": ('uri = "sqlite:///catalog.db"', "catalog.uri", "must be sqlite:////absolute/path"),
    "no database": (f'uri = "postgresql://u:{PASSWORD}@h"', "catalog.uri", "must name a database"),
    "a port that is none": (f'uri = "postgresql://u:{PASSWORD}@h:x/d"', "catalog.uri", "must name a database"),
    "a space": (f'uri = "postgresql://u:{PASSWORD}@h/d\\n"', "catalog.uri", "must be sqlite:////"),
    "an unknown type": ('type = "nessie"', "catalog.type", "must be 'sql', 'rest', 'glue' or 'hive'"),
    "one that pyiceberg cannot commit to": ('type = "dynamodb"', "catalog.type", "must be 'sql', 'rest'"),
    "a name of two words": ('name = "a b"', "catalog.name", "must be 1 to 128 letters"),
    "properties of a database": (
        f'properties = {{password = "{PASSWORD}"}}',
        "catalog.properties",
        "must not be set where catalog.type is sql",
    ),
    "a database of a rest catalog": (
        f'type = "rest"\nproperties = {{uri = "https://x"}}\nuri = "{URI}"',
        "catalog.uri",
        "must not be set where catalog.type is rest: it names the database of a sql catalog; give catalog.properties.uri",
    ),
    "a group in a catalog that commits table by table": (
        'type = "rest"\nproperties = {uri = "https://x"}\n[tables."public.*"]\ngroup = "shop"',
        "tables.public.*.group",
        "must not be set where catalog.type is rest: only a sql catalog commits several tables in one transaction",
    ),
    "a group of two words": ('[tables."public.*"]\ngroup = "a b"', "tables.public.*.group", "must be a name of 1 to 64 letters"),
    "a rest catalog without an address": ('type = "rest"', "catalog.properties.uri", "is required where catalog.type is rest"),
    "a dotted name without quotes": (
        f'type = "rest"\n[catalog.properties]\nuri = "https://x"\ns3.secret-access-key = "{PASSWORD}"',
        "catalog.properties",
        's3 must be text; a dotted name is written in quotes, as in "s3.secret-access-key" = …',
    ),
    "files by somebody else": (
        'type = "rest"\nproperties = {uri = "https://x", py-io-impl = "a.B"}',
        "catalog.properties",
        "py-io-impl must not be set: dolake reads and writes files itself",
    ),
    "a type twice": ('type = "rest"\nproperties = {uri = "https://x", type = "rest"}', "catalog.properties", "type is catalog.type"),
    "a list": (f'type = "rest"\nproperties = {{uri = "https://x", token = ["{PASSWORD}"]}}', "catalog.properties", "token must be text"),
    "no section": (f'properties = "{PASSWORD}"', "catalog.properties", "must be a JSON object in the environment"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_no_secret_is_shown(tmp_path: Path, case: str) -> None:
    toml, field, rule = WRONG[case]
    (mistake,) = mistakes(tmp_path, f"[catalog]\n{toml}\n")
    assert mistake.field == field
    assert rule in mistake.rule
    assert PASSWORD not in str(mistake)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    toml = '[catalog]\ntype = "hive"\nname = ""\nurl = "x"\n[flush]\nage_s = 0\n'
    assert {mistake.field for mistake in mistakes(tmp_path, toml)} == {
        *("catalog.name", "catalog.url", "catalog.properties.uri", "flush.age_s"),
    }


def test_settings_do_not_show_their_secrets(tmp_path: Path) -> None:
    toml = f'[catalog]\ntype = "rest"\nsecret_key = "{PASSWORD}"\naccess_key = "a"\n[catalog.properties]\nuri = "x"\ntoken = "{PASSWORD}"\n'
    assert PASSWORD not in repr(load(tmp_path, toml))
    assert PASSWORD not in repr(load(tmp_path, f'[catalog]\nuri = "{URI}"\n'))


def test_a_word_that_is_no_secret_is_left_in_messages() -> None:
    properties = {"uri": "https://x", "warehouse": "prod", "credential": "id:secret", "header.Authorization": "Basic x", "s3.region": "eu"}
    assert sorted(CatalogSettings(type="rest", properties=properties).secrets) == ["Basic x", "id:secret"]


def test_a_wrong_value_from_the_environment_is_not_shown_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, environment={"DOLAKE_CATALOG_PROPERTIES": PASSWORD, "DOLAKE_CATALOG_URI": PASSWORD})
    assert PASSWORD not in str(refused.value)
