"""`python -m dolake`: a supervised child goes straight to its work, everybody else to the command line."""

import sys


def main() -> None:
    if sys.argv[2:3] == ["--supervised"]:
        from dolake.daemon.child import main as run_child

        sys.exit(run_child(sys.argv[1:]))
    from dolake.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
