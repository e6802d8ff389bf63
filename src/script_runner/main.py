"""Where the original had its WSGI application (``gunicorn script_runner.main:app``): says the new command."""

import sys

APP_LOAD_ERROR = 4
"""On this exit code of its worker gunicorn stops; on others it would start it again for ever."""

sys.stderr.write(
    "script-runner: there is no application for gunicorn or flask in script_runner.main any more. "
    "Start the server with: script-runner serve --host 0.0.0.0 --port 8000\n"
)
raise SystemExit(APP_LOAD_ERROR)
