"""``python -m script_runner`` is ``script-runner``."""

from script_runner.cli import main

if __name__ == "__main__":
    main()
