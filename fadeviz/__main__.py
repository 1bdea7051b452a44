"""``python -m fadeviz``: the command line, where ``fadeviz`` is not on the PATH."""

from fadeviz_cli.main import main

if __name__ == "__main__":
    main(prog_name="fadeviz")
