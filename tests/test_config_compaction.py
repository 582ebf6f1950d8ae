"""`[compaction]` with Spark: what it cannot do without, what is no address of one, and that no token is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from dolake.config import Settings
from tests.test_config import load, mistakes

TOKEN = "t0ken-0f-th3-cluster"
SPARK = '[compaction]\nengine = "spark"\nspark_catalog = "lake"\n'


def test_a_table_is_rewritten_here_unless_set(tmp_path: Path) -> None:
    compaction = load(tmp_path).compaction
    assert (compaction.engine, compaction.spark_catalog, compaction.spark_remote, compaction.spark) == ("local", None, None, {})


def test_a_session_has_the_settings_of_spark_as_they_are(tmp_path: Path) -> None:
    toml = f"""{SPARK}
    spark_master = "local[2]"
    [compaction.spark]
    "spark.sql.catalog.lake" = "org.apache.iceberg.spark.SparkCatalog"
    "spark.sql.catalog.lake.token" = "{TOKEN}"
    "spark.ui.enabled" = false
    "spark.executor.instances" = 4
    """
    settings = load(tmp_path, toml)
    assert settings.compaction.spark == {
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.token": TOKEN,
        "spark.ui.enabled": "false",
        "spark.executor.instances": "4",
    }
    assert Settings.from_json(settings.to_json()) == settings
    assert settings.compaction.spark_secrets == (TOKEN,)
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize(
    "remote", ["sc://spark:15002", "sc://spark", "sc://[2001:db8::1]:15002/", f"sc://h:443/;use_ssl=true;token={TOKEN}"]
)
def test_a_server_is_named_by_its_address(tmp_path: Path, remote: str) -> None:
    settings = load(tmp_path, SPARK, {"DOLAKE_COMPACTION_SPARK_REMOTE": remote, "DOLAKE_COMPACTION_SPARK": '{"spark.a": "b"}'})
    assert (settings.compaction.spark_remote, settings.compaction.spark) == (remote, {"spark.a": "b"})
    assert settings.compaction.spark_secrets == ((TOKEN,) if "token" in remote else ())
    assert TOKEN not in repr(settings)


ADDRESS = "must be sc://host:port"
WRONG = {
    "an unknown engine": ('engine = "trino"', "engine", "must be 'local' or 'spark'"),
    "no catalog": ('engine = "spark"', "spark_catalog", "is required where compaction.engine is spark"),
    "a catalog of two words": ('spark_catalog = "lake.public"', "spark_catalog", "must be one name of letters"),
    "an address of the web": ('spark_remote = "https://spark:15002"', "spark_remote", ADDRESS),
    "no host": ('spark_remote = "sc://:15002"', "spark_remote", ADDRESS),
    "a port that is none": (f'spark_remote = "sc://h:x/;token={TOKEN}"', "spark_remote", ADDRESS),
    "a path": (f'spark_remote = "sc://h/path;token={TOKEN}"', "spark_remote", ADDRESS),
    "parameters of the web": (f'spark_remote = "sc://h/?token={TOKEN}"', "spark_remote", ADDRESS),
    "a user": (f'spark_remote = "sc://{TOKEN}@h"', "spark_remote", ADDRESS),
    "no master": ('spark_master = "localhost"', "spark_master", "must be what Spark takes as its master"),
    "a server and a master": (
        'spark_remote = "sc://h"\nspark_master = "yarn"',
        "spark_master",
        "must not be given together with compaction.spark_remote",
    ),
    "a dotted name without quotes": (
        f'[compaction.spark]\nspark.sql.catalog.lake.token = "{TOKEN}"',
        "spark",
        'spark must be text; a dotted name is written in quotes, as in "spark.sql" = …',
    ),
    "a setting of ours": ('[compaction.spark]\n"spark.master" = "yarn"', "spark", "it is compaction.spark_master"),
    "a setting of nobody's": (f'[compaction.spark]\ntoken = "{TOKEN}"', "spark", "token must be a setting of Spark"),
    "no object": (f'spark = "{TOKEN}"', "spark", "must be a JSON object in the environment"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_no_token_is_shown(tmp_path: Path, case: str) -> None:
    toml, field, rule = WRONG[case]
    (mistake,) = mistakes(tmp_path, f"[compaction]\n{toml}\n")
    assert mistake.field == f"compaction.{field}"
    assert rule in mistake.rule
    assert TOKEN not in str(mistake)
