"""Where the original had its Celery application (``celery -A script_runner.analysis``): says the new command."""

import sys

CANNOT_WORK = 4

sys.stderr.write(
    "script-runner: there is no Celery application in script_runner.analysis any more. "
    "Start a worker with: script-runner worker --concurrency 1\n"
)
raise SystemExit(CANNOT_WORK)
