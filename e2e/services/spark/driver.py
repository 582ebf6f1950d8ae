"""Answers SQL statements that come as JSON lines with pickled rows: the Spark of the end-to-end tests, in an environment of its own.

A line in: `{"sql": …}` or `{"settings": {…}}`. A line out, on the descriptor that the first argument names:
`{"columns": […], "rows": base64 of a pickled list of tuples}` or `{"error": …}`. The second argument are the jars; settings may follow,
each as name=value.
"""

import base64
import json
import os
import pickle
import sys
from datetime import UTC

from pyspark.sql import Row, SparkSession
from pyspark.sql.types import TimestampType

_SETTINGS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
}


def main(answers, jars, *options):
    builder = SparkSession.builder.master("local[2]").config("spark.jars", jars)
    for name, value in {**_SETTINGS, **dict(option.split("=", 1) for option in options)}.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            out.write(json.dumps(_answer(spark, json.loads(line))) + "\n")
            out.flush()
    spark.stop()


def _answer(spark, asked):
    try:
        for name, value in asked.get("settings", {}).items():
            spark.conf.set(name, value)
        if "sql" not in asked:
            return {"columns": [], "rows": _packed([])}
        found = spark.sql(asked["sql"])
        # Spark hands out moments as the local time, which main's environment makes UTC.
        moments = [isinstance(field.dataType, TimestampType) for field in found.schema.fields]
        rows = [
            tuple(
                value.replace(tzinfo=UTC) if is_moment and value is not None else _plain(value)
                for value, is_moment in zip(row, moments, strict=True)
            )
            for row in found.collect()
        ]
        return {"columns": found.columns, "rows": _packed(rows)}
    except Exception as error:  # Whatever it is, it is the answer.
        said = [line for line in str(error).splitlines() if not line.startswith("\tat ")]  # Java's frames say nothing here.
        return {"error": "\n".join([type(error).__name__, *said])}


def _plain(value):
    """Values of Python's own types."""
    if isinstance(value, Row):
        return value.asDict(recursive=True)
    return bytes(value) if isinstance(value, bytearray) else value


def _packed(rows):
    return base64.b64encode(pickle.dumps(rows)).decode()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
