"""`dolake serve`, its two halves alone, and the REST catalog alone."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dolake.cli.options import Config, Data, settings_from

serve_app = typer.Typer(add_completion=False)
ingest_app = typer.Typer(add_completion=False)
writer_app = typer.Typer(add_completion=False)
catalog_app = typer.Typer(add_completion=False)

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on; loopback only until there are tokens.")]
Port = Annotated[int | None, typer.Option("--port", help="Websocket port for sources; 0 takes a free one. Default 8765.")]
HttpPort = Annotated[
    int | None, typer.Option("--http-port", help="Port of the REST catalog, health and metrics; 0 takes a free one. Default 8181.")
]
Warehouse = Annotated[str | None, typer.Option("--warehouse", metavar="URI", help="file:///path or s3://bucket/prefix.")]

LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error. Default info.")]
LogFormat = Annotated[str | None, typer.Option("--log-format", help="auto, console or json. Default auto: JSON unless on a terminal.")]


@serve_app.command()
def serve(
    data: Data = None,
    config: Config = None,
    host: Host = None,
    port: Port = None,
    http_port: HttpPort = None,
    warehouse: Warehouse = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> int:
    """Run a whole daemon in the foreground. DIR/ready.json says where it listens. Ctrl-C flushes and stops."""
    from dolake.daemon.supervisor import serve as run

    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "http_port": http_port,
        "warehouse.uri": warehouse,
        **_logging(log_level, log_format),
    }
    return run(lambda: settings_from(data, config, writing=True, **flags))


@ingest_app.command()
def ingest(
    data: Data = None,
    config: Config = None,
    host: Host = None,
    port: Port = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> int:
    """Run the ingest half alone: it takes batches, writes them to the log, and acks them once they are on disk."""
    from dolake.daemon.child import run_alone

    flags: dict[str, Any] = {"host": host, "port": port, **_logging(log_level, log_format)}
    return run_alone("ingest", lambda: settings_from(data, config, writing=True, **flags))


@writer_app.command()
def writer(
    data: Data = None,
    config: Config = None,
    warehouse: Warehouse = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> int:
    """Run the writer half alone: it reads the log and commits tables."""
    from dolake.daemon.child import run_alone

    flags: dict[str, Any] = {"warehouse.uri": warehouse, **_logging(log_level, log_format)}
    return run_alone("writer", lambda: settings_from(data, config, writing=True, with_tokens=False, **flags))


@catalog_app.command()
def catalog(
    data: Data = None,
    config: Config = None,
    host: Host = None,
    http_port: HttpPort = None,
    warehouse: Warehouse = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> int:
    """Serve the Iceberg REST catalog alone, under /v1: for a catalog without a daemon, or beside one."""
    from dolake.daemon.child import run_alone

    flags: dict[str, Any] = {"host": host, "http_port": http_port, "warehouse.uri": warehouse, **_logging(log_level, log_format)}
    return run_alone("catalog", lambda: settings_from(data, config, writing=True, **flags))


def _logging(level: str | None, format: str | None) -> dict[str, Any]:
    return {"log_level": level, "log_format": format}
